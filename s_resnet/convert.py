"""Conversion: trace, calibrate, and run the passes of a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .calibrate import Batches, Calibration, calibrate, calibrate_from_batchnorm
from .errors import ConversionError, InvalidData
from .graph import Graph
from .ops import Conv2d, MaxPool2d
from .passes import quantize_weights
from .recipes import Recipe, Step, find
from .trace import trace
from .version import __version__

HELD_OUT = 64  # at most; calibrate keeps at least half of the images for the statistics
WEIGHTS = ("float32", "int8")
IMAGENET_SIZED = 128  # pixels; from here on the percentile's default is the paper's for ImageNet


def convert(
    model: nn.Module | Graph,
    calibration_batches: Batches | None = None,
    recipe: str | Recipe = "s-resnet",
    *,
    timesteps: int | None = None,
    percentile: float | None = None,
    input_size: int | None = None,
    weights: str = "float32",
    progress: bool = False,
) -> Graph:
    """Turn a trained ResNet into a spiking network: ``snn(images, timesteps=64)`` gives logits ``[B, N]``.

    Args:
        model: any module that :func:`s_resnet.trace` follows, or its Graph. It is not changed.
        calibration_batches: images ``[B, C, H, W]`` as the model wants them, alone or as (images, labels); a list or a
            DataLoader, without random augmentation. The first 64 images (at most half) are kept for the search of the
            compensation, the others give the percentiles. None takes both from the BatchNorm statistics.
        recipe: a name in :data:`s_resnet.RECIPES`, or a Recipe.
        timesteps: the T to tune for; by default the recipe's (350, the paper's).
        percentile: of the activations, in percent; by default 99.9, and 99.99 from 128 pixels on.
        input_size: height and width, used without calibration batches; by default 224 for a network with a max-pool
            stem, else 32.
        weights: ``"float32"``, or ``"int8"`` for an integer network (:func:`s_resnet.passes.quantize_weights`).
        progress: show bars on stderr when it is a terminal.

    Raises:
        UnsupportedModel, InvalidData, ConversionError: each says where, what it got, and what to do.

    Source: Hu, Tang and Pan, "Spiking Deep Residual Network", arXiv:1805.01352.
    """
    recipe = find(recipe) if isinstance(recipe, str) else recipe
    if weights not in WEIGHTS:
        raise InvalidData(f"convert: got weights {weights!r}; expected {' or '.join(WEIGHTS)}. Choose one of them.")
    if weights == "int8":
        recipe = replace(recipe, steps=(*recipe.steps, Step(quantize_weights)))
    timesteps = recipe.timesteps if timesteps is None else timesteps
    if timesteps < 1:
        raise InvalidData(
            f"convert: got timesteps={timesteps}; expected at least 1. The recipe's own is {recipe.timesteps}."
        )
    example = _example(model, calibration_batches, input_size)
    graph = model if isinstance(model, Graph) else trace(model, example)
    if percentile is None:
        percentile = 99.99 if example.shape[-1] >= IMAGENET_SIZED else 99.9
    if calibration_batches is None:
        calibration = calibrate_from_batchnorm(graph, percentile)
    else:
        calibration = calibrate(graph, calibration_batches, percentile, HELD_OUT, progress)
    snn = apply_recipe(graph, calibration, recipe, timesteps, progress)
    return snn.with_provenance(
        calibration=calibration.summary(),
        input_shape=list(example.shape[1:]),
        versions={"s_resnet": __version__, "torch": torch.__version__},
    )


def apply_recipe(
    graph: Graph, calibration: Calibration, recipe: Recipe, timesteps: int, progress: bool = False
) -> Graph:
    """Run the recipe's passes on an analog graph and validate the result.

    Raises ConversionError when a pass that is not optional finds nothing to rewrite.
    """
    applied: list[dict[str, Any]] = []
    for step in recipe.steps:
        settings = dict(step.settings)
        if step.name == "compensate":
            settings = {"timesteps": timesteps, "progress": progress, **settings}
        before = graph
        graph = step.run(graph, calibration, **settings)
        if graph is before and not step.optional:
            raise ConversionError(
                f"{step.name}: got nothing to rewrite in this network; expected something, as recipe {recipe.name} "
                "needs it. Mark the step optional if that is right."
            )
        if graph is not before:
            settings.pop("progress", None)
            applied.append({"pass": step.name, **settings})
    return graph.validate().with_provenance(recipe={"name": recipe.name, "timesteps": timesteps, "passes": applied})


def _example(model: nn.Module | Graph, batches: Batches | None, input_size: int | None) -> Tensor:
    """Two calibration images, or zeros of a plausible shape."""
    if batches is not None:
        for batch in batches:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            if not isinstance(images, Tensor) or images.ndim != 4 or len(images) == 0:
                break
            return images[[0, -1]]  # two, also of a batch of one: x.squeeze() must not drop the batch
        raise InvalidData(
            "convert: got no usable calibration batch; expected images [B, C, H, W] or (images, labels). Check them."
        )
    if isinstance(model, Graph):
        convs = [node.op.weight.shape[1] * node.op.groups for node in model.nodes if isinstance(node.op, Conv2d)]
        pooled = any(isinstance(node.op, MaxPool2d) for node in model.nodes)
    else:
        convs = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
        pooled = any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    if not convs:
        raise InvalidData(f"convert: got {type(model).__name__} without a convolution; expected a ResNet. Check it.")
    size = input_size or (224 if pooled else 32)
    return torch.zeros(2, convs[0], size, size)
