"""The torch.export program: reloaded where this package cannot be imported, against the simulation."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trained_networks
from conftest import images, load_program, randomized
from test_schedules import PLANS, dyadic, network, pictures
from trained_networks import dyadic_images, watched

from s_resnet import Graph, SResNetError, convert, simulate
from s_resnet.conversion import Context
from s_resnet.conversion.passes import quantize_weights
from s_resnet.errors import InvalidData
from s_resnet.export import export_torch, program
from s_resnet.graph import Neuron, Node, Readout, Scale
from s_resnet.graph.alphabet import Amplitudes, Differential, MultiThreshold, Signed
from s_resnet.graph.ops import AdaptiveAvgPool2d, Conv2d, Flatten, Input, Linear, SpikingWeights
from s_resnet.models import CifarResNet

# From inside torch.export: what it deprecates in itself is not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ONE = torch.ones(())


def tiny(readout=None, second=None, **first):
    """Two neuron layers, a shortcut with a weight per channel and a classifier; dyadic, so that every sum is exact.

    second: the settings of the second layer where they are not those of the first.
    """
    neurons = [
        Neuron(ONE, **{"initial_potential": 0.5, **given}) for given in (first, first if second is None else second)
    ]
    weights = (
        dyadic(70, 4, 3, 3, 3),
        dyadic(71, 4),
        dyadic(72, 4, 4, 3, 3),
        dyadic(73, 4),
        dyadic(74, 5, 4),
        dyadic(75, 5),
    )
    stem, stem_bias, inner, inner_bias, classifier, classifier_bias = weights
    nodes = (
        Node("input", Input(), ()),
        Node("stem", Conv2d(stem, stem_bias, padding=(1, 1)), ("input",)),
        Node("n0", neurons[0], ("stem",)),
        Node("conv", Conv2d(inner, inner_bias, padding=(1, 1), spiking=SpikingWeights(gain=1.25)), ("n0",)),
        Node("short", Scale(torch.tensor([0.5, 1.0, 0.75, 0.25])), ("n0",)),
        Node("n1", neurons[1], ("conv", "short")),
        Node("pool", AdaptiveAvgPool2d((1, 1)), ("n1",)),
        Node("flat", Flatten(), ("pool",)),
        Node("fc", Linear(classifier, classifier_bias), ("flat",)),
        Node("readout", readout or Readout(torch.tensor(2.0)), ("fc",)),
    )
    return Graph(nodes).validate()


X = dyadic(76, 3, 3, 4, 4, scale=8)
WEIGHTED = Readout(torch.tensor(2.0), weights=torch.tensor([0.25, 0.5, 2.0]), correction=dyadic(77, 5))
SPIKES_READOUT = Readout(torch.tensor(2.0), "spikes", 0.25)
LEAKY = {"decay": 0.5, "reset": "zero"}
SIGNED = {"spikes": Signed(), "correction": dyadic(78, 2, 4)}  # fewer rows than steps
LEVELS = {"spikes": Amplitudes(3)}
DIFFERENTIAL = {"spikes": Differential(2), "initial_potential": 0.0}
FIRING_LEVELS = {"spikes": MultiThreshold(torch.tensor([1.0, 1.5, 2.5]))}
LOADED = """
import sys
sys.modules["s_resnet"] = None  # from here on its import fails, wherever it is installed
import torch
for name in sys.argv[1:]:
    network = torch.export.load(name + ".pt2").module()
    torch.save([network(x) for x in torch.load(name + ".x", weights_only=True)], name + ".y")
