"""Conversion: trace, calibrate, and run the passes of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data.arguments import Batches, as_maps, check_batches, given_images, images_of
from ..errors import ConversionError, InvalidData, UnsupportedModel, message
from ..frontend.program import Program
from ..frontend.qcfs import QCFSModule
from ..frontend.trace import checked, trace
from ..graph.graph import Graph
from ..graph.ops import QCFS, Conv2d, Flatten, MaxPool2d, Node, ReLU
from ..graph.provenance import Parts, Versions
from ..runtime.device import find_device
from ..runtime.display import brief
from ..runtime.processes import all_gather, rank_and_world_size, shared_errors
from ..version import __version__
from .auto import Auto
from .batchnorm import calibrate_from_batchnorm
from .calibrate import NO_CALIBRATION, Calibration, calibrate, check_repeatable
from .context import Context
from .distill import SEED, distill_images
from .origin import origin
from .passes import compensate
from .published import recipe_named
from .recipes import QUANTIZED, TRAINED, Recipe, default_recipe
from .several import own_and_others, tune
from .source_check import check_source, untouched_note, warn
from .spill import Once

Shape = tuple[int, ...]  # (C, H, W) of an image, or (C, L) of a signal
HELD_OUT = 32  # images at most, to search the compensation; calibrate keeps at least half for the statistics
WATCHED = 256  # images at most, for recipe "auto" to choose by
IMAGENET_SIZED = 128  # pixels from which the default percentile is the paper's for ImageNet


def convert(
    model: nn.Module | Graph,
    calibration_batches: Batches | Shape | None = None,
    recipe: str | Recipe | Auto | None = None,
    *,
    timesteps: int | Sequence[int] | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Graph:
    """Turn a trained ResNet into a spiking network: ``snn(images, timesteps=64)`` gives logits ``[B, N]``.

    A model that ends in features, one number or scores ``[B, N, 1, 1]`` gives a network with answers of the same shape.

    A directly trained spiking network stays as it is: only its batch normalization is folded, and it takes neither
    recipe nor T. A :class:`s_resnet.frontend.QCFSModule` has learned its thresholds and takes no calibration: by
    default all layers run at once for T = L steps; with recipe ``"phased"`` the spike counts are the ANN's own.

    Args:
        model: any module that :func:`s_resnet.trace` can trace, or its Graph. It is not changed.
        calibration_batches: images ``[B, C, H, W]``, or signals ``[B, C, L]``, preprocessed for the model, alone or as
            (images, labels); a list or a DataLoader without random augmentation. All of them are used, without their
            labels. For recipes with a compensation the first 32 images (at most half) are held out for its search, and
            the others give the percentiles. Without images the shape ``(C, H, W)`` of an image, or ``(C, L)`` of a
            signal, may be passed instead; by default H and W are 224 for a network with a max-pool stem, else 32.
            Recipes that are fitted to images then make them from the BatchNorm statistics
            (:func:`s_resnet.conversion.distill_images`, minutes for a ResNet-50 on a CPU); the paper's take thresholds
            and compensation from these statistics at once.
        recipe: a name in :data:`s_resnet.RECIPES` or :data:`s_resnet.conversion.PUBLISHED`, or ``"auto"``; or a
            :class:`Recipe` or :class:`Auto` with all its settings:
            ``RECIPES["phased"].reconstructed(minutes=10).with_weights("int8")``. By default ``"calibrated"`` with
            calibration batches, and ``"calibrated-currents"`` without.
        timesteps: the T to tune for, instead of the recipe's (16 for calibrated, 128 for calibrated-currents, the
            paper's 350 for s-resnet). Or several, such as ``(4, 8, 16, 32)``: one network whose weights are fitted at
            the T that :func:`s_resnet.conversion.own_and_others` tells, with thresholds, currents and readout fitted
            for each; for recipes that fit neurons to a T.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: where to calibrate, fit and reconstruct. The result
            is on the CPU.
        progress: show bars on stderr when it is a terminal.

    In a process group of torch.distributed each process passes its own part of the images (see
    :func:`s_resnet.runtime.shard`), at least one, and all get the same network. Thresholds are those of one process to
    the last bit; corrections, fitted weights and the readout differ by the rounding of their sums.

    Returns:
        The spiking network; its ``provenance`` says where it is from.

    Raises:
        UnsupportedModel: the model has an operation that cannot be traced or converted.
        InvalidData: images, T or other settings do not fit the model.
        ConversionError: the recipe cannot convert this model, or not without calibration images.
        BackendUnavailable: ``device="cuda"`` without a GPU.

    Source: Hu, Tang and Pan, "Spiking Deep Residual Network", arXiv:1805.01352.
    """
    with shared_errors():
        return _convert(model, calibration_batches, recipe, timesteps, find_device(device), progress)


def _convert(
    model: nn.Module | Graph,
    calibration_batches: Batches | Shape | None,
    recipe: str | Recipe | Auto | None,
    timesteps: int | Sequence[int] | None,
    where: torch.device,
    progress: bool,
) -> Graph:
    """The network of :func:`convert`, on its device."""
    batches, shape = _told_apart(calibration_batches)
    wished = _wished(recipe, batches is not None)
    own, others = own_and_others(timesteps, wished)
    wished = wished if own is None else wished.at(own)
    progress = progress and rank_and_world_size()[0] == 0
    if isinstance(model, QCFSModule):
        model = model.graph()
    model = model if isinstance(model, Graph) else checked(model)
    example = _example(model, batches, shape)
    graph = (model if isinstance(model, Graph) else trace(model, example)).to(where)
    if graph.trained:
        return _trained(graph, example, _given(recipe=recipe, timesteps=timesteps))
    graph, said = _scores(graph, example, wished)
    if any(isinstance(node.op, QCFS) for node in graph.nodes):
        return _quantized(graph, example, recipe, own, batches, others).with_provenance(**said)
    if isinstance(wished, Auto) and batches is None:
        remedy = "Pass calibration_batches, or a recipe by name"
        expected = "some, by which it chooses"
        raise ConversionError(message(f"recipe {wished.name}", "", "no calibration images", expected, remedy))
    given = batches
    if batches is not None and wished.fits:  # as many as fitting takes are kept in a file in any case
        check_repeatable(batches)
        given = Once(batches)
    graph = _checked(graph, given)
    if given is None and wished.fits:
        calibration = _distilled(graph, wished, example, progress)
    else:
        calibration = _calibrated(graph, given, wished, example, progress)
    context = Context(calibration, progress=progress)
    snn = wished.apply(graph, context)
    if others and isinstance(wished, Recipe):
        snn = tune(snn, wished, context, others)
    known = origin(batches, graph.run(example.to(where)).shape[1])
    return _documented(snn, calibration, example).with_provenance(**said).with_provenance(**known)


def _told_apart(given: Batches | Shape | None) -> tuple[Batches | None, Shape | None]:
    """Calibration batches, or the image shape that was passed instead.

    Raises:
        InvalidData: it is neither.
    """
    if not isinstance(given, tuple | list) or not given or not isinstance(given[0], int):
        check_batches(given, "convert")
        return given, None
    if len(given) not in (2, 3) or any(type(size) is not int or size < 1 for size in given):
        expected = "(C, H, W), or (C, L) of signals, whole numbers above 0"
        remedy = "Pass a shape such as (3, 32, 32)"
        raise InvalidData(message("convert", "", f"an image shape {given!r}", expected, remedy))
    return None, tuple(given)


def _wished(recipe: str | Recipe | Auto | None, with_images: bool) -> Recipe | Auto:
    """The recipe of that name, the default one, or ``recipe`` itself.

    Raises:
        ConversionError: the name is unknown, or it is neither a name nor a recipe.
    """
    if recipe is None:
        return default_recipe(with_images)
    if isinstance(recipe, Recipe | Auto):
        return recipe
    if recipe == Auto.name:
        return Auto()
    if not isinstance(recipe, str):
        remedy = "Pass a name in s_resnet.RECIPES"
        raise ConversionError(message("recipe", "", brief(recipe), "a name, a Recipe or an Auto", remedy))
    return recipe_named(recipe)


def _scores(graph: Graph, example: Tensor, recipe: Recipe | Auto) -> tuple[Graph, Parts]:
    """The network with an answer ``[B, N]``, and what its provenance records if the source's answer differs.

    Raises:
        UnsupportedModel: the source network has no ReLU, or answers with maps.
        ConversionError: it is a spiking network, or it answers one number and the recipe scores classes by spikes.
    """
    if graph.neurons:
        remedy = "Convert the module that it was made from"
        raise ConversionError(message("convert", "", "a spiking network", "its source", remedy))
    if not any(isinstance(node.op, ReLU | QCFS) for node in graph.nodes):
        expected = "at least one, as ReLUs become spiking neurons"
        remedy = "Use nn.ReLU or F.relu for the activations, and call them in forward"
        raise UnsupportedModel(message("convert", "", "a network without a ReLU", expected, remedy))
    numbers = next(iter(graph.tensors().values()))
    *_, (name, answer) = graph.activations(example.to(numbers))
    if answer.shape[1] == 1 and recipe.counts_spikes:
        got = f"recipe {recipe.name}, which scores classes by their spikes, for a network that answers one number"
        remedy = "Choose s-resnet or calibrated"
        raise ConversionError(message("convert", "", got, "a recipe that reads currents", remedy))
    if answer.ndim == 2:
        return graph, Parts()
    shape = tuple(answer.shape[1:])
    if shape[1:] != (1, 1):
        got = f"an answer of {' x '.join(map(str, shape))} for an image"
        remedy = (
            "End the model in a global average pool or a linear layer; to get its maps, call "
            f"s_resnet.simulation.features(snn, images, timesteps, [{name!r}])"
        )
        raise UnsupportedModel(message(name, "", got, "scores or features [B, N], or [B, N, 1, 1]", remedy))
    flat = Node(f"{name}.flatten", Flatten(), (name,))
    return replace(graph, nodes=(*graph.nodes, flat)), Parts(answer_shape=shape)


def _given(**wishes: object) -> list[str]:
    """The names of the arguments that were passed."""
    return [name for name, value in wishes.items() if value is not None and value is not False]


def _checked(graph: Graph, batches: Batches | None) -> Graph:
    """The analog network with a check of it and of the first images in its provenance; warns of what looks wrong."""
    if batches is None:
        warn(untouched_note(graph))
        return graph
    check = check_source(graph, batches)
    warn(check.notes)
    return graph.with_provenance(check=check.summary())


def _calibrated(
    graph: Graph, batches: Batches | None, recipe: Recipe | Auto, example: Tensor, progress: bool
) -> Calibration:
    """The statistics that a recipe, or the choice among recipes, needs; from BatchNorm if there are no images."""
    percentile = recipe.percentile
    if percentile is None:
        large = example.ndim == 4 and example.shape[-1] >= IMAGENET_SIZED
        percentile = 99.99 if large and batches is not None else 99.9
    if batches is None:
        return calibrate_from_batchnorm(graph, percentile)
    if isinstance(recipe, Auto):
        return calibrate(graph, batches, percentile, WATCHED, progress, fitting=True)
    searched = any(step.run is compensate for step in recipe.steps)
    return calibrate(graph, batches, percentile, HELD_OUT if searched else 0, progress, recipe.fits)


def _distilled(graph: Graph, recipe: Recipe | Auto, example: Tensor, progress: bool) -> Calibration:
    """The statistics of images that the network itself tells; of several processes each fits to a part of them."""
    rank, world = rank_and_world_size()
    images = distill_images(graph, example.shape[1:], progress=progress)
    found = _calibrated(graph, [images[rank::world]], recipe, example, progress)
    return replace(found, source="distilled", seed=SEED, marks=())  # an evaluation has no such images


def _documented(snn: Graph, calibration: Calibration, example: Tensor) -> Graph:
    """The network on the CPU, with its provenance completed."""
    return snn.to("cpu").with_provenance(
        calibration=calibration.summary(),
        input_shape=tuple(as_maps(example).shape[1:]),
        versions=Versions(__version__, torch.__version__),
    )


def _trained(graph: Graph, example: Tensor, asked: list[str]) -> Graph:
    """A directly trained network with its batch normalization folded."""
    if asked:
        got = f"{', '.join(asked)} for a network that was trained as a spiking one"
        remedy = "Leave them out; evaluate takes any T"
        raise InvalidData(message("convert", "", got, "none of these", remedy))
    snn = TRAINED.at(graph.trained_for).apply(graph, Context())
    return _documented(snn, NO_CALIBRATION, example)


def _quantized(
    graph: Graph,
    example: Tensor,
    recipe: str | Recipe | Auto | None,
    timesteps: int | None,
    batches: Batches | None,
    others: tuple[int, ...],
) -> Graph:
    """A network with the thresholds and levels that it was trained with."""
    wished = _wished(recipe, with_images=False)
    refused = _given(calibration=batches, percentile=wished.percentile, reconstruct=wished.reconstructs)
    refused += ["several T"] if others else []
    if wished.name not in (default_recipe(with_images=False).name, "s-resnet", "phased"):
        refused.append(f"recipe {wished.name}")
    if refused:
        got = f"{', '.join(refused)} for a network trained with QCFS activations, which bring thresholds and levels"
        raise InvalidData(message("convert", "", got, "none, or recipe phased", "Leave them out"))
    ops = {node.name: node.op for node in graph.nodes if isinstance(node.op, QCFS)}
    scales = {name: float(op.threshold) for name, op in ops.items()}
    for node, scale in scales.items():
        if not scale > 0:
            raise InvalidData(message(node, "", f"threshold {scale}", "a positive one", "Train with a lower rate"))
    if timesteps is None:  # a Recipe that the caller passes has its own T
        most = max(op.quantization_levels for op in ops.values())
        timesteps = recipe.timesteps if isinstance(recipe, Recipe) else most
    schedule = "phased" if wished.name == "phased" else "streaming"
    chosen = QUANTIZED.set("relu_to_neuron", schedule=schedule).at(timesteps).with_weights(wished.weights)
    known = Calibration(scales, 100.0, 0, "training")
    snn = replace(chosen, name=f"qcfs-{schedule}").apply(graph, Context(known))
    return _documented(snn, known, example)


def _example(model: nn.Module | Graph, batches: Batches | None, shape: Shape | None) -> Tensor:
    """Two calibration images, or zeros of the given or a plausible shape."""
    if isinstance(model, Graph):
        convs = [node.op.weight.shape[1] * node.op.groups for node in model.nodes if isinstance(node.op, Conv2d)]
        pooled = any(isinstance(node.op, MaxPool2d) for node in model.nodes)
    elif isinstance(model, Program):
        convs, pooled, shape = [model.image_shape[0]], False, shape or model.image_shape
    else:
        layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
        convs = [m.in_channels for m in layers]
        if batches is None and shape is None and layers and isinstance(layers[0], nn.Conv1d):
            got, remedy = "neither signals nor their shape", f"Pass ({convs[0]}, L), L being the length of a signal"
            raise InvalidData(message("convert", "", got, "one of the two for a network of signals", remedy))
        pooled = any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    if batches is not None:
        return _first_images(batches, convs[:1])
    if not convs:
        got = f"{type(model).__name__} without a convolution"
        raise InvalidData(message("convert", "", got, "a ResNet", "Pass the whole network"))
    size = 224 if pooled else 32
    shape = shape or (convs[0], size, size)
    if shape[0] != convs[0]:
        got, expected = f"an image shape {shape} for a network of {convs[0]} channels", f"({convs[0]}, H, W)"
        raise InvalidData(message("convert", "", got, expected, "Put the channels first"))
    return torch.zeros(2, *shape)


def _first_images(batches: Batches, channels: list[int]) -> Tensor:
    """Two images of the first batch, or one twice: x.squeeze() in a model must not drop the batch axis.

    Of several processes all get those of the first that has any.
    """
    own = next(_checked_images(batches, channels), None)
    found = next((images for images in all_gather(own) if images is not None), None)
    if found is None:
        expected, remedy = "images [B, C, H, W]", "Pass at least one batch"
        raise InvalidData(message("convert", "", "no calibration batch", expected, remedy))
    return found


def _checked_images(batches: Batches, channels: list[int]) -> Iterator[Tensor]:
    """Two images of each batch."""
    for batch in batches:
        given = given_images(batch)
        images = images_of(batch, "convert")
        if images.ndim != 4 or len(images) == 0:
            got, remedy = f"a batch of shape {tuple(images.shape)}", "For events, pass the mean over their frames"
            raise InvalidData(message("convert", "", got, "images [B, C, H, W], at least one", remedy))
        if given.ndim == 3 and images.shape[1] not in channels and given.shape[0] in channels:
            got, remedy = f"a batch of {tuple(given.shape)}", "Of one image make a batch: x.unsqueeze(0)"
            raise InvalidData(message("convert", "", got, "[B, C, H, W], or signals [B, C, L]", remedy))
        if images.shape[1] not in channels and images.shape[3] in channels:
            got = f"images of shape {tuple(images.shape)} for a network of {channels[0]} channels"
            remedy = "They look like [B, H, W, C]: pass images.permute(0, 3, 1, 2)"
            if given.ndim == 3:
                remedy = "They look like [B, L, C]: pass signals.permute(0, 2, 1)"
            raise InvalidData(message("convert", "", got, "[B, C, H, W] or [B, C, L]", remedy))
        images = images[[0, -1]].cpu()
        yield images.squeeze(2) if given.ndim == 3 else images
