"""CUDA graphs on the CPU: operations are noted while a graph is captured, and run again on the same tensors later.

As on a GPU, nothing that was computed is worth anything before a replay, and a value that Python wants to read during
the capture is an error. Unlike there, memory is not used twice.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import reference

READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero")
ALLOCATES = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


class Claimed(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU; so does everything that is computed from it."""

    is_cuda = True


class Notes(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kind = function.overloadpacket.__name__
        assert kind not in READS, f"{kind}: Python reads a value while a graph is captured"
        out = function(*args, **(kwargs or {}))
        if kind in ALLOCATES:
            for tensor in tree_leaves(out):
                tensor.fill_(-77)  # what a capture leaves there is anything
        elif not function.is_view:
            self.calls.append((function, args, kwargs or {}, out))
        return out


class Recording:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self):
        self.calls, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for function, args, kwargs, out in self.calls:
            again = function(*args, **kwargs)
            if not function._schema.is_mutable:
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


@pytest.fixture
def gpu(monkeypatch):
    """What torch.cuda is asked for where there is none: recordings and devices; memory is plenty."""
    told = SimpleNamespace(recordings=[], devices=[], streams=[], capturing=False, stream=0, free=2**40)

    @contextlib.contextmanager
    def capture(recording, stream, capture_error_mode):
        told.recordings.append(recording)
        assert told.devices[-1] == stream.device, "captured on the stream of another device"
        with Notes(recording.calls):
            yield
        told.devices.append(None)

    @contextlib.contextmanager
    def device(which):
        told.devices.append(which)
        yield

    for name, value in {
        "CUDAGraph": Recording,
        "graph": capture,
        "device": device,
        "Stream": lambda device: SimpleNamespace(device=device),
        "current_stream": lambda device: SimpleNamespace(cuda_stream=told.stream),
        "is_current_stream_capturing": lambda: told.capturing,
        "mem_get_info": lambda device: (told.free, 2**40),
        "memory_reserved": lambda device: 0,
        "memory_allocated": lambda device: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(compiler, "compiled", lambda: (None, "as on a GPU"))
    monkeypatch.setattr("s_resnet.kernels.integrate_and_fire", reference.integrate_and_fire)
    return told


def claimed(images):
    return images.as_subclass(Claimed)
