"""Conversion on a device: all of it there, nothing mixed, and the network that the CPU gives, on the CPU."""

import importlib
from dataclasses import fields

import pytest
import torch
from conftest import images, randomized
from other_device import OtherDevice, There
from test_cli import program as program
from torch import Tensor
from torch.utils._pytree import tree_map_only

from s_resnet import RECIPES, Graph, convert, kernels, trace
from s_resnet.conversion import Auto
from s_resnet.conversion import block as training
from s_resnet.errors import BackendUnavailable
from s_resnet.frontend import QCFSModule
from s_resnet.graph import parts
from s_resnet.kernels import Update
from s_resnet.kernels.events import Currents
from s_resnet.kernels.layout import empty_steps
from s_resnet.kernels.membrane import cuda, reference
from s_resnet.models import CifarResNet, build

STEPS = 4
BRIEF = {"steps": 2, "joint": 2}


@pytest.fixture(scope="module")
def model():
    return randomized(CifarResNet(8, width=4, shortcut="A"))


def batches():
    return [(images(6, 8, seed=seed), torch.arange(6)) for seed in (1, 2)]


@pytest.fixture
def elsewhere(monkeypatch):
    """The device that the name "cuda" stands for here."""
    found = OtherDevice()
    rooms = {"cpu": torch.device("cpu"), "cuda": found.device}
    monkeypatch.setattr(importlib.import_module("s_resnet.conversion.convert"), "find_device", rooms.__getitem__)
    found.launches, here = [], kernels.integrate_and_fire

    def chosen(current, v, update):
        if v.device.type == "lazy":
            return as_on_a_gpu(found.launches, current, v, update)
        # The CPU's own kernels may lay spikes out otherwise, which are then added in another order.
        return (here if isinstance(current, Currents) else reference.integrate_and_fire)(current, v, update)

    monkeypatch.setattr(kernels, "integrate_and_fire", chosen)
    autocast = torch.is_autocast_enabled  # knows no device of that name
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != ("lazy",) and autocast(*kind))
    monkeypatch.setattr(cuda, "_aligned", lambda tensor: True)  # the CPU's memory need not be
    return found


def as_on_a_gpu(launches, current, v, update):
    """The reference, on what the CUDA kernel takes: the launch is planned, which refuses what does not lie right."""
    given = {field.name: getattr(update, field.name) for field in fields(update)}
    here = tree_map_only(There, lambda x: x.here, {"current": current, "v": v, **given})
    current_here, v_here = here.pop("current"), here.pop("v")
    spikes = empty_steps(len(current), v_here, update.spike_dtype or v.dtype)
    here["after"] = torch.empty_like(v_here) if update.after is None else here["after"]
    launches.append(cuda.plan(current_here, v_here, Update(**here), spikes))
    return reference.integrate_and_fire(current, v, update)


def same(one: Graph, other: Graph) -> None:
    """Operation by operation and bit by bit."""
    assert one.provenance == other.provenance
    for a, b in zip(one.nodes, other.nodes, strict=True):
        assert (a.name, type(a.op), a.inputs) == (b.name, type(b.op), b.inputs)
        assert parts.settings(a.op) == parts.settings(b.op), a.name
    assert one.tensors().keys() == other.tensors().keys()
    for name, x in one.tensors().items():
        assert type(x) is type(other.tensors()[name]) and torch.equal(x, other.tensors()[name]), name


def reconstructed(name):
    return RECIPES[name].reconstructed(**BRIEF)


CASES = {
    **{name: recipe.at(STEPS) for name, recipe in RECIPES.items()},
    "calibrated-lagged": reconstructed("calibrated-lagged").with_weights("int8").at(STEPS),
    "signed": reconstructed("signed").with_weights("dyadic").at(STEPS),  # learned in one pass
    "auto": Auto(latency=STEPS),
}


@pytest.mark.parametrize("case", CASES)
def test_every_recipe_is_fitted_there_and_comes_back(model, elsewhere, case):
    recipe = CASES[case]
    with elsewhere:
        trace(model, batches()[0][0][:2])
        tracing = elsewhere.here["convolution"]
        found = convert(model, batches(), recipe, device="cuda")
    assert elsewhere.launches or case in ("s-resnet-released", "phased")  # which look at no spikes, or only at counts
    assert elsewhere.there["convolution"] > 0 and elsewhere.here["convolution"] == 2 * tracing > 0
    assert all(type(x) is not There for x in found.tensors().values())
    same(found, convert(model, batches(), recipe, device="cpu"))


