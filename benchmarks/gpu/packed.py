"""Integer networks of photographs, small enough to travel to a GPU, with what the CPU answers.

    python benchmarks/gpu/packed.py FOLDER NETWORK.snn --photographs FILE.npz [--name NAME] [--limit N]

NETWORK is one in int8, or in float32, which is quantized as `--weights int8` does. FOLDER gets NAME.snn.xz, the network
without the numbers that no run in whole numbers reads: the source's weights and biases are zeros there. It also gets
NAME.npz, the CPU's answers, and photographs.npz. What arrives is simulated on some images here, and must fire as what
was packed.

FILE holds `jpeg`, uint8, the files one after the other; `offset`, where each begins and the last ends; `label`, rows
of `wnid`, the names of the classes; and `name`.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import inside
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import s_resnet
from s_resnet.graph import Graph, Neuron, ops
from s_resnet.graph.provenance import AppliedPass

PHOTOGRAPHS = "photographs.npz"
NETWORK = ".snn.xz"
BATCH = 8  # on the CPU


# ---- what travels ----


@dataclass(frozen=True, eq=False)
class Photographs:
    """Decoded images, ready for a network.

    Attributes:
        names: of the images.
        images: ``[N, 3, H, W]``, preprocessed.
        labels: ``[N]`` int64, by the order of the network's classes.
        marks: ``[N]`` int64, a checksum of each preprocessed image: another decoder may give other pixels.
    """

    names: tuple[str, ...]
    images: Tensor
    labels: Tensor
    marks: Tensor


def read(file: Path, snn: Graph, limit: int | None = None, threads: int = 1) -> Photographs:
    """The first ``limit`` photographs of FILE as this network takes them, decoded in threads."""
    with np.load(file, allow_pickle=False) as held:
        jpeg, offset, names, wnid = held["jpeg"], held["offset"], held["name"][:limit], held["wnid"]
        labels = held["label"][: len(names)]
    preprocessing, classes = snn.provenance.preprocessing, snn.provenance.classes
    if not isinstance(preprocessing, s_resnet.data.Preprocessing) or not classes:
        raise SystemExit(f"{file}: got a network that says no preprocessing or classes; expected both")

    def decoded(index: int) -> Tensor:
        data = jpeg[offset[index] : offset[index + 1]].tobytes()
        return preprocessing(Image.open(BytesIO(data), formats=("JPEG",)))

    with ThreadPoolExecutor(threads) as pool:
        images = list(pool.map(decoded, range(len(names))))
    return Photographs(
        names=tuple(map(str, names)),
        images=torch.stack(images),
        labels=torch.tensor([classes.index(str(wnid[label])) for label in labels]),
        marks=torch.tensor([zlib.crc32(image.numpy().tobytes()) for image in images]),
    )


@dataclass(frozen=True, eq=False)
class Reference:
    """What the CPU says of the photographs; ``N`` images, ``L`` neuron layers.

    Attributes:
        network: the SHA-256 of the packed network.
        names: ``[N]``, the images.
        marks: ``[N]``, as in :class:`Photographs`.
        ann: ``[N]``, answers of the source network.
        answers: ``[N]``, those of the spiking one after T steps.
        layers: ``[L]``, the names of the neuron layers.
        spikes: ``[L, N]`` int64, spikes of each layer and image over T steps.
    """

    network: str
    names: np.ndarray[Any, Any]
    marks: np.ndarray[Any, Any]
    ann: np.ndarray[Any, Any]
    answers: np.ndarray[Any, Any]
    layers: np.ndarray[Any, Any]
    spikes: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Packed:
    """A folder of them."""

    folder: Path

    @property
    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(NETWORK) for path in self.folder.glob(f"*{NETWORK}"))

    @property
    def photographs(self) -> Path:
        return self.folder / PHOTOGRAPHS

    def file(self, name: str) -> Path:
        return self.folder / f"{name}{NETWORK}"

    def load(self, name: str) -> Graph:
        with tempfile.TemporaryDirectory() as folder, lzma.open(self.file(name)) as packed:
            file = Path(folder) / f"{name}.snn"
            with file.open("wb") as whole:
                shutil.copyfileobj(packed, whole)
            return s_resnet.load(file)

    def reference(self, name: str) -> Reference:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as held:
            found = {field.name: held[field.name] for field in fields(Reference)}
        found["network"] = str(found["network"])
        if found["network"] != digest(self.file(name)):
            raise SystemExit(f"{self.file(name)}: got another network than the one that {name}.npz is of. Pack again.")
        return Reference(**found)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- a network in whole numbers, and no other ----


def quantized(snn: Graph) -> Graph:
    """The network in int8: what its recipe makes with `--weights int8`, where quantization is the last pass."""
    if snn.is_integer:
        return snn
    recipe, last = snn.provenance.recipe, s_resnet.conversion.passes.quantize_weights
    applied = (*(recipe.passes or ()), AppliedPass(last.__name__))
    whole = last(snn, s_resnet.conversion.Context())
    return whole.with_provenance(recipe=replace(recipe, passes=applied))


def without_source(snn: Graph) -> Graph:
    """An integer network with zeros in place of all that its spiking runs do not read; its analog run is lost."""

    def bare(op: ops.Op) -> ops.Op:
        match op:
            case Neuron(correction=Tensor() as own):
                return replace(op, correction=torch.zeros_like(own))
            case ops.Conv2d(weight, bias):
                none = None if bias is None else torch.zeros_like(bias)
                return replace(op, weight=torch.zeros_like(weight), bias=none, spiking=None)
            case ops.Linear(weight) | ops.Scale(weight):  # the classifier adds its bias in floating point
                return replace(op, weight=torch.zeros_like(weight), spiking=None)
        return op

    return replace(snn, nodes=tuple(replace(node, op=bare(node.op)) for node in snn.nodes))


# ---- answers ----


def batches(snn: Graph, images: Tensor, size: int, repeats: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Answers ``[B]`` and spikes ``[L, B]`` of one batch after the other, simulated as `evaluate` does."""
    steps = timesteps(snn)
    for part in torch.split(images, size):
        given = part.to(snn.device, non_blocking=True)
        found = inside.answers(snn, given, (steps,), "exact", repeats)
        yield found.outputs[-1].argmax(1), torch.stack(list(found.spikes.values()))[:, -1]


