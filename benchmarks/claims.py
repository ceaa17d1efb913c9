"""The claim sheet of `imagenet.py`: what may be said from its lines, and everything that a reader needs to doubt it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from answers import Line, best

MACHINE = (
    "processor",
    "machine",
    "device",
    "kernel",
    "threads",
    "commit",
    "s_resnet",
    "torch",
    "torchvision",
    "python",
)


def newest(results: Path) -> list[Line]:
    """The newest line of each network, recipe, T and set of images, in the order of the first."""
    found: dict[tuple[object, ...], Line] = {}
    for text in results.read_text().splitlines() if results.exists() else ():
        line = json.loads(text)
        found[tuple(line[name] for name in ("question", "network", "recipe", "timesteps", "data", "limit"))] = line
    return list(found.values())


def interval(line: Line, value: str, bounds: str, sign: str = "") -> str:
    """A figure with its 95 % interval."""
    low, high = line[bounds]
    return f"{line[value]:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def row(line: Line, note: str = "") -> str:
    """A row of a table of figures."""
    cells = [
        line["network"],
        f"{line['recipe']}{note}",
        line["alphabet"],
        line["timesteps"],
        line["end_to_end_steps"],
        f"{line['images']:,}",
        interval(line, "ann_top1", "ann_interval"),
        interval(line, "top1", "interval"),
        interval(line, "drop", "drop_interval", "+"),
        interval(line, "agreement", "agreement_interval"),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def headed(rows: Iterable[str]) -> list[str]:
    head = "| network | recipe | spikes | T | latency E | images | ANN, % | SNN, % | drop, points | agreement, % |"
    return [head, "|---" * 10 + "|", *rows]


def chosen(lines: Sequence[Line], latencies: Sequence[int]) -> list[tuple[str, int, Line, Line | None]]:
    """Network, latency, the line by which the recipe was chosen, and that of its test images where there is one."""
    tests = {(t["network"], t["recipe"], t["timesteps"]): t for t in lines if t["question"] == "recipe"}
    picked = best(lines, latencies)
    return [
        (network, latency, choice, tests.get((network, choice["recipe"], choice["timesteps"])))
        for (network, latency), choice in sorted(picked.items())
    ]


def sheet(lines: Sequence[Line], latencies: Sequence[int]) -> str:
    """The page, in Markdown."""
    tests = [line for line in lines if line["question"] == "recipe"]
    weights = sorted({f"{line['network']}: {line['weights']}" for line in tests})
    images = sorted({line["data"] for line in tests})
    picked = [
        row(test, f" (best within {latency} steps on {choice['images']} other images: {choice['agreement']:.1f} %)")
        for _, latency, choice, test in chosen(lines, latencies)
        if test is not None
    ]
    text = [
        "# ImageNet: claim sheet",
        "",
        f"Weights: {'; '.join(weights) or 'none'}. Test images: {'; '.join(images) or 'none'}.",
        "Intervals are of 95 %: Wilson's for accuracies and agreement, Newcombe's for paired proportions for the drop.",
        "Latency E counts the steps from the first input to the answer. Images are chosen with seed "
        f"{', '.join(sorted({str(line['seed']) for line in tests})) or 'none'}; none was calibrated on.",
        "",
        "## Plain neurons at equal latency",
        "",
        "The recipe is chosen by its agreement with the ANN on calibration images that nothing was fitted to.",
        "",
        *headed(picked),
        "",
        "## Every recipe",
        "",
        *headed(map(row, tests)),
        "",
        "## What it took",
        "",
        *_costs(tests),
        "",
        "## Machines and versions",
        "",
        *_machines(lines),
    ]
    return "\n".join(text) + "\n"


def _costs(lines: Sequence[Line]) -> list[str]:
    rows = [
        "| network | recipe | T | convert, CPU s | peak, GB | evaluate, CPU s per image | ANN pass, CPU s | ratio | "
        "peak, GB |",
        "|---" * 9 + "|",
    ]
    for line in lines:
        peaks = [f"{line[f'{what}_peak_memory_bytes'] / 1e9:.2f}" for what in ("convert", "evaluate")]
        each, once = line["evaluate_cpu_seconds_per_image"], line["ann_cpu_seconds_per_image"]
        named = f"{line['network']} | {line['recipe']} | {line['timesteps']}"
        spent = f"{line['convert_cpu_seconds']:.0f} | {peaks[0]} | {each:.2f} | {once:.3f} | {each / once:.1f}"
        rows.append(f"| {named} | {spent} | {peaks[1]} |")
    return rows


def _machines(lines: Sequence[Line]) -> list[str]:
    every = dict.fromkeys("; ".join(f"{name} {line.get(name)}" for name in MACHINE) for line in lines)
    return [f"* {said}" for said in every]


def write(results: Path, latencies: Sequence[int]) -> None:
    """Write the sheet beside the results."""
    file = results.with_name(f"{results.stem}-claims.md")
    whole = file.with_name(f"{file.name}.new")
    whole.write_text(sheet(newest(results), latencies))
    whole.replace(file)
    print(f"wrote {file}", flush=True)