def test_networks_and_images_may_be_anywhere(model, elsewhere):
    """A graph and batches that are on the device, or one of them; and labels, by which compensation chooses."""
    want = convert(model, batches(), timesteps=STEPS, device="cpu")
    graph = trace(model, images(2, 8))
    with elsewhere:
        there = [(x.to(elsewhere.device), y.to(elsewhere.device)) for x, y in batches()]
        found = [
            convert(graph.to(elsewhere.device), there, timesteps=STEPS, device="cuda"),
            convert(graph.to(elsewhere.device), batches(), timesteps=STEPS, device="cpu"),
            convert(model, there, timesteps=STEPS, device="cuda"),
        ]
        assert graph.to(elsewhere.device).device == elsewhere.device and graph.device == torch.device("cpu")
    for network in found:
        same(network, want)


def test_without_images_with_qcfs_and_directly_trained(model, elsewhere):
    sources = {
        "no images": (model, "s-resnet"),
        "int8": (model, RECIPES["s-resnet"].with_weights("int8")),
        "qcfs": (QCFSModule(model, images(2, 8), 4), RECIPES["phased"].at(4).with_weights("int8")),
        "trained": (build("ds_resnet8", 10, width=4).eval(), None),
    }
    for source, recipe in sources.values():
        with elsewhere:
            found = convert(source, recipe=recipe, device="cuda")
        same(found, convert(source, recipe=recipe, device="cpu"))


def test_an_interrupted_reconstruction_goes_on_there(model, elsewhere, tmp_path, monkeypatch):
    """Its file holds the network on the CPU."""
    recipe = reconstructed("phased")
    want = convert(model, batches(), recipe, timesteps=STEPS, device="cpu")
    recipe = recipe.set("reconstruct", resume=str(tmp_path / "net.partial"))
    train, left = training.Block.train, iter(range(2))

    def interrupted(block, *given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return train(block, *given)

    with elsewhere:
        monkeypatch.setattr(training.Block, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(model, batches(), recipe, timesteps=STEPS, device="cuda")
        monkeypatch.setattr(training.Block, "train", train)
        same(convert(model, batches(), recipe, timesteps=STEPS, device="cuda"), want)


def test_the_other_device_is_one():
    """It refuses what a GPU refuses, takes what a GPU takes, and works in place and backward."""
    with OtherDevice() as other:
        x = torch.ones(3, device=other.device)
        assert x.device == other.device and torch.zeros_like(x).device == other.device
        for refused in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(3)]), lambda: torch.ones(3)[x > 0]):
            with pytest.raises(AssertionError, match="on the CPU"):
                refused()
        x[torch.tensor([0])] += torch.tensor(1.0)  # an index, and a single number
        assert x.tolist() == [2, 1, 1] and type(x.cpu()) is Tensor
        leaf = x.clone().requires_grad_()
        (leaf * leaf).sum().backward()
        assert leaf.grad.tolist() == [4, 2, 2] and leaf.grad.device == other.device


# ---- devices by name ----


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_else(program):
    for name in ("cuda", "cuda:1"):
        with pytest.raises(BackendUnavailable, match=f"'{name}' on a machine with 0 usable"):
            convert(None, device=name)
        code, out, err = program("convert", "none.pth", "--device", name)
        assert (code, out) == (1, "") and "Use --device cpu or --device auto" in err and err.count("\n") == 1
    code, _, err = program("convert", "none.pth", "--device", "cuda:x")
    assert code == 2 and "auto, cpu, cuda, cuda:N" in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_calibrates_as_the_cpu(model):
    """Up to rounding; what is fitted behind the first spikes may differ by spikes at a threshold."""
    for recipe in ("calibrated-lagged", "signed", reconstructed("phased")):
        here, there = (convert(model, batches(), recipe, timesteps=STEPS, device=name) for name in ("cpu", "cuda"))
        a, b = (torch.tensor(list(g.provenance.calibration.scales.values())) for g in (here, there))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
        assert there.device == torch.device("cpu")
        difference = (here(images(32, 8), STEPS) - there(images(32, 8), STEPS)).square().mean()
        assert difference < 0.05 * here(images(32, 8), STEPS).square().mean()
