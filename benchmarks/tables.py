"""Write the tables of README and docs from `benchmarks/results/*.jsonl`.

Each goes between `<!-- table:NAME -->` and `<!-- end -->`.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import claims
import recipe_names

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").rglob("*.md")))
DATA_SETS = {"cifar10/test": "lossless test", "jpeg-test": "JPEG test"}
PEER = "spikingjelly"


def lines(name: str) -> list[dict[str, Any]]:
    """The results of one benchmark, oldest first; none where it has not been run."""
    file = HERE / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def conversion() -> str:
    """Accuracy against the own ANN; the newest line of each case and data set."""
    newest = {(line["case"], line["data"], recipe_names.of_report(line)): line for line in lines("conversion")}
    rows = [
        "| network | arithmetic | thresholds | recipe | images | ANN | T = 64 | T = 128 | T = 256 | T = 350 | "
        "drop at the last T |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in newest.values():
        report = line["report"]
        top1 = {row["timesteps"]: row["top1"] for row in report["snn"]}
        cells = [f"{100 * top1[t]:.2f}" if t in top1 else "" for t in (64, 128, 256, 350)]
        last = max(top1)
        data = DATA_SETS[line["data"]]
        source = "1,024 images" if "--calibration" in line["convert"] else "no data"
        weights = [kind for kind in ("dyadic", "int8") if f"--weights {kind}" in line["convert"]]
        arithmetic = weights[0] if weights else report.get("precision", "float32")
        network, recipe = line["convert"].split()[2].split("-")[0], recipe_names.of_report(line)
        rows.append(
            f"| {network} | {arithmetic} | {source} | {recipe} | "
            f"{report['images']:,} {data} | {100 * report['ann']['top1']:.2f} | {' | '.join(cells)} | "
            f"{100 * (report['ann']['top1'] - top1[last]):+.2f} |"
        )
    return "\n".join(rows)


def newest_speed(question: str) -> list[dict[str, Any]]:
    """Lines of `speed.py` by network, size, batch, T, threads, device, layout and arithmetic.

    Each has the newest figures of every contender, whichever run they are from; ratios are of that run.
    """
    keys = ("network", "weights", "size", "batch", "steps", "threads", "device", "layout_of_others")
    newest: dict[str, dict[str, Any]] = {}
    for line in lines("speed"):
        if line["question"] == question:
            key = str([line[key] for key in keys] + [arithmetic(line)])
            before = newest.get(key, {}).get("contenders", {})
            newest[key] = line | {"contenders": before | line["contenders"]}
    return list(newest.values())


def arithmetic(line: dict[str, Any]) -> str:
    """How a GPU multiplied float32 in this run."""
    return str(line.get("float32", "float32"))


def heading(line: dict[str, Any]) -> str:
    """What was run, where, for the first column of a table of contenders."""
    threads = f"{line['threads']} thread{'s' * (line['threads'] > 1)}"
    where = threads if line["device"] == "cpu" else f"{line['device']}, {arithmetic(line)}"
    return (
        f"{line['network']}{' (random)' * (line['weights'] == 'random')}, {line['size']} px, {line['batch']}, {where}"
    )


def ratio(values: dict[str, float] | None) -> str:
    """A median with its range."""
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})" if values else ""


def speed() -> str:
    """One simulated step of each contender on a CPU, against the convolutions alone and against SpikingJelly."""
    rows = [
        "| network, size, batch | steps | contender | ms per step and image | rate | / convolutions alone (range) | "
        "times faster than SpikingJelly eager (range) |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in newest_speed("speed"):
        if line["device"] != "cpu":
            continue
        first, last = line["steps"]
        for name, got in line["contenders"].items():
            rate = "" if got["rate"] is None else f"{got['rate']:.3f}"
            milliseconds = got["ms_per_step_per_image"]["median"]
            rows.append(
                f"| {heading(line)} | {first} to {last} | {name} | {milliseconds:.3g} | {rate} | "
                f"{ratio(got.get('over_floor'))} | {ratio(got.get('times_faster_than_spikingjelly_eager'))} |"
            )
    return "\n".join(rows)


def gpu_speed() -> str:
    """One simulated step of each contender on a GPU, against the convolutions alone in its own arithmetic."""
    rows = [
        "| network, size, batch | contender | arithmetic | microseconds per step and image (range) | rate | "
        "/ convolutions alone (range) |",
        "|---|---|---|---|---|---|",
    ]
    for line in newest_speed("speed"):
        for name, got in line["contenders"].items() if line["device"] != "cpu" else ():
            micro = {each: 1000 * value for each, value in got["ms_per_step_per_image"].items()}
            rate = "" if got["rate"] is None else f"{got['rate']:.3f}"
            rows.append(
                f"| {heading(line)} | {name} | {got['arithmetic']} | {micro['median']:.1f} "
                f"({micro['min']:.1f} to {micro['max']:.1f}) | {rate} | {ratio(got.get('over_floor'))} |"
            )
    return "\n".join(rows) if len(rows) > 2 else "Not measured."


def peer_memory() -> str:
    """Peak memory of each contender at two T."""
    rows = [
        "| network, size, batch | contender | peak memory, T = 32 | T = 512 | T = 512 / T = 32 |",
        "|---|---|---|---|---|",
    ]
    for line in newest_speed("memory"):
        for name, got in line["contenders"].items():
            cells = [f"{steps['peak_bytes'] / 2**20:.0f} MiB" for steps in got["steps"].values()]
            rows.append(f"| {heading(line)} | {name} | {' | '.join(cells)} | {got['last_over_first']} |")
    return "\n".join(rows) if len(rows) > 2 else "Not measured."


def gpu() -> str:
    """A simulated step of ResNet-50 on a GPU, the newest line of each device and way to run it."""
    found = [line for line in lines("gpu_timings") if line["question"] == "share" and not line["dry_run"]]
    rows = [
        "| device | recipe | precision | batch | T | microseconds per step and image | of them busy | "
        "outside convolutions | peak memory, GB |",
        "|---" * 9 + "|",
    ]
    for line in {(line["device"], line["way"]): line for line in found if "failed" not in line}.values():
        figures = [line[name] for name in ("us_per_step_per_image", "busy_us_per_step_per_image")]
        shares = f"{100 * line['share_outside_convolutions']:.0f} %"
        settings = [line[name] for name in ("device", "recipe", "precision", "batch", "steps")]
        rows.append(f"| {' | '.join(map(str, [*settings, *figures, shares, line['peak_GB']]))} |")
    return "\n".join(rows) if len(rows) > 2 else "Not measured."


Group = dict[str, dict[int, dict[str, Any]]]  # recipe, T, line


def gpu_fused() -> str:
    """Layers of ResNet-50 in one kernel, by the programs that have run on a GPU, beside the two kernels of float16."""
    layers: dict[str, dict[str, Any]] = {}
    for line in lines("gpu_fused_tiles"):
        shape = line["layer"]
        name = f"{shape['kernel']} x {shape['kernel']}, {shape['channels']} to {shape['outputs']}, {shape['side']} px"
        name += ", stride 2" if shape["stride"] == 2 else ""
        name += ", with a projection" if shape["projected"] else ", with a shortcut" if shape["shortcut"] else ""
        row = layers.setdefault(name, {})
        row.setdefault("pair", line.get("two_kernels_float16_us"))
        row[line["program"].split(",")[0] + " " + line["weights"]] = line["us_per_step_per_image"]
    columns = {"two kernels, float16": "pair", "one, int8": "first int8", "one, float16": "first float16"}
    columns |= {"one, two parts": "first two-part", "one, int8, second program": "second int8"}
    rows = [f"| layer | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in layers.items():
        cells = [f"{row[key]:.2f}" if row.get(key) is not None else "" for key in columns.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def few_steps() -> dict[tuple[str, str, int], Group]:
    """The newest lines of `latency.py` by (network, data, images), then by recipe and T."""
    groups: dict[tuple[str, str, int], Group] = {}
    for line in lines("latency"):
        if line["question"] == "recipe":
            line = recipe_names.today(line)
            group = groups.setdefault((line["network"], line["data"], line["images"]), {})
            group.setdefault(line["recipe"], {})[line["timesteps"]] = line
    return groups


def with_error(line: dict[str, Any], value: str = "drop", error: str = "standard_error") -> str:
    """A figure in points with its standard error."""
    return f"{line[value]:{'+' if value == 'drop' else ''}.2f} ± {line[error]:.2f}"


def drops(groups: Iterable[tuple[tuple[str, str, int], Group]]) -> str:
    """A row for each network, data set and recipe with the drop at every T that any of them has."""
    groups = list(groups)
    columns = sorted({steps for _, group in groups for got in group.values() for steps in got})
    if not columns:
        return "Not measured."
    rows = [
        f"| network, images | ANN | recipe | spikes | {' | '.join(f'T = {t}' for t in columns)} | steps end to end |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for (network, data, images), group in groups:
        where = f"{network}, {images:,} {DATA_SETS.get(data, data)}"
        for recipe, got in group.items():
            first = got[min(got)]
            cells = [with_error(got[t]) if t in got else "" for t in columns]
            rows.append(
                f"| {where} | {with_error(first, 'ann_top1', 'ann_standard_error')} | {recipe.replace('+', ' + ')} | "
                f"{first['alphabet']} | {' | '.join(cells)} | "
                f"{', '.join(str(got[t]['end_to_end_steps']) for t in sorted(got))} |"
            )
    return "\n".join(rows)


def latency() -> str:
    """The drop of our recipes at few time steps, each on the most images of a data set that it was evaluated on."""
    groups = few_steps()
    most: dict[tuple[str, str, str], int] = {}
    for (network, data, images), group in groups.items():
        for recipe in group:
            most[network, data, recipe] = max(images, most.get((network, data, recipe), 0))
    ours = {
        (network, data, images): {
            recipe: got
            for recipe, got in group.items()
            if not recipe.startswith(PEER) and most[network, data, recipe] == images
        }
        for (network, data, images), group in groups.items()
    }
    return drops((key, group) for key, group in ours.items() if group)


def peers_latency() -> str:
    """SpikingJelly's recipes, and ours where they were evaluated on the same images."""
    return drops(
        (key, dict(sorted(group.items(), key=lambda item: not item[0].startswith(PEER))))
        for key, group in few_steps().items()
        if any(recipe.startswith(PEER) for recipe in group)
    )


