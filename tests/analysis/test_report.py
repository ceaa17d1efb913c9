"""The report's figures against counts made by hand in numpy, and of trained networks against their modules."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import images
from torch import nn
from trained_networks import CLASSES, FAMILIES, SIZE, T, over, trained, watched

from s_resnet import Graph, Report, SResNetError, convert, evaluate
from s_resnet.analysis import EvaluationSettings, Row, powers_of_two
from s_resnet.conversion import Context, passes
from s_resnet.data.intervals import paired_difference
from s_resnet.errors import BackendUnavailable, InvalidData
from s_resnet.graph import Neuron, Node, Readout
from s_resnet.graph.ops import Conv2d, Flatten, Input, Linear, ReLU
from s_resnet.graph.provenance import AppliedRecipe, Provenance
from s_resnet.runtime import find_device
from s_resnet.simulation import closed_form

RNG = np.random.default_rng(0)
CONV, BIAS = RNG.integers(-8, 12, (3, 1, 2, 2)) / 16, RNG.integers(-4, 8, 3) / 16
INNER = RNG.integers(-8, 12, (6, 12)) / 16
X = RNG.integers(-8, 24, (13, 1, 4, 4)) / 8
NEURONS = 12 + 6
BATCHES = (5, 5, 3)


def network(classes):
    """A convolution to 3 x 2 x 2 neurons of threshold 0.5, a layer to 6 neurons, a classifier."""
    rows = [
        ("input", Input()),
        ("conv", Conv2d(torch.tensor(CONV).float(), torch.tensor(BIAS).float(), (2, 2)), "input"),
        ("first", Neuron(torch.tensor(0.5)), "conv"),
        ("flat", Flatten(), "first"),
        ("inner", Linear(torch.tensor(INNER).float(), None), "flat"),
        ("second", Neuron(torch.tensor(1.0), 0.5), "inner"),
        ("fc", Linear(torch.tensor(classifier(classes)).float(), None), "second"),
        ("readout", Readout(torch.tensor(3.0)), "fc"),
    ]
    nodes = tuple(Node(name, op, tuple(inputs)) for name, op, *inputs in rows)
    return Graph(nodes, Provenance(AppliedRecipe("by-hand"))).validate()


def classifier(classes):
    return np.random.default_rng(classes).integers(-64, 65, (classes, 6)) / 64


def by_hand(image, classes, steps):
    """One image: the ANN's logits, and per step the network's answer and all spikes so far."""
    patches = [image[0, i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
    current = np.array(
        [(kernel[0] * patch).sum() + b for kernel, b in zip(CONV, BIAS, strict=True) for patch in patches]
    )
    ann = 3 * classifier(classes) @ np.maximum(INNER @ np.maximum(current, 0), 0)
    v, u, total, spikes, answers = np.zeros(12), np.full(6, 0.5), np.zeros(classes), 0, []
    for t in range(1, steps + 1):
        v += current
        s = v >= 0.5
        v -= 0.5 * s
        u += INNER @ (0.5 * s)
        r = u >= 1
        u -= r
        total += classifier(classes) @ r
        spikes += s.sum() + r.sum()
        answers.append((3 * total / t, spikes))
    return ann, answers


def ranking(logits):
    """Classes from the largest logit down; of equal ones the first comes first."""
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def figures(labels, classes, steps):
    """What a report must say, counted one image at a time."""
    runs = [by_hand(image, classes, max(steps)) for image in X]
    ranks = [ranking(ann) for ann, _ in runs]
    right = list(zip(ranks, labels, strict=True))
    many = classes >= 20
    top5 = sum(y in r[:5] for r, y in right) / 13 if many else None
    ann = {"top1": sum(r[0] == y for r, y in right) / 13, "top5": top5}
    rows = []
    for t in steps:
        there = [ranking(answers[t - 1][0]) for _, answers in runs]
        pairs = [(r[0] == y, a[0] == y) for r, a, y in zip(there, ranks, labels, strict=True)]
        counts = [pairs.count(kind) for kind in ((True, True), (False, True), (True, False), (False, False))]
        rows.append(
            {
                "timesteps": t,
                "end_to_end_steps": t,
                "top1": sum(r[0] == y for r, y in zip(there, labels, strict=True)) / 13,
                "top5": sum(y in r[:5] for r, y in zip(there, labels, strict=True)) / 13 if many else None,
                "agreement": sum(r[0] == a[0] for r, a in zip(there, ranks, strict=True)) / 13,
                "spikes_per_neuron": sum(answers[t - 1][1] for _, answers in runs) / 13 / NEURONS,
                "drop": (counts[1] - counts[2]) / 13,
                "drop_interval": paired_difference(*counts),
                "fitted": None,
            }
        )
    return ann, rows


def some_labels(classes):
    """Mostly what the ANN says, so that the shares are neither 0 nor 1."""
    best = [ranking(by_hand(image, classes, 1)[0])[i % 3 if classes > 2 else 0] for i, image in enumerate(X)]
    return [label if i % 4 else (label + 1) % classes for i, label in enumerate(best)]


def loader(labels, batches=BATCHES):
    images, labels = torch.tensor(X).float(), torch.tensor(labels)
    return list(zip(images.split(batches), labels.split(batches), strict=True))


@pytest.mark.parametrize("classes", [25, 9, 3])
def test_every_figure_is_the_one_counted_by_hand(classes):
    labels = some_labels(classes)
    report = evaluate(network(classes), loader(labels), 11, device="cpu")
    ann, rows = figures(labels, classes, [1, 2, 4, 8, 11])
    assert report.images == 13 and report.recipe == "by-hand"
    assert report.ann == ann  # exactly: shares of float32 would print as 0.9160000085830688
    assert len(report.snn) == len(rows)
    for got, want in zip(report.snn, rows, strict=True):
        assert vars(got) == {**want, "spikes_per_neuron": pytest.approx(want["spikes_per_neuron"])}
    # Nothing above is trivially 0 or 1, and T matters.
    assert 0 < ann["top1"] < 1 and 0 < rows[-1]["top1"] < 1 and 0 < rows[-1]["agreement"] <= 1
    assert rows[0]["agreement"] < 1 and rows[0]["spikes_per_neuron"] < rows[-1]["spikes_per_neuron"]
    assert ann["top5"] < 1 if classes > 20 else ann["top5"] is None
    assert any(row["drop"] for row in rows)


def test_the_batches_do_not_matter():
    labels = some_labels(9)
    runs = [evaluate(network(9), loader(labels, batches), 6, at=[3, 6]) for batches in (BATCHES, 13, 1)]
    assert runs[0].snn == runs[1].snn == runs[2].snn and runs[0].ann == runs[1].ann == runs[2].ann


def test_of_equal_logits_the_first_counts():
    """Before the first spike every logit is 0: the answer is class 0, for accuracy and agreement; top-5 is 0 to 4."""
    ops = [
        Input(),
        Neuron(torch.tensor(100.0)),
        Flatten(),
        Linear(torch.ones(20, 16), None),
        Readout(torch.tensor(1.0)),
    ]
    nodes = [Node(str(i), op, () if i == 0 else (str(i - 1),)) for i, op in enumerate(ops)]
    batch = (torch.ones(20, 1, 4, 4), torch.arange(20))
    report = evaluate(Graph(tuple(nodes)), [batch], 1)
    assert report.ann == {"top1": 1 / 20, "top5": 5 / 20}
    assert report.snn == (Row(1, 1, 1 / 20, 5 / 20, 1.0, 0.0, 0.0, paired_difference(1, 0, 0, 19)),)
    assert report.recipe == "custom"


@pytest.mark.parametrize(
    ("timesteps", "steps"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (9, (1, 2, 4, 8, 9)),
        (350, (*(2**k for k in range(9)), 350)),
    ],
)
def test_by_default_powers_of_two_and_the_last_step_are_reported(timesteps, steps):
    assert powers_of_two(timesteps) == steps
    if timesteps < 10:
        report = evaluate(network(3), loader([0] * 13), timesteps)
        assert tuple(row.timesteps for row in report.snn) == steps


def test_requested_steps_are_reported_in_order_from_one_pass():
    labels = some_labels(25)
    report = evaluate(network(25), loader(labels), 9, at=[7, 2, 7])
    _, rows = figures(labels, 25, [2, 7])
    assert [row.timesteps for row in report.snn] == [2, 7]
    assert [vars(row) for row in report.snn] == [
        {**row, "spikes_per_neuron": pytest.approx(row["spikes_per_neuron"])} for row in rows
    ]


# ---- directly trained networks against the modules themselves ----


def batches(count=12, batch=5, seed=3):
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return list(zip(images(count, SIZE, seed=seed).split(batch), labels.split(batch), strict=True))


@pytest.mark.parametrize("folded", [False, True], ids=["traced", "folded"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_figures_of_a_trained_network_are_those_of_its_module(arch, folded):
    """At every T accuracy, agreement with the module's own answer after the T it was trained for, and its spikes."""
    model, graph = trained(arch)
    graph = passes.fold_batchnorm(graph, Context()) if folded else graph
    report = evaluate(graph, batches(), 5, at=(1, T, 5))
    x, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    own = watched(model, x, T)[0].argmax(1)
    for row in report.snn:
        logits, seen = watched(model, x, row.timesteps)
        neurons = sum(given[0, 0].numel() for given, _ in seen.values())
        spikes = sum(float(out.sum()) for _, out in seen.values())
        assert row.top1 == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        assert row.agreement == pytest.approx(float((logits.argmax(1) == own).double().mean()))
        assert row.spikes_per_neuron == pytest.approx(spikes / neurons / len(x))
    assert report.snn[1].agreement == 1.0 and report.recipe == "trained"
    assert report.trained_for == T and report.ann is None


