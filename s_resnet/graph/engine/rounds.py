"""Which steps each node computes in a round: where layers lag, those behind them are later, and shortcuts wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..neuron import Neuron
from ..ops import Node
from ..readout import STATEFUL


@dataclass(frozen=True)
class Turn:
    """What a node does in a round: it reads the steps ``first`` to ``last`` and gives its own ``given`` to ``done``."""

    first: int
    last: int
    given: int
    done: int

    @property
    def steps(self) -> int:
        """How many steps it reads."""
        return self.last - self.first


@dataclass(frozen=True, eq=False)
class Wiring:
    """Who reads whom at each step; a shortcut synapse that its neurons apply is read as the node that it scales.

    Attributes:
        reads: for each node that computes something at each step, those that it reads.
        readers: for each of them, those that read it.
        prompt: those that compute a step only when their one reader takes it.
    """

    reads: Mapping[str, tuple[str, ...]]
    readers: Mapping[str, tuple[str, ...]]
    prompt: frozenset[str]


def wired(nodes: tuple[Node, ...], constant: frozenset[str], deferred: Mapping[str, str]) -> Wiring:
    """The wiring of nodes of which some are constant."""
    reads = {
        node.name: tuple(
            source
            for name in node.inputs
            if (source := deferred.get(name, name)) not in constant and name not in constant
        )
        for node in nodes
        if node.name not in constant and node.name not in deferred
    }
    readers: dict[str, list[str]] = {name: [] for name in reads}
    for name, sources in reads.items():
        for source in dict.fromkeys(sources):
            readers[source].append(name)
    stateless = {node.name for node in nodes if not isinstance(node.op, STATEFUL)}
    prompt = frozenset(name for name, own in readers.items() if len(own) == 1 and name in stateless and reads[name])
    return Wiring(reads, {name: tuple(own) for name, own in readers.items()}, prompt)


def behind(wiring: Wiring, lagged: frozenset[str]) -> dict[str, int]:
    """For each node, how many steps the last of its readers is behind it."""
    given: dict[str, int] = {}  # the delay of what it gives
    taken: dict[str, int] = {}  # the delay at which it reads
    for name, sources in wiring.reads.items():
        taken[name] = max((given[source] for source in sources), default=0)
        given[name] = taken[name] + (name in lagged)
    for name in reversed(list(wiring.reads)):
        if name in wiring.prompt:
            taken[name] = given[name] = taken[wiring.readers[name][0]]
    return {
        name: max((taken[reader] - given[name] for reader in readers), default=0)
        for name, readers in wiring.readers.items()
    }


@dataclass(eq=False)
class Clock:
    """How far each node is within a run of T steps."""

    wiring: Wiring
    lagged: frozenset[str]
    timesteps: int
    read: dict[str, int] = field(default_factory=dict)

    def advance(self, steps: int) -> dict[str, Turn]:
        """The turns of the next round, in which a node reads ``steps`` steps at most, and those that are there."""
        before, now, there = dict(self.read), dict[str, int](), dict[str, int]()
        for name, sources in self.wiring.reads.items():
            ready = min((there[source] for source in sources), default=self.timesteps)
            now[name] = ready if name in self.wiring.prompt else min(ready, before.get(name, 0) + steps)
            there[name] = self._given(name, now[name])
        for name in reversed(list(now)):  # readers come first
            if name in self.wiring.prompt:
                now[name] = now[self.wiring.readers[name][0]]
        self.read = now
        return {
            name: Turn(before.get(name, 0), last, self._given(name, before.get(name, 0)), self._given(name, last))
            for name, last in now.items()
        }

    def _given(self, name: str, read: int) -> int:
        """How many steps a node has given once it has read so many."""
        return max(0, read - 1) if name in self.lagged and read < self.timesteps else read


def lagging(nodes: tuple[Node, ...]) -> frozenset[str]:
    """The layers that fire one step after they integrate."""
    return frozenset(node.name for node in nodes if isinstance(node.op, Neuron) and node.op.schedule == "lagged")