def imagenet() -> str:
    """Every recipe on ImageNet's classes, with 95 % intervals."""
    return claims.table(claims.newest(HERE / "results" / "imagenet.jsonl"))


def imagenet_summary() -> str:
    """The drop on ImageNet's classes at equal latency."""
    return claims.summary(claims.newest(HERE / "results" / "imagenet.jsonl"))


def ablation() -> str:
    """The drop with each mechanism of a recipe left out, and with it alone."""
    found: dict[str, dict[tuple[int, str, int], dict[str, Any]]] = {}
    for line in lines("latency"):
        if line["question"] == "ablation":
            column = (line["timesteps"], line["data"], line["images"])
            found.setdefault(line["variation"], {})[column] = line
    columns = sorted({column for got in found.values() for column in got})
    if not columns:
        return "Not measured."
    names = [f"T = {t}, {images:,} {DATA_SETS.get(data, data)}" for t, data, images in columns]
    rows = [f"| mechanisms | {' | '.join(names)} |", "|---" * (len(columns) + 1) + "|"]
    for variation, got in found.items():
        rows.append(f"| {variation} | {' | '.join(with_error(got[c]) if c in got else '' for c in columns)} |")
    return "\n".join(rows)


def summary() -> str:
    """The drop at equal latency, beside SpikingJelly's best on the same images: recipes that answer after T steps."""
    chosen = [("calibrated", 8), ("calibrated", 16), ("calibrated", 32), ("multilevel", 4)]
    chosen += [("spikingjelly-ltb", 8), ("spikingjelly-ltb", 16), ("spikingjelly-ltb", 32)]
    rows = [
        f"| network, images | ANN | {' | '.join(f'{recipe}, E = {t}' for recipe, t in chosen)} |",
        "|---" * (len(chosen) + 2) + "|",
    ]
    for (network, data, images), group in few_steps().items():
        found = {(recipe, t): group[recipe][t] for recipe, t in chosen if t in group.get(recipe, {})}
        if any(recipe.startswith(PEER) for recipe, _ in found):
            first = next(iter(found.values()))
            cells = [with_error(found[one]) if one in found else "" for one in chosen]
            where = f"{network}, {images:,} {DATA_SETS.get(data, data)}"
            rows.append(f"| {where} | {with_error(first, 'ann_top1', 'ann_standard_error')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def engines() -> str:
    """Spikes that only one of two has, of all, in other engines; the newest line of each case and batch."""
    keys = ("engine", "weights", "dtype", "initial_potential", "batch")
    newest = {tuple(line[key] for key in keys): line for line in lines("engines")}
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for line in newest.values():
        name = f"{line['engine']} {line['engine_version']}"
        groups.setdefault((line["weights"], line["dtype"]), {}).setdefault(name, []).append(line)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    rows = [f"| weights | arithmetic | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for (weights, dtype), group in groups.items():
        cells = []
        for name in names:
            shares = [line["mismatches"] / line["spikes"] for line in group.get(name, ())]
            exact = sum(share == 0 for share in shares)
            cells.append(f"0 in all {exact}" if exact == len(shares) else f"0 in {exact}, up to {max(shares):.1e}")
        rows.append(f"| {weights} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(rows)


def training() -> str:
    """A training step beside SpikingJelly's, the newest line of each contender and size."""
    newest = {(line["images"], line["size"], line["contender"]): line for line in lines("training")}
    if not newest:
        return "Not measured."
    rows = ["| images of a batch, pixels | | seconds per step | kept for backward, MiB | peak memory, MiB |"]
    rows.append("|---|---|---|---|---|")
    for (images, size, contender), line in newest.items():
        name = "S-ResNet" if contender == "s-resnet" else f"SpikingJelly {line['spikingjelly']}"
        memory = " | ".join(f"{line[key] / 2**20:.0f}" for key in ("saved_bytes", "peak_bytes"))
        rows.append(f"| {images}, {size} x {size} | {name} | {line['seconds_per_step']:.2f} | {memory} |")
    return "\n".join(rows)


def depth() -> str:
    """What deep networks reach, epoch by epoch, and what is left of the gradient on its way to the first block."""
    newest = {line["family"]: line for line in lines("depth")}
    if not newest:
        return "Not measured."
    epochs = range(1, 1 + max(line["epochs"] for line in newest.values()))
    rows = [f"| network | {' | '.join(f'epoch {n}' for n in epochs)} | gradient, first block / last, before; after |"]
    rows.append("|---|" + "---|" * len(epochs) + "---|")
    for family, line in newest.items():
        cells = [f"{entry['loss']:.2f}, {100 * entry['test_top1']:.1f} %" for entry in line["history"]]
        shares = [line[f"gradient_{when}"] for when in ("before", "after")]
        ratio = "; ".join(f"{norms[0] / norms[-1]:.1e}" for norms in shares)
        rows.append(f"| {family}{line['depth']} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "conversion": conversion,
    "speed": speed,
    "peer-memory": peer_memory,
    "gpu": gpu,
    "gpu-speed": gpu_speed,
    "gpu-fused": gpu_fused,
    "latency": latency,
    "peers-latency": peers_latency,
    "ablation": ablation,
    "imagenet": imagenet,
    "imagenet-summary": imagenet_summary,
    "engines": engines,
    "training": training,
    "depth": depth,
}


def names(text: str) -> list[str]:
    """The tables that a page has a place for."""
    return re.findall(r"<!-- table:(\S+) -->", text)


def render(text: str, page: str) -> str:
    """The page with its tables as the results have them."""
    for name in names(text):
        pattern = re.compile(rf"(<!-- table:{name} -->\n)((?!<!-- table:).)*?(<!-- end -->)", re.DOTALL)
        content = TABLES[name]()
        text, found = pattern.subn(lambda match, content=content: f"{match[1]}{content}\n{match[3]}", text)
        if found != 1:
            raise SystemExit(f"{page}: got no end of table {name}; expected <!-- end --> after it. Add it.")
    return text


def main() -> None:
    before = {page: page.read_text() for page in PAGES}
    found = [name for text in before.values() for name in names(text)]
    if sorted(found) != sorted(TABLES):
        raise SystemExit(f"docs: got tables {', '.join(found)}; expected each once, of {', '.join(TABLES)}.")
    for page, text in before.items():
        after = render(text, page.name)
        if "--check" not in sys.argv[1:]:
            page.write_text(after)
        elif after != text:
            raise SystemExit(f"{page.name}: its tables are not those of the results. Run python benchmarks/tables.py.")


if __name__ == "__main__":
    main()
