"""The benchmark on ImageNet, on a tiny folder: it resumes, shares images, and claims no more than it measured."""

import argparse
import importlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomized
from PIL import Image
from sresnet_cli.__main__ import sresnet

import s_resnet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
answers, claims, imagenet, imagenet_case, tables = (
    importlib.import_module(name) for name in ("answers", "claims", "imagenet", "imagenet_case", "tables")
)


@pytest.fixture
def folder(tmp_path):
    """Three classes of images in train/ and val/."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n01443537", "n01484850"):
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "imagenet" / split / name / f"{number}.png")
    return tmp_path / "imagenet"


@pytest.fixture
def small(folder, tmp_path, monkeypatch):
    """Runs the benchmark on three classes in this process, with a work folder of that name; gives its lines."""
    monkeypatch.setitem(imagenet.RECIPES, "quick", "--recipe s-resnet-released")
    monkeypatch.setitem(imagenet.STEPS, "quick", (4,))
    monkeypatch.setattr(imagenet, "apart", imagenet.evaluate)
    took = {"convert_seconds": 1.0, "convert_cpu_seconds": 1.0, "convert_peak_memory_bytes": 10**9}
    converted = []

    def run(arguments):
        converted.append(arguments[-1])
        assert arguments[:2] == ["-m", "sresnet_cli"]
        sresnet.main(arguments[2:], standalone_mode=False)
        return took

    monkeypatch.setattr(imagenet, "run", run)
    weights = tmp_path / "mine.pth"
    torch.save(randomized(s_resnet.models.CifarResNet(8, num_classes=3)).state_dict(), weights)
    given = [str(folder), "--checkpoint", f"resnet18={weights}", "--recipes", "quick", "--calibration-images", "6"]
    given += ["--choice-images", "4", "--input-size", "32", "--limit", "5", "--chunk", "2", "--device", "cpu"]

    def call(work, *more):
        (tmp_path / work).mkdir(exist_ok=True)
        results = tmp_path / work / "imagenet.jsonl"
        imagenet.main([*given, "--work", str(tmp_path / work), "--results", str(results), *more])
        text = results.read_text() if results.exists() else ""
        assert str(tmp_path) not in text
        return [json.loads(line) for line in text.splitlines()]

    call.converted = converted
    return call


def timeless(lines):
    """The lines without what differs from run to run."""
    return [
        {name: value for name, value in line.items() if "seconds" not in name and "peak" not in name} for line in lines
    ]


FORKS = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork.*:DeprecationWarning")


@FORKS
def test_imagenet_converts_and_evaluates_the_weights_given(small):
    choice, line = small("one")
    assert line["convert"] == (
        "sresnet convert mine.pth --recipe s-resnet-released --timesteps 4 --calibration-images 6 --input-size 32 "
        "--calibration DATA --device cpu --force -o OUT"
    )
    assert (line["question"], line["network"], line["recipe"], line["timesteps"]) == ("recipe", "resnet18", "quick", 4)
    assert (choice["question"], choice["images"], line["images"], line["data"]) == ("choice", 4, 5, "ImageNet val")
    assert choice["limit"] == 4 and line["limit"] == 5
    assert line["drop"] == pytest.approx(line["ann_top1"] - line["top1"], abs=1e-3)
    assert line["drop_interval"][0] <= line["drop"] <= line["drop_interval"][1]
    assert line["end_to_end_steps"] == 4 and line["spikes_per_neuron"] > 0 and line["ann_top5"] == 100


@FORKS
def test_imagenet_gives_the_figures_of_evaluate(small, tmp_path, folder):
    _, line = small("one")
    report = tmp_path / "report.json"
    evaluate = ["evaluate", str(tmp_path / "one" / "resnet18-quick-T4.snn"), "--limit", "5", "--at", "4"]
    sresnet.main([*evaluate, "--data", str(folder), "--json", str(report), "--device", "cpu"], standalone_mode=False)
    said = json.loads(report.read_text())
    (row,) = said["snn"]
    assert line["ann_top1"] == pytest.approx(100 * said["ann"]["top1"], abs=1e-3)
    assert line["drop_interval"] == pytest.approx([100 * bound for bound in row["drop_interval"]], abs=1e-3)
    for name in ("top1", "drop", "agreement"):
        assert line[name] == pytest.approx(100 * row[name], abs=1e-3)
    assert line["spikes_per_neuron"] == pytest.approx(row["spikes_per_neuron"], abs=1e-5)


@FORKS
def test_imagenet_goes_on_where_it_was_stopped_and_adds_up_shards(small, tmp_path, monkeypatch):
    whole = small("one")
    answered = []
    real = imagenet_case.answer

    def answer(case, asked, data, indices):
        if len(answered) == 3:
            raise KeyboardInterrupt
        answered.append(indices)
        return real(case, asked, data, indices)

    monkeypatch.setattr(imagenet_case, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        small("stopped")
    (file,) = (tmp_path / "stopped").glob("*.answers")
    file.write_text(file.read_text() + '{"network": "cut o')  # as if killed while it wrote
    monkeypatch.setattr(imagenet_case, "answer", lambda *given: answered.append(given[-1]) or real(*given))
    assert timeless(small("stopped", "--resume")) == timeless(whole)
    assert sum(map(len, answered)) == 4 + 5  # nothing is answered twice
    assert small("stopped", "--resume") == small("stopped", "--resume") and sum(map(len, answered)) == 4 + 5
    assert len(small.converted) == 2

    with pytest.raises(SystemExit, match="run --only-convert first"):
        small("shared", "--shard", "1/2")
    assert small("shared", "--only-convert") == small("shared", "--shard", "2/2") == []
    for work in ("shared", "shared"):
        small(work, "--shard", "1/2")
    assert len(list((tmp_path / "shared").glob("*.answers"))) == 2
    assert timeless(small("shared", "--resume")) == timeless(whole) and len(small.converted) == 3
    with pytest.raises(SystemExit, match="got another convert than asked for"):
        small("shared", "--resume", "--calibration-images", "5")


def test_imagenet_asks_for_weights_it_does_not_have(folder, tmp_path):
    with pytest.raises(SystemExit, match="resnet18: got no weights; expected --checkpoint resnet18=FILE, or --down"):
        imagenet.main([str(folder), "--work", str(tmp_path / "work")])
    for wrong in ("resnet18", f"resnet18={tmp_path}/none", f"vgg={tmp_path}"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=FILE"):
            imagenet.named_file(wrong)


def test_imagenet_fetches_version_1_once_and_checks_it(monkeypatch, tmp_path):
    fetched = []

    def fetch(url, file, digest):
        fetched.append((url, digest))
        Path(file).touch()

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for network in (*imagenet.NETWORKS, *imagenet.NETWORKS):
        assert imagenet.download(network, tmp_path).is_file()
    assert fetched == [
        (f"https://download.pytorch.org/models/{name}-{digest}.pth", digest)
        for name, digest in (("resnet18", "f37072fd"), ("resnet34", "b627a593"), ("resnet50", "0676ba61"))
    ]


# ---- figures and claims ----


def chunk(names, seed, spikes=1.0, **more):
    """Answers of a network to some images, at random."""
    chance = random.Random(seed)
    some = [[chance.randrange(3) for _ in names] for _ in range(3)]
    found = {
        "network": "n",
        "split": "evaluation",
        "names": list(names),
        "labels": some[0],
        "ann": some[1],
        "ann_top5": [1 for _ in names],
        "snn": {"8": some[2]},
        "snn_top5": {"8": [0 for _ in names]},
        "spikes_per_neuron": {"8": spikes},
        "unreadable": [],
        "made_with": {"commit": "a", "threads": 1},
        "spent": {"seconds": 1, "cpu_seconds": 2, "ann_cpu_seconds_per_image": 0.5, "peak_memory_bytes": seed},
    }
    return answers.Chunk(**{**found, **more})


def test_figures_are_those_counted_image_by_image():
    names = [str(number) for number in range(40)]
    chunks = [chunk(names[:30], 1, spikes=1.0), chunk(names[30:], 2, spikes=3.0)]
    triples = [t for c in chunks for t in zip(c.labels, c.ann, c.snn["8"], strict=True)]
    got = answers.accuracies(chunks, 8)
    right = np.array([(ann == label, snn == label) for label, ann, snn in triples], dtype=float)
    assert got["ann_top1"] == pytest.approx(100 * right[:, 0].mean(), abs=1e-3)
    assert got["top1"] == pytest.approx(100 * right[:, 1].mean(), abs=1e-3)
    assert got["standard_error"] == pytest.approx(100 * (right[:, 0] - right[:, 1]).std() / 40**0.5, abs=1e-3)
    assert got["agreement"] == pytest.approx(100 * np.mean([ann == snn for _, ann, snn in triples]), abs=1e-3)
    assert (got["spikes_per_neuron"], got["ann_top5"], got["top5"], got["images"]) == (1.5, 100, 0, 40)
    assert got["interval"][0] < got["top1"] < got["interval"][1]
    spent = answers.costs(chunks)
    assert spent["evaluate_cpu_seconds_per_image"] == 0.1 and spent["evaluate_peak_memory_bytes"] == 2
    other = chunk(names, 3, made_with={"commit": "b", "threads": 1})
    assert answers.made_with([*chunks, other]) == {"commit": "a / b", "threads": 1}


def test_only_answers_to_what_is_asked_count(tmp_path):
    asked = answers.Asked("n", "evaluation", ("a", "b", "c", "d"))
    for file, one in (
        ("1", chunk(("a", "b"), 1)),
        ("1", chunk(("c",), 2, network="another conversion")),
        ("1", chunk(("c",), 3, split="calibration")),
        ("2", chunk(("b", "c"), 4)),  # b has an answer
        ("2", chunk(("d",), 5, unreadable=["e"])),  # e is not asked for
        ("2", chunk((), 6, unreadable=["c"])),
    ):
        one.append(tmp_path / file)
    found = answers.kept(tmp_path.iterdir(), asked)
    assert [(one.names, one.unreadable) for one in found] == [(["a", "b"], []), ([], ["c"])]
    assert answers.missing(found, asked.names) == ["d"]
    assert (
        asked.digest == answers.Asked("m", "x", ("d", "c", "b", "a")).digest != answers.Asked("n", "x", ("a",)).digest
    )


def claimed(recipe, latency, question="recipe", agreement=90.0, **more):
    figures = {"ann_top1": 80.0, "top1": 78.0, "drop": 2.0, "agreement": agreement, "timesteps": latency}
    intervals = {"ann_interval": [76.0, 83.0], "interval": [74.0, 81.0], "drop_interval": [0.5, 3.5]}
    named = {"question": question, "network": "resnet50", "recipe": recipe, "end_to_end_steps": latency, "limit": None}
    costs = {"convert_cpu_seconds": 9.0, "convert_peak_memory_bytes": 10**9, "evaluate_peak_memory_bytes": 2 * 10**9}
    costs |= {"evaluate_cpu_seconds_per_image": 2.0, "ann_cpu_seconds_per_image": 0.25}
    said = {"data": question, "images": 500, "alphabet": "binary", "weights": "pruned", "seed": 0, "commit": "abc"}
    return {**named, **figures, **intervals, "agreement_interval": [88.0, 92.0], **costs, **said, **more}


LINES = [
    claimed("slow", 16, drop=9.0, images=100),  # fewer images: the next line counts
    claimed("slow", 16),
    claimed("fast", 32, drop=-1.0, drop_interval=[-2.0, 0.5]),
    claimed("slow", 16, "choice", 70.0, images=200),
    claimed("fast", 32, "choice", 85.0, images=200),
    claimed("late", 65, "choice", 99.0),
    claimed("graded", 16, "choice", 99.0, alphabet="signed, 4 levels"),
    claimed("multilevel", 4, alphabet="signed, 4 levels", drop=0.5),
    claimed("no-data", 256, images=100),
]


def test_a_recipe_is_chosen_by_calibration_images_alone():
    best = {key: line["recipe"] for key, line in claims.best(LINES).items()}
    assert best == {("resnet50", 16): "slow", ("resnet50", 32): "fast", ("resnet50", 64): "fast"}
    better = [*LINES, claimed("slow", 32, agreement=99.9)]  # on test images
    assert {key: line["recipe"] for key, line in claims.best(better).items()} == best
    equal = claims.best([claimed("b", 16, "choice"), claimed("a", 8, "choice")])
    assert equal["resnet50", 16]["recipe"] == "a"


def test_tables_and_sheet_say_which_was_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.imagenet() == tables.imagenet_summary() == "Not measured."
    (tmp_path / "results").mkdir()
    results = tmp_path / "results" / "imagenet.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert tables.imagenet().splitlines()[2:4] == [
        "| resnet50 | slow, **chosen for E <= 16** | binary | 16 | 16 | 500 | 80.0 (76.0 to 83.0) | "
        "78.0 (74.0 to 81.0) | +2.0 (+0.5 to +3.5) | 90.0 (88.0 to 92.0) |",
        "| resnet50 | fast, **chosen for E <= 32 and 64** | binary | 32 | 32 | 500 | 80.0 (76.0 to 83.0) | "
        "78.0 (74.0 to 81.0) | -1.0 (-2.0 to +0.5) | 90.0 (88.0 to 92.0) |",
    ]
    assert len(tables.imagenet().splitlines()) == 6
    assert tables.imagenet_summary().splitlines()[2:] == [
        "| resnet50 | 80.0 (76.0 to 83.0) | +2.0 (+0.5 to +3.5), slow, T = 16 | -1.0 (-2.0 to +0.5), fast, T = 32 | "
        "-1.0 (-2.0 to +0.5), fast, T = 32 | "
        " | +0.5 (+0.5 to +3.5) |  | +2.0 (+0.5 to +3.5), 100 images |"
    ]
    claims.write(results)
    sheet = (tmp_path / "results" / "imagenet-claims.md").read_text()
    assert "Weights: resnet50: pruned." in sheet and "seed 0" in sheet and "commit abc" in sheet
    assert "fast (best within 32 steps on 200 other images: 85.0 %)" in sheet
    assert "| resnet50 | slow | 16 | 9 | 1.00 | 2.00 | 0.250 | 8.0 | 2.00 |" in sheet


@pytest.mark.parametrize(
    ("recipe", "late"),
    [("calibrated", 0), ("calibrated-lagged", 2), ("calibrated-lagged-blocks", 1), ("signed", 2), ("multilevel", None)],
)
def test_each_recipe_gets_the_t_that_answers_in_time(tmp_path, monkeypatch, recipe, late):
    monkeypatch.setattr(claims, "LATENCIES", (2, 5, 9))
    torch.save(randomized(s_resnet.models.CifarResNet(8, width=2)).state_dict(), tmp_path / "net.pth")
    steps = imagenet.steps_for(tmp_path / "net.pth", recipe, 16)
    if late is None:
        assert steps == [4, 8]
        return
    images = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    model = s_resnet.load_checkpoint(tmp_path / "net.pth").model
    named = s_resnet.RECIPES["calibrated-lagged"].set("relu_to_neuron", lag="blocks") if late == 1 else recipe
    found = [s_resnet.convert(model, images, named, timesteps=t).end_to_end_steps(t) for t in steps]
    assert found == [latency for latency in (2, 5, 9) if latency > 0 and latency - late * 3 >= 1]


def test_a_part_is_written_as_i_of_n():
    assert imagenet.part_of("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "1", "a/b", "1/2/3"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected I/N"):
            imagenet.part_of(wrong)
