"""Pass: reconstruct weights, biases and thresholds of the spiking network block by block, without labels."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...data.arguments import check_kind, real_number, whole_number
from ...errors import InvalidData, message
from ...graph.engine import arithmetic
from ...graph.graph import Graph
from ...graph.neuron import Neuron
from ...graph.ops import Input, Node
from ...graph.provenance import ReconstructedBlock, Reconstruction, ReconstructionSettings
from ...runtime.processes import all_gather
from ...runtime.progress import Progress, repeatable
from ...simulation.lockstep import Pair, blocks, nearly_order_free, order_free, propagate_both
from ..block import CHECKED, Block
from ..context import Context
from ..kept import Kept, Shown, Values
from ..layerwise import PART, in_memory
from ..portions import trained_images
from ..resume import kept_at, key_of, resumed
from ..spill import Spill


def check_settings(settings: Mapping[str, object]) -> None:
    """Check the values of those settings of :func:`reconstruct` that are given.

    Raises:
        InvalidData: one is of another kind, or below 0.
    """
    for name in ("steps", "joint"):
        if name in settings:
            whole_number(settings[name], "reconstruct", name, 0)
    minutes, resume = settings.get("minutes", 0), settings.get("resume")
    if not real_number(minutes) >= 0:
        raise InvalidData(message("reconstruct", "", f"minutes={minutes!r}", "a number >= 0", "Pass one such as 30"))
    if resume is not None:
        check_kind(resume, (str, os.PathLike), "reconstruct", "resume", "Pass the path of a file")


def reconstruct(
    graph: Graph,
    context: Context,
    steps: int = 250,
    joint: int = 1000,
    minutes: float = 30.0,
    resume: str | os.PathLike[str] | None = None,
) -> Graph:
    """Train each block's spiking weights, corrections and thresholds to reproduce the source network's block.

    A block lies between two neuron layers through which everything passes (in a ResNet, the ends of its residual
    blocks). On calibration images it receives what the finished blocks before it really send, and minimizes::

        E[(r - a)^2],   r: the mean output of the real spiking forward over T steps, a: the source's activation

    by Adam, in ``steps`` steps of 32 images, with the learning rate falling to zero along a cosine. Then all blocks
    together are trained for ``joint`` such steps towards the source's logits, at 0.15 of the rates, on randomly
    mirrored and shifted images, for which the source is run anew. The gradient is straight-through: with
    ``u = clip(z / threshold, 0, L)`` of the mean current z, and N the real count, the backward pass sees
    ``r = threshold (u + (N / T - u).detach())``, so that weights, corrections and thresholds learn. One image of eight
    is held out: a block, or the whole network, that has not improved on those stays as it was.

    If counts depend only on the total charge (recipe phased), or nearly so (recipe signed), one pass over mean currents
    gives them, T times cheaper. In the second case the whole network is finally compared with its earlier version by
    its real spikes, on as many of the held-out images as fit in memory.

    The values for spiking runs are stored beside the source's weights, so the analog run is preserved. The provenance
    gets an entry ``reconstruction``: the settings, the number of images, for each block and for all together how many
    steps it got and whether it improved, and whether the outcome was kept.

    Args:
        graph: the network after :func:`calibrate_neurons`.
        context: calibration images to fit to, and T.
        steps: steps for each block.
        joint: steps for all blocks together.
        minutes: the time limit. The block in progress when it expires is finished; later blocks stay as they were
            calibrated, with 0 steps. The joint training gets as many steps as fit in the remaining time. The result
            thus depends only on the numbers of steps, which the provenance records.
        resume: a file that keeps finished blocks. After an interruption the same call resumes from it, with all its
            minutes.

    Raises:
        ConversionError: there are no calibration images, or no T.
        InvalidArtifact: ``resume`` belongs to another network, other images or other settings.

    Source: block reconstruction, Li et al., ICLR 2021 (arXiv:2102.05426); threshold gradient, Esser et al., ICLR 2020
    (arXiv:1902.08153).
    """
    if not graph.neurons:
        return graph
    images, timesteps = context.fitting_images("reconstruct"), context.fitting_steps("reconstruct")
    count = sum(all_gather(len(images)))
    key = key_of(graph, images, {"timesteps": timesteps, "steps": steps, "joint": joint})
    before, (graph, said) = graph, resumed(graph, resume, key)
    rounds = 1 if nearly_order_free(graph) else timesteps
    most = trained_images(graph, images[:1], rounds)
    room = min(most, in_memory(graph, images, rounds, PART))
    entered: dict[str, Values] = {graph.nodes[0].name: _shown(graph, images, rounds)}
    values, parts = entered, blocks(graph)
    names = [part[-1].name for part in parts] + ["all together"] * (joint > 0)
    total = steps * len(parts) + joint
    finished = _credited(len(said), len(parts), steps, joint)
    bar = Progress[None](total=total, desc="reconstruct", unit="step", shown=context.progress)
    bar.resume(finished)
    kept = repeatable(resume, lambda: f"{len(said)} of {len(parts) + 1} parts" if said else "")
    end = time.monotonic() + 60 * minutes
    with bar, arithmetic(images[:1], tf32=False), kept:
        for index, part in enumerate(parts):
            if index >= len(said):
                if _late(end):
                    break
                bar.show(part=f"{index + 1}/{len(parts) + 1}")
                part, done, better = Block(part, values, timesteps, room=room).train(steps, bar)
                said.append(ReconstructedBlock(names[index], done, better))
                graph = kept_at(_replaced(graph, part), resume, key, said)
            if index < len(parts) - 1:
                values = _sent(part, values, timesteps, room)
        if len(parts) == len(said) < len(names) and not _late(end):
            bar.show(part=f"{len(parts) + 1}/{len(parts) + 1}")
            together = Block(graph.nodes, entered, timesteps, joint=True, room=room)
            whole, done, better = together.train(joint, bar, end)
            said.append(ReconstructedBlock(names[-1], done, better))
            graph = kept_at(_replaced(graph, whole), resume, key, said)
        bar.update(total - _credited(len(said), len(parts), steps, joint))  # steps for which there was no time
        sure = order_free(graph) or rounds > 1
        taken = graph if sure else _closer(before, graph, images, timesteps)
    said += [ReconstructedBlock(name, 0, False) for name in names[len(said) :]]
    asked = ReconstructionSettings(steps, joint, total, minutes)
    return taken.with_provenance(reconstruction=Reconstruction(tuple(said), asked, count, taken is graph))


def _credited(count: int, blocks: int, steps: int, joint: int) -> int:
    """The number of steps of so many finished parts: the blocks, and then all of them together."""
    return steps * min(count, blocks) + joint * (count > blocks)


def _shown(graph: Graph, images: Tensor | Spill, steps: int) -> Shown:
    op = graph.nodes[0].op
    assert isinstance(op, Input)
    return Shown(op, images, steps)


def _sent(nodes: tuple[Node, ...], values: Mapping[str, Values], timesteps: int, room: int) -> dict[str, Values]:
    """What the last of the nodes, a neuron layer, sends on all images; in a file if there are many."""
    last = nodes[-1]
    assert isinstance(last.op, Neuron)
    count = len(next(iter(values.values())))

    def sent(images: slice) -> Pair:
        with torch.no_grad():
            entering = {name: value[images] for name, value in values.items()}
            return propagate_both(nodes, entering, timesteps, lambda node, *_: node.op)[1][last.name]

    if count <= room:
        return {last.name: sent(slice(0, count))}
    parts = (slice(first, first + room) for first in range(0, count, room))
    return {last.name: Kept(last.op, timesteps, map(sent, parts))}


def _closer(before: Graph, after: Graph, images: Tensor | Spill, timesteps: int) -> Graph:
    """The graph whose real spikes come closer to the source's logits, on the held-out images."""
    room = in_memory(before, images, timesteps, PART)
    checked = torch.arange(0, sum(all_gather(len(images))), CHECKED)
    old, new = (
        Block(graph.nodes, {graph.nodes[0].name: _shown(graph, images, timesteps)}, timesteps, room=room).error(checked)
        for graph in (before, after)
    )
    return after if new < old else before


def _late(end: float) -> bool:
    """Whether the time is over, by the clock of the first process."""
    return all_gather(time.monotonic() >= end)[0]


def _replaced(graph: Graph, part: tuple[Node, ...]) -> Graph:
    """The graph with these nodes in place of those with the same names."""
    changed = {node.name: node for node in part}
    return replace(graph, nodes=tuple(changed.get(node.name, node) for node in graph.nodes))
