"""A few launches of every type, width, rule, tail and kind of parameter, for compute-sanitizer; nothing is compared.

    compute-sanitizer --tool memcheck --kernel-regex kns=sresnet python benchmarks/gpu/sanitize.py

Set ``PYTORCH_NO_CUDA_MEMORY_CACHING=1``: every tensor is an allocation of its own then, so that one byte beside it is
seen. On ``--device cpu`` the reference runs, as a dry run.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

import check_training
import inside
import torch

EACH = 4  # of so many cases one


def membranes(device: str, many: int) -> Iterator[None]:
    import membrane_cases as cases

    kernel = inside.membrane if device == "cuda" else inside.membrane_reference
    for case in cases.EVERY[::EACH][:many]:
        for seed, (shape, steps) in enumerate(cases.launches(case)):
            cases.run(kernel, *cases.make(case, shape, steps, seed, device))
            yield


def surrogates(device: str, many: int) -> Iterator[None]:
    chosen = itertools.product(check_training.neurons(), check_training.DTYPES)
    for (steps, firing), dtype in list(chosen)[::EACH][:many]:
        current = torch.zeros(steps, *check_training.PIXELS, device=device, dtype=dtype).requires_grad_()
        spikes = inside.fire(current, firing)
        torch.autograd.grad(spikes, current, torch.ones_like(spikes))
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a dry run: few launches")
    got = parser.parse_args(arguments)
    many = 1 if got.quick else 1000
    launched = [sum(1 for _ in launches(got.device, many)) for launches in (membranes, surrogates)]
    if got.device == "cuda":
        torch.cuda.synchronize()
    print(f"{launched[0]} layers of membranes, {launched[1]} of trained neurons")


if __name__ == "__main__":
    main()
