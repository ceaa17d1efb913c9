"""Verification: layer by layer and channel by channel, what a spiking network loses against its source, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..data.arguments import Batches, check_batches, images_of, labels_of, whole_number
from ..errors import InvalidData, message
from ..graph.alphabet import Differential
from ..graph.engine import arithmetic
from ..graph.forms import spiking
from ..graph.graph import Graph, check_spiking
from ..graph.inputs import count_images
from ..graph.neuron import Neuron
from ..graph.ops import Node, Op
from ..graph.readout import Readout
from ..runtime.progress import Progress
from ..simulation.lockstep import Pair, images_that_fit, lockstep, propagate_both, steps_of
from .activity import activity, check_trained
from .losses import MEASURES, PARTS, losses, relative, right
from .measured_on import described_data
from .verification import LayerVerification, Verification

BREAKS = 0.5  # a layer breaks if its error is half as large as its signal, which is a quarter of its power
SMALL = BREAKS / 5  # if all own errors are below it, the damage is the sum of many small ones
SATURATED = 0.01  # the share of a channel's neurons and images that may be stuck at its largest count


def verify(snn: Graph, loader: Batches, timesteps: int, *, network: str = "", progress: bool = False) -> Verification:
    """Run a spiking network beside its source network and split the error of every layer.

    :func:`s_resnet.analysis.losses.split` defines the parts. A directly trained network has no source: its layers are
    examined by themselves, and have no errors.

    Args:
        snn: a converted or directly trained network. Images are moved to its device.
        loader: batches of images ``[B, C, H, W]`` or events ``[T, B, C, H, W]``, alone or as (images, labels). Large
            batches are split, so that all T steps of a layer fit in memory.
        timesteps: T >= 1.
        network: a name for the result.
        progress: show bars on stderr when it is a terminal.

    Raises:
        InvalidData: there are no images, labels do not fit, T is out of range, or the network has no neurons, does not
            end in a readout, or is an integer network.
    """
    check_spiking(snn, "verify")
    timesteps = whole_number(timesteps, "verify", "timesteps")
    snn = snn.at(timesteps)
    check_batches(loader, "verify")
    _check(snn)
    tally = _Tally(snn, timesteps)
    device = snn.device
    for batch in Progress(loader, desc="verify", unit="batch", shown=progress):
        images = images_of(batch, "verify")
        count = count_images(images)
        labels = labels_of(batch, images, "verify")
        images = images.to(device)
        size = images_that_fit(snn, images, max(tally.steps, timesteps) if images.ndim == 5 else tally.steps)
        known = [None] * count if labels is None else torch.split(labels.to(device), size)
        for part, answers in zip(torch.split(images, size, -4), known, strict=False):
            tally.add(part, answers, "layers" if progress else "")
    unreadable, events = len(getattr(loader, "unreadable", ())), getattr(loader, "events", (0, 0))
    return replace(tally.result(network), data=described_data(loader, unreadable, events))


def _check(snn: Graph) -> None:
    last = type(snn.nodes[-1].op).__name__
    if last != "Readout":
        raise InvalidData(message("verify", "", f"a network that ends in {last}", "a readout", "Call convert first"))
    if snn.is_integer:
        remedy = (
            'Verify the same network converted with recipe.with_weights("float32"), and compare the two with evaluate'
        )
        raise InvalidData(message("verify", "", "an integer network", "floating-point weights", remedy))
    for node in snn.neurons if snn.trained else ():
        check_trained(node)


class _Tally:
    """The sums over batches that a Verification divides.

    A converted network is compared with its source; a directly trained network's answers after T steps are compared
    with its own answers after the T that it was trained for.
    """

    def __init__(self, snn: Graph, timesteps: int) -> None:
        self.snn, self.timesteps = snn, timesteps
        self.trained_for = snn.trained_for if snn.trained else None
        self.steps = steps_of(snn, timesteps) if self.trained_for is None else max(timesteps, self.trained_for)
        self.layers = {node.name: _Sums() for node in snn.neurons}
        self.images, self.same = 0, 0
        self.right: dict[str, int] = {}
        self.error, self.signal = 0.0, 0.0  # of the logits, squared

    def add(self, images: Tensor, labels: Tensor | None, progress: str) -> None:
        """Count a batch."""
        self.images += count_images(images)
        if self.trained_for is None:
            self._beside_source(images, labels, progress)
        else:
            self._by_itself(images, labels, progress, self.trained_for)

    def _beside_source(self, images: Tensor, labels: Tensor | None, progress: str) -> None:
        def visit(node: Node, currents: Tensor, target: Tensor) -> Op:
            if isinstance(node.op, Neuron):
                self.layers[node.name].add(losses(node.op, currents, target, self.timesteps))
            elif isinstance(node.op, Readout):
                ann = node.op.run(target)
                self._answer({"ann": ann, "snn": self._read(node.op, currents, images)}, ann, labels)
            return node.op

        with arithmetic(images, tf32=False):
            lockstep(self.snn, images, self.timesteps, visit, progress)

    def _by_itself(self, images: Tensor, labels: Tensor | None, progress: str, trained_for: int) -> None:
        def visit(node: Node, currents: Tensor, _: Tensor) -> Op:
            if isinstance(node.op, Neuron):
                self.layers[node.name].add(activity(node.op, currents, self.timesteps, trained_for))
            elif isinstance(node.op, Readout):
                answers = node.op.advance([currents], None)[0]
                snn, trained = answers[self.timesteps - 1], answers[trained_for - 1]
                moved = {"trained": trained} if self.timesteps != trained_for else {}
                self._answer({**moved, "snn": snn}, trained, labels)
            return node.op

        shown = spiking(self.snn.nodes[0].op).run(images)
        if images.ndim == 4:
            shown = shown.expand(self.steps, *shown.shape)
        if len(shown) < self.steps:
            got = f"{len(shown)} frames of events for {self.steps} steps"
            expected = f"one for each of T and of the {trained_for} that the network was trained for"
            raise InvalidData(message("verify", "", got, expected, "Bin the events into more frames"))
        start = {self.snn.nodes[0].name: Pair(shown[: self.steps], shown[0])}
        with torch.no_grad(), arithmetic(images, tf32=False):
            propagate_both(self.snn.nodes, start, self.steps, visit, progress)

    def _read(self, op: Readout, currents: Tensor, images: Tensor) -> Tensor:
        """The answer after T steps; from a simulation if mean currents do not determine it."""
        if len(currents) == 1 < self.timesteps and (op.mode != "current" or op.weights is not None):
            return self.snn(images, self.timesteps).flatten(1)
        return op.advance([currents], None)[0][-1]

    def _answer(self, answers: Mapping[str, Tensor], reference: Tensor, labels: Tensor | None) -> None:
        """Compare the answers of ``snn`` with ``reference``, and all of them with the labels."""
        snn = answers["snn"]
        self.error += float(((snn.double() - reference.double()) ** 2).sum())
        self.signal += float((reference.double() ** 2).sum())
        self.same += int((snn.argmax(1) == reference.argmax(1)).sum())
        if labels is None:
            return
        for name, count in right(answers, labels).items():
            self.right[name] = self.right.get(name, 0) + count

    def result(self, network: str) -> Verification:
        """The verification that the sums give."""
        if self.images == 0:
            remedy = "Pass a loader that yields batches; a generator can be read only once"
            raise InvalidData(message("verify", "", "no images", "at least one batch", remedy))
        recipe = self.snn.provenance.recipe
        layers = tuple(self.layers[node.name].divided(node, self.timesteps) for node in self.snn.neurons)
        found = Verification(
            network=network,
            recipe=recipe.name or "custom",
            timesteps=self.timesteps,
            images=self.images,
            layers=layers,
            logit_error=float(relative(*torch.tensor([self.error, self.signal], dtype=torch.float64))),
            agreement=self.same / self.images,
            top1={name: count / self.images for name, count in self.right.items()},
            trained_for=self.trained_for,
        )
        if self.trained_for is not None:
            return found
        errors = {layer.name: layer.errors or {} for layer in layers}
        breaks = next((name for name in errors if errors[name]["total"] > BREAKS), None)
        reconstructed = "reconstruct" in [step.name for step in recipe.passes or ()]
        cause = _cause(errors, breaks, 0.0 if reconstructed else SMALL)
        return replace(found, breaks=breaks, worst=max(errors, key=lambda name: errors[name]["own"]), cause=cause)


def _cause(errors: Mapping[str, Mapping[str, float]], breaks: str | None, small: float) -> str:
    """The part with the largest squared error up to the layer that breaks."""
    found = list(errors.values())
    if breaks is not None:
        found = found[: list(errors).index(breaks) + 1]
    if max(each["own"] for each in found) < small:
        return "inherited"
    return max(PARTS[:3], key=lambda part: sum(each[part] ** 2 for each in found))


class _Sums:
    """Sums over neurons and images of one layer, per channel ``[C]`` in float64, by the name of the measure."""

    def __init__(self) -> None:
        self.neurons = 0  # neurons of one channel times images
        self.sums: dict[str, Tensor] = {}

    def add(self, measured: Iterable[tuple[str, Tensor]]) -> None:
        """Add values ``[B, C, *]``."""
        for name, value in measured:
            total = value.transpose(0, 1).flatten(1).sum(1)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.neurons += value[:, 0].numel()

    def divided(self, node: Node, timesteps: int) -> LayerVerification:
        assert isinstance(node.op, Neuron)
        sums = {name: total.cpu() for name, total in self.sums.items()}
        signal, silent = sums["signal"], sums["emitted"] == 0
        stuck = sums["saturated"] / self.neurons
        channels = {"rate": sums["emitted"] / self.neurons / timesteps, "saturation": stuck}
        found = LayerVerification(
            name=node.name,
            rate=channels["rate"].mean().item(),
            dead=tuple((silent if "dormant" in sums else silent & (signal > 0)).nonzero()[:, 0].tolist()),
            saturated=tuple((stuck > SATURATED).nonzero()[:, 0].tolist()),
            channels={},
            differential=isinstance(node.op.spikes, Differential),
        )
        if "dormant" in sums:
            channels["dormant"] = sums["dormant"] / self.neurons
            drift = float(relative(sums["drift"].sum(), signal.sum()))
            found = replace(found, dormant=channels["dormant"].mean().item(), drift=drift)
        else:
            channels |= {name: relative(sums[name], signal) for name in MEASURES}
            scale = torch.ones_like(signal) if node.op.scale is None else node.op.scale.double().cpu() ** 2
            of = (signal * scale).sum()
            errors = {name: float(relative((sums[name] * scale).sum(), of)) for name in MEASURES}
            found = replace(found, errors=errors, unsettled=(sums["unsettled"] / self.neurons).mean().item())
        return replace(found, channels={name: tuple(values.tolist()) for name, values in channels.items()})
