"""Convolutions of spikes in float32 as two in TF32, which a GPU's tensor cores compute: emulated bit by bit."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_engine import (
    NETWORKS,
    STEPS,
    by_steps,
    chain,
    conv,
    graph,
    images_of,
    network,
    node,
    pictures,
    right,
    run,
    stem,
)

from s_resnet.graph import Neuron, Scale, StreamSettings
from s_resnet.graph.engine import arithmetic
from s_resnet.graph.ops import Conv2d
from s_resnet.kernels import tf32
from s_resnet.kernels.build import compiler
from s_resnet.kernels.membrane import reference

ONE = torch.tensor(1.0)
F_CONV = F.conv2d


def numbers():
    """Of every kind: all exponents, random bits, ties, the largest, none."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32)
    ties = (torch.arange(2**13).to(torch.int32) << 12) + 0x3F800000
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 2.0**-126])
    top = torch.tensor([0x7F7FFFFF, 0x7F7FF000, 0x7F7FEFFF, 0x7F7FE000]).to(torch.int32)
    return torch.cat([bits.view(torch.float32), ties.view(torch.float32), special, top.view(torch.float32)])


def nearest(x):
    """The nearest TF32 number of each finite one, ties to even, by arithmetic in float64: 10 bits after the point."""
    _, exponent = torch.frexp(x.double())
    unit = torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent.clamp_min(-125) - 11)
    return (x.double() / unit).round() * unit


def test_rounding_to_tf32_is_to_the_nearest_ties_to_even():
    x = numbers()
    x = x[x.isfinite()]
    want = nearest(x).clamp(-tf32.LARGEST, tf32.LARGEST)
    assert torch.equal(tf32.rounded(x).double(), want) and (want != x).any()
    assert tf32.LARGEST == 2.0**127 * (2 - 2.0**-10)


def test_a_number_is_the_sum_of_two_that_tf32_holds():
    x = numbers()
    high, low = tf32.split(x)
    finite = x.isfinite()
    for part in (high[finite], low[finite]):
        assert torch.equal(part.view(torch.int32) & 0x1FFF, torch.zeros_like(part, dtype=torch.int32))
    off = (x.double() - high.double() - low.double()).abs()[finite]
    bound = (x.double().abs() * 2.0**-23 * (1 + 2.0**-11)).clamp_min(2.0**-137)[finite]
    assert (off <= bound).all() and (off > bound / 2).any()
    assert torch.equal(high.nan_to_num(7.0)[~finite], x.nan_to_num(7.0)[~finite]) and (low[~finite] == 0).all()
    assert torch.equal(high[x == 0].signbit(), x[x == 0].signbit())


def test_the_layout_stays():
    weight = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in tf32.split(weight))


def on_tensor_cores(x, weight, bias, *rest):
    """A convolution as a GPU computes it in TF32: both inputs rounded to it, products and sums exact, one rounding."""
    bias = None if bias is None else bias.double()
    return F_CONV(nearest(x), nearest(weight), bias, *rest).float()


