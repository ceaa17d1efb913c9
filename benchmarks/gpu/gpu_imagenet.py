"""Do integer networks of photographs fire on a GPU as on the CPU, spike for spike, and how many images a second?

    python benchmarks/gpu/gpu_imagenet.py --networks FOLDER [--batch B] [--only NAME,...] [--device cuda|cpu] [--quick]

FOLDER is what `packed.py` made. A line for each network in it: accuracy on all photographs, answers and spikes that
differ from the CPU's, and images a second. Photographs are decoded beforehand and lie in pinned memory; what is timed
is a whole pass over them: the way to the GPU, T steps, and the answers' way back. The first pass is not timed, and
later ones have to answer as it did. A photograph that another decoder gave other pixels is counted, and not compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import packed
import torch
from packed import Packed, Photographs, Reference, simulated
from timing import NEEDS, Timing, asked
from torch import Tensor

import s_resnet

PASSES = 3  # timed


def share(of: Tensor) -> float:
    """Percent that are true."""
    return round(100 * float(of.double().mean()), 2)


def differences(given: Photographs, want: Reference, answers: Tensor, spikes: Tensor) -> dict[str, Any]:
    """What is not as on the CPU, of the photographs that both have seen with the same pixels."""
    place = {str(name): index for index, name in enumerate(want.names)}
    seen = [(row, place[name]) for row, name in enumerate(given.names) if name in place]
    same = [(here, there) for here, there in seen if int(given.marks[here]) == int(want.marks[there])]
    here, there = ([pair[side] for pair in same] for side in (0, 1))
    told: dict[str, Any] = {"compared": len(same), "decoded_apart": len(seen) - len(same)}
    if not same:
        return told
    labels, got = given.labels[here], answers[here]
    cpu, ann = torch.from_numpy(want.answers)[there], torch.from_numpy(want.ann)[there]
    apart = (spikes[:, here] - torch.from_numpy(want.spikes)[:, there]).abs()
    layers = [str(layer) for layer, own in zip(want.layers, apart, strict=True) if bool(own.any())]
    return told | {
        "cpu_top1": share(cpu == labels),
        "ann_top1": share(ann == labels),
        "ann_agreement": share(got == ann),
        "answers_apart": int((got != cpu).sum()),
        "spikes": int(spikes[:, here].sum()),
        "spikes_apart": int(apart.sum()),
        "counts": apart.numel(),
        "counts_apart": int((apart > 0).sum()),
        "layers_apart": len(layers),
        "first_layer_apart": layers[0] if layers else None,
    }


def measure(timing: Timing, given: Packed, name: str, batch: int) -> None:
    """The line of one network."""
    want, snn = given.reference(name), given.load(name)
    photographs = packed.read(given.photographs, snn, 2 * batch if timing.quick else None, os.cpu_count() or 1)
    snn, images = snn.to(timing.device), photographs.images
    images = images.pin_memory() if timing.gpu else images
    passes: list[tuple[Tensor, Tensor]] = []

    def once() -> None:
        passes.append(simulated(snn, images, batch, repeats=1))

    first = timing.wall(once, repeats=1)
    if timing.gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, steps = timing.wall(once, PASSES), packed.timesteps(snn)
    answers, spikes = passes[0]
    right = int((answers == photographs.labels).sum())
    timing.write(
        network=name,
        recipe=snn.provenance.recipe.name,
        timesteps=steps,
        end_to_end_steps=snn.end_to_end_steps(steps),
        alphabet=snn.alphabet,
        weights="int8",
        batch=batch,
        images=len(images),
        top1=share(answers == photographs.labels),
        interval=[round(100 * bound, 2) for bound in s_resnet.data.wilson(right, len(images))],
        **differences(photographs, want, answers, spikes),
        passes_alike=all(all(map(torch.equal, passes[0], one)) for one in passes[1:]),
        images_per_second=round(len(images) / seconds, 2),
        us_per_step_per_image=round(1e6 * seconds / steps / len(images), 2),
        first_pass_s=round(first, 2),
        peak_GB=round(torch.cuda.max_memory_allocated() / 2**30, 2) if timing.gpu else NEEDS,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = {
        "networks": {"type": Path, "required": True},
        "batch": {"type": int, "default": 50},
        "only": {"metavar": "NAME,...", "help": "by default all in FOLDER"},
    }
    timing, got = asked("imagenet", __doc__ or "", arguments, "gpu_imagenet", **options)
    given = Packed(got.networks)
    names = got.only.split(",") if got.only else given.names
    if not names:
        raise SystemExit(f"{got.networks}: got no network; expected those of packed.py. Pack some first.")
    for name in names:
        try:
            measure(timing, given, name, 2 if timing.quick else got.batch)
        except torch.cuda.OutOfMemoryError as error:
            timing.write(network=name, failed=str(error).splitlines()[0])
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
