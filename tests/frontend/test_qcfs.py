"""ANNs trained to be converted: the activation against its equation, and T = L steps of spikes against the ANN."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Net, images, randomized
from test_cli import program as program
from test_train import BRIEF, content, same_end, trained
from torch import nn

from s_resnet import RECIPES, convert, load, load_checkpoint, save
from s_resnet.errors import ConversionError, InvalidCheckpoint, InvalidData
from s_resnet.frontend import QCFSModule
from s_resnet.graph.neuron import Neuron
from s_resnet.kernels.surrogate.qcfs import qcfs
from s_resnet.models import CifarResNet
from s_resnet.models.catalog import build
from s_resnet.simulation import features


def h(x, threshold, levels):
    """The activation as the paper writes it."""
    return threshold * torch.clip(torch.floor(x * levels / threshold + 0.5) / levels, 0, 1)


def quantized(source=None, levels=4, seed=5):
    """A QCFS network in double precision whose thresholds are all different and clip."""
    source = source or randomized(CifarResNet(8, num_classes=5, width=4, shortcut="B"))
    module = QCFSModule(source, images(2, 16), levels).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.thresholds.parameters():
            value.copy_(1 + 2 * torch.rand((), generator=draw))
    return module, images(3, 16, seed=2).double()


# ---- the activation ----


@pytest.mark.parametrize("levels", [1, 4, 8])
def test_values_and_gradients_by_the_equations(levels):
    x = torch.cat([torch.linspace(-3, 5, 333, dtype=torch.float64), torch.tensor([-9.0, 0.0, 9.0]).double()])
    x.requires_grad_()
    lam = torch.tensor(1.75, dtype=torch.float64, requires_grad=True)
    y = qcfs(x, lam, levels)
    assert torch.equal(y, h(x, lam, levels)) or torch.allclose(y, h(x, lam, levels), atol=1e-15)
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (y * weights).sum().backward()
    # The same by autograd, with a floor that is the identity backwards and clips where the whole is clipped.
    x2, lam2 = x.detach().clone().requires_grad_(), lam.detach().clone().requires_grad_()
    u = x2 * levels / lam2 + 0.5
    through = u - 0.5 + (torch.floor(u) - (u - 0.5)).detach()
    low, high = u < 0, u >= levels
    expected = torch.where(high, lam2, torch.where(low, 0 * lam2, lam2 * through / levels))
    (expected * weights).sum().backward()
    assert torch.allclose(y, expected) and torch.allclose(x.grad, x2.grad) and torch.allclose(lam.grad, lam2.grad)
    assert set(x.grad[:-3].tolist()) - {0.0} and (x.grad == 0).any()


def test_16_bits_and_thresholds_by_channel():
    x = images(2, 4)
    lam = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1).requires_grad_()
    half = qcfs(x.to(torch.bfloat16), lam, 4)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), qcfs(x.to(torch.bfloat16).float(), lam, 4).to(torch.bfloat16).float())
    qcfs(x, lam, 4).sum().backward()
    assert lam.grad.shape == lam.shape and lam.grad.all()


def test_constant_currents_give_exactly_the_activation_as_spike_counts():
    """One neuron, T = L: the paper's theorem for the first layer."""
    x = torch.arange(-40, 60).view(1, 1, 1, -1) / 32
    for levels in (1, 3, 4, 8):
        neuron = Neuron(torch.ones(()), 0.5, quantization_levels=levels)
        spikes, _ = neuron.advance([x.expand(levels, *x.shape)], None)
        assert torch.equal(spikes.sum(0) / levels, h(x, torch.ones(()), levels))
        assert torch.equal(neuron.run(x), h(x, torch.ones(()), levels))


# ---- the network ----


def test_every_call_of_a_relu_has_a_threshold_of_its_own():
    """torchvision's blocks call one module at two places, the CIFAR blocks a function."""
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    module = QCFSModule(net, images(2, 32), 4)
    sites = [name for name, _ in module.thresholds.named_parameters()]
    assert len(sites) == 9 and {"layer1.0.relu", "layer1.0.relu_1", "layer4.0.relu_1"} <= set(sites)
    assert len(list(QCFSModule(CifarResNet(8), images(2, 32)).thresholds.parameters())) == 7


