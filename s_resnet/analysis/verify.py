"""Verification: layer by layer and channel by channel, what a spiking network loses against its source, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.arguments import Batches, images_of, labels_of, whole_number
from ..errors import InvalidData
from ..graph.engine import arithmetic
from ..graph.graph import Graph, check_spiking, count_images
from ..graph.neuron import Neuron, Readout
from ..graph.ops import Node, Op
from ..runtime.display import Displayed, Figures, Table, percent, plain
from ..runtime.progress import Progress
from ..simulation.lockstep import affordable, lockstep, steps_of
from .figures import described
from .losses import Split, by_channel, relative, right, split
from .measured_on import described_data
from .verify_trained import TABLE, TrainedTally, TrainedVerification, conclusions, few

SCHEMA = 1
PARTS = ("unevenness", "quantization", "clipping", "inherited")
MEASURES = (*PARTS, "own", "total")
LEGEND = (
    "uneven to inherited are parts of the total, as root mean squares, which do not add up; unsettled: neurons whose "
    "count is not what all their charge is worth"
)
SHORT = ("uneven", "quantized", "clipped", "inherited", "own", "total")
# A layer is broken where its error is half as large as its signal, a quarter of its power.
BREAKS = 0.5
SMALL = BREAKS / 5  # where all own errors are below it, what breaks is the sum of many
SATURATED = 0.01  # the share of a channel's neurons and images that may be stuck at its largest count

# What helps against a part, each with the recipes for which it is nothing new.
_FITTED = ("calibrated", "phased", "signed", "multilevel")
_ADVICE: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "unevenness": (
        ('recipe="phased", whose layers fire once they have seen all', ("phased",)),
        ('recipe="signed", which takes back what it has emitted in excess', ("phased", "signed")),
        ('recipe="calibrated", which corrects every layer on the spikes it really gets', _FITTED),
    ),
    "quantization": (
        ("a larger T (convert with timesteps={twice})", ()),
        ('recipe="multilevel", whose steps count up to several thresholds', ("multilevel",)),
    ),
    "clipping": (
        ("more calibration images", ()),
        ("a larger percentile in convert", _FITTED),
        ('recipe="calibrated", whose thresholds are fitted to T', _FITTED),
    ),
    "inherited": (("reconstruct=True, with a recipe that fits (calibrated, phased, signed or multilevel)", ()),),
}
# Of networks trained with QCFS, which other recipes would take the thresholds of.
_TUNING = ("s_resnet.fine_tune, which tunes it on the spikes that come", ())
_QCFS_ADVICE: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "unevenness": (('recipe="phased", whose layers fire once they have seen all', ("qcfs-phased",)), _TUNING),
    "quantization": (("a larger T (convert with timesteps={twice})", ()), ("training with more levels", ())),
    "clipping": (("a longer training, in which thresholds are learned", ()), _TUNING),
    "inherited": (_TUNING,),
}


@dataclass(frozen=True, repr=False)
class LayerError(Displayed):
    """What one neuron layer loses. Errors are root mean squares over neurons and images, relative to the source's own.

    Channels are weighed in the source's units (:attr:`Neuron.scale`). Parts may cancel, so their root mean squares do
    not sum to the total; the parts themselves do.

    rate: thresholds emitted per neuron and step.
    errors: ``unevenness``, ``quantization``, ``clipping``, ``inherited``; ``own``, the first three as one; ``total``.
    unsettled: share of neurons and images whose count is not the one that their total charge is worth.
    dead: channels that never fire although the source network is active there.
    saturated: channels where more than 1 % of neurons and images are stuck at the largest count T * most, below a.
    channels: per channel ``rate``, ``saturation`` (that share) and all of ``errors``.
    differential: quantization stands for unevenness as well.
    """

    name: str
    rate: float
    errors: dict[str, float]
    unsettled: float
    dead: tuple[int, ...]
    saturated: tuple[int, ...]
    channels: dict[str, tuple[float, ...]]
    differential: bool


@dataclass(frozen=True, repr=False)
class Verification(Figures):
    """Where a spiking network parts from its source network, on the same images.

    layers: its neuron layers in execution order.
    logit_error: root mean square of the logits' error, relative to the source's logits; agreement: share of images with
        the same answer; top1: of ``ann`` and ``snn``, empty without labels.
    breaks: the first layer whose total error reaches half of its signal (a signal-to-error power ratio of 4), or None.
    worst: the layer with the largest own error.
    data: which images these are, as of a :class:`s_resnet.Report`.
    cause: the part with the largest sum of squared errors over the layers up to ``breaks`` (all, without one). It is
        ``inherited``, many small ones add up, where no own error is a tenth of its signal and nothing is reconstructed.
    """

    network: str
    recipe: str
    timesteps: int
    images: int
    layers: tuple[LayerError, ...]
    logit_error: float
    agreement: float
    top1: dict[str, float]
    breaks: str | None
    worst: str
    cause: str
    data: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """What the figures say, in a sentence."""
        layers = {layer.name: layer for layer in self.layers}
        worst = layers[self.worst]
        most = max(PARTS[:3], key=lambda part: worst.errors[part])
        if worst.differential and most == "quantization":
            most += " and unevenness"
        adds = f"{worst.name} adds most ({percent(worst.errors['own'])} of its own, mostly {most})."
        if self.breaks is None:
            name, error = max(((layer.name, layer.errors["total"]) for layer in self.layers), key=lambda pair: pair[1])
            return f"No layer breaks: the largest error is {percent(error)}, in {name}. {adds}"
        errors = layers[self.breaks].errors
        return (
            f"{self.breaks} is the first to break: its error is {percent(errors['total'])} of its signal "
            f"({percent(errors['own'])} its own, {percent(errors['inherited'])} inherited). {adds}"
        )

    @property
    def advice(self) -> str:
        """The settings that would help against the cause."""
        because = "Small errors of many layers add up" if self.cause == "inherited" else f"Mostly {self.cause}"
        advice = _QCFS_ADVICE if self.recipe.startswith("qcfs") else _ADVICE
        help = [text for text, needless in advice[self.cause] if self.recipe not in needless]
        return f"{because}; what would help: {'; or '.join(help).format(twice=2 * self.timesteps)}."

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1; an error where the source network is silent is null."""
        return dict(plain({"schema": SCHEMA, **asdict(self), "verdict": self.verdict, "advice": self.advice}))

    def _lines(self) -> Iterator[str]:
        yield (
            f"Verification of {self.network or 'a network'}, recipe {self.recipe}, T = {self.timesteps}, "
            f"{self.images:,} images"
        )
        yield from conclusions(self)
        yield TABLE

    def _parts(self) -> Iterator[str | Table]:
        rows = []
        for layer in self.layers:
            errors = [percent(share) for share in layer.errors.values()]
            if layer.differential:
                errors[0] = "in next"
            rows.append((layer.name, f"{layer.rate:.4f}", *errors, percent(layer.unsettled), *few(layer)))
        said = f"{self.network}   recipe {self.recipe}   T = {self.timesteps}   {self.images} images"
        yield f"{said}\ndata: {described(self.data, self.images)}"
        yield Table(("layer", "rate", *SHORT, "unsettled", "dead", "saturated"), tuple(rows), width=9)
        yield LEGEND
        logits, *rest = conclusions(self)
        yield logits
        yield "\n".join(rest)


