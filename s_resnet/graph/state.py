"""What a network remembers between chunks of steps, and what a chunk gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..runtime.display import Displayed
from .neuron import Memory


@dataclass(frozen=True, repr=False)
class State(Displayed):
    """Everything a network remembers after ``step`` steps: the memory of each stateful node, by name."""

    step: int
    memory: Mapping[str, Memory]


@dataclass(frozen=True, repr=False)
class Chunk(Displayed):
    """What a chunk of ``S`` steps gave: answers ``[S, B, N]``, spikes per neuron node ``[S, B]``, the state after."""

    outputs: Tensor
    spikes: Mapping[str, Tensor]
    state: State
