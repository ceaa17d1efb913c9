"""What can this machine do at most? A copy's bytes per second, and operations per second of matrix products.

    python benchmarks/gpu/ceilings.py [--device cuda|cpu] [--quick]

A copy reads and writes each byte; products are square, of random numbers. One line, in terabytes per second and 10^12
operations per second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import NEEDS, Timing, asked
from torch import Tensor

SIDE, BYTES = 8192, 2**32


def copied(timing: Timing) -> float:
    """Terabytes per second, read and written."""
    source = torch.empty(2**20 if timing.quick else BYTES, dtype=torch.uint8, device=timing.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / timing.median(lambda: target.copy_(source)) / 1e9


def multiplied(timing: Timing, x: Tensor, y: Tensor) -> float:
    """10^12 operations per second."""
    call = (lambda: torch._int_mm(x, y.t())) if x.dtype == torch.int8 else (lambda: x @ y)
    return 2 * len(x) ** 3 / timing.median(call) / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    timing, _ = asked("ceilings", __doc__ or "", arguments)
    side = 64 if timing.quick else SIDE
    before = torch.backends.cuda.matmul.allow_tf32
    found: dict[str, float | str] = {"copy": copied(timing), "TF32": NEEDS, "int8": NEEDS}
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        x, y = (torch.randn(side, side, device=timing.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = False
        found[name] = multiplied(timing, x, y)
    if timing.gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        found["TF32"] = multiplied(timing, *(torch.randn(side, side, device=timing.device) for _ in range(2)))
        small = (torch.randint(-8, 8, (side, side), device=timing.device, dtype=torch.int8) for _ in range(2))
        found["int8"] = multiplied(timing, *small)
    torch.backends.cuda.matmul.allow_tf32 = before
    timing.write(**{name: value if isinstance(value, str) else round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()