def test_of_a_trained_network_json_and_table_know_no_ann():
    report = evaluate(trained("ms_resnet8")[1], batches(), 2)
    stored, table = report.to_dict(), report.table()
    assert stored["ann"] is None and stored["trained_for"] == T
    assert f"trained for T = {T}" in table and "ANN" not in table
    assert "3 firing levels" in evaluate(trained("ds_resnet8")[1], batches(), 2).table()


def test_the_exit_stops_where_the_module_is_sure():
    """One image at a time: the first t at which softmax(answer * t / T) reaches the confidence."""
    model, graph = trained("ms_resnet8", timesteps=4)
    report = evaluate(graph, batches(), 4, EvaluationSettings(early_exit=0.4))
    stops, right = [], 0
    for x, labels in batches():
        answers = [over(model, t)(x).detach() for t in range(1, 5)]
        for i, label in enumerate(labels.tolist()):
            shares = [float((answers[t - 1][i] * t / 4).softmax(0).max()) for t in range(1, 5)]
            stop = next((t for t, share in enumerate(shares, 1) if share >= 0.4), 4)
            stops.append(stop)
            right += int(answers[stop - 1][i].argmax()) == label
    assert report.exit is not None and len(set(stops)) > 1
    assert report.exit.mean_timesteps == pytest.approx(sum(stops) / len(stops))
    assert report.exit.top1 == pytest.approx(right / len(stops))


