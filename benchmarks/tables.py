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
        "| network | thresholds | recipe | images | ANN | T = 64 | T = 128 | T = 256 | T = 350 | drop at the last T |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in newest.values():
        report = line["report"]
        top1 = {row["timesteps"]: row["top1"] for row in report["snn"]}
        cells = [f"{100 * top1[t]:.2f}" if t in top1 else "" for t in (64, 128, 256, 350)]
        last = max(top1)
        data = "lossless test" if line["data"] == "cifar10/test" else "JPEG test"
        source = "1,024 images" if "--calibration" in line["convert"] else "no data"
        rows.append(
            f"| {line['convert'].split()[2].split('-')[0]} | {source} | {report['recipe']} | "
            f"{report['images']:,} {data} | {100 * report['ann']['top1']:.2f} | {' | '.join(cells)} | "
            f"{100 * (report['ann']['top1'] - top1[last]):+.2f} |"
        )
    return "\n".join(rows)


def step() -> str:
    """One simulated step against one pass of the ANN; the newest line of each network and thread count."""
    newest = {(line["network"], line["threads"]): line for line in lines("step")}
    rows = [
        "| network | size | batch | threads | one step / one ANN pass (median) | range |",
        "|---|---|---|---|---|---|",
    ]
    for line in newest.values():
        spread = f"{min(line['ratios'])} to {max(line['ratios'])}"
        rows.append(
            f"| {line['network']} | {line['size']} px | {line['batch']} | {line['threads']} | "
            f"{line['ratio_median']} | {spread} |"
        )
    return "\n".join(rows)


def memory() -> str:
    """Peak memory of one evaluation at several T; the newest line of each network and T."""
    newest = {(line["network"], line["timesteps"]): line for line in lines("memory")}
    rows = ["| network | images | T | peak memory of the process | against the first T |", "|---|---|---|---|---|"]
    for line in newest.values():
        rows.append(
            f"| {line['network']} | {line['images']} | {line['timesteps']} | "
            f"{line['peak_memory_bytes'] / 2**20:.0f} MiB | {line['ratio']} |"
        )
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {"conversion": conversion, "step": step, "memory": memory}


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
