"""How fast is the source network's own pass in float16? ResNet-50 at 224 px, eager and compiled by torch.

    python benchmarks/gpu/ann.py [--batch N] [--device cuda|cpu] [--quick]

Memory is channels_last. The compiled pass has its weights frozen, so that BatchNorm is folded into the convolutions,
and replays a CUDA graph. A line for each way: microseconds an image, to compare a step of a spiking network with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from timing import asked
from torch import Tensor, nn


def ways(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    options = {"freezing": True, "triton.cudagraphs": True}
    return {"eager": model, "torch.compile": torch.compile(model, options=options)}


def main(arguments: Sequence[str] | None = None) -> None:
    options: dict[str, Any] = {"batch": {"type": int, "default": 64}}
    timing, got = asked("ann", __doc__ or "", arguments, **options)
    torch.manual_seed(0)
    batch, size = (2, 32) if timing.quick else (got.batch, 224)
    model = torchvision.models.resnet50().eval()
    dtype = torch.float16 if timing.gpu else torch.float32
    model = model.to(timing.device, dtype, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, device=timing.device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    for name, run in ways(model).items():
        if timing.quick and name != "eager":
            continue
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            run(images)
            own = timing.median(lambda run=run: run(images))
        timing.write(way=name, batch=batch, size=size, dtype=str(dtype), us_per_image=round(1e3 * own / batch, 3))


if __name__ == "__main__":
    main()