# ---- what is written ----

SCHEMA = {
    "schema": int,
    "network": str,
    "recipe": str,
    "images": int,
    "device": str,
    "kernel": str,
    "ann": {"top1": float, "top5": float},
    "snn": [
        {
            "timesteps": int,
            "end_to_end_steps": int,
            "top1": float,
            "top5": float,
            "agreement": float,
            "spikes_per_neuron": float,
            "drop": float,
            "drop_interval": [float],
        }
    ],
    "images_per_second": float,
    "seconds_per_step_per_image": float,
    "peak_memory_bytes": int,
    "data": {"loader": str},
    "notes": [str],  # these labels are wrong more often than not
}


def shape_of(value):
    if isinstance(value, dict):
        return {name: shape_of(part) for name, part in value.items()}
    if isinstance(value, list):
        shapes = [shape_of(part) for part in value]
        assert shapes and all(shape == shapes[0] for shape in shapes)
        return shapes[:1]
    return type(value)


def test_the_json_has_exactly_the_documented_keys_and_types(tmp_path):
    labels = some_labels(25)
    report = evaluate(network(25), loader(labels), 5, EvaluationSettings(network="a.snn"), device="cpu")
    report.save(tmp_path / "out.json")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert shape_of(stored) == SCHEMA and list(stored) == list(SCHEMA)
    ann, rows = figures(labels, 25, [1, 2, 4, 5])
    rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert stored["schema"] == 1 and stored["network"] == "a.snn" and stored["images"] == 13
    assert stored["device"] == "cpu" and stored["kernel"].startswith("cpu")
    assert stored["ann"] == pytest.approx(ann) and len(stored["snn"]) == len(rows)
    for got, want in zip(stored["snn"], rows, strict=True):
        assert got == {name: pytest.approx(value) for name, value in want.items()}
    assert stored["images_per_second"] * stored["seconds_per_step_per_image"] * 5 == pytest.approx(1)
    assert stored["images_per_second"] > 0 and stored["peak_memory_bytes"] > 2**20
    assert all(math.isfinite(value) for value in (stored["images_per_second"], stored["seconds_per_step_per_image"]))
    with pytest.raises(SResNetError, match="cannot be written"):
        report.save(tmp_path / "no" / "out.json")


