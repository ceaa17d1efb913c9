"""More than one process: how torchrun's processes share the images, and hear of each other's errors.

Each process evaluates a part of the images; what they tell each other is a few numbers per batch, through
:func:`all_gather` alone. Without a process group there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ..errors import BackendUnavailable, SResNetError

T = TypeVar("T")

# A process waits this long for the slowest one's batch; torchrun ends all of them when one dies, so nothing hangs.
PATIENCE = timedelta(days=1)


def shard(indices: Sequence[T], rank: int, world: int) -> list[T]:
    """The part of ``indices`` that process ``rank`` of ``world`` takes: every ``world``-th one, from ``rank`` on.

    The parts of all ranks hold every index exactly once, and their lengths differ by one at most; a part is empty
    where there are more processes than indices.
    """
    return list(indices[rank::world])


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes: (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def process_group(device: str = "auto") -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, for the block; gives the rank and the number of processes.

    Outside torchrun, and in a process group that is there already, it joins nothing. On GPUs each process takes the
    one of its local rank. The group is gloo's on every device: a few numbers on the CPU are all that is exchanged.
    An error in the block, in whichever process, is raised in all of them.

    Raises:
        BackendUnavailable: the processes cannot reach each other, are more than the GPUs, or got one GPU by its number.
    """
    launched = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if not launched or dist.is_initialized():
        yield rank_and_world_size()
        return
    if ":" in device:
        raise BackendUnavailable(
            f"process group: got {device!r} for every process; expected a GPU for each, which they choose themselves. "
            'Use device="cuda".'
        )
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise BackendUnavailable(
            f"process group: cannot be joined, got {_line(error)}; expected the processes that torchrun started. "
            "Check its --master-addr, or set GLOO_SOCKET_IFNAME to the network interface."
        ) from error
    try:
        with shared_errors():
            if device != "cpu" and torch.cuda.is_available():
                _take_gpu(int(os.environ["LOCAL_RANK"]))
            yield rank_and_world_size()
            all_gather(None)  # nobody leaves before all have done their work
    finally:
        dist.destroy_process_group()


def _take_gpu(local: int) -> None:
    there = torch.cuda.device_count()
    if local >= there:
        raise BackendUnavailable(
            f"process group: got a process {local} for the GPUs of this machine, which has {there}; expected one GPU "
            'for each. Lower --nproc-per-node, or use device="cpu".'
        )
    torch.cuda.set_device(local)


def all_gather(value: T, error: Exception | None = None) -> list[T]:
    """What the processes say to each other, by rank; every process has to call it, and waits for the others.

    An error that one of them says is raised in all: its own where it was raised, the first by rank elsewhere.
    """
    rank, world = rank_and_world_size()
    said: list[tuple[T, Exception | None]] = [(value, error)] * world
    if world > 1:
        try:
            # all_gather_object pickles, between processes that run this same code.
            dist.all_gather_object(said, (value, None if error is None else _portable(error, rank)))
        except RuntimeError as lost:
            gone = SResNetError(
                f"process {rank}: another process is gone, got {_line(lost)}; expected all {world} until the end. "
                "Look for what it said."
            )
            raise _told(gone) from lost
    errors = [other for _, other in said if other is not None]
    if errors:
        raise _told(error or errors[0])
    return [other for other, _ in said]


@contextmanager
def shared_errors() -> Iterator[None]:
    """An error in the block is raised in the other processes too, at their next :func:`all_gather`."""
    try:
        yield
    except Exception as error:
        if "told" not in vars(error):
            all_gather(None, error)
        raise


def in_lockstep_batches(items: Iterable[T]) -> Iterator[T]:
    """The items of this process while any process has some left, so that an error is heard of at the next item."""
    own, end = iter(items), object()
    item: T | object = None
    while True:
        item = end if item is end else next(own, end)
        if not any(all_gather(item is not end)):
            return
        if item is not end:
            yield item  # type: ignore[misc]


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process of each machine runs the block before the others do: for what writes files, as a download."""
    _, world = rank_and_world_size()
    first = world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        all_gather(None)
    yield
    if first:
        all_gather(None)


def _told(error: Exception) -> Exception:
    """The error, marked as one that every process knows of."""
    vars(error)["told"] = True
    return error


def _portable(error: Exception, rank: int) -> Exception:
    """The error as the other processes raise it."""
    if isinstance(error, SResNetError):
        return error
    return SResNetError(
        f"process {rank}: failed, got {type(error).__name__} ({_line(error)}); expected no error. "
        "Look for what it said."
    )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(". ")
