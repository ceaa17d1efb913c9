"""The claim sheet of `imagenet.py`: what may be said from its lines, and everything that a reader needs to doubt it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import recipe_names

Line = dict[str, Any]

LATENCIES = (16, 32, 64)  # end-to-end steps at which recipes are compared
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
    """The newest line of each network, recipe and T on most images, in the order of the first."""
    found: dict[tuple[object, ...], Line] = {}
    for text in results.read_text().splitlines() if results.exists() else ():
        line = recipe_names.today(json.loads(text))
        key = tuple(line[name] for name in ("question", "network", "recipe", "timesteps", "data"))
        if key not in found or line["images"] >= found[key]["images"]:
            found[key] = line
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


def best(lines: Iterable[Line]) -> dict[tuple[str, int], Line]:
    """For each network and latency the recipe of plain neurons that answers in time and agrees best with the ANN.

    Only lines about held-out calibration images count, so no test image has a say. Of equals, the faster one is taken.
    """
    found: dict[tuple[str, int], Line] = {}
    for line in lines:
        if line["question"] != "choice" or line["alphabet"] != "binary":
            continue
        for latency in LATENCIES:
            before = found.get((line["network"], latency))
            if line["end_to_end_steps"] <= latency and (before is None or _better(line) > _better(before)):
                found[line["network"], latency] = line
    return found


def _better(line: Line) -> tuple[float, int]:
    return line["agreement"], -line["end_to_end_steps"]


def chosen(lines: Sequence[Line]) -> list[tuple[str, int, Line, Line | None]]:
    """Network, latency, the line by which the recipe was chosen, and that of its test images where there is one."""
    tests = {(t["network"], t["recipe"], t["timesteps"]): t for t in lines if t["question"] == "recipe"}
    picked = best(lines)
    return [
        (network, latency, choice, tests.get((network, choice["recipe"], choice["timesteps"])))
        for (network, latency), choice in sorted(picked.items())
    ]


def table(lines: Sequence[Line]) -> str:
    """Every recipe on its test images; the ones chosen for a latency are marked with it."""
    marks: dict[tuple[object, ...], list[str]] = {}
    for network, latency, choice, _ in chosen(lines):
        marks.setdefault((network, choice["recipe"], choice["timesteps"]), []).append(str(latency))
    rows = []
    for line in lines:
        within = marks.get((line["network"], line["recipe"], line["timesteps"]))
        if line["question"] == "recipe":
            rows.append(row(line, f", **chosen for E <= {' and '.join(within)}**" if within else ""))
    return "\n".join(headed(rows)) if rows else "Not measured."


def summary(lines: Sequence[Line]) -> str:
    """The drop of each network at each latency with plain neurons, and of other conversions at one T."""
    tests = [line for line in lines if line["question"] == "recipe"]
    picked = {(network, latency): test for network, latency, _, test in chosen(lines)}
    others = (("calibrated-fission", 16), ("multilevel", 4), ("multilevel", 8), ("no-data", 256))
    titles = [
        *(f"plain neurons, E <= {latency}" for latency in LATENCIES),
        *("3 plain neurons for each, E = 16", "multilevel, T = 4", "multilevel, T = 8"),
        "no calibration images, T = 256",
    ]
    rows = [f"| network | ANN, % | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for network in dict.fromkeys(line["network"] for line in tests):
        at = {(line["recipe"], line["timesteps"]): line for line in tests if line["network"] == network}
        most = max(at.values(), key=lambda line: line["images"])
        chosen_ones = [picked.get((network, latency)) for latency in LATENCIES]
        notes = [f", {line['recipe']}, T = {line['timesteps']}" if line else "" for line in chosen_ones]
        cells = []
        for line, note in zip([*chosen_ones, *map(at.get, others)], [*notes, *("" for _ in others)], strict=True):
            images = f", {line['images']:,} images" if line and line["images"] != most["images"] else ""
            cells.append(interval(line, "drop", "drop_interval", "+") + note + images if line else "")
        rows.append(f"| {network} | {interval(most, 'ann_top1', 'ann_interval')} | {' | '.join(cells)} |")
    return "\n".join(rows) if tests else "Not measured."


def sheet(lines: Sequence[Line]) -> str:
    """The page, in Markdown."""
    tests = [line for line in lines if line["question"] == "recipe"]
    weights = sorted({f"{line['network']}: {line['weights']}" for line in tests})
    images = sorted({line["data"] for line in tests})
    picked = [
        row(test, f" (best within {latency} steps on {choice['images']} other images: {choice['agreement']:.1f} %)")
        for _, latency, choice, test in chosen(lines)
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


def write(results: Path) -> None:
    """Write the sheet beside the results."""
    file = results.with_name(f"{results.stem}-claims.md")
    whole = file.with_name(f"{file.name}.new")
    whole.write_text(sheet(newest(results)))
    whole.replace(file)
    print(f"wrote {file}", flush=True)