def test_the_table_shows_the_figures():
    rows = (
        Row(1, 1, 0.125, 0.5, 0.25, 0.0625),
        Row(350, 350, 0.9174, 0.998, 0.9512, 12.3456, 0.0051, (-0.002, 0.0123)),
    )
    report = Report(
        "r20.snn", "s-resnet", 500, "cpu", "cpu", {"top1": 0.9225, "top5": 1.0}, rows, 12.34, 0.00125, 3 << 20
    )
    lines = report.table().splitlines()
    assert "r20.snn" in lines[0] and "s-resnet" in lines[0] and "500 images" in lines[0] and "cpu" in lines[0]
    table = [line.split() for line in lines if line.split()[:1] in (["T"], ["ANN"], ["1"], ["350"])]
    assert table == [
        ["T", "top-1", "drop", "95%", "interval", "top-5", "agreement", "spikes/neuron"],
        ["ANN", "92.25%", "100.00%"],
        ["1", "12.50%", "50.00%", "25.00%", "0.062"],
        ["350", "91.74%", "+0.51", "-0.20", "to", "+1.23", "99.80%", "95.12%", "12.346"],
    ]
    assert "12.34 images/s" in lines[-1] and "1.25 ms" in lines[-1] and "3 MiB" in lines[-1]


# ---- which images ----


def test_images_that_are_counted_twice_are_counted():
    labels = some_labels(9)
    batches = loader(labels)
    assert evaluate(network(9), batches, 2).repeated == 0
    again = evaluate(network(9), [*batches, batches[0], batches[0]], 2)
    assert again.images == 23 and again.repeated == again.to_dict()["repeated"] == 10
    assert any("10 of the 23 images are exact repeats of others" in note for note in again.notes)


@pytest.mark.parametrize(
    ("top1", "top5", "agreement"), [(1.1, 1, 1), (1, 4, 1), (1, 1, 6.25), (-0.1, 1, 1), (math.nan, 1, 1)]
)
def test_a_share_is_one(top1, top5, agreement):
    row = Row(1, 1, top1, top5, agreement, 0.0)
    with pytest.raises(InvalidData, match=r"report: got a share of .*; expected 0 to 1\. Check"):
        Report("", "", 1, "cpu", "cpu", {"top1": 1.0, "top5": None}, (row,), 1.0, 1.0, 1)
    with pytest.raises(InvalidData, match="got a share of 2 as top1"):
        Report("", "", 1, "cpu", "cpu", {"top1": 2, "top5": None}, (), 1.0, 1.0, 1)


