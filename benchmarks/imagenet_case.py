"""One network of `imagenet.py`: how it is converted, which images it is asked about, and its answers to them."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import answers
import latency
import torch
from answers import Line
from torch import Tensor

import s_resnet

BARE = "no-data"
CONSTANT = "calibrated-constant"
LAGGED = "calibrated-lagged"
# Fewer layers wait than in `calibrated-lagged`; by the names that the recipes have in networks.
LAGS = {f"{LAGGED}-{lag}": lag for lag in ("stages", "alternate-blocks", "blocks")}
RECIPES = {
    **latency.RECIPES,
    **{name: f"--recipe {LAGGED} --lag {lag}" for name, lag in LAGS.items()},
    f"{CONSTANT}+reconstruct": f"--recipe {CONSTANT} --reconstruct",
    BARE: "",
}
SPLITS = {"recipe": "evaluation", "choice": "calibration"}
SEED = 0  # of the choice of images


@dataclass(frozen=True)
class Settings:
    """What every case shares; picklable, as each evaluation has a process of its own."""

    data: str
    work: Path
    images_are: str
    calibration_images: int
    choice_images: int
    limit: int | None
    bare_limit: int
    input_size: int | None
    batch_size: int
    chunk: int
    shard: tuple[int, int]
    device: str


@dataclass(frozen=True)
class Case:
    """One conversion, and the T at which it is evaluated."""

    network: str
    recipe: str
    timesteps: int
    checkpoint: Path
    weights_are: str
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.network}-{self.recipe}-T{self.timesteps}"

    @property
    def file(self) -> Path:
        """The converted network."""
        return self.settings.work / f"{self.name}.snn"

    @property
    def at(self) -> tuple[int, ...]:
        """The T that one simulation gives."""
        return (self.timesteps // 4, self.timesteps // 2, self.timesteps) if self.bare else (self.timesteps,)

    @property
    def questions(self) -> tuple[str, ...]:
        """Whether it is a recipe to choose from, and the evaluation."""
        chosen = not self.bare and s_resnet.load(self.file).alphabet == "binary"
        return (*(["choice"] if chosen and self.settings.choice_images else []), "recipe")

    def limit(self, question: str) -> int | None:
        """How many images are asked for; None for all."""
        settings = self.settings
        if question == "choice":
            return settings.choice_images
        return min(settings.bare_limit, settings.limit or settings.bare_limit) if self.bare else settings.limit

    @property
    def bare(self) -> bool:
        return self.recipe == BARE

    def convert(self, checkpoint: object, data: object, out: object) -> list[str]:
        """The command that converts."""
        options = shlex.split(RECIPES[self.recipe])
        if not self.bare:
            options += ["--timesteps", str(self.timesteps), "--calibration-images"]
            options += [str(self.settings.calibration_images)]
        if self.settings.input_size:
            options += ["--input-size", str(self.settings.input_size)]
        options += [] if self.bare else ["--calibration", str(data)]
        device = ["--device", self.settings.device, "--force", "-o", str(out)]
        return ["sresnet", "convert", str(checkpoint), *options, *device]

    def files(self) -> list[Path]:
        """The files of answers, of all shards."""
        return sorted(self.settings.work.glob(f"{self.name}.*.answers"))

    @property
    def own(self) -> Path:
        """The file of answers of this process."""
        part, parts = self.settings.shard
        return self.settings.work / f"{self.name}.{part}of{parts}.answers"


def made_with() -> Line:
    """Versions, machine and commit."""
    here = Path(__file__).parent
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    said = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False)
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*)", cpus.read_text()) if cpus.exists() else []
    processor = names[0] if names else "unknown"
    return {**latency.versions(), "processor": processor, "commit": said.stdout.strip() or "unknown"}


# ---- evaluation ----


def images_for(case: Case, question: str) -> tuple[answers.Asked, s_resnet.data.ImageData]:
    """The images of a question, and the data that they are part of; none that a network was calibrated on."""
    settings, known = case.settings, s_resnet.load(case.file).provenance
    data = s_resnet.data.open_data(settings.data, SPLITS[question])
    assert isinstance(data, s_resnet.data.ImageData)
    data = s_resnet.data.match_classes(data, s_resnet.data.network_classes(None, data, known.classes or ()))
    used = s_resnet.data.used_for_calibration(data, known.data.fingerprints or ())
    chosen = s_resnet.data.choose(data, case.limit(question), SEED, exclude=used)
    digest = hashlib.sha256(case.file.read_bytes()).hexdigest()
    return answers.Asked(digest, SPLITS[question], tuple(data.names[index] for index in chosen)), data


def evaluate(case: Case) -> None:
    """Answer the images of this shard that have no answer yet; chunks are written as they are done."""
    part, parts = case.settings.shard
    for question in case.questions:
        asked, data = images_for(case, question)
        names = answers.missing(answers.kept(case.files(), asked), asked.names[part - 1 :: parts])
        place = {name: index for index, name in enumerate(data.names)}
        size = case.settings.chunk
        for start in range(0, len(names), size):
            indices = [place[name] for name in names[start : start + size]]
            answer(case, asked, data, indices).append(case.own)
            done = min(start + size, len(names))
            print(f"{case.name} {question}: {done} of {len(names)} images", file=sys.stderr, flush=True)


def answer(case: Case, asked: answers.Asked, data: s_resnet.data.ImageData, indices: Sequence[int]) -> answers.Chunk:
    """The answers of a network and its ANN to some images."""
    snn = s_resnet.load(case.file)
    preprocessing = snn.provenance.preprocessing
    assert preprocessing is not None
    loader = s_resnet.data.loader_for(data, indices, preprocessing, case.settings.batch_size, workers=0)
    batches: list[tuple[Tensor, ...]] = []
    passes: list[tuple[float, int]] = []

    def watch(images: Tensor, labels: Tensor, logits: Tensor, outputs: Tensor) -> None:
        start = time.process_time()
        if not passes:
            snn.to(images.device).run(images)
            passes.append((time.process_time() - start, len(images)))
        top5 = logits.topk(min(5, logits.shape[1])).indices
        tops5 = outputs.topk(min(5, logits.shape[1])).indices
        right = (top5 == labels[:, None]).any(-1), (tops5 == labels[None, :, None]).any(-1)
        batches.append(tuple(x.cpu() for x in (labels, logits.argmax(1), outputs.argmax(2), *right)))

    start, begin = time.perf_counter(), time.process_time()
    settings = s_resnet.analysis.EvaluationSettings(watch=watch)
    report = s_resnet.evaluate(snn, loader, case.at[-1], settings, at=case.at, device=case.settings.device)
    seconds, cpu = time.perf_counter() - start, time.process_time() - begin
    labels, ann, got, top5, tops5 = (torch.cat(x, -1).int() for x in zip(*batches, strict=True))
    names = [data.names[index] for index in indices]
    unread = [name for name in names if any(said.startswith(f"{name} (") for said in loader.unreadable)]
    once, images = passes[0]
    return answers.Chunk(
        network=asked.network,
        split=asked.split,
        names=[name for name in names if name not in unread],
        labels=labels.tolist(),
        ann=ann.tolist(),
        ann_top5=top5.tolist(),
        snn={str(t): got[row].tolist() for row, t in enumerate(case.at)},
        snn_top5={str(t): tops5[row].tolist() for row, t in enumerate(case.at)},
        spikes_per_neuron={str(row.timesteps): row.spikes_per_neuron for row in report.snn},
        unreadable=unread,
        spent={
            "seconds": seconds,
            "cpu_seconds": cpu - once,
            "ann_cpu_seconds_per_image": once / images,
            "peak_memory_bytes": report.peak_memory_bytes,
        },
        made_with={**made_with(), "device": report.device, "kernel": report.kernel},
    )
