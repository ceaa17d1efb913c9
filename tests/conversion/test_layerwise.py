"""Layers fitted on images that do not fit in memory: the same values in parts, all images, files read back."""

import gc
import importlib
import os
import tempfile
from dataclasses import replace

import pytest
import torch
from conftest import images, randomized
from test_fitting import ALPHABETS, channel_means, model, same, spiking
from test_schedules import PLANS, dyadic, network

from s_resnet import calibrate, convert, trace
from s_resnet.conversion import Context, layerwise, least_squares, portions, spill
from s_resnet.conversion.kept import Kept
from s_resnet.conversion.layerwise import fit_layers, parts_of
from s_resnet.conversion.passes import calibrate_neurons, fit_readout, fit_thresholds
from s_resnet.conversion.spill import Spill, gather
from s_resnet.errors import ConversionError
from s_resnet.graph import Neuron
from s_resnet.graph.alphabet import Amplitudes, Differential, Signed
from s_resnet.models import CifarResNet
from s_resnet.simulation.lockstep import Pair, fire_mean, lockstep

STEPS = 5


@pytest.fixture(scope="module")
def given():
    x = images(40, 16, seed=3)
    graph = trace(model(), x)
    return graph, calibrate(graph, [x], 99.9, 0, False, True)


@pytest.fixture
def small(monkeypatch):
    """Room for about three images of the networks here."""
    monkeypatch.setattr(layerwise, "ROOM", 3 * 2048 * STEPS)
    monkeypatch.setattr(layerwise, "PART", 3 * 2048 * STEPS)
    monkeypatch.setattr(spill, "ROOM", 1000)


# ---- files ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8])
def test_rows_come_back_as_they_went_in(dtype):
    rows, kept = (100 * torch.randn(11, 3, 2)).to(dtype), Spill()
    for part in rows.split(4):
        kept.append(part.transpose(1, 2).contiguous().transpose(1, 2))  # of any layout
    assert len(kept) == 11
    for index in (slice(0, 11), slice(3, 7), slice(9, 20), slice(5, 5), slice(0, 11, 3), torch.tensor([4, 0, 4, 10])):
        assert torch.equal(kept[index], rows[index]) and kept[index].dtype == dtype


def test_few_rows_stay_in_memory(monkeypatch):
    rows = torch.randn(6, 5)
    assert torch.equal(gather(iter(rows.split(4))), rows)
    monkeypatch.setattr(spill, "ROOM", 4 * 5 * 4)
    many = gather(iter([*rows.split(2), rows[:0]]))
    assert isinstance(many, Spill) and torch.equal(many[:], rows)


