"""Evaluation of directly trained networks against the modules themselves, run over every number of steps."""

import pytest
import torch
from conftest import images
from trained_networks import CLASSES, FAMILIES, SIZE, T, over, trained, watched

from s_resnet import evaluate
from s_resnet.analysis import EvaluationSettings
from s_resnet.conversion import Context, passes
from s_resnet.errors import InvalidData
from s_resnet.simulation import closed_form


def batches(count=12, batch=5, seed=3):
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return list(zip(images(count, SIZE, seed=seed).split(batch), labels.split(batch), strict=True))


@pytest.mark.parametrize("folded", [False, True], ids=["traced", "folded"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_figures_are_those_of_the_module(arch, folded):
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


def test_there_is_no_ann_in_json_and_table():
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


def test_what_people_do_wrong():
    _, graph = trained("ms_resnet8")
    (x, labels), *_ = batches()
    with pytest.raises(InvalidData, match=rf"label \d for a network of {CLASSES} classes"):
        evaluate(graph, [(x, labels + CLASSES)], 2)
    with pytest.raises(InvalidData, match="channels"):
        evaluate(graph, [(x[:, :1], labels)], 2)
    with pytest.raises(InvalidData, match="closed_form"):
        closed_form(graph, x, 2)
    with pytest.raises(InvalidData, match="closed_form"):
        evaluate(graph, [(x, labels)], 2, EvaluationSettings(in_closed_form=True))
