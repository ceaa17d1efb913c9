"""Whole simulations as CUDA graphs: launched at once, with no Python and no wait between their kernels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from ..neuron import Memory

# Answers ``[S, B, N]``, spikes per neuron node ``[S, B]``, the memory after the last step.
Result = tuple[Tensor, dict[str, Tensor], dict[str, Memory]]
# Recordings that a plan keeps.
KEPT = 4
# A process captures one graph at a time.
CAPTURING = threading.Lock()


class Replay:
    """A simulation of T steps from a fresh state, recorded once and then run on other images of that shape.

    It records a function of the images alone, which launches the same work for all images and reads nothing back. The
    function must have run before, so that everything is compiled, prepared and tuned.
    """

    def __init__(self, images: Tensor, simulate: Callable[[Tensor], Result]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        # Other threads may use CUDA meanwhile, such as a loader that pins memory.
        capture = torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local")
        with CAPTURING, torch.cuda.device(images.device), capture:
            self.images = torch.empty_like(images)
            self.outputs, counts, self.memory = simulate(self.images)
            self.names, self.counts = tuple(counts), torch.stack(list(counts.values()))

    def run(self, images: Tensor, state: bool) -> Result:
        """The simulation of ``images``: copies, since the next one overwrites the graph's own tensors."""
        self.images.copy_(images)
        self.graph.replay()
        counts = dict(zip(self.names, self.counts.clone(), strict=True))
        kept = {name: tuple(part.clone() for part in parts) for name, parts in self.memory.items()} if state else {}
        return self.outputs.clone(), counts, kept


class Replays:
    """The recordings of a plan by the runs they replay; the least recently used one is dropped first.

    A run is recorded only when it comes a second time; the first run prepares everything for the recording.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, Replay | None] = OrderedDict()

    def __reduce__(self) -> tuple[type[Replays], tuple[()]]:
        """A copy of a network makes recordings of its own."""
        return Replays, ()

    def note(self, key: Hashable) -> None:
        """Note that such a run has been, and is worth a recording when it comes again."""
        self.kept[key] = None
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)

    def get(self, key: Hashable, record: Callable[[], Replay]) -> Replay | None:
        """The recording of a run that was noted, else None."""
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        replay = self.kept[key] or record()
        self.kept[key] = replay
        return replay