def test_a_file_is_gone_with_what_it_was_for(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = Spill()
    kept.append(torch.randn(1000, 1000))
    opened = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert os.name != "posix" or not list(tmp_path.iterdir())  # no name from the start: also a kill leaves nothing
    del kept
    gc.collect()
    assert not list(tmp_path.iterdir()) and (not opened or len(os.listdir("/proc/self/fd")) == opened - 1)


def test_a_full_disk_is_said_in_a_line(monkeypatch):
    class Full:
        def seek(self, place):
            pass

        def close(self):
            pass

        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    kept = Spill()
    with pytest.raises(ConversionError, match=r"cannot write 24 more bytes after 0 in .*No space left.*Set TMPDIR"):
        kept.append(torch.zeros(2, 3))


def test_without_a_place_for_files_it_is_said_in_a_line(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    with pytest.raises(ConversionError, match=r"No usable temporary directory found.*Set TMPDIR"):
        Spill()


OPS = {
    "plain": {},
    "channels": {"threshold": torch.tensor([0.3, 1.7, 0.9])},
    "signed": {"spikes": Signed()},
    "levels": {"spikes": Amplitudes(8, True)},
    "amplitude": {"amplitude": 0.7},
    "differential": {"spikes": Differential(2)},
}


@pytest.mark.parametrize("steps", [6, 1])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_what_neurons_send_comes_back_to_the_last_bit(name, flat, steps):
    op = Neuron(**{"threshold": torch.tensor(0.7), "initial_potential": 0.5, **OPS[name]})
    shape = (3,) if flat else (3, 4, 5)
    currents = 2 * torch.randn(steps, 9, *shape, generator=torch.Generator().manual_seed(1))
    timesteps = 6 if name != "differential" else steps
    values = Pair(fire_mean(op, currents, timesteps), torch.randn(9, *shape))
    kept = Kept(op, timesteps, (values[part] for part in (slice(0, 4), slice(4, 8), slice(8, 9))))
    for chosen in (slice(0, 9), slice(2, 6), torch.tensor([7, 1, 7])):
        got = kept[chosen]
        assert torch.equal(got.spiking, values.spiking[:, chosen]) and torch.equal(got.analog, values.analog[chosen])
    assert len(values.spiking.unique()) > 1


# ---- parts ----


@pytest.mark.parametrize("name", PLANS)
def test_every_part_is_what_the_whole_is(monkeypatch, name):
    """Of a network with all kinds of shortcuts, pools and schedules, on numbers whose sums are exact."""
    graph, x, steps = network(PLANS[name]), dyadic(80, 21, 3, 12, 12, scale=8), 4
    whole, refits, parts = {}, {}, {}

    def look(node, currents, target):
        whole[node.name] = currents.clone(), target.clone()
        return node.op

    lockstep(graph, x, steps, look)
    for room in (2**26, 5000):
        monkeypatch.setattr(layerwise, "ROOM", room)
        monkeypatch.setattr(layerwise, "PART", room)

        def fit(node, pairs):
            parts[node.name] = len(pairs)
            for _ in range(2):  # as often as one likes
                currents, targets = zip(*pairs, strict=True)
                assert torch.equal(torch.cat(currents, 1), whole[node.name][0]), node.name
                torch.testing.assert_close(torch.cat(targets), whole[node.name][1])
            return node.op

        def refit(node, pairs):
            inputs, wanted = (torch.cat(each) for each in zip(*pairs, strict=True))
            assert refits.setdefault(node.name, (inputs, wanted))[0].equal(inputs), node.name
            torch.testing.assert_close(refits[node.name][1], wanted)
            return node.op

        assert same(fit_layers(graph, x, steps, fit, refit), graph)
        assert parts == dict.fromkeys(parts, parts["n0"]) and parts.keys() == {n.name for n in graph.neurons}
        assert parts["n0"] == 1 if room > 5000 else parts["n0"] >= 8
    assert len(refits) == 8 and not any("fc" in name for name in refits)


def test_layers_fire_as_they_were_fitted(small, given):
    """A later layer sees the earlier ones as they have become."""
    graph = fit_thresholds(spiking(given, schedule="lagged"), Context(given[1], STEPS))

    def double(node, pairs):
        return replace(node.op, threshold=2 * node.op.threshold) if node.name == graph.neurons[0].name else node.op

    seen = {}

    def look(node, pairs):
        seen[node.name] = torch.cat([currents for currents, _ in pairs], 1)
        return double(node, pairs)

    fitted = fit_layers(graph, given[1].fitting, STEPS, look)

    def compare(node, currents, target):
        if isinstance(node.op, Neuron):
            torch.testing.assert_close(currents, seen[node.name], rtol=1e-4, atol=1e-4)
        return node.op

    lockstep(fitted, given[1].fitting, STEPS, compare)
    assert len(seen) == 4


@pytest.mark.parametrize("count", [1, 2, 9, 40])
@pytest.mark.parametrize("room", [1, 10**5, 10**9])
def test_all_images_are_in_the_parts_once(given, count, room):
    graph, x = spiking(given), given[1].fitting[:count]
    parts = parts_of(graph, x, STEPS, room)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    largest = max(v[0].numel() * (1 if name in graph.static else STEPS) for name, v in graph.activations(x[:1]))
    assert all(part.stop - part.start <= max(1, room // largest) for part in parts)
    assert len({part.stop - part.start for part in parts}) <= 2


# ---- passes in parts ----


@pytest.mark.parametrize("name", ALPHABETS)
def test_in_parts_every_channels_mean_output_is_the_anns_too(small, given, name):
    graph = fit_thresholds(spiking(given, **ALPHABETS[name]), Context(given[1], STEPS))
    apart = []
    for network_ in (graph, calibrate_neurons(graph, Context(given[1], STEPS))):
        worst = []

        def compare(node, currents, target, worst=worst):
            if isinstance(node.op, Neuron):
                got, want = channel_means(fire_mean(node.op, currents, STEPS).mean(0)), channel_means(target)
                worst.append(float((got - want).abs().max() / want.mean()))
            return node.op

        lockstep(network_, given[1].fitting, STEPS, compare)
        apart.append(max(worst))
    assert apart[1] < max(0.5 * apart[0], 0.005) and apart[1] < (0.1 if name == "streaming" else 0.04), apart


@pytest.mark.parametrize("name", ["streaming", "lagged", "phased", "signed"])
def test_thresholds_and_readout_do_not_depend_on_the_parts(monkeypatch, given, name):
    calibration, fitted = given[1], []
    for room in (2**26, 10**4):
        monkeypatch.setattr(layerwise, "PART", room)
        monkeypatch.setattr(portions, "ANALOG", room)
        monkeypatch.setattr(spill, "ROOM", room)
        parted = replace(calibration, fitting=gather(iter(calibration.fitting.split(7))))
        assert isinstance(parted.fitting, Spill) == (room == 10**4)
        graph = fit_thresholds(spiking(given, **ALPHABETS[name]), Context(parted, STEPS))
        fitted.append(fit_readout(graph, Context(parted, STEPS)))
    whole, parts = fitted
    for a, b in zip(whole.neurons, parts.neurons, strict=True):
        torch.testing.assert_close(a.op.threshold, b.op.threshold)
    a, b = whole.nodes[-1].op, parts.nodes[-1].op
    torch.testing.assert_close(a.correction, b.correction, rtol=1e-3, atol=1e-4)
    assert (a.weights is None) == (name == "phased")
    if a.weights is not None:
        torch.testing.assert_close(a.weights, b.weights, rtol=1e-3, atol=1e-5)


# ---- the number asked for is the number used ----


@pytest.mark.parametrize("recipe", ["calibrated-lagged", "phased", "multilevel"])
@pytest.mark.parametrize(("count", "room"), [(20, 10**9), (20, 1), (90, 10**5)])
def test_every_pass_looks_at_every_image_that_it_is_said_to(monkeypatch, recipe, count, room):
    """However large the images are for the memory there is; counted at the first layer of each pass."""
    for where, name in ((layerwise, "ROOM"), (layerwise, "PART"), (spill, "ROOM"), (least_squares, "ROOM")):
        monkeypatch.setattr(where, name, room)
    seen = {}

    def note(where, targets):
        seen.setdefault(where, set()).update(targets.double().flatten(1).sum(1).tolist())

    neurons = importlib.import_module("s_resnet.conversion.passes.calibrate_neurons")
    readout = importlib.import_module("s_resnet.conversion.passes.fit_readout")
    thresholds = importlib.import_module("s_resnet.conversion.passes.fit_thresholds")
    refit, unbiased, sums, count_bins = neurons.refit, neurons._unbiased, readout._Sums.of, thresholds._count
    first = 4  # channels of the stem's activation

    def noted_refit(op, parts, images):
        assert images == count
        pairs = list(parts)
        note(f"refit {len(seen)}", torch.cat([wanted for _, wanted in pairs]))
        return refit(op, pairs, images)

    def noted_unbiased(op, parts, *rest):
        note(f"unbiased {len(seen)}", torch.cat([target for _, target in parts]))
        return unbiased(op, parts, *rest)

    def noted_sums(currents, target):
        note("readout", target)
        return sums(currents, target)

    binned = []

    def noted_bins(values, largest):
        binned.append(values.shape[1])
        return count_bins(values, largest)

    monkeypatch.setattr(neurons, "refit", noted_refit)
    monkeypatch.setattr(neurons, "_unbiased", noted_unbiased)
    monkeypatch.setattr(readout._Sums, "of", noted_sums)
    monkeypatch.setattr(thresholds, "_count", noted_bins)
    source = randomized(CifarResNet(8, width=first))
    snn = convert(source, [images(part, 8, seed=part) for part in (3, count - 3)], recipe, timesteps=2)
    found = snn.provenance.calibration
    assert (found.images, found.fitted, found.held_out) == (count, count, 0)
    assert {len(values) for values in seen.values()} == {count}, seen.keys()
    assert (
        sum(name.startswith("unbiased") for name in seen) == 7 and sum(name.startswith("refit") for name in seen) == 6
    )
    assert "readout" in seen
    sizes = [64, 64, 64, 16, 16, 4, 4]  # places of the seven layers
    assert sum(binned) == count * sum(sizes)
