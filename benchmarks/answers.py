"""Answers to single images, kept in files as they come: from them a run resumes, shards are merged, and lines are made.

A file holds one JSON line for each chunk of images. It names the images, so that chunks of any size, from any process
or machine, add up to the same line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s_resnet.data import paired_difference, wilson

Line = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """The images that a network is asked about.

    Attributes:
        network: digest of the network's file: answers of another conversion do not count.
        split: ``"evaluation"``, or ``"calibration"`` for images beside those that it was calibrated on.
        names: the images, in order.
    """

    network: str
    split: str
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A name for the set of images, whatever their order."""
        return hashlib.sha256("\0".join(sorted(self.names)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class Chunk:
    """Answers to some images; every list has one entry for each image that could be read.

    Attributes:
        network: as in :class:`Asked`.
        split: as in :class:`Asked`.
        names: the images.
        labels: their classes.
        ann: the source network's answers.
        ann_top5: 1 where the label is among the source network's first five answers.
        snn: T as text, and the answers after T steps.
        snn_top5: the same for the first five.
        spikes_per_neuron: T as text, and the mean over the images.
        unreadable: images that could not be read.
        spent: seconds, and bytes at the peak.
        made_with: device, threads, commit and versions.
    """

    network: str
    split: str
    names: list[str]
    labels: list[int]
    ann: list[int]
    ann_top5: list[int]
    snn: dict[str, list[int]]
    snn_top5: dict[str, list[int]]
    spikes_per_neuron: dict[str, float]
    unreadable: list[str]
    spent: dict[str, float]
    made_with: Line

    def append(self, file: Path) -> None:
        """Add the chunk to a file, as one line, in place of a last line that was cut off."""
        with file.open("a+b") as opened:
            opened.seek(0)
            opened.truncate(opened.read().rfind(b"\n") + 1)
        with file.open("a") as opened:
            opened.write(json.dumps(asdict(self)) + "\n")


def kept(files: Iterable[Path], asked: Asked) -> list[Chunk]:
    """The chunks in the files that answer what is asked, without a last line that was cut off.

    A chunk with images that other chunks have as well is left out: two shards were cut differently.
    """
    chunks: list[Chunk] = []
    wanted, have = frozenset(asked.names), set[str]()
    for file in sorted(files):
        for text in file.read_text().splitlines(keepends=True):
            if not text.endswith("\n"):
                continue
            chunk = Chunk(**json.loads(text))
            names = {*chunk.names, *chunk.unreadable}
            if (chunk.network, chunk.split) == (asked.network, asked.split) and names <= wanted - have:
                chunks.append(chunk)
                have |= names
    return chunks


def missing(chunks: Sequence[Chunk], names: Sequence[str]) -> list[str]:
    """The images without an answer, in order."""
    have = {name for chunk in chunks for name in (*chunk.names, *chunk.unreadable)}
    return [name for name in names if name not in have]


def percent(interval: tuple[float, float]) -> list[float]:
    return [round(100 * bound, 4) for bound in interval]


def accuracies(chunks: Sequence[Chunk], timesteps: int) -> Line:
    """Accuracies, agreement and drop after T steps in percent and points, each with its 95 % interval.

    Of one accuracy it is Wilson's, of the drop Newcombe's for paired proportions.
    """
    steps = str(timesteps)
    rows = [
        (ann == label, snn == label, ann == snn)
        for chunk in chunks
        for label, ann, snn in zip(chunk.labels, chunk.ann, chunk.snn[steps], strict=True)
    ]
    images = len(rows)
    ann, snn, same = (sum(column) for column in zip(*rows, strict=True))
    both = sum(one and other for one, other, _ in rows)
    drop, differing = (ann - snn) / images, (ann + snn - 2 * both) / images
    tops = [[right for chunk in chunks for right in each(chunk)] for each in _top5(steps)]
    spikes = sum(chunk.spikes_per_neuron[steps] * len(chunk.names) for chunk in chunks)
    return {
        "images": images,
        "ann_top1": round(100 * ann / images, 4),
        "ann_interval": percent(wilson(ann, images)),
        "top1": round(100 * snn / images, 4),
        "interval": percent(wilson(snn, images)),
        "drop": round(100 * drop, 4),
        "drop_interval": percent(paired_difference(both, ann - both, snn - both, images - ann - snn + both)),
        "standard_error": round(100 * math.sqrt(max(differing - drop**2, 0) / images), 4),
        "standard_error_kind": "paired",
        "ann_standard_error": round(100 * math.sqrt(ann * (images - ann) / images**3), 4),
        "agreement": round(100 * same / images, 4),
        "agreement_interval": percent(wilson(same, images)),
        "ann_top5": round(100 * sum(tops[0]) / images, 4),
        "top5": round(100 * sum(tops[1]) / images, 4),
        "spikes_per_neuron": round(spikes / images, 6),
        "unreadable": sum(len(chunk.unreadable) for chunk in chunks),
    }


def _top5(steps: str) -> Any:
    return (lambda chunk: chunk.ann_top5), (lambda chunk: chunk.snn_top5[steps])


def costs(chunks: Sequence[Chunk]) -> Line:
    """What the evaluation took: sums over the chunks, the largest peak, and one pass of the source network."""
    images = sum(len(chunk.names) for chunk in chunks)
    cpu = sum(chunk.spent["cpu_seconds"] for chunk in chunks)
    passes = [chunk.spent["ann_cpu_seconds_per_image"] for chunk in chunks]
    return {
        "evaluate_seconds": round(sum(chunk.spent["seconds"] for chunk in chunks), 1),
        "evaluate_cpu_seconds": round(cpu, 1),
        "evaluate_cpu_seconds_per_image": round(cpu / images, 4),
        "ann_cpu_seconds_per_image": round(sorted(passes)[len(passes) // 2], 4),
        "evaluate_peak_memory_bytes": int(max(chunk.spent["peak_memory_bytes"] for chunk in chunks)),
    }


def made_with(chunks: Sequence[Chunk]) -> Line:
    """Versions and machine; where chunks differ, all values that occur, with slashes between them."""
    names = dict.fromkeys(name for chunk in chunks for name in chunk.made_with)
    every = {name: list(dict.fromkeys(chunk.made_with.get(name) for chunk in chunks)) for name in names}
    return {name: got[0] if len(got) == 1 else " / ".join(map(str, got)) for name, got in every.items()}
