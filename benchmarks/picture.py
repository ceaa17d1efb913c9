"""Draw the README's picture from `benchmarks/results/latency.jsonl`: what is left of the ANN's accuracy at few steps.

python benchmarks/picture.py [--network NAME] [--data NAME] [--images N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tables import few_steps

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "few-steps.svg"
# Color-blind safe (Okabe and Ito), from the most to the least able spikes, then the peer.
STYLES = {
    "multilevel": ("#D55E00", "o-", "multilevel (graded spikes)"),
    "signed": ("#CC79A7", "o-", "signed (-1, 0, 1)"),
    "phased": ("#009E73", "o-", "phased (0, 1; exact counts)"),
    "calibrated": ("#000000", "o-", "calibrated (0, 1)"),
    "calibrated-lagged": ("#0072B2", "o-", "calibrated-lagged (0, 1)"),
    "calibrated-constant": ("#56B4E9", "o-", "calibrated-constant (0, 1)"),
    "spikingjelly-ltb": ("#777777", "s--", "SpikingJelly, threshold balancing (0, 1)"),
    "spikingjelly-robust": ("#BBBBBB", "s--", "SpikingJelly, default (0, 1)"),
}
TICKS = (4, 8, 16, 32, 64, 128, 256, 512)


def draw(network: str, data: str, images: int, path: Path) -> None:
    """Top-1 of each recipe over the steps until the answer, the ANN as a line with its standard error."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "s-resnet"  # the same file again from the same results
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    group = few_steps()[network, data, images]
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    ann = next(iter(next(iter(group.values())).values()))
    low, high = (ann["ann_top1"] + sign * ann["ann_standard_error"] for sign in (-1, 1))
    axes.axhline(ann["ann_top1"], color="black", linewidth=1, label="ANN, ± one standard error")
    axes.axhspan(low, high, color="black", alpha=0.08, linewidth=0)
    for recipe, (color, style, label) in STYLES.items():
        if recipe not in group:
            continue  # not measured
        got = [group[recipe][t] for t in sorted(group[recipe])]
        bars = [line["standard_error"] for line in got]
        values = [line["end_to_end_steps"] for line in got], [line["top1"] for line in got]
        axes.errorbar(*values, yerr=bars, fmt=style, color=color, label=label, markersize=4, elinewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(3.5, 700)
    axes.set_xticks(TICKS, [str(t) for t in TICKS])
    axes.set_xlabel("end-to-end latency E: steps from the image to the answer")
    axes.set_ylim(55, 95)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("top-1 accuracy, %")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--data", default="cifar10/test")
    parser.add_argument("--images", type=int, default=500)
    got = parser.parse_args(arguments)
    draw(got.network, got.data, got.images, PICTURE)


if __name__ == "__main__":
    main()