def test_scores_with_trailing_ones_are_scores():
    """A fully convolutional classifier ends in [B, N, 1, 1]; evaluate counts them as [B, N]."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 25, 1), nn.AdaptiveAvgPool2d(1))
    model, x = nn.Sequential(*layers).eval(), torch.randn(16, 3, 8, 8)
    for recipe in ("s-resnet", "calibrated-lagged", "multilevel"):
        snn = convert(model, [x, x], recipe, timesteps=4)
        assert torch.allclose(snn.run(x).flatten(1), model(x).flatten(1), atol=1e-5)
        report = evaluate(snn, [(x, torch.arange(16))], 4)
        right = model(x).flatten(1).topk(5).indices == torch.arange(16)[:, None]
        assert report.ann == {"top1": right[:, 0].double().mean().item(), "top5": right.any(1).double().mean().item()}


# ---- what does not fit ----

IMAGES, ZEROS = torch.zeros(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
MISUSE = {
    "no steps": lambda: evaluate(network(3), [(IMAGES, ZEROS)], 0),
    "negative steps": lambda: evaluate(network(3), [(IMAGES, ZEROS)], -1),
    "at beyond": lambda: evaluate(network(3), [(IMAGES, ZEROS)], 4, at=[5]),
    "at 0": lambda: evaluate(network(3), [(IMAGES, ZEROS)], 4, at=[0, 4]),
    "at nothing": lambda: evaluate(network(3), [(IMAGES, ZEROS)], 4, at=[]),
    "no batches": lambda: evaluate(network(3), [], 4),
    "an empty batch": lambda: evaluate(network(3), [(IMAGES[:0], ZEROS[:0])], 4),
    "a label too large": lambda: evaluate(network(3), [(IMAGES, torch.tensor([0, 1, 3, 2]))], 4),
    "a label below zero": lambda: evaluate(network(3), [(IMAGES, torch.tensor([0, 1, -1, 2]))], 4),
    "one label for all": lambda: evaluate(network(3), [(IMAGES, ZEROS[:1])], 4),
    "labels in a column": lambda: evaluate(network(3), [(IMAGES, ZEROS[:, None])], 4),
    "too many channels": lambda: evaluate(network(3), [(torch.zeros(4, 3, 4, 4), ZEROS)], 4),
    "an analog network": lambda: evaluate(
        Graph((Node("i", Input(), ()), Node("r", ReLU(), ("i",)), Node("f", Flatten(), ("r",)))), [(IMAGES, ZEROS)], 4
    ),
    "too few channels for a trained network": lambda: evaluate(trained("ms_resnet8")[1], [(IMAGES, ZEROS)], 2),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_what_does_not_fit_is_refused_in_one_line(misuse):
    with pytest.raises(InvalidData) as caught:
        MISUSE[misuse]()
    assert "\n" not in str(caught.value) and "got" in str(caught.value)


@pytest.mark.parametrize("made", ["converted", "trained"])
def test_a_label_out_of_range_is_named(made):
    snn, x, classes = network(3), IMAGES, 3
    if made == "trained":
        snn, x, classes = trained("ms_resnet8")[1], images(4, SIZE), CLASSES
    with pytest.raises(InvalidData, match=rf"label 7 for a network of {classes} classes"):
        evaluate(snn, [(x, torch.tensor([0, 1, 7, 2]))], 4)


def test_a_trained_network_has_no_closed_form():
    _, graph = trained("ms_resnet8")
    with pytest.raises(InvalidData, match="closed_form"):
        closed_form(graph, images(4, SIZE), 2)
    assert evaluate(graph, [(images(4, SIZE), ZEROS)], 2).kernel != "closed-form"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_an_error_and_no_fallback(name):
    with pytest.raises(BackendUnavailable, match="CUDA") as caught:
        evaluate(network(3), [(IMAGES, ZEROS)], 4, device=name)
    assert "\n" not in str(caught.value)
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "", "CUDA", "cuda:", "cuda:x", "cuda0", "meta", "gpu", "cpu:1"])
def test_an_unknown_device_is_an_error_in_one_line(name):
    with pytest.raises(BackendUnavailable, match="expected auto, cpu, cuda or cuda:N") as caught:
        find_device(name)
    assert "\n" not in str(caught.value)


def test_the_cpu_is_always_there():
    assert find_device("cpu") == torch.device("cpu")