"""


def reloaded(folder, cases, looped=()):
    """What another process, without this package, gets from the programs: for every case the answers of its batches.

    looped: the cases whose steps beyond the second are a loop.
    """
    for name, (graph, x, steps) in cases.items():
        with pytest.MonkeyPatch.context() as patched:
            if name in looped:
                patched.setattr(program, "UNROLLED", 2)
            export_torch(graph, folder / f"{name}.pt2", steps, x.shape[1:])
        torch.save([x, x[:1], torch.cat([x, x])], folder / f"{name}.x")
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADED, *cases], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {name: torch.load(folder / f"{name}.y", weights_only=True) for name in cases}


def agrees(answers, graph, x, steps):
    """Whether the answers are those of the simulation, to the last bit.

    Not so where a sum is divided by t = 3, 5, ..., and where the classifier's weights are whole numbers times a step.
    """
    batches = [x, x[:1], torch.cat([x, x])]
    rounding = 1e-6 if "differential" in graph.alphabet or graph.is_integer else 0.0
    return all(
        torch.allclose(answer, simulate(graph, batch, steps).outputs[-1], rounding, rounding)
        for answer, batch in zip(answers, batches, strict=True)
    )


# ---- the same answers, to the last bit on dyadic weights ----


# Two kinds of neurons in a network where they go together: a program costs a second, whatever it holds.
CASES = {
    "leaky, reset to zero; signed, corrected; spikes readout": (tiny(SPIKES_READOUT, SIGNED, **LEAKY), X, 3),
    "levels; multi-level firing; weighted readout": (tiny(WEIGHTED, FIRING_LEVELS | LEAKY, **LEVELS), X, 3),
    "differential": (tiny(**DIFFERENTIAL), X, 3),
    "integers": (quantize_weights(tiny(), Context()), X, 3),
    # Every schedule, binary spikes too, shortcuts and a gated pool.
    "mixed": (network(PLANS["mixed"], weighed=True), pictures(), 2),
}
LOOPED = {
    "signed, corrected; multi-level firing; spikes readout": (tiny(SPIKES_READOUT, FIRING_LEVELS, **SIGNED), X, 7),
    "differential, many steps": (tiny(**DIFFERENTIAL), X, 7),
}
TRAINED = ("ms_resnet8", "sew_resnet8")  # sums of currents and of spikes


def test_it_runs_without_this_package_for_any_batch(tmp_path):
    """One other process reads them all: it starts for seconds. Trained networks also answer as their modules."""
    x, steps = dyadic_images(), 2
    modules, graphs = zip(*map(trained_networks.dyadic, TRAINED), strict=True)
    trained = {arch: (graph, x, steps) for arch, graph in zip(TRAINED, graphs, strict=True)}
    cases = CASES | LOOPED | trained
    answers = reloaded(tmp_path, cases, LOOPED)
    for name, case in cases.items():
        assert agrees(answers[name], *case), name
    for arch, module in zip(TRAINED, modules, strict=True):
        torch.testing.assert_close(answers[arch][0], watched(module, x, steps)[0])


def test_many_steps_are_a_loop(tmp_path):
    sizes = []
    for steps in (70, 700):
        export_torch(tiny(spikes=Signed()), tmp_path / "net.pt2", steps, X.shape[1:])
        sizes.append((tmp_path / "net.pt2").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]


def test_a_converted_network_answers_the_same_within_rounding(tmp_path):
    model = randomized(CifarResNet(8, width=4, shortcut="A"))
    snn = convert(model, [(images(20, 8), torch.arange(20) % 10)], "calibrated-lagged", timesteps=4)
    export_torch(snn, tmp_path / "net.pt2", 4)  # the size is that of the calibration images
    x = images(4, 8, seed=5)
    expected = snn(x, 4)
    answer = load_program(tmp_path / "net.pt2").module()(x)
    assert torch.allclose(answer, expected, atol=1e-4 * float(expected.abs().max()))


# ---- what is in the file ----


def test_it_holds_nothing_but_operations_of_torch_and_says_what_it_is(tmp_path):
    snn = tiny(spikes=Signed()).with_provenance(input_shape=(3, 4, 4), classes=("a", "b"))
    export_torch(snn, tmp_path / "net.pt2", 3)
    extra = {"s_resnet.json": ""}
    loaded = load_program(tmp_path / "net.pt2", extra_files=extra)
    kinds = {str(node.target).split(".")[0] for node in loaded.graph.nodes if node.op == "call_function"}
    assert kinds == {"aten"}
    header = json.loads(extra["s_resnet.json"])
    assert (header["timesteps"], header["input_shape"], header["alphabet"]) == (3, [3, 4, 4], "signed")
    assert header["provenance"]["classes"] == ["a", "b"]
    assert str(Path(program.__file__).parent).encode() not in (tmp_path / "net.pt2").read_bytes()


# ---- what people do wrong ----


def test_refusals_say_what_to_do(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(InvalidData, match=r"input_shape=None.*Pass the shape"):
        export_torch(tiny(), path, 4)
    with pytest.raises(InvalidData, match=r"stem: .*expected 3 channels"):
        export_torch(tiny(), path, 4, (1, 4, 4))
    with pytest.raises(InvalidData, match="timesteps=0"):
        export_torch(tiny(), path, 0, (3, 4, 4))
    with pytest.raises(InvalidData, match=r"T = 257 for a network whose layers wait.*at most 256"):
        export_torch(network(PLANS["lagged"]), path, 257, (3, 12, 12))
    with pytest.raises(InvalidData, match="without neurons"):
        export_torch(Graph((Node("input", Input(), ()), Node("readout", Readout(ONE), ("input",)))), path, 4, (3, 4, 4))
    with pytest.raises(InvalidData, match="fc: got Linear as the last node; expected a readout"):
        export_torch(replace(tiny(), nodes=tiny().nodes[:-1]), path, 4, (3, 4, 4))
    with pytest.raises(InvalidData, match=r"overflow|at most 256"):
        export_torch(quantize_weights(tiny(), Context()), path, 2**30, (3, 4, 4))
    with pytest.raises(SResNetError, match="cannot be written"):
        export_torch(tiny(), tmp_path / "nowhere" / "net.pt2", 1, (3, 4, 4))
    assert not list(tmp_path.iterdir())
