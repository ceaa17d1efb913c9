"""Files of earlier formats: they load, and give the answers, spikes and membranes that the code of their time gave."""

from pathlib import Path

import mutations
import pytest
import safetensors.torch
import torch

import s_resnet
from s_resnet.errors import InvalidArtifact
from s_resnet.graph import artifact

FILES = sorted((Path(__file__).parent / "formats").glob("*.snn"))
STEPS = 6


def test_every_earlier_format_has_a_file():
    assert {path.stem[: len("format1")] for path in FILES} == {
        f"format{version}" for version in range(1, artifact.FORMAT)
    }


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def found(request):
    """The network of an earlier format, and what its code made of it."""
    return s_resnet.load(request.param), safetensors.torch.load_file(request.param.with_suffix(".safetensors"))


def test_a_network_of_an_earlier_format_gives_what_it_gave(found):
    check(*found)


def test_a_network_of_an_earlier_format_is_saved_in_the_present_one(found, tmp_path):
    snn, expected = found
    s_resnet.save(snn, tmp_path / "now.snn")
    check(s_resnet.load(tmp_path / "now.snn"), expected)


def check(snn, expected):
    images = expected["images"].to(torch.float32)
    assert torch.equal(snn.run(images), expected["analog"])
    chunks = list(snn.stream(images, STEPS))
    assert torch.equal(torch.cat([chunk.outputs for chunk in chunks]), expected["answers"])
    names = {name.removeprefix("spikes/") for name in expected if name.startswith("spikes/")}
    assert names == {node.name for node in snn.neurons}
    for name in names:
        spikes = torch.cat([chunk.spikes[name] for chunk in chunks])
        assert int(spikes.sum()) > 0
        assert torch.equal(spikes, expected[f"spikes/{name}"]), name
    last = chunks[-1].state.memory["relu2"]
    memory = [expected[name] for name in sorted(expected) if name.startswith("memory/")]
    for got, held in zip(last, memory, strict=True):
        assert torch.equal(got.double(), held.double())


# ---- hostile ones ----

EDITS = {
    "levels in a text": lambda s, t: s.update(levels="8"),
    "levels that are no whole number": lambda s, t: s.update(levels=1.0),
    "true levels": lambda s, t: s.update(levels=True),
    "nine levels": lambda s, t: s.update(levels=9),
    "a sign in a number": lambda s, t: s.update(signed=1),
    "levels with reset to zero": lambda s, t: s.update(levels=2, reset="zero"),
    "signs with means": lambda s, t: s.update(signed=True, differential=True),
    "firing levels in a list": lambda s, t: s.update(firing=[1.0, 2.0]),
    "firing levels with signs": lambda s, t: [s.update(signed=True), fires(t, [0.5, 1.0])],
    "firing levels by channel": lambda s, t: [fires(t, [0.5, 1.0]), t.update({"relu1/threshold": torch.ones(4)})],
    "firing levels in no order": lambda s, t: fires(t, [2.0, 1.0]),
    "nine firing levels": lambda s, t: fires(t, [float(k) for k in range(1, 10)]),
    "a surrogate that is none": lambda s, t: s.update(surrogate="boxcar"),
    "a width of zero": lambda s, t: s.update(surrogate="arctan", width=0),
    "a setting of a later format": lambda s, t: s.update(spikes={"kind": "Binary"}),
    "a tensor of a later format": lambda s, t: t.update({"relu1/spikes.thresholds": torch.tensor([0.5, 1.0])}),
}

SYNAPSES = {
    "a gain in a list": lambda s, t: s.update(gain=[1, 1]),
    "a true gain": lambda s, t: s.update(gain=True),
    "a grid without whole numbers": lambda s, t: s.update(grid=8),
    "a bias in whole numbers alone": lambda s, t: t.update({"conv2/integer_bias": torch.ones(4, dtype=torch.int32)}),
    "a spiking weight of another shape": lambda s, t: t.update({"conv2/spiking_weight": torch.ones(4, 4, 1, 1)}),
    "a spiking weight in a list": lambda s, t: s.update(spiking_weight=[1.0]),
    "whole numbers in one layer": lambda s, t: t.update({"conv2/integer": torch.ones(4, 4, 3, 3, dtype=torch.int8)}),
    "a part of a later format": lambda s, t: s.update(spiking={"kind": "SpikingWeights"}),
}


def fires(tensors, thresholds):
    tensors["relu1/firing"] = torch.tensor(thresholds)


def test_copies_in_a_file_of_a_format_without_them_are_refused(tmp_path):
    (file,) = (path for path in FILES if path.stem == "format7_limit")
    header, tensors = mutations.unsealed(file.read_bytes())
    path = tmp_path / "edited.snn"
    (settings,) = (node["settings"] for node in header["nodes"] if node["name"] == "relu1")
    del tensors["relu1/limit"]
    for format, count, fits in ((8, 3, True), (7, 3, False), (8, 2, False), (8, True, False), (8, 2**40, False)):
        settings["spikes"] = {"kind": "Copies", "count": count}
        path.write_bytes(mutations.sealed({**header, "format": format}, tensors))
        if fits:
            assert s_resnet.load(path).copies == 3
            continue
        with pytest.raises(InvalidArtifact, match="damaged or edited"):
            s_resnet.load(path)


@pytest.mark.parametrize(
    ("name", "edit"),
    [pytest.param("relu1", edit, id=label) for label, edit in EDITS.items()]
    + [pytest.param("conv2", edit, id=label) for label, edit in SYNAPSES.items()],
)
def test_a_sealed_file_of_an_earlier_format_that_cannot_be_simulated_is_refused(name, edit, tmp_path):
    (file,) = (path for path in FILES if path.stem == "format4")
    header, tensors = mutations.unsealed(file.read_bytes())
    (settings,) = (node["settings"] for node in header["nodes"] if node["name"] == name)
    path = tmp_path / "edited.snn"
    path.write_bytes(mutations.sealed(header, tensors))
    assert s_resnet.load(path).neurons
    edit(settings, tensors)
    path.write_bytes(mutations.sealed(header, tensors))
    with pytest.raises(InvalidArtifact, match="damaged or edited"):
        s_resnet.load(path)
