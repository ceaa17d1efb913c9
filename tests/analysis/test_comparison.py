"""Comparisons: rows against counts by hand, marks against intervals, candidates against plain loops."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import images, randomized

import s_resnet
from s_resnet.analysis import Candidate, Measured, MeasuringSettings, compare, measure_ann, measure_candidates
from s_resnet.analysis.candidates import bits_per_spike
from s_resnet.data import paired_difference, wilson
from s_resnet.errors import InvalidData
from s_resnet.graph import Neuron
from s_resnet.graph.alphabet import Copies
from s_resnet.models import CifarResNet

LABELS = (0,) * 100


def answers(*wrong):
    """To 100 images of class 0: wrong for those in these ranges."""
    missed = {place for part in wrong for place in part}
    return tuple(int(place in missed) for place in range(100))


def snn(name, given, latency=8, **others):
    others = {"timesteps": 8, "end_to_end_steps": 8, "levels": 8, "bits": 1.0, **others}
    return Candidate("net", name, "snn", latency=latency, answers=given, **others)


ANN = Candidate("net", "ANN", "ann", answers=answers(range(10)))
QUANTIZED = Candidate("net", "ANN, 9 levels", "quantized", levels=8, answers=answers(range(5, 17)))
GOOD = snn("good", answers(range(11)), ann_macs=7.0)
TIED = snn("tied", answers(range(3, 17)))  # 14 wrong: 8 of them beside the 6 of good
WORSE = snn("worse", answers(range(45)))
LATE = Candidate("net", "late", "snn", latency=8, reason="answers later")


def rows(*candidates, missing=()):
    return {row.name: row for row in compare([Measured(LABELS, candidates)], missing).rows}


def test_a_row_holds_what_is_counted_by_hand():
    found = rows(ANN, GOOD, QUANTIZED)["good"]
    assert (found.top1, found.top1_interval) == (0.89, wilson(89, 100))
    # The ANN is wrong on 0 to 9 and this one on 10 as well.
    assert (found.drop, found.drop_interval) == (pytest.approx(0.01), paired_difference(89, 1, 0, 10))
    # The quantized ANN is wrong on 5 to 16: both on 5 to 10, it alone on 11 to 16, this one alone on 0 to 4.
    assert (found.over_quantized, found.over_quantized_interval) == (
        pytest.approx(0.01),
        paired_difference(83, 6, 5, 6),
    )
    assert found.activation_bits == math.log2(9) and found.bits_per_spike == 1.0
    ann = rows(ANN, GOOD, QUANTIZED)["ANN"]
    assert (ann.top1, ann.drop, ann.activation_bits, ann.macs, ann.best) == (0.9, None, 32.0, 7.0, None)


def test_what_the_images_cannot_tell_from_the_best_is_marked_like_it():
    found = rows(ANN, GOOD, TIED, WORSE, missing=[LATE])
    assert paired_difference(83, 6, 3, 8)[0] < 0 < paired_difference(55, 34, 0, 11)[0]
    assert {name: row.best for name, row in found.items()} == {
        "ANN": None,
        "good": True,
        "tied": True,
        "worse": False,
        "late": None,
    }
    assert rows(ANN, GOOD, replace(WORSE, latency=16))["worse"].best, "another latency has a best of its own"
    apart = compare([Measured(LABELS, (ANN, GOOD, replace(WORSE, network="other")))])
    assert [row.best for row in apart.rows] == [None, True, True], "and so has another network"
    other = Measured((1,) * 100, (replace(WORSE, network="other", answers=tuple(1 - x for x in WORSE.answers)),))
    assert compare([Measured(LABELS, (ANN, GOOD)), other]).rows == apart.rows, "which may number its classes otherwise"


def test_the_table_says_who_has_no_figures_and_why():
    found = compare([Measured(LABELS, (GOOD, WORSE, QUANTIZED, ANN))], [LATE])
    assert [row.name for row in found.rows] == ["ANN", "good", "worse", "late", "ANN, 9 levels"]
    text = found.table()
    assert "late at E = 8: answers later." in text and "89.00* [81.4, 93.7]" in text and "55.00 [" in text
    assert "answers" not in json.dumps([row.to_dict() for row in found.rows[:2]])


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        ([], "nothing to compare"),
        ([Measured(LABELS, (ANN,))], "nothing to compare"),
        ([Measured(LABELS, (GOOD,)), Measured((1,) * 100, (ANN,))], "different images"),
        ([Measured(LABELS, (replace(GOOD, answers=(0,)),))], "1 answers of good to 100 images"),
        ([Measured(LABELS, (GOOD, GOOD))], "two candidates named good of net"),
        ([GOOD], "type Candidate"),
    ],
)
def test_what_cannot_be_compared_is_refused(measured, says):
    with pytest.raises(InvalidData, match=says):
        compare(measured)


@pytest.fixture(scope="module")
def network():
    """A converted network with test images."""
    model = randomized(CifarResNet(8, num_classes=4, width=4))
    made = s_resnet.convert(model, [images(16)], "multilevel", timesteps=2)
    return made, [(images(6, seed=2), torch.arange(6) % 4), (images(3, seed=3), torch.arange(3))]


def test_candidates_answer_as_the_network_does(network):
    made, batches = network
    settings = MeasuringSettings("net", "mine", device="cpu", operations=4)
    found = measure_candidates(made, batches, [2, 4], settings)
    assert found.labels == (0, 1, 2, 3, 0, 1, 0, 1, 2)
    for one, steps in zip(found.candidates, (2, 4), strict=True):
        assert list(one.answers) == torch.cat([made(x, steps) for x, _ in batches]).argmax(1).tolist()
        assert (one.timesteps, one.levels, one.bits) == (steps, 15 * steps, math.log2(31)) and one.seconds > 0
        counted = s_resnet.analysis.count_operations(made, [batches[0][0][:4]], steps).total
        assert (one.synops, one.macs, one.ann_macs) == (counted.acs, counted.macs, counted.ann.macs)
    assert Measured.read(json.loads(json.dumps(found.to_json())), "kept") == found
    ann = measure_ann(made, batches, settings).candidates[0]
    assert list(ann.answers) == torch.cat([made.run(x) for x, _ in batches]).argmax(1).tolist() and ann.bits == 32
    with pytest.raises(InvalidData, match="no images"):
        measure_ann(made, [], settings)


def test_bits_of_a_spike_count_the_values_that_a_step_may_send():
    model = randomized(CifarResNet(8, num_classes=4, width=4))
    for spikes, amplitudes, values in (("unsigned", 1, 2), ("signed", 1, 3), ("unsigned", 3, 8), ("signed", 4, 31)):
        recipe = s_resnet.RECIPES["s-resnet-released"].set("relu_to_neuron", spikes=spikes, amplitudes=amplitudes)
        made = s_resnet.convert(model, (3, 16, 16), recipe, timesteps=1)
        assert bits_per_spike(made) == math.log2(values)
    copied = [replace(n, op=replace(n.op, spikes=Copies(3))) if isinstance(n.op, Neuron) else n for n in made.nodes]
    assert bits_per_spike(replace(made, nodes=tuple(copied))) == 1, "three neurons, each of which sends 0 or 1"
