"""Write the README's tables from `benchmarks/results/*.jsonl`, between `<!-- table:NAME -->` and `<!-- end -->`.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def lines(name: str) -> list[dict[str, Any]]:
    """The results of one benchmark, oldest first."""
    text = (HERE / "results" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def conversion() -> str:
    """Accuracy against the own ANN; the newest line of each case and data set."""
    newest = {(line["case"], line["data"]): line for line in lines("conversion")}
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
        data = "lossless test" if line["data"] == "cifar10/test" else "JPEG test"
        source = "1,024 images" if "--calibration" in line["convert"] else "no data"
        arithmetic = "int8" if "--weights int8" in line["convert"] else report.get("precision", "float32")
        rows.append(
            f"| {line['convert'].split()[2].split('-')[0]} | {arithmetic} | {source} | {report['recipe']} | "
            f"{report['images']:,} {data} | {100 * report['ann']['top1']:.2f} | {' | '.join(cells)} | "
            f"{100 * (report['ann']['top1'] - top1[last]):+.2f} |"
        )
    return "\n".join(rows)


def newest_speed(question: str) -> list[dict[str, Any]]:
    """The newest line of `speed.py` for each network, size, batch, T, thread count, device and layout."""
    keys = ("network", "weights", "size", "batch", "steps", "threads", "device", "layout_of_others")
    found = [line for line in lines("speed") if line["question"] == question]
    return list({str([line[key] for key in keys]): line for line in found}.values())


def heading(line: dict[str, Any]) -> str:
    """What was run, where, for the first column of a table of contenders."""
    where = f"{line['threads']} thread{'s' * (line['threads'] > 1)}" if line["device"] == "cpu" else line["device"]
    return (
        f"{line['network']}{' (random)' * (line['weights'] == 'random')}, {line['size']} px, {line['batch']}, {where}"
    )


def ratio(values: dict[str, float] | None) -> str:
    """A median with its range."""
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})" if values else ""


def speed() -> str:
    """One simulated step of each contender, against the convolutions alone and against SpikingJelly."""
    rows = [
        "| network, size, batch | steps | contender | ms per step and image | rate | / convolutions alone (range) | "
        "times faster than SpikingJelly eager (range) |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in newest_speed("speed"):
        first, last = line["steps"]
        for name, got in line["contenders"].items():
            rate = "" if got["rate"] is None else f"{got['rate']:.3f}"
            milliseconds = got["ms_per_step_per_image"]["median"]
            rows.append(
                f"| {heading(line)} | {first} to {last} | {name} | {milliseconds:.3g} | {rate} | "
                f"{ratio(got.get('over_floor'))} | {ratio(got.get('times_faster_than_spikingjelly_eager'))} |"
            )
    return "\n".join(rows)


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


TABLES: dict[str, Callable[[], str]] = {
    "conversion": conversion,
    "speed": speed,
    "peer-memory": peer_memory,
}


def render(text: str) -> str:
    """The README with its tables as the results have them."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        content = table()
        text, found = pattern.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        if found != 1:
            raise SystemExit(f"README.md: got {found} places for table {name}; expected one. Add its two markers.")
    return text


def main() -> None:
    before = README.read_text()
    after = render(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            raise SystemExit("README.md: its tables are not those of the results. Run python benchmarks/tables.py.")
        return
    README.write_text(after)


if __name__ == "__main__":
    main()
