"""Files of earlier formats: they load, and give the answers, spikes and membranes that the code of their time gave."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

import s_resnet

FILES = sorted((Path(__file__).parent / "formats").glob("*.snn"))
STEPS = 6


def test_every_earlier_format_has_a_file():
    assert {path.stem[: len("format1")] for path in FILES} == {f"format{version}" for version in range(1, 6)}


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
