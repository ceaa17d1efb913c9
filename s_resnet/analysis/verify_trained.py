"""Verification of a directly trained network: it has no source, so its layers are looked at by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InvalidData
from ..graph.engine import arithmetic
from ..graph.graph import Graph, count_images
from ..graph.neuron import Neuron, Readout
from ..graph.ops import Node, Op, whole
from ..kernels import per_channel
from ..kernels.surrogate.reference import Firing, slope
from ..runtime.display import Displayed, Figures, Table, percent, plain
from ..simulation.lockstep import Both, walk
from .figures import described
from .losses import by_channel, relative, right

SCHEMA = 1
SATURATED = 0.01  # the share of a channel's neurons and images that may fire all they can at every step
SATURATING = 4  # steps from which on firing at each of them says something
MOSTLY = 0.5  # the share of dormant neurons from which a layer learns little
EVERYWHERE = ("arctan", "sigmoid")  # surrogates that are nowhere zero


@dataclass(frozen=True, repr=False)
class TrainedLayer(Displayed):
    """What one neuron layer of a directly trained network does.

    rate: spikes per neuron and step, 0 ... K of multi-level firing.
    dormant: share of neurons and images of which no membrane lies in the surrogate's window at any step, so that no
        gradient passes; 0 of a surrogate that is nowhere zero.
    drift: root mean square of the mean output after T steps minus that after the T it was trained for, relative to the
        latter.
    dead: channels that never fire.
    saturated: channels where more than 1 % of neurons and images fire all they can, K spikes, at every step.
    channels: per channel ``rate``, ``saturation`` (that share) and ``dormant``.
    """

    name: str
    rate: float
    dormant: float
    drift: float
    dead: tuple[int, ...]
    saturated: tuple[int, ...]
    channels: dict[str, tuple[float, ...]]


@dataclass(frozen=True, repr=False)
class TrainedVerification(Figures):
    """The layers of a directly trained network over ``timesteps`` steps, where it was trained for ``trained_for``.

    layers: its neuron layers in execution order.
    logit_error: the drift of the logits; agreement: share of images with the answer of ``trained_for`` steps.
    data: which images these are, as of a :class:`s_resnet.Report`.
    top1: of ``snn``, and of ``trained`` where the two numbers of steps differ; empty without labels.
    """

    network: str
    recipe: str
    timesteps: int
    trained_for: int
    images: int
    layers: tuple[TrainedLayer, ...]
    logit_error: float
    agreement: float
    top1: dict[str, float]
    data: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """What the figures say, in a few sentences."""
        channels = sum(len(layer.channels["rate"]) for layer in self.layers)
        dead = sum(len(layer.dead) for layer in self.layers)
        most = max(self.layers, key=lambda layer: len(layer.dead))
        said = [f"All {channels} channels fire."]
        if dead:
            said = [f"{dead} of {channels} channels never fire, {len(most.dead)} of them in {most.name}."]
        asleep = max(self.layers, key=lambda layer: layer.dormant)
        said.append(f"Most dormant: {asleep.name}, {percent(asleep.dormant)} of its neurons.")
        if self.timesteps != self.trained_for:
            moved = max(self.layers, key=lambda layer: layer.drift)
            said.append(
                f"It was trained for T = {self.trained_for}: at T = {self.timesteps} logits are "
                f"{percent(self.logit_error)} from those, and {percent(self.agreement)} of the answers are the same; "
                f"{moved.name} drifts most ({percent(moved.drift)})."
            )
        return " ".join(said)

    @property
    def advice(self) -> str:
        """What would help."""
        said = []
        asleep = [layer.name for layer in self.layers if layer.dormant > MOSTLY]
        if asleep:
            said.append(
                f"No gradient passes through most neurons of {len(asleep)} of {len(self.layers)} layers; what would "
                "help in training: neurons (from Python, SpikingNeuron) with a wider surrogate, one that is nowhere "
                "zero, or more firing levels."
            )
        if self.timesteps != self.trained_for and self.agreement < 1:
            said.append(f"Run it at T = {self.trained_for}, or train it for T = {self.timesteps}.")
        return " ".join(said) or "Nothing to change."

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object, schema 1: the keys of a converted network's, null for what has no source."""
        none: dict[str, Any] = {"errors": None, "unsettled": None, "differential": False}
        layers = [{**asdict(layer), **none} for layer in self.layers]
        entry = {"schema": SCHEMA, **asdict(self), "layers": layers, **dict.fromkeys(("breaks", "worst", "cause"))}
        return dict(plain({**entry, "verdict": self.verdict, "advice": self.advice}))

    def _lines(self) -> Iterator[str]:
        yield f"Verification of {self.network or 'a network'}, directly trained, T = {self.timesteps}"
        yield from conclusions(self)
        yield TABLE

    def _parts(self) -> Iterator[str | Table]:
        """One line per layer; drift where T is not the one it was trained for."""
        moved = self.timesteps != self.trained_for
        stuck = self.timesteps >= SATURATING  # in fewer steps many neurons fire at each of them, and are not stuck
        titles = ("layer", "rate", "dead", *["saturated"] * stuck, "dormant", *["drift"] * moved)
        rows = []
        for layer in self.layers:
            dead, saturated = few(layer)
            told = (*[saturated] * stuck, percent(layer.dormant), *[percent(layer.drift)] * moved)
            rows.append((layer.name, f"{layer.rate:.4f}", dead, *told))
        said = f"T = {self.timesteps} (trained for {self.trained_for})   {self.images} images"
        yield f"{self.network}   recipe {self.recipe}   {said}\ndata: {described(self.data, self.images)}"
        yield Table(titles, tuple(rows), width=9)
        logits, *rest = conclusions(self)
        if logits:
            yield logits
        yield "\n".join(rest)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a layer did, neuron by neuron and image by image, ``[B, *]``.

    after: by steps, the sum of what it sent on in so many. dormant, full: of the first T steps.
    """

    after: dict[int, Tensor]
    dormant: Tensor
    full: Tensor


TABLE = "print(_.table()) shows every layer, _.to_dict() also every channel"


class Layer(Protocol):
    """What is known of the channels of a layer."""

    @property
    def dead(self) -> tuple[int, ...]: ...

    @property
    def saturated(self) -> tuple[int, ...]: ...

    @property
    def channels(self) -> Mapping[str, tuple[float, ...]]: ...


class Verified(Protocol):
    """What the two kinds of verification have in common."""

    @property
    def timesteps(self) -> int: ...

    @property
    def top1(self) -> Mapping[str, float]: ...

    @property
    def logit_error(self) -> float: ...

    @property
    def agreement(self) -> float: ...

    @property
    def verdict(self) -> str: ...

    @property
    def advice(self) -> str: ...


def conclusions(result: Verified) -> tuple[str, str, str]:
    """What the answers are worth, the verdict and the advice."""
    accuracy = "".join(f"   top-1 {name.upper()} {percent(share)}" for name, share in result.top1.items())
    logits = f"logits: error {percent(result.logit_error)}   agreement {percent(result.agreement)}{accuracy}"
    if isinstance(result, TrainedVerification) and result.timesteps == result.trained_for:
        logits = accuracy.strip()  # there is nothing else to compare with
    return logits, result.verdict, result.advice


def few(layer: Layer) -> tuple[str, str]:
    """How many channels are dead and saturated, of how many."""
    dead, saturated = (f"{len(found)}/{len(layer.channels['rate'])}" for found in (layer.dead, layer.saturated))
    return dead, saturated


def _fire(op: Neuron, currents: Tensor, timesteps: int, trained_for: int) -> _Seen:
    """The equation of :func:`s_resnet.kernels.surrogate.reference.fire_reference`, with a look at every membrane."""
    v = list(op.start(currents[0]))
    wide = v[0].dtype
    levels = [op.threshold] if op.firing is None else list(op.firing)
    thresholds = [per_channel(level, v[0].ndim).to(wide) for level in levels]
    correction = op.correct(0, len(currents), currents.ndim)
    awake = torch.zeros_like(v[0], dtype=torch.bool)
    full = torch.ones_like(awake)
    sent = torch.zeros_like(v[0], dtype=torch.float64)
    after = {}
    for step, now in enumerate(currents.to(wide) if correction is None else currents.to(wide) + correction):
        spikes = torch.zeros_like(v[0])
        for k, threshold in enumerate(thresholds):
            u = op.decay * v[k] + now
            fired = (u >= threshold).to(wide)
            v[k] = u * (1 - fired) if op.reset == "zero" else u - threshold * fired
            spikes += fired
            if step < timesteps:
                awake |= _in_window(op, u - threshold)
        if step < timesteps:
            full &= spikes == op.most
        sent += spikes
        if step + 1 in (timesteps, trained_for):
            after[step + 1] = sent.clone()
    return _Seen(after, ~awake, full)


def _in_window(op: Neuron, above: Tensor) -> Tensor:
    assert op.surrogate is not None
    if op.surrogate in EVERYWHERE:
        return torch.ones_like(above, dtype=torch.bool)
    return slope(above, Firing((1.0,), surrogate=op.surrogate, width=op.width)) > 0


class TrainedTally:
    """The sums over batches that a TrainedVerification divides."""

    def __init__(self, snn: Graph, timesteps: int) -> None:
        self.snn, self.timesteps = snn, timesteps
        self.trained_for = snn.trained_for
        self.steps = max(timesteps, self.trained_for)
        self.layers = {node.name: _Sums() for node in snn.neurons}
        self.images, self.same = 0, 0
        self.right: dict[str, int] = {}
        self.error, self.signal = 0.0, 0.0  # of the logits, squared
        for node in snn.neurons:
            _check(node)

    def add(self, images: Tensor, labels: Tensor | None, progress: str) -> None:
        self.images += count_images(images)

        def visit(node: Node, currents: Tensor, _: Tensor) -> Op:
            if isinstance(node.op, Neuron):
                seen = _fire(node.op, currents, self.timesteps, self.trained_for)
                self.layers[node.name].add(seen, self.timesteps, self.trained_for)
            elif isinstance(node.op, Readout):
                answers = node.op.advance([currents], None)[0]
                self.answer(answers[self.timesteps - 1], answers[self.trained_for - 1], labels)
            return node.op

        shown = whole(self.snn.nodes[0].op).run(images)
        if images.ndim == 4:
            shown = shown.expand(self.steps, *shown.shape)
        if len(shown) < self.steps:
            raise InvalidData(
                f"verify: got {len(shown)} frames of events for {self.steps} steps; expected one for each of T and of "
                f"the {self.trained_for} that the network was trained for. Bin the events into more."
            )
        start = {self.snn.nodes[0].name: Both(shown[: self.steps], shown[0])}
        with torch.no_grad(), arithmetic(images, tf32=False):
            walk(self.snn.nodes, start, self.steps, visit, progress)

    def answer(self, now: Tensor, trained: Tensor, labels: Tensor | None) -> None:
        self.error += float(((now.double() - trained.double()) ** 2).sum())
        self.signal += float((trained.double() ** 2).sum())
        self.same += int((now.argmax(1) == trained.argmax(1)).sum())
        if labels is None:
            return
        answers = {"snn": now} if self.timesteps == self.trained_for else {"trained": trained, "snn": now}
        for name, count in right(answers, labels).items():
            self.right[name] = self.right.get(name, 0) + count

    def result(self, network: str) -> TrainedVerification:
        if self.images == 0:
            raise InvalidData("verify: got no images; expected at least one batch. Check the data.")
        return TrainedVerification(
            network=network,
            recipe=str(self.snn.provenance.get("recipe", {}).get("name", "custom")),
            timesteps=self.timesteps,
            trained_for=self.trained_for,
            images=self.images,
            layers=tuple(sums.divided(name, self.timesteps) for name, sums in self.layers.items()),
            logit_error=float(relative(*torch.tensor([self.error, self.signal], dtype=torch.float64))),
            agreement=self.same / self.images,
            top1={name: count / self.images for name, count in self.right.items()},
        )


def _check(node: Node) -> None:
    op = node.op
    assert isinstance(op, Neuron)
    if op.surrogate is None or op.levels > 1 or op.signed or op.differential or op.schedule != "streaming":
        raise InvalidData(
            f"verify: {node.name}, got a converted, waiting, signed or {op.levels}-level neuron in a trained network; "
            "expected neurons with a surrogate gradient alone. Verify the network that it was trained from."
        )


class _Sums:
    """Sums over neurons and images of one layer, per channel, float64."""

    def __init__(self) -> None:
        self.neurons = 0  # of one channel, times images
        self.totals: Tensor | float = 0.0  # [5, C]: spikes, saturated, dormant, squared drift, squared output

    def add(self, seen: _Seen, timesteps: int, trained_for: int) -> None:
        mean, trained = seen.after[timesteps] / timesteps, seen.after[trained_for] / trained_for
        parts = (seen.after[timesteps], seen.full.double(), seen.dormant.double(), (mean - trained) ** 2, trained**2)
        self.totals = self.totals + by_channel(parts)
        self.neurons += seen.dormant[:, 0].numel()

    def divided(self, name: str, timesteps: int) -> TrainedLayer:
        assert isinstance(self.totals, Tensor)
        emitted, stuck, dormant = self.totals[:3] / self.neurons
        rate = emitted / timesteps
        named = zip(("rate", "saturation", "dormant"), (rate, stuck, dormant), strict=True)
        return TrainedLayer(
            name=name,
            rate=rate.mean().item(),
            dormant=dormant.mean().item(),
            drift=float(relative(*self.totals[3:].sum(1))),
            dead=tuple((emitted == 0).nonzero()[:, 0].tolist()),
            saturated=tuple((stuck > SATURATED).nonzero()[:, 0].tolist()),
            channels={key: tuple(values.tolist()) for key, values in named},
        )