def test_in_training_it_is_the_source_with_another_activation(monkeypatch):
    """Outputs, gradients and running statistics against the same network with F.relu exchanged."""
    source, twin = (randomized(CifarResNet(8, num_classes=5, width=4, shortcut="B")) for _ in range(2))
    names = dict(source.named_parameters()).keys()
    module = QCFSModule(source, images(2, 16), 4).train()
    twin.train()
    x, y = images(4, 16), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(module(x), y).backward()
    monkeypatch.setattr(F, "relu", lambda value: qcfs(value, torch.tensor(4.0), 4))
    F.cross_entropy(twin(x), y).backward()
    ours, theirs = dict(module.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() - names == {f"thresholds.{n}" for n, _ in module.thresholds.named_parameters()}
    for name in names:
        assert torch.allclose(ours[name].grad, theirs[name].grad, atol=1e-6), name
    assert all(value.grad is not None and value.grad.isfinite() for value in module.thresholds.parameters())
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("thresholds.")}
    assert all(torch.allclose(value, state[name], atol=1e-6) for name, value in twin.state_dict().items())
    CifarResNet(8, num_classes=5, width=4, shortcut="B").load_state_dict(state)


def test_a_module_that_is_called_twice_is_one_module():
    def body(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.head(self.relu(self.bn2(self.conv2(x))))

    module = QCFSModule(Net(body), images(2, 8), 2)
    module(images(2, 8)).sum().backward()
    assert len(list(module.thresholds.parameters())) == 3 and module.conv2.weight.grad.any()
    assert len(list(module.parameters())) == len(list(Net(body).parameters())) + 3


# ---- its conversion ----


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("pooled", [False, True], ids=["cifar", "max-pool"])
def test_phased_counts_are_those_of_the_ann(pooled, levels):
    """The theorem: with T = L, every layer's counts are its activation in units of lambda / L."""
    net = torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, width_per_group=64
    )
    module, x = quantized(randomized(net) if pooled else None, levels)
    graph = module.graph()
    snn = convert(module, (3, 16, 16), "phased")
    assert snn.provenance.recipe.name == "qcfs-phased" and snn.provenance.recipe.timesteps == levels
    names = [node.name for node in snn.neurons]
    rates = features(snn, x, levels, [*names, snn.nodes[-1].name])
    ann = dict(graph.activations(x))
    if pooled:  # the stem's pool goes before its neurons
        ann["relu"] = ann["maxpool"]
    fired = 0
    for name in names:
        expected = ann[name]
        counts = expected * levels / snn[name].op.scale
        assert torch.allclose(rates[name], expected, atol=1e-9), name
        assert (counts - counts.round()).abs().max() < 1e-6 and counts.max() <= levels + 1e-6
        fired += bool(counts.any())
    assert fired == len(names)
    assert torch.allclose(rates[snn.nodes[-1].name], module(x), atol=1e-9)


def test_the_first_layer_is_exact_when_all_layers_run_at_once():
    module, x = quantized()
    snn = convert(module, (3, 16, 16))
    first = snn.neurons[0].name
    rates = features(snn, x, 4, [first])[first]
    assert torch.allclose(rates, dict(module.graph().activations(x))[first], atol=1e-9)
    assert {node.op.schedule for node in snn.neurons} == {"streaming"}


def test_the_analog_run_is_the_quantized_ann_also_from_a_file(tmp_path):
    module, x = quantized()
    snn = convert(module, (3, 16, 16))
    expected = module(x)
    assert torch.allclose(snn.run(x), expected, atol=1e-9)
    assert not torch.allclose(module.traced.to(torch.float64).run(x), expected, atol=1e-3), "the same as with ReLU"
    save(snn, tmp_path / "q.snn")
    again = load(tmp_path / "q.snn")
    assert torch.equal(again.run(x), snn.run(x)) and torch.equal(again(x, 4), snn(x, 4))
    save(module.graph(), tmp_path / "analog.snn")
    assert torch.equal(load(tmp_path / "analog.snn").run(x), module.graph().run(x))


def test_integer_weights_and_other_T_are_possible():
    module, x = quantized()
    snn = convert(module.float(), (3, 16, 16), RECIPES["s-resnet"].with_weights("int8"), timesteps=6)
    assert snn.is_integer and snn.provenance.recipe.timesteps == 6
    assert snn(x.float(), 6).isfinite().all()


# ---- mistakes ----


@pytest.mark.parametrize(
    "asked", ["signed", "auto", RECIPES["s-resnet"].with_percentile(99.0), RECIPES["phased"].reconstructed()]
)
def test_what_the_training_has_settled_is_refused(asked):
    module, _ = quantized()
    with pytest.raises(InvalidData, match="QCFS"):
        convert(module, (3, 16, 16), asked)
    with pytest.raises(InvalidData, match="calibration"):
        convert(module.float(), [images(4, 16)])