def verify(
    snn: Graph, loader: Batches, timesteps: int, *, network: str = "", progress: bool = False
) -> Verification | TrainedVerification:
    """Run a spiking network beside its source network and split what every layer loses, as :func:`split` says.

    A directly trained network has no source: its layers are looked at by themselves (:class:`TrainedVerification`).

    Args:
        snn: a converted or directly trained network. Images are moved to its device.
        loader: batches of images ``[B, C, H, W]`` or events ``[T, B, C, H, W]``, alone or as (images, labels). Large
            ones are taken apart, so that all T steps of a layer fit in memory.
        timesteps: T >= 1.
        network: a name for the result.
        progress: show bars on stderr when it is a terminal.

    Raises:
        InvalidData: no images, labels that do not fit, T out of range, or a network without neurons, without a readout
            at its end, or of whole numbers.
    """
    check_spiking(snn, "verify")
    timesteps = whole_number(timesteps, "verify", "timesteps")
    _check(snn)
    tally = TrainedTally(snn, timesteps) if snn.trained else _Tally(snn, timesteps)
    device = snn.device
    for batch in Progress(loader, desc="verify", unit="batch", shown=progress):
        images = images_of(batch, "verify")
        count = count_images(images)
        labels = labels_of(batch, images, "verify")
        images = images.to(device)
        size = affordable(snn, images, max(tally.steps, timesteps) if images.ndim == 5 else tally.steps)
        known = [None] * count if labels is None else torch.split(labels.to(device), size)
        for part, answers in zip(torch.split(images, size, -4), known, strict=False):
            tally.add(part, answers, "layers" if progress else "")
    unreadable, events = len(getattr(loader, "unreadable", ())), getattr(loader, "events", (0, 0))
    return replace(tally.result(network), data=described_data(loader, unreadable, events))


def _check(snn: Graph) -> None:
    if not isinstance(snn.nodes[-1].op, Readout):
        raise InvalidData(
            f"verify: got a network that ends in {type(snn.nodes[-1].op).__name__}; expected a readout. Call convert "
            "first."
        )
    if snn.integer:
        raise InvalidData(
            "verify: got an integer network; expected floating-point weights. Verify the same network converted with "
            'weights="float32", and compare the two with evaluate.'
        )


