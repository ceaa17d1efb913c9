"""Several processes: how those that torchrun started share images and learn of each other's errors.

Each process evaluates a part of the images. They exchange a few numbers per batch, only by :func:`all_gather`. Without
a process group there is one process, and everything here does nothing.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import BackendUnavailable, SResNetError, message
from ..files import reason

T = TypeVar("T")

# How long a process waits for the slowest one's batch. Nothing hangs, since torchrun ends all of them when one dies.
PATIENCE = timedelta(days=1)


def shard(indices: Sequence[T], rank: int, world: int) -> list[T]:
    """The part of ``indices`` for process ``rank`` of ``world``: every ``world``-th one, from ``rank`` on.

    The parts of all ranks hold every index exactly once, and their lengths differ by at most one. With more processes
    than indices some parts are empty.
    """
    return list(indices[rank::world])


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes: (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this process speaks and writes for all: the first of a process group, or the only one."""
    return rank_and_world_size()[0] == 0


def processes_here() -> int:
    """How many processes of the group are on this machine: 1 outside a process group."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if rank_and_world_size()[1] > 1 else 1


@contextmanager
def process_group(device: str = "auto") -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started for the duration of the block.

    Outside torchrun, and inside an existing process group, it joins nothing. On GPUs each process takes the one of its
    local rank. The group uses gloo on every device, since only a few numbers on the CPU are exchanged. An error in the
    block of one process is raised in all of them.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``; not a GPU by its number.

    Yields:
        The rank of this process and the number of processes.

    Raises:
        BackendUnavailable: the processes cannot reach each other, there are more of them than GPUs, or ``device`` names
            one GPU for all.
    """
    launched = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if not launched or dist.is_initialized():
        yield rank_and_world_size()
        return
    if ":" in device:
        got, expected = f"{device!r} for every process", "a GPU for each, which they choose themselves"
        raise BackendUnavailable(message("process group", "", got, expected, 'Use device="cuda"'))
    # Imported while a group exists, this module would hold it, and gloo's threads can abort the process at its end.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        got, expected = reason(error), "the processes that torchrun started"
        remedy = "Give torchrun the right --master-addr, or set GLOO_SOCKET_IFNAME to the network interface"
        raise BackendUnavailable(message("process group", "cannot be joined", got, expected, remedy)) from error
    try:
        with shared_errors():
            if device != "cpu" and torch.cuda.is_available():
                _take_gpu(int(os.environ["LOCAL_RANK"]))
            yield rank_and_world_size()
            all_gather(None)  # no process leaves before all have finished
    finally:
        dist.destroy_process_group()


def _take_gpu(local: int) -> None:
    there = torch.cuda.device_count()
    if local >= there:
        got = f"a process {local} for the GPUs of this machine, which has {there}"
        remedy = 'Lower --nproc-per-node, or use device="cpu"'
        raise BackendUnavailable(message("process group", "", got, "one GPU for each", remedy))
    torch.cuda.set_device(local)


def all_gather(value: T, error: Exception | None = None) -> list[T]:
    """The values of all processes by rank; every process has to call it, and waits for the others.

    Args:
        value: what this process contributes.
        error: an error of this process. It is raised in all of them: each raises its own, or else the first by rank.

    Raises:
        SResNetError: another process is gone, or failed with an error that is not an SResNetError.
    """
    rank, world = rank_and_world_size()
    gathered: list[tuple[T, Exception | None]] = [(value, error)] * world
    if world > 1:
        try:
            # all_gather_object pickles, but only between processes that run this same code.
            dist.all_gather_object(gathered, (value, None if error is None else _portable(error, rank)))
        except RuntimeError as lost:
            gone = SResNetError(
                message(
                    f"process {rank}",
                    "another process is gone",
                    reason(lost),
                    f"all {world} until the end",
                    "Look for its own message",
                )
            )
            raise _told(gone) from lost
    errors = [other for _, other in gathered if other is not None]
    if errors:
        raise _told(error or errors[0])
    return [other for other, _ in gathered]


def summed(value: Tensor) -> Tensor:
    """The sum of the values of all processes, which have one shape and type; the same to the last bit in all of them.

    Whole numbers are summed exactly; sums of float64 depend on the number of processes in their last bits.
    """
    if rank_and_world_size()[1] == 1:
        return value
    all_gather(None)  # an error of another process is raised here, before numbers are exchanged
    total = value.detach().cpu().contiguous().clone()
    try:
        dist.all_reduce(total)
    except RuntimeError as lost:
        got, expected = reason(lost), "all processes until the end"
        gone = SResNetError(message("sum", "another process is gone", got, expected, "Look for its own message"))
        raise _told(gone) from lost
    return total.to(value.device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all processes' parts by rank, in the order that :func:`shard` took them from."""
    places = torch.cat([torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)])
    return torch.cat([part for part in parts if len(part)] or [parts[0]])[places.argsort()]


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
    """The items of this process while any process has some left; errors of others are raised at the next item."""
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
    """Have the first process of each machine run the block before the others: for downloads and other writing."""
    _, world = rank_and_world_size()
    first = world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        all_gather(None)
    yield
    if first:
        all_gather(None)


def _told(error: Exception) -> Exception:
    """The error, marked as known to every process."""
    vars(error)["told"] = True
    return error


def _portable(error: Exception, rank: int) -> Exception:
    """The error in the form in which the other processes raise it."""
    if isinstance(error, SResNetError):
        return error
    got = f"{type(error).__name__} ({reason(error)})"
    return SResNetError(message(f"process {rank}", "failed", got, "no error", "Look for its own message"))
