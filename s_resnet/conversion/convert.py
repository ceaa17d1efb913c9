"""Conversion: trace, calibrate, and run the passes of a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data.arguments import Batches, given_images, images_of, whole_number
from ..data.leakage import origin
from ..errors import ConversionError, InvalidData, UnsupportedModel
from ..frontend.qcfs import QCFSModule
from ..frontend.trace import SIGNALS, checked, trace
from ..graph.graph import Graph
from ..graph.ops import QCFS, Conv2d, Flatten, MaxPool2d, Node, ReLU
from ..runtime.device import find_device
from ..version import __version__
from .apply_recipe import apply_recipe
from .auto import choose_recipe
from .batchnorm import calibrate_from_batchnorm
from .calibrate import Calibration, calibrate
from .passes import compensate
from .recipes import QUANTIZED, TRAINED, Recipe
from .request import Request
from .source_check import check_source, untouched_note, warn

HELD_OUT = 32  # at most, for the search of the compensation; calibrate keeps at least half for the statistics
WATCHED = 256  # at most, held out for recipe "auto" to choose by
IMAGENET_SIZED = 128  # pixels; from here on the percentile's default is the paper's for ImageNet


def convert(
    model: nn.Module | Graph,
    calibration_batches: Batches | None = None,
    recipe: str | Recipe | None = None,
    *,
    timesteps: int | None = None,
    percentile: float | None = None,
    input_size: int | None = None,
    weights: str = "float32",
    reconstruct: bool = False,
    resume: str | os.PathLike[str] | None = None,
    spikes: str | None = None,
    target_drop: float | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Graph:
    """Turn a trained ResNet into a spiking network: ``snn(images, timesteps=64)`` gives logits ``[B, N]``.

    Of a model that ends in features, one number or scores ``[B, N, 1, 1]`` it gives those, in the same shape.

    A directly trained spiking network stays what it is: its batch normalization is folded, and none of the settings
    below apply. A :class:`s_resnet.frontend.QCFSModule` brings its thresholds, and takes no calibration: by default all
    layers run at once for T = L steps; with recipe ``"phased"`` the spike counts are the ANN's own.

    Args:
        model: any module that :func:`s_resnet.trace` follows, or its Graph. It is not changed.
        calibration_batches: images ``[B, C, H, W]`` as the model wants them, alone or as (images, labels); a list or a
            DataLoader, without random augmentation, all of which are used. For recipes with a compensation the first
            32 images (at most half) are kept for its search, the others give the percentiles. Labels are not looked
            at. None takes both from the BatchNorm statistics.
        recipe: a name in :data:`s_resnet.RECIPES`, ``"auto"``, or a Recipe. By default ``"calibrated"`` with
            calibration batches, and without ``"s-resnet"``, the paper's, which can do without.
        timesteps: the T to tune for; by default the recipe's (16 for calibrated, 350, the paper's, for s-resnet).
        percentile: of the activations, in percent; by default 99.9, and 99.99 from 128 pixels on. Recipes
            that are fitted to images find their thresholds by the error, and do not look at it.
        input_size: height and width, used without calibration batches; by default 224 for a network with a max-pool
            stem, else 32.
        reconstruct: also reconstruct weights and biases on the calibration images, block by block
            (:func:`s_resnet.conversion.passes.reconstruct`); for recipes that fit to images.
        resume: a file for the reconstruction to go on from after an interruption.
        spikes, target_drop: for recipe ``"auto"``: the alphabet allowed (``"binary"``, ``"signed"`` or ``"levels"``),
            and the percentage of held-out calibration images that the network may answer otherwise than the ANN, to
            choose T by; see :func:`s_resnet.conversion.choose_recipe`.
        weights: ``"float32"``; ``"dyadic"``, so that every engine gives the same spikes
            (:func:`s_resnet.conversion.passes.dyadic_weights`); or ``"int8"`` for an integer network
            (:func:`s_resnet.conversion.passes.quantize_weights`).
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: where to calibrate, fit and reconstruct. The result
            is on the CPU.
        progress: show bars on stderr when it is a terminal.

    Raises:
        UnsupportedModel, InvalidData, ConversionError: each says where, what it got, and what to do.
        BackendUnavailable: ``device="cuda"`` without a GPU.

    Source: Hu, Tang and Pan, "Spiking Deep Residual Network", arXiv:1805.01352.
    """
    request = Request(recipe, timesteps, percentile, weights, reconstruct, spikes, target_drop)
    where = find_device(device)
    if isinstance(model, QCFSModule):
        model = model.graph()
    model = model if isinstance(model, Graph) else checked(model)
    example = _example(model, calibration_batches, input_size)
    graph = (model if isinstance(model, Graph) else trace(model, example)).to(where)
    if graph.trained:
        wishes: dict[str, object] = {**vars(request), "weights": weights != "float32"}
        return _trained(graph, example, _given(wishes))
    graph, said = _scores(graph, example, request.named(calibration_batches is not None))
    if any(isinstance(node.op, QCFS) for node in graph.nodes):
        refused = _given({"calibration": calibration_batches, "percentile": percentile, "reconstruct": reconstruct})
        return _quantized(graph, example, request, refused).with_provenance(**said)
    fixed = request.plan(calibration_batches is not None, resume)
    graph = _checked(graph, calibration_batches)
    calibration = _calibrated(graph, calibration_batches, percentile, example.shape[-1], fixed, progress)
    if fixed is not None:
        snn = apply_recipe(graph, calibration, fixed, request.timesteps or fixed.timesteps, progress)
    else:
        snn = choose_recipe(
            *(graph, calibration, spikes or "binary", request.timesteps, target_drop),
            complete=request.completed,
            progress=progress,
        )
    known = origin(calibration_batches, graph.run(example.to(where)).shape[1])
    return _documented(snn, calibration, example).with_provenance(**said, **known)


def _scores(graph: Graph, example: Tensor, recipe: Recipe | None) -> tuple[Graph, dict[str, list[int]]]:
    """The network with an answer ``[B, N]`` inside, and what its provenance says where the source's is not so.

    Raises UnsupportedModel for a source network without a ReLU, and for one that answers with maps; ConversionError for
    a spiking network, and for one that answers one number, by a recipe that counts the spikes of classes.
    """
    if graph.neurons:
        raise ConversionError(
            "convert: got a spiking network; expected its source. Convert the module that it is from."
        )
    if not any(isinstance(node.op, ReLU | QCFS) for node in graph.nodes):
        raise UnsupportedModel(
            "convert: got a network without a ReLU; expected at least one, as ReLUs become spiking neurons. Check that "
            "activations are nn.ReLU or F.relu, and are in the forward."
        )
    numbers = next(value for node in graph.nodes for value in vars(node.op).values() if isinstance(value, Tensor))
    *_, (name, answer) = graph.activations(example.to(numbers))
    if answer.shape[1] == 1 and recipe and any(step.settings.get("mode") == "spikes" for step in recipe.steps):
        raise ConversionError(
            f"convert: got recipe {recipe.name}, which scores classes by their spikes, for a network that answers one "
            "number; expected a recipe that reads currents. Choose s-resnet or calibrated."
        )
    if answer.ndim == 2:
        return graph, {}
    shape = list(answer.shape[1:])
    if shape[1:] != [1, 1]:
        raise UnsupportedModel(
            f"{name}: got an answer of {' x '.join(map(str, shape))} for an image; expected scores or features [B, N], "
            "or [B, N, 1, 1]. End the model in a global average pool or a linear layer; the maps of a whole network "
            f"are to be had by name: s_resnet.simulation.features(snn, images, timesteps, [{name!r}])."
        )
    flat = Node(f"{name}.flatten", Flatten(), (name,))
    return replace(graph, nodes=(*graph.nodes, flat)), {"answer_shape": shape}


def _given(wishes: Mapping[str, object]) -> list[str]:
    """The names of what was asked for."""
    return [name for name, value in wishes.items() if value is not None and value is not False]


def _checked(graph: Graph, batches: Batches | None) -> Graph:
    """The analog network with what a look at it and at the first images told; what looks wrong is warned of."""
    if batches is None:
        warn(untouched_note(graph))
        return graph
    check = check_source(graph, batches)
    warn(check.notes)
    return graph.with_provenance(check=check.summary())


def _calibrated(
    graph: Graph, batches: Batches | None, percentile: float | None, size: int, recipe: Recipe | None, progress: bool
) -> Calibration:
    """The statistics that a recipe, or the choice among recipes, needs; from BatchNorm where there are no images."""
    if percentile is None:
        percentile = 99.99 if size >= IMAGENET_SIZED else 99.9
    if batches is None:
        return calibrate_from_batchnorm(graph, percentile)
    if recipe is None:
        return calibrate(graph, batches, percentile, WATCHED, progress, fitting=True)
    searched = any(step.run is compensate for step in recipe.steps)
    return calibrate(graph, batches, percentile, HELD_OUT if searched else 0, progress, recipe.fits)


def _documented(snn: Graph, calibration: Calibration, example: Tensor) -> Graph:
    """The network on the CPU, and where it is from."""
    return snn.to("cpu").with_provenance(
        calibration=calibration.summary(),
        input_shape=list(example.shape[1:]),
        versions={"s_resnet": __version__, "torch": torch.__version__},
    )


def _trained(graph: Graph, example: Tensor, asked: list[str]) -> Graph:
    """A directly trained network with its batch normalization folded."""
    if asked:
        raise InvalidData(
            f"convert: got {', '.join(asked)} for a network that was trained as a spiking one; expected none of these. "
            "Leave them out; evaluate takes any T."
        )
    nothing = Calibration({}, 100.0, 0, "training")
    return _documented(apply_recipe(graph, nothing, TRAINED, graph.trained_for), nothing, example)


def _quantized(graph: Graph, example: Tensor, request: Request, refused: list[str]) -> Graph:
    """A network with the thresholds and levels that it was trained with."""
    named = request.named(with_images=False)
    name = "auto" if named is None else named.name
    if name not in ("s-resnet", "phased"):
        refused = [*refused, f"recipe {name}"]
    if refused or named is None:
        raise InvalidData(
            f"convert: got {', '.join(refused)} for a network trained with QCFS activations, which bring thresholds "
            "and levels; expected none, or recipe phased. Leave them out."
        )
    extra = request.completed(named).steps[len(named.steps) :]  # of --weights
    schedule = "phased" if name == "phased" else "streaming"
    chosen = QUANTIZED.set("relu_to_neuron", schedule=schedule)
    chosen = replace(chosen, name=f"qcfs-{schedule}", steps=(*chosen.steps, *extra))
    ops = {node.name: node.op for node in graph.nodes if isinstance(node.op, QCFS)}
    scales = {name: float(op.threshold) for name, op in ops.items()}
    for node, scale in scales.items():
        if not scale > 0:
            raise InvalidData(f"{node}: got threshold {scale}; expected a positive one. Train with a lower rate.")
    known = Calibration(scales, 100.0, 0, "training")
    steps = request.timesteps or max(op.quantization_levels for op in ops.values())
    return _documented(apply_recipe(graph, known, chosen, steps), known, example)


def _example(model: nn.Module | Graph, batches: Batches | None, input_size: int | None) -> Tensor:
    """Two calibration images, or zeros of a plausible shape."""
    if isinstance(model, Graph):
        convs = [node.op.weight.shape[1] * node.op.groups for node in model.nodes if isinstance(node.op, Conv2d)]
        pooled = any(isinstance(node.op, MaxPool2d) for node in model.nodes)
    else:
        convs = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
        pooled = any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    if batches is not None:
        return _first_images(batches, convs[:1])
    if not convs:
        raise InvalidData(f"convert: got {type(model).__name__} without a convolution; expected a ResNet. Check it.")
    size = 224 if pooled else 32
    if input_size is not None:
        size = whole_number(input_size, "convert", "input_size")
    return torch.zeros(2, convs[0], size, size)


def _first_images(batches: Batches, channels: list[int]) -> Tensor:
    """Two of the first batch, also where it has one: x.squeeze() must not drop the batch."""
    for batch in batches:
        given = given_images(batch)
        if isinstance(given, Tensor) and given.ndim == 3:
            raise InvalidData(f"convert: got a batch of {tuple(given.shape)}; expected [B, C, H, W]. {SIGNALS}.")
        images = images_of(batch, "convert")
        if images.ndim != 4 or len(images) == 0:
            raise InvalidData(
                f"convert: got a batch of shape {tuple(images.shape)}; expected images [B, C, H, W], at least one. Of "
                "events pass the mean over their frames."
            )
        if images.shape[1] not in channels and images.shape[3] in channels:
            raise InvalidData(
                f"convert: got images of shape {tuple(images.shape)} for a network of {channels[0]} channels; expected "
                "[B, C, H, W]. They look like [B, H, W, C]: pass images.permute(0, 3, 1, 2)."
            )
        return images[[0, -1]].cpu()
    raise InvalidData("convert: got no calibration batch; expected images [B, C, H, W]. Pass at least one batch.")