class _Tally:
    """The sums over batches that a Verification divides."""

    def __init__(self, snn: Graph, timesteps: int) -> None:
        self.snn, self.timesteps, self.steps = snn, timesteps, steps_of(snn, timesteps)
        self.layers = {node.name: _Sums() for node in snn.neurons}
        self.images, self.same = 0, 0
        self.right: dict[str, int] = {}
        self.error, self.signal = 0.0, 0.0  # of the logits, squared

    def add(self, images: Tensor, labels: Tensor | None, progress: str) -> None:
        self.images += count_images(images)

        def visit(node: Node, currents: Tensor, target: Tensor) -> Op:
            if isinstance(node.op, Neuron):
                self.layers[node.name].add(split(node.op, currents, target, self.timesteps))
            elif isinstance(node.op, Readout):
                self.answer(self.read(node.op, currents, images), node.op.run(target), labels)
            return node.op

        with arithmetic(images, tf32=False):
            lockstep(self.snn, images, self.timesteps, visit, progress)

    def read(self, op: Readout, currents: Tensor, images: Tensor) -> Tensor:
        """The answer after T steps; where mean currents do not tell it, that of a simulation."""
        if len(currents) == 1 < self.timesteps and (op.mode != "current" or op.weights is not None):
            return self.snn(images, self.timesteps).flatten(1)
        return op.advance([currents], None)[0][-1]

    def answer(self, snn: Tensor, ann: Tensor, labels: Tensor | None) -> None:
        self.error += float(((snn.double() - ann.double()) ** 2).sum())
        self.signal += float((ann.double() ** 2).sum())
        self.same += int((snn.argmax(1) == ann.argmax(1)).sum())
        if labels is None:
            return
        for name, count in right({"ann": ann, "snn": snn}, labels).items():
            self.right[name] = self.right.get(name, 0) + count

    def result(self, network: str) -> Verification:
        if self.images == 0:
            raise InvalidData("verify: got no images; expected at least one batch. Check the data.")
        layers = tuple(self.layers[node.name].divided(node, self.timesteps) for node in self.snn.neurons)
        breaks = next((layer.name for layer in layers if layer.errors["total"] > BREAKS), None)
        recipe = self.snn.provenance.get("recipe", {})
        passes = [step["pass"] for step in recipe.get("passes", ())]
        return Verification(
            network=network,
            recipe=str(recipe.get("name", "custom")),
            timesteps=self.timesteps,
            images=self.images,
            layers=layers,
            logit_error=float(relative(*torch.tensor([self.error, self.signal], dtype=torch.float64))),
            agreement=self.same / self.images,
            top1={name: count / self.images for name, count in self.right.items()},
            breaks=breaks,
            worst=max(layers, key=lambda layer: layer.errors["own"]).name,
            cause=_cause(layers, breaks, 0.0 if "reconstruct" in passes else SMALL),
        )


def _cause(layers: tuple[LayerError, ...], breaks: str | None, small: float) -> str:
    """The part that does most harm up to the layer that breaks."""
    if breaks is not None:
        layers = layers[: [layer.name for layer in layers].index(breaks) + 1]
    if max(layer.errors["own"] for layer in layers) < small:
        return "inherited"
    return max(PARTS[:3], key=lambda part: sum(layer.errors[part] ** 2 for layer in layers))


class _Sums:
    """Sums over neurons and images of one layer, per channel, float64."""

    def __init__(self) -> None:
        self.neurons = 0  # of one channel, times images
        self.squares: Tensor | float = 0.0  # [len(MEASURES) + 1, C], the last row the source's activations
        self.totals: Tensor | float = 0.0  # [3, C]: thresholds emitted, saturated, unsettled

    def add(self, parts: Split) -> None:
        own = parts.unevenness + parts.quantization + parts.clipping
        errors = (*(getattr(parts, name) for name in PARTS), own, parts.output - parts.source, parts.source)
        self.squares = self.squares + by_channel(value**2 for value in errors)
        self.totals = self.totals + by_channel((parts.counts, parts.saturated.double(), (~parts.settled).double()))
        self.neurons += parts.counts[:, 0].numel()

    def divided(self, node: Node, timesteps: int) -> LayerError:
        assert isinstance(self.squares, Tensor) and isinstance(self.totals, Tensor) and isinstance(node.op, Neuron)
        emitted, stuck, unsettled = self.totals / self.neurons
        rate = emitted / timesteps
        errors = relative(self.squares[:-1], self.squares[-1])
        dead = (emitted == 0) & (self.squares[-1] > 0)
        scaled = self.squares if node.op.scale is None else self.squares * node.op.scale.double().cpu() ** 2
        measures = relative(scaled[:-1].sum(1), scaled[-1].sum()).tolist()
        named = zip(("rate", "saturation", *MEASURES), (rate, stuck, *errors), strict=True)
        return LayerError(
            name=node.name,
            rate=rate.mean().item(),
            errors=dict(zip(MEASURES, measures, strict=True)),
            unsettled=unsettled.mean().item(),
            dead=tuple(dead.nonzero()[:, 0].tolist()),
            saturated=tuple((stuck > SATURATED).nonzero()[:, 0].tolist()),
            channels={name: tuple(values.tolist()) for name, values in named},
            differential=node.op.differential,
        )