def simulated(snn: Graph, images: Tensor, size: int, repeats: int = 1) -> tuple[Tensor, Tensor]:
    """Answers ``[N]`` and spikes ``[L, N]`` int64 of all images; ``repeats`` as of `inside.answers`."""
    answers, spikes = zip(*batches(snn, images, size, repeats), strict=True)
    return torch.cat(answers).cpu(), torch.cat(spikes, 1).to(torch.int64).cpu()


def timesteps(snn: Graph) -> int:
    steps = snn.provenance.recipe.timesteps
    assert steps is not None
    return steps


def answered(snn: Graph, given: Photographs, network: str) -> Reference:
    """What this device says of photographs; ``network`` is the digest of the packed one."""
    ann: list[Tensor] = []
    answers: list[Tensor] = []
    spikes: list[Tensor] = []
    for part, (got, fired) in zip(torch.split(given.images, BATCH), batches(snn, given.images, BATCH), strict=True):
        ann, answers, spikes = [*ann, snn.run(part).argmax(1)], [*answers, got], [*spikes, fired.to(torch.int64)]
        print(f"{sum(map(len, answers))} of {len(given.names)} images", flush=True)
    return Reference(
        network=network,
        names=np.array(given.names),
        marks=given.marks.numpy(),
        ann=torch.cat(ann).numpy(),
        answers=torch.cat(answers).numpy(),
        layers=np.array([node.name for node in snn.neurons]),
        spikes=torch.cat(spikes, 1).numpy(),
    )


def pack(packed: Packed, snn: Graph, name: str, limit: int | None = None) -> None:
    """Write a network without its source, and the CPU's answers to the photographs of the folder."""
    snn, file = quantized(snn), packed.file(name)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "network.snn"
        s_resnet.save(without_source(snn), whole)
        file.write_bytes(lzma.compress(whole.read_bytes(), preset=6))
    given = read(packed.photographs, snn, limit)
    found = answered(snn, given, digest(file))
    again, fired = simulated(packed.load(name), given.images[:BATCH], BATCH)
    if not (np.array_equal(fired, found.spikes[:, :BATCH]) and np.array_equal(again, found.answers[:BATCH])):
        raise SystemExit(f"{file}: got other spikes than before packing; expected the same")
    with (packed.folder / f"{name}.npz").open("wb") as out:
        np.savez_compressed(out, **asdict(found))
    labels = given.labels.numpy()
    top1, source, alike = (
        100 * same.mean() for same in (found.answers == labels, found.ann == labels, found.answers == found.ann)
    )
    print(
        f"{name}: {snn.provenance.recipe.name}, T = {timesteps(snn)}, {len(labels)} images, top-1 {top1:.1f}, "
        f"ANN {source:.1f}, agreement {alike:.1f}, {file.stat().st_size / 1e6:.1f} MB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", type=Path)
    parser.add_argument("--photographs", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--name", help="by default that of the file")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photographs are answered")
    got = parser.parse_args(arguments)
    packed = Packed(got.folder)
    got.folder.mkdir(parents=True, exist_ok=True)
    if not packed.photographs.exists():
        shutil.copyfile(got.photographs, packed.photographs)
    if digest(packed.photographs) != digest(got.photographs):
        raise SystemExit(f"{packed.photographs}: got other photographs than {got.photographs}. Choose another FOLDER.")
    pack(packed, s_resnet.load(got.network), got.name or got.network.stem, got.limit)


if __name__ == "__main__":
    main()
