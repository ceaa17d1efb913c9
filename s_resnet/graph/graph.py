"""The Graph: an immutable network that runs analog (the source ANN) or spiking, a chunk of time steps at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Unpack

import torch
from torch import Tensor

from ..data.arguments import as_maps, check_kind, whole_number
from ..errors import InvalidData, message
from ..runtime.display import Displayed, Table
from . import engine, forms, network_table, validate
from .alphabet import in_words
from .inputs import check_shown, check_simulated, count_images, finite_answers, marked, presented
from .neuron import Neuron
from .ops import Input, Node, Op
from .parts import mapped, tensors
from .provenance import Parts, Provenance
from .readout import STATEFUL
from .shapes import check_state
from .state import Chunk, State
from .structure import check_structure
from .tuned import Numbers, nearest, retuned


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Displayed):
    """A network: nodes in execution order, the first the input, the last the output.

    Attributes:
        nodes: each with its name, its operation and the names of those that it reads.
        provenance: where it came from: recipe, calibration, preprocessing, classes.
        tuned: for each other T that it is fitted to, the numbers that differ there, by ``node/field``: thresholds in
            units of the nodes' own, corrections, and the weights of the readout's steps. Runs choose by :meth:`at`.
    """

    nodes: tuple[Node, ...]
    provenance: Provenance = field(default_factory=Provenance)
    tuned: Mapping[int, Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind(
            self.provenance, Provenance, "graph", "provenance", "Leave it out, or pass Provenance.from_json(...)"
        )

    def _lines(self) -> Iterable[str]:
        return network_table.lines(self)

    def _parts(self) -> Iterable[str | Table]:
        return network_table.parts(self)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def __call__(self, images: Tensor, timesteps: int, precision: str = "exact") -> Tensor:
        """The answer after ``timesteps`` steps from a fresh state, in the units of the source network's logits.

        For the values of other nodes see :func:`s_resnet.simulation.features`.

        Args:
            images: ``[B, C, H, W]``; signals ``[B, C, L]``, or events ``[T, B, C, H, W]``, frame t at step t.
            timesteps: T >= 1.
            precision: ``"exact"`` or ``"fast"``, as in :class:`s_resnet.graph.StreamSettings`.

        Returns:
            ``[B, N]``, or ``[B, N, 1, 1]`` if the source network answers in that shape; internally, and in simulations,
            it is ``[B, N]``. On a GPU it is NaN for images that are not finite.

        Raises:
            InvalidData: ``timesteps`` is below 1, the images do not fit, or, off a GPU, are not finite.
        """
        with torch.no_grad():
            for chunk in self.stream(
                images, timesteps, settings=engine.StreamSettings(precision=precision, whole=engine.Whole(state=False))
            ):
                answer = chunk.outputs[-1]
        return self._as_source(answer)

    def _as_source(self, answer: Tensor) -> Tensor:
        """The answer ``[B, N]`` in the source network's shape."""
        ones = self.provenance.answer_shape == (*answer.shape[1:], 1, 1)
        return answer[:, :, None, None] if ones else answer

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> dict[str, tuple[str, ...]]:
        """For each node the names of the nodes that read it."""
        users: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node.name)
        return {name: tuple(who) for name, who in users.items()}

    @cached_property
    def static(self) -> frozenset[str]:
        """The nodes with no memory upstream: under constant input their value is the same at every step."""
        static: set[str] = set()
        for node in self.nodes:
            if not isinstance(node.op, STATEFUL) and all(name in static for name in node.inputs):
                static.add(node.name)
        return frozenset(static)

    @property
    def neurons(self) -> tuple[Node, ...]:
        """The neuron layers, in execution order; empty for an analog network."""
        return tuple(node for node in self.nodes if isinstance(node.op, Neuron))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by ``node/field``, those of an operation's parts by ``node/part.field``."""
        return {f"{node.name}/{name}": value for node in self.nodes for name, value in tensors(node.op)}

    @property
    def device(self) -> torch.device:
        """The device of its tensors; the CPU if it has none."""
        return next((value.device for node in self.nodes for _, value in tensors(node.op)), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The widest type of its floating-point numbers; float32 if it has none."""
        found = {value.dtype for value in self.tensors().values() if value.is_floating_point()} or {torch.float32}
        return reduce(torch.promote_types, found)

    @property
    def trained(self) -> bool:
        """Whether it was trained as a spiking network, so that there is no ANN beside it."""
        return any(isinstance(node.op, Neuron) and node.op.surrogate is not None for node in self.nodes)

    @property
    def trained_for(self) -> int:
        """The T that a directly trained network was trained for.

        Raises:
            InvalidData: the provenance does not say.
        """
        steps = self.provenance.recipe.timesteps
        if steps is None:
            what, expected = "the recipe of a directly trained network", "the T that it was trained for"
            remedy = "Say it: graph.with_provenance(recipe=s_resnet.graph.provenance.AppliedRecipe('trained', 4))"
            raise InvalidData(message("graph", what, "no timesteps", expected, remedy))
        return steps

    @property
    def fitted(self) -> tuple[int, ...]:
        """The T of a network for several, ascending; none of one that has no numbers for other T."""
        return tuple(sorted({*self.tuned, self.provenance.recipe.timesteps or 1})) if self.tuned else ()

    def at(self, timesteps: int) -> Graph:
        """Of a network for several T the one for ``timesteps``; any other is what it is for every T.

        If there are no numbers for that T, they are those of the largest T below it, else of the smallest.
        """
        if not self.tuned:
            return self
        steps = nearest(self.fitted, timesteps)
        if steps not in self._at:
            nodes = retuned(self.nodes, self.tuned[steps], self.device) if steps in self.tuned else self.nodes
            recipe = replace(self.provenance.recipe, timesteps=steps)
            self._at[steps] = Graph(nodes, self.provenance.with_parts(recipe=recipe))
        return self._at[steps]

    def runs(self, at: Iterable[int]) -> list[tuple[int, ...]]:
        """The T to report, grouped by what one run answers; of windowed layers it answers once."""
        groups: dict[int, list[int]] = {}
        for steps in at:
            groups.setdefault(steps if self.windowed else nearest(self.fitted or (1,), steps), []).append(steps)
        return [tuple(group) for group in groups.values()]

    @cached_property
    def _at(self) -> dict[int, Graph]:
        return {}

    @property
    def windowed(self) -> bool:
        """Whether a layer waits for a part of its window of T steps, so that T has to be known beforehand."""
        return engine.windowed(self.nodes)

    def end_to_end_steps(self, timesteps: int) -> int:
        """Steps from the first input to the answer: T, and what the layers on the longest path wait."""
        return timesteps + max(self.waited(timesteps).values())

    def waited(self, timesteps: int) -> dict[str, int]:
        """By how many steps each node's values are later than the input: what its longest path waits."""
        waited: dict[str, int] = {}
        for node in self.nodes:
            delay = node.op.delay(timesteps) if isinstance(node.op, Neuron) else 0
            waited[node.name] = delay + max((waited[name] for name in node.inputs), default=0)
        return waited

    @property
    def alphabet(self) -> str:
        """What its neurons send: ``"binary"``, ``"signed"``, or levels such as ``"signed, 4 levels"``.

        Of multi-level firing ``"3 firing levels"``; of copies of neurons ``"binary, 3 neurons for each"``.
        """
        return in_words(node.op.spikes for node in self.nodes if isinstance(node.op, Neuron))

    @property
    def copies(self) -> int:
        """How many plain neurons stand for each, at most; 1 usually."""
        return max((node.op.copies for node in self.nodes if isinstance(node.op, Neuron)), default=1)

    @property
    def is_integer(self) -> bool:
        """Whether its spiking runs count in whole numbers."""
        ops = (node.op for node in self.nodes if isinstance(node.op, Neuron))
        return any(op.integer is not None or op.membrane_dtype == torch.int32 for op in ops)

    def spiking(self) -> Graph:
        """The network that a spiking run in floating point computes: every weight is the one that is used.

        The source's analog run is lost in it. An integer network is taken for what it was made from.
        """
        if self.is_integer:  # the grid of the images is that of its whole numbers
            return self._with(lambda op: Input() if isinstance(op, Input) else forms.spiking(op))
        return self._with(forms.spiking)

    def integer(self) -> Graph:
        """The network that a run of an integer network computes, in whole numbers.

        Raises:
            InvalidData: it has none.
        """
        if not self.is_integer:
            expected = "one of whole numbers"
            raise InvalidData(message("graph", "", "a network in float32", expected, "Convert it with int8 weights"))
        return self._with(forms.integer)

    def running(self) -> Graph:
        """What runs: :meth:`integer` of an integer network, else :meth:`spiking`."""
        return self.integer() if self.is_integer else self.spiking()

    def _with(self, form: Callable[[Op], Op]) -> Graph:
        return replace(self, nodes=tuple(replace(node, op=form(node.op)) for node in self.nodes))

    def with_provenance(self, **parts: Unpack[Parts]) -> Graph:
        """The same network with these parts in place of those in its provenance.

        Args:
            parts: by the names of :class:`s_resnet.graph.provenance.Provenance`. ``extra``, a dict of the user's own
                entries, is added to those that are there.

        Raises:
            InvalidData: a part is of another kind.
        """
        return replace(self, provenance=self.provenance.with_parts(**parts))

    def to(self, target: torch.device | str | torch.dtype) -> Graph:
        """The same network with its tensors on a device, or its floating-point numbers in another such type."""

        def move(value: Tensor) -> Tensor:
            return value.to(target) if value.is_floating_point() or not isinstance(target, torch.dtype) else value

        tuned = {steps: {name: move(value) for name, value in some.items()} for steps, some in self.tuned.items()}
        return replace(self._with(lambda op: mapped(op, move)), tuned=tuned)

    def validate(self) -> Graph:
        """The graph itself, after a check of its structure.

        Raises:
            ConversionError: a name is used twice, an input does not exist, or nothing reads a value.
        """
        check_structure(self.nodes)
        return self

    # ---- analog ----

    def run(self, images: Tensor) -> Tensor:
        """The source network's logits ``[B, N]``: neurons act as ReLU and the recipe's corrections are off.

        With events ``[T, B, C, H, W]`` the source network sees the mean over T. A directly trained network is its own
        source: this is its answer after the T steps that it was trained for.
        """
        if self.trained:
            return self(images, self.trained_for)
        (_, logits) = deque(self.activations(images), maxlen=1)[0]
        return finite_answers(self._as_source(logits), "run")

    def activations(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each node's analog value in execution order; a directly trained network gives its values at the first step.

        A value is freed after its last reader.
        """
        check_shown(self.nodes, self.provenance, images := as_maps(images), "run")
        if images.ndim == 5:
            images = images[0] if self.trained else images.mean(0)
        yield from engine.activations(self.nodes, images)

    @cached_property
    def _plans(self) -> dict[str, engine.Plan]:
        return {}

    def _plan(self, precision: str) -> engine.Plan:
        if precision not in self._plans:
            validate.finite(self.nodes)
            self._plans[precision] = engine.prepare(self, precision)
        return self._plans[precision]

    # ---- spiking ----

    def portions(self, images: Tensor, timesteps: int | None = None, precision: str = "exact") -> list[int]:
        """How many of the images go through the layers together: all, or parts that memory holds.

        Phased layers have all steps of an image in memory at once, and their simulation takes these parts itself; one
        that goes on step by step holds all images that it is given.

        Args:
            images: as in :meth:`stream`.
            timesteps: T; None: an analog run.
            precision: as in :class:`s_resnet.graph.StreamSettings`.

        Raises:
            InvalidData: the images or a setting do not fit, or a memory limit cannot hold one image.
        """
        images = as_maps(images)
        one = images if images.ndim == 4 else images[0]
        if timesteps is None:
            check_shown(self.nodes, self.provenance, images, "run")
            return engine.analog_portions(self.nodes, one)
        timesteps = whole_number(timesteps, "simulate", "timesteps")
        _check(self, images, timesteps, None, None)
        return engine.portions(self.at(timesteps)._plan(precision), engine.Job(one, timesteps))

    def stream(
        self,
        images: Tensor,
        timesteps: int,
        chunk: int | None = None,
        state: State | None = None,
        settings: engine.StreamSettings = engine.USUAL,
    ) -> Iterator[Chunk]:
        """Simulate ``timesteps`` steps, ``chunk`` steps through one layer at a time, and yield each chunk's results.

        Args:
            images: ``[B, C, H, W]``, the constant input current (direct coding); or events ``[T, B, C, H, W]``, where
                step t, counted from the fresh state, receives frame t. T may exceed the simulated steps.
            timesteps: T >= 1.
            chunk: steps per layer visit; results do not depend on it, memory does. By default the batch size and, on a
                GPU, its free memory decide.
            state: the state to continue from; None starts fresh.
            settings: input coding, precision, and who observes.

        Raises:
            InvalidData: a setting, the images or the state do not fit, or answers are not finite.
        """
        timesteps, images = whole_number(timesteps, "simulate", "timesteps"), as_maps(images)
        chunk = None if chunk is None else whole_number(chunk, "simulate", "chunk")
        _check(self, images, timesteps, chunk, state)
        plan, encode = self.at(timesteps)._plan(settings.precision), settings.encode
        memory, step = ({}, 0) if state is None else (state.memory, state.step)
        if plan.integer and (encode is not None or images.ndim == 5):
            got, remedy = "coding 'poisson' or events for an integer network", "Convert it with other weights"
            raise InvalidData(message("simulate", "", got, "images in coding 'direct'", remedy))
        given, encode = (images, encode) if images.ndim == 4 else (images[0], presented(images, step))
        if plan.max_membrane_step * (step + timesteps) >= 2**31:
            most = 2**31 // plan.max_membrane_step
            expected = f"below {most}, beyond which the 32-bit membranes of this integer network could overflow"
            raise InvalidData(message("simulate", "", f"T = {step + timesteps}", expected, "Lower T"))
        job = engine.Job(given, timesteps, chunk, memory, step, encode, settings.observe, settings.whole)
        for outputs, spikes, after in engine.advance(plan, job):
            step += len(outputs)
            outputs = marked(outputs, images) if images.is_cuda else finite_answers(outputs, "simulate")
            yield Chunk(outputs, spikes, State(step, after))


def check_spiking(snn: object, where: str) -> None:
    """Check that something is a network with neurons, and not a module that still has to be converted.

    Raises:
        InvalidData: it is not.
    """
    if not isinstance(snn, Graph) or not snn.neurons:
        got = "a network without neurons" if isinstance(snn, Graph) else f"a {type(snn).__name__}"
        raise InvalidData(message(where, "", got, "a converted one", "Call convert first"))


def _check(graph: Graph, images: Tensor, timesteps: int, chunk: int | None, state: State | None) -> None:
    check_spiking(graph, "simulate")
    total = timesteps + (0 if state is None else state.step)
    found = check_simulated(graph.nodes, graph.provenance, images, total)
    together = chunk not in (None, timesteps) and engine.at_once(graph.nodes, graph.device)
    if together or (graph.windowed and state is not None):
        got = f"chunk={chunk} or a state for a network whose layers wait for their window of T"
        raise InvalidData(message("simulate", "", got, "all T steps at once", "Leave both out"))
    if state is not None and graph.tuned:
        got, expected = "a state for a network for several T", "the network for one of them"
        raise InvalidData(message("simulate", "", got, expected, "Choose it with graph.at(T), and pass that"))
    if state is not None:
        check_state(graph.nodes, found, state.memory, count_images(images), images.device)
