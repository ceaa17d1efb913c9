"""All steps of a simulation: chunk after chunk; images in portions where all steps go together; or from a recording."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from ...runtime.memory import limit
from .chunks import equal, portion
from .plan import Plan, Portion, windowed
from .precision import arithmetic
from .replay import Replay, Result
from .run import Encode, Job, Run

# Steps, images and neurons of a layer that a GPU advances while Python launches it, 2.4e11 a second in 0.15 ms: where a
# chunk has more of them, a recording saves nothing.
RECORDED = 2**25
# Chunks of which one recording is made; more of them take more memory than the time is worth.
CHUNKS = 64
# A convolution that is computed fewer times is done before cuDNN has found its fastest algorithm.
OFTEN = 10


def advance(plan: Plan, job: Job) -> Iterator[Result]:
    """Run the steps of a job: for each chunk its answers ``[S, B, N]``, spikes per layer ``[S, B]``, and the memory."""
    key = _recorded_as(job)
    replay = None if key is None else plan.replays.get(key, lambda: Replay(job.images, partial(_through, plan, job)))
    if replay is not None:
        yield replay.run(job.images, job.whole is not None and job.whole.state)
        return
    yield from _chunks(plan, job)
    if key is not None and _short(plan, job):
        plan.replays.note(key)


def _recorded_as(job: Job) -> Hashable | None:
    """The key of a recording of such a job; None if it cannot be recorded.

    A recording is a whole run on images from a fresh state. Each thread has its own on each of its streams, since their
    tensors are used by one run at a time, and cuDNN finds algorithms for every thread anew.
    """
    images = job.images
    if not images.is_cuda or job.whole is None or job.memory or job.step:
        return None
    if job.encode is not None or job.observe is not None or torch.cuda.is_current_stream_capturing():
        return None
    stream = torch.cuda.current_stream(images.device).cuda_stream
    return images.dtype, images.shape, images.device, job.timesteps, job.chunk, threading.get_ident(), stream


def _short(plan: Plan, job: Job) -> bool:
    """Whether Python takes longer to launch the layers than the GPU to run them."""
    numbers = _portion(plan, job).numbers
    if windowed(plan.nodes):  # on a GPU all steps at once
        parts, most = portions(plan, job), numbers * job.timesteps
    else:
        parts, most = _lengths(plan, job), numbers * len(job.images)
    return len(parts) <= CHUNKS and most * parts[0] <= RECORDED


def _through(plan: Plan, job: Job, images: Tensor) -> Result:
    """All chunks of a job for such images, joined, and the memory after the last."""
    assert job.whole is not None
    chunks = list(_chunks(plan, replace(job, images=images, whole=replace(job.whole, state=True))))
    counts = {name: torch.cat([chunk[1][name] for chunk in chunks]) for name in chunks[0][1]}
    return torch.cat([chunk[0] for chunk in chunks]), counts, chunks[-1][2]


def _chunks(plan: Plan, job: Job) -> Iterator[Result]:
    if windowed(plan.nodes) and (plan.at_once or job.chunk is None or job.observe is not None):
        yield _window(plan, job)
        return
    run = Run(plan, job)
    lengths = _lengths(plan, job)
    done = 0
    while done < job.timesteps:
        steps = min(lengths[0], job.timesteps - done)
        with arithmetic(job.images, plan.tf32, _tuned(plan, job, steps, lengths.count(steps))):
            outputs, counts = run.advance(lengths[0] if plan.lagged else steps)  # those behind have more to do
        done += len(outputs)
        # Within a lagged window there is no state to continue from.
        wanted = job.whole is None or job.whole.state
        kept = wanted if done == job.timesteps else job.whole is None and not plan.lagged
        if len(outputs):
            yield outputs, counts, dict(run.memory) if kept else {}


def _window(plan: Plan, job: Job) -> Result:
    """All steps of a network whose layers wait, a portion of the images after the other.

    An observer sees all images and all steps at once, as in any other chunk.
    """
    images, steps = job.images, job.timesteps
    whole = plan.at_once or job.observe is not None
    sizes = [len(images)] if job.observe is not None else portions(plan, job)
    length = steps if whole else _portion(plan, job).steps
    frames = None if job.encode is None or len(sizes) == 1 else job.encode(steps)
    parts: list[Result] = []
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        some = slice(end - size, end)
        encode = job.encode if frames is None else _shown(frames[:, some])
        part = replace(job, images=images[some], encode=encode)
        run = Run(plan, part)
        with arithmetic(images, plan.tf32, _tuned(plan, part, steps, sizes.count(size))):
            outputs, counts = _rounds(run, steps, length)
        parts.append((outputs, counts, run.memory if job.whole is None or job.whole.state else {}))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _shown(frames: Tensor) -> Encode:
    """Gives frames in their order."""
    left = iter(frames)
    return lambda steps: torch.stack([next(left) for _ in range(steps)])


def _rounds(run: Run, steps: int, length: int) -> tuple[Tensor, dict[str, Tensor]]:
    """All ``steps`` steps of a run, at most ``length`` of them through a layer at a time."""
    found = [run.advance(length)]
    while sum(len(outputs) for outputs, _ in found) < steps:
        found.append(run.advance(length))
    found = [part for part in found if len(part[0])]
    if len(found) == 1:
        return found[0]
    counts = {name: torch.cat([count[name] for _, count in found]) for name in found[0][1]}
    return torch.cat([outputs for outputs, _ in found]), counts


def portions(plan: Plan, job: Job) -> list[int]:
    """The images that memory holds together: all of them, or equal parts."""
    return equal(len(job.images), _portion(plan, job).images)


def _joined(parts: list[Result]) -> Result:
    """What came of portions of the images, as of all; what has no images (a readout's step) is the same in each."""
    outputs, counts, memories = zip(*parts, strict=True)
    memory = {
        name: tuple(torch.cat(same) if same[0].ndim else same[0] for same in zip(*kept, strict=True))
        for name, kept in ((name, [memory[name] for memory in memories]) for name in memories[0])
    }
    return torch.cat(outputs, 1), {name: torch.cat([count[name] for count in counts], 1) for name in counts[0]}, memory


def _portion(plan: Plan, job: Job) -> Portion:
    """How much goes through a layer at a time; found once for a shape: free memory changes, results must not."""
    key = (job.images.dtype, job.images.shape, job.timesteps if windowed(plan.nodes) else 0, limit())
    if key not in plan.portions:
        plan.portions[key] = portion(plan, job.images, job.timesteps)
    return plan.portions[key]


def _lengths(plan: Plan, job: Job) -> list[int]:
    """The steps of each chunk: those asked for and a rest, else equal ones."""
    if job.chunk is None:
        return equal(job.timesteps, _portion(plan, job).steps)
    whole, rest = divmod(job.timesteps, job.chunk)
    return [job.chunk] * whole + [rest] * (rest > 0)


def _tuned(plan: Plan, job: Job, steps: int, times: int) -> bool:
    """Whether cuDNN looks for its fastest algorithms; decided once for a shape, since they round differently."""
    key = (job.images.dtype, job.images.shape, steps)
    if key not in plan.tuned:
        plan.tuned[key] = times * (1 if job.whole is None else job.whole.repeats) >= OFTEN
    return plan.tuned[key]
