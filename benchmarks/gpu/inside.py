"""Where the checks and timings of a GPU reach below what `s_resnet` exports: kernels, their plans, and CUDA graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import s_resnet
from s_resnet import kernels
from s_resnet.graph import engine
from s_resnet.graph.ops import Conv2d
from s_resnet.kernels import Update
from s_resnet.kernels.build import compiler as host
from s_resnet.kernels.build import nvrtc
from s_resnet.kernels.membrane import cuda, fused, fused_tiles, reference
from s_resnet.kernels.surrogate import cuda as surrogate_cuda
from s_resnet.kernels.surrogate.fire import fire, run
from s_resnet.kernels.surrogate.normalize import Normalization, normalize_and_fire
from s_resnet.kernels.surrogate.reference import SURROGATES, Firing, fire_reference
from s_resnet.runtime.device import prefetch
from s_resnet.simulation.simulate import answers

sys.path += [str(Path(__file__).parents[2] / "tests" / folder) for folder in ("", "kernels")]

__all__ = [
    "SURROGATES",
    "Conv2d",
    "Firing",
    "Normalization",
    "Update",
    "answers",
    "fire",
    "fire_reference",
    "fused",
    "fused_tiles",
    "normalize_and_fire",
    "prefetch",
]
PRECISIONS = ("exact", "fast")
Instance = tuple[str, str]  # the file of a kernel, and one of its template instances

# The membrane kernel and its specification: tensors in, tensors out.
Run = Callable[[Tensor, Tensor, Update], tuple[Tensor, Tensor]]
membrane, membrane_reference = cuda.integrate_and_fire, reference.integrate_and_fire


def kernel(device: torch.device) -> str:
    """The name of the membrane kernel that runs on a device."""
    return kernels.fastest(device)


def unavailable(device: torch.device) -> str | None:
    """Why the CUDA kernels do not run on a device; None where they do."""
    return cuda.unavailable(device)


@contextmanager
def counted_graphs() -> Iterator[dict[str, int]]:
    """How many CUDA graphs are recorded and replayed."""
    counts = {"recorded": 0, "replayed": 0}
    record, replay = torch.cuda.graph.__enter__, torch.cuda.CUDAGraph.replay

    def recorded(self: Any) -> Any:
        counts["recorded"] += 1
        return record(self)

    def replayed(self: Any) -> None:
        counts["replayed"] += 1
        replay(self)

    with (
        mock.patch.object(torch.cuda.graph, "__enter__", recorded),
        mock.patch.object(torch.cuda.CUDAGraph, "replay", replayed),
    ):
        yield counts


def without_graphs(snn: s_resnet.Graph, images: Tensor, steps: int, chunk: int | None, precision: str) -> list[Any]:
    """The chunks of a simulation that is watched, and so records no CUDA graph."""
    return list(
        snn.stream(
            images,
            steps,
            chunk,
            settings=s_resnet.graph.StreamSettings(precision=precision, observe=lambda name, value: None),
        )
    )


# ---- instances ----


@contextmanager
def as_on_a_gpu(found: set[Instance]) -> Iterator[None]:
    """On CPU tensors choose what a GPU would, and note which instances; the numbers are the reference's.

    Triton compiles the fused kernel when it is launched first: it is no instance.
    """
    fire_on_cpu, prepare_on_cpu = run, engine.prepare

    def prepared(*given: Any) -> engine.Plan:
        plan = prepare_on_cpu(*given)
        single = plan.dtype == torch.float32 and not plan.integer
        return replace(plan, two_part=single and plan.precision == "exact")

    def membrane_noted(current: Tensor | fused.Currents, v: Tensor, update: Update) -> tuple[Tensor, Tensor]:
        if isinstance(current, fused.Currents):
            one_kernel = fused.takes(current, v, update)
            current, update = current.in_memory(update)
            if one_kernel:
                return reference.integrate_and_fire(current, v, update)
        if v.dtype != torch.float64:  # conversion, which a CPU does
            found.add(membrane_instance(current, v, update))
        return reference.integrate_and_fire(current, v, update)

    def fire_noted(current: Tensor, grad: Tensor | None, firing: Firing, affine: Any = None) -> Tensor:
        found.update(surrogate_instance(current, grad is not None, firing, affine))
        return fire_on_cpu(current, grad, firing, affine)

    with (
        mock.patch("s_resnet.kernels.build.compiler.compiled", lambda: (None, "as on a GPU")),
        mock.patch.object(kernels, "integrate_and_fire", membrane_noted),
        mock.patch.object(fused, "missing", lambda device: None),
        mock.patch.object(engine, "prepare", prepared),
        mock.patch("s_resnet.graph.engine.plan.narrow_dtype", lambda device: torch.float16),
        mock.patch("s_resnet.kernels.surrogate.fire.run", fire_noted),
        mock.patch("s_resnet.kernels.surrogate.normalize.run", fire_noted),
    ):
        yield


def membrane_instance(current: Tensor, v: Tensor, update: Update) -> Instance:
    """What a launch with these CPU tensors would be of, on a GPU."""
    import cuda_on_cpu

    return "membrane.cu", cuda_on_cpu.prepare(current, v, update)[0].instance


def surrogate_instance(current: Tensor, backward: bool, firing: Firing, affine: Any = None) -> Iterator[Instance]:
    """What trained neurons would run of, on a GPU, in the type of the current and, for AMP, in bfloat16."""
    for dtype in {current.dtype, torch.bfloat16} & surrogate_cuda.TYPES.keys():
        given = current.to(dtype)
        plan = surrogate_cuda.plan(given, given if backward else None, torch.empty_like(given), firing, affine)
        yield surrogate_cuda.FILE, plan.instance


def compile_instance(instance: Instance, arch: str) -> None:
    """Compile for an architecture such as ``sm_90``, into the cache on the disk; no GPU is needed."""
    file, name = instance
    nvrtc.binary(name, arch, file)


def compile_host() -> str:
    """Compile the kernels of the CPU into the cache: by whom, or why not."""
    return host.compiled()[1]


def compiler() -> str:
    """What compiles, or why nothing does."""
    return nvrtc.compiler()[1]