def test_bad_modules_are_refused():
    net = Net(lambda self, x: self.head(self.relu(self.conv1(x))))
    with pytest.raises(InvalidData, match="levels=0"):
        QCFSModule(net, images(2, 8), 0)
    with pytest.raises(InvalidData, match="differ at 'relu'"):
        QCFSModule(net, images(2, 8), thresholds={})
    with pytest.raises(InvalidData, match="drop: got dropout"):
        QCFSModule(
            Net(lambda self, x: self.head(self.drop(self.relu(self.conv1(x)))), drop=nn.Dropout(0.5)), images(2, 8)
        )
    with pytest.raises(InvalidData, match="a spiking network"):
        QCFSModule(build("ms_resnet8", 5, timesteps=2, width=4, input_shape=(3, 16, 16)), images(2, 16))
    module = QCFSModule(net, images(2, 8))
    with torch.no_grad():
        next(module.thresholds.parameters()).zero_()
    with pytest.raises((InvalidData, ConversionError), match="relu: got threshold 0"):
        convert(module, (3, 8, 8))


# ---- training, and the program ----

READY = replace(BRIEF, epochs=2, activation="qcfs", levels=3)


def test_training_learns_thresholds_and_goes_on_to_the_same_end(tmp_path):
    whole, stopped = tmp_path / "whole.pt", tmp_path / "stopped.pt"
    result = trained(whole, settings=READY)

    class Stop(Exception):
        pass

    def stop(entry):
        raise Stop

    with pytest.raises(Stop):
        trained(stopped, settings=READY, on_epoch=stop)
    assert content(stopped)["epoch"] == 1
    trained(stopped, settings=READY)
    assert same_end(whole, stopped)
    kept = content(whole)
    thresholds = kept["thresholds"]
    assert thresholds.keys() == result.model.learned_thresholds().keys() and len(thresholds) == 7
    assert all(value != 4 and torch.equal(value, content(stopped)["thresholds"][n]) for n, value in thresholds.items())
    plain = build("cifar_resnet8", 3, input_shape=(3, 8, 8), width=4)
    plain.load_state_dict(kept["state_dict"])
    x = images(4, 8)
    again = load_checkpoint(whole).model
    assert torch.equal(again(x), result.model(x)) and not torch.allclose(plain.eval()(x), result.model(x))


def test_a_checkpoint_without_its_thresholds_is_refused(tmp_path):
    trained(tmp_path / "x.pt", settings=replace(READY, epochs=1))
    kept = content(tmp_path / "x.pt")
    kept["thresholds"].popitem()
    torch.save(kept, tmp_path / "less.pt")
    with pytest.raises(InvalidCheckpoint, match=r"less\.pt: .*thresholds"):
        load_checkpoint(tmp_path / "less.pt")


@pytest.mark.parametrize(("settings", "said"), [({"levels": 0}, "levels"), ({"activation": "gelu"}, "activation")])
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(InvalidData, match=said):
        replace(READY, **settings)


def test_recomputing_and_spiking_networks_are_refused(tmp_path):
    with pytest.raises(InvalidData, match="recompute"):
        trained(tmp_path / "x.pt", settings=replace(READY, recompute=True))
    with pytest.raises(InvalidData, match="spiking"):
        trained(tmp_path / "x.pt", "ms_resnet8", replace(READY, timesteps=2))


def test_the_program_trains_converts_and_evaluates(program):
    pytest.importorskip("sklearn")
    train = ("train", "cifar_resnet8", "--data", "digits", "--width", 4, "--epochs", 1, "--limit", 64, "--workers", 0)
    said = program.works(*train, "--activation", "qcfs", "--levels", 4, "-o", "ready.pt", "--test-limit", 20)
    assert said.endswith("Next: sresnet convert ready.pt\n")
    said = program.works("convert", "ready.pt")
    assert "recipe qcfs-streaming" in said and "thresholds from its training" in said
    assert said.endswith("Next: sresnet evaluate ready-qcfs-streaming-T4.snn\n")
    snn = load("ready-qcfs-streaming-T4.snn")
    assert snn.provenance.preprocessing.size == 8 and snn.provenance.data.spec == "digits"
    assert program.works("evaluate", "--limit", 20)
    assert program(*train, "--levels", 4, "-o", "other.pt")[0] == 2