@pytest.mark.parametrize(("channels", "kernel"), [(64, 3), (256, 1), (512, 3)])
def test_two_convolutions_in_tf32_are_as_exact_as_one_in_float32(channels, kernel):
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(64, channels, kernel, kernel, generator=generator)
    spikes = (torch.rand(4, channels, 14, 14, generator=generator) < 0.15).float()
    want = F.conv2d(spikes.double(), weight.double(), None, 1, kernel // 2)

    def error(got):
        return float((got.double() - want).norm() / want.norm())

    with arithmetic(spikes, tf32=False):
        single = error(F.conv2d(spikes, weight, None, 1, kernel // 2))
    high, low = (on_tensor_cores(spikes, part, None, 1, kernel // 2) for part in tf32.split(weight))
    assert error(high + low) <= 2 * single and error(high + low) < 1e-7
    assert error(on_tensor_cores(spikes, weight, None, 1, kernel // 2)) > 1e-4


@pytest.fixture
def emulated(monkeypatch):
    """A GPU's convolutions on the CPU; what ran in TF32, and what did not."""
    told = {"tf32": [], "float32": [], "now": []}

    class Meanwhile:
        def __init__(self, images, tf32, autotune=None):
            self.tf32 = tf32

        def __enter__(self):
            told["now"].append(self.tf32)

        def __exit__(self, *_):
            told["now"].pop()

    def convolution(x, weight, *rest):
        if x.dtype == torch.float64 or not told["now"]:  # the loop that says what is right; while a network is made
            return F_CONV(x, weight, *rest)
        if not told["now"][-1]:
            told["float32"].append(weight)
            return F_CONV(x, weight, *rest)
        told["tf32"].append(weight)
        assert torch.equal(nearest(x), x.double()), "values that TF32 does not hold"
        return on_tensor_cores(x, weight, *rest)

    monkeypatch.setattr(F, "conv2d", convolution)
    for module in ("run", "steps", "analog"):
        monkeypatch.setattr(f"s_resnet.graph.engine.{module}.arithmetic", Meanwhile)
    monkeypatch.setattr(compiler, "compiled", lambda: (None, "as on a GPU"))
    monkeypatch.setattr("s_resnet.kernels.integrate_and_fire", reference.integrate_and_fire)
    return told


def in_two_parts(snn):
    """As prepared on a GPU, with weights of 15 bits, so that there is a second part; every sum is exact in float32."""
    generator = torch.Generator().manual_seed(61)

    def finer(op):
        if not isinstance(op, Conv2d):
            return op
        more = torch.randint(-31, 32, op.weight.shape, generator=generator) / 2**14
        return replace(op, weight=op.weight + more, spiking=None)

    snn = replace(snn, nodes=tuple(replace(n, op=finer(n.op)) for n in snn.nodes))
    snn._plans["exact"] = replace(snn._plan("exact"), two_part=True)
    return snn


@pytest.mark.parametrize("name", NETWORKS)
def test_every_spike_of_a_network_in_two_parts(emulated, name):
    """Convolutions of anything but spikes stay in float32."""
    snn, images = in_two_parts(network(name)), images_of(network(name))
    emulated["float32"].clear()  # what it took to make it
    right(run(snn, images, chunk=5), by_steps(snn, images, STEPS))
    spiking, convolutions = len(snn._plan("exact").spiking), [n for n in snn.nodes if isinstance(n.op, Conv2d)]
    assert len(emulated["tf32"]) == 2 * 3 * spiking  # in three chunks
    assert all(weight.any() for weight in emulated["tf32"])
    static = sum(n.name in snn.static for n in convolutions)
    assert len(emulated["float32"]) == 3 * (len(convolutions) - spiking - static) + static


def test_the_second_part_is_the_branch_of_neurons_that_read_nothing_else(emulated, monkeypatch):
    got, advance = {}, Neuron.advance

    def noted(self, currents, memory, shortcut=None, *rest):
        got.setdefault(id(self), (len(currents), shortcut is not None))
        return advance(self, currents, memory, shortcut, *rest)

    monkeypatch.setattr(Neuron, "advance", noted)
    snn = in_two_parts(
        graph(
            *(*stem(), node("a", conv(3, 8, 8), "n0"), node("n1", Neuron(ONE), "a")),
            *(node("b", conv(5, 8, 8), "n1"), node("short", Scale(torch.tensor(0.5)), "n0")),
            *(node("n2", Neuron(ONE), "b", "short"), node("c", conv(7, 8, 8), "n2"), node("n3", Neuron(ONE), "c")),
            *(node("n4", Neuron(ONE), "c"), node("n5", Neuron(ONE), "n3", "n4")),
        )
    )
    images = pictures(2)
    right(run(snn, images, chunk=5), by_steps(snn, images, STEPS))
    found = {n.name: got[id(n.op)] for n in snn.neurons}
    alone, added, fused = (2, False), (1, False), (1, True)
    assert found == {"n0": added, "n1": alone, "n2": fused, "n3": added, "n4": added, "n5": alone}
    assert snn._plan("exact").alone >= {"a"} and not {"b", "c"} & snn._plan("exact").alone


def test_who_observes_sees_both_parts_together(emulated):
    snn, images, seen = in_two_parts(chain(conv(3, 8, 8), Neuron(ONE), conv(5, 8, 8))), pictures(2), {}
    assert {"m0", "m2"} <= snn._plan("exact").alone
    list(
        snn.stream(images, 1, settings=StreamSettings(observe=lambda name, value: seen.setdefault(name, value.clone())))
    )
    for name in ("m0", "m2"):
        op = snn[name].op
        want = F_CONV(seen[snn[name].inputs[0]].double(), op.weight.double(), None, 1, 1)
        assert torch.equal(seen[name].double(), want) and want.any()


def test_only_float32_on_a_gpu_is_in_two_parts(monkeypatch):
    snn = network("three inputs")
    assert not snn._plan("exact").two_part and not snn._plan("fast").two_part
    cuda = replace(snn).to("meta")  # any device that is no CPU, by another name
    monkeypatch.setattr(Neuron, "emits_unit_spikes", True)
    monkeypatch.setattr("s_resnet.graph.validate.finite", lambda nodes: None)  # there are no numbers to look at
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: torch.device("cuda")))
    assert cuda._plan("exact").two_part and not cuda._plan("fast").two_part
    assert not replace(cuda).to(torch.float64)._plan("exact").two_part
