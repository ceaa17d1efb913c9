"""NIR export: what is in the file, the same spikes as a loop in plain torch, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trained_networks
from conftest import Net, randomized
from trained_networks import SIZE, dyadic_images, trained, watched

from s_resnet import RECIPES, Graph, convert
from s_resnet.data import Preprocessing
from s_resnet.errors import ConversionError, InvalidArtifact
from s_resnet.export import export_nir, host_input, verify_export
from s_resnet.export.engines import _settled
from s_resnet.export.execute import read_nir
from s_resnet.graph.neuron import Neuron
from s_resnet.graph.ops import (
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Node,
    Pad,
    Scale,
    Slice,
    SpikingWeights,
)
from s_resnet.graph.provenance import AppliedRecipe, Provenance
from s_resnet.graph.readout import Readout
from s_resnet.models import CifarResNet

nir = pytest.importorskip("nir", reason="nir is not installed: pip install 's-resnet[nir]'")
h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 's-resnet[nir]'")

RESETS = "v_reset" in nir.IF.__dataclass_fields__  # nir 1.0.4 cannot read what resets to a value
SHAPE, T = (2, 6, 6), 12
ONE = torch.ones(())


def dyadic(*shape, seed=0, step=32):
    """Multiples of 1 / step within +-1: sums of them are exact, and often equal to a threshold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-step, step + 1, shape, generator=generator).float() / step


def pictures(batch=3, seed=9):
    return dyadic(batch, *SHAPE, seed=seed)


# The shortcuts of a residual block of 4 channels: nodes that read "a" and end in "s", and what they do, by hand.
SHORTCUTS = {
    "identity": ((Node("s", Scale(ONE), ("a",)),), lambda x: x, 1),
    "scaled": ((Node("s", Scale(ONE / 2), ("a",)),), lambda x: x / 2, 1),
    "per channel": (
        (Node("s", Scale(torch.tensor([0.5, 1.0, 2.0, 0.25])), ("a",)),),
        lambda x: x * torch.tensor([0.5, 1.0, 2.0, 0.25]).view(-1, 1, 1),
        1,
    ),
    "compensated": ((Node("s", Scale(ONE, SpikingWeights(gain=1.25)), ("a",)),), lambda x: 1.25 * x, 1),
    "projection": (
        (Node("s", Conv2d(dyadic(4, 4, 1, 1, seed=5), dyadic(4, seed=6), stride=(2, 2)), ("a",)),),
        lambda x: F.conv2d(x, dyadic(4, 4, 1, 1, seed=5), dyadic(4, seed=6), stride=2),
        2,
    ),
    "zero padding": (
        (
            Node("p", Slice(((None, None, None), (None, None, 2), (None, None, 2))), ("a",)),
            Node("q", Pad((0, 0, 0, 0, 1, 1)), ("p",)),
            Node("s", Scale(ONE / 2), ("q",)),
        ),
        lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) / 2,
        2,
    ),
}


def block(kind, start=0.0, reset="subtract", shortcut_first=False):
    """A stem, a residual block with that shortcut, and a head; the second convolution has 4, or 2 padded channels."""
    nodes, _, stride = SHORTCUTS[kind]
    inner = 6 if kind == "zero padding" else 4
    neuron = Neuron(ONE, start, reset)
    main = (
        Node("c1", Conv2d(dyadic(4, 4, 3, 3, seed=1) / 4, dyadic(4, seed=2) / 4, (stride, stride), (1, 1)), ("a",)),
        Node("b", neuron, ("c1",)),
        Node("c2", Conv2d(dyadic(inner, 4, 3, 3, seed=3) / 4, dyadic(inner, seed=4) / 4, padding=(1, 1)), ("b",)),
    )
    branches = (*nodes, *main) if shortcut_first else (*main, *nodes)
    size = 6 // stride
    return Graph(
        (
            Node("x", Input(), ()),
            Node("c0", Conv2d(dyadic(4, 2, 3, 3, seed=7), dyadic(4, seed=8), padding=(1, 1)), ("x",)),
            Node("a", neuron, ("c0",)),
            *branches,
            Node("z", neuron, ("s", "c2") if shortcut_first else ("c2", "s")),
            Node("pool", AdaptiveAvgPool2d((1, 1)), ("z",)),
            Node("flat", Flatten(), ("pool",)),
            Node("fc", Linear(dyadic(5, inner, seed=10) * size**2, dyadic(5, seed=11)), ("flat",)),
            Node("readout", Readout(ONE * 2, correction=dyadic(5, seed=12)), ("fc",)),
        ),
        Provenance(AppliedRecipe("by hand", T), input_shape=SHAPE),
    ).validate()


def by_hand(kind, start, reset, x):
    """The same network as a loop in plain torch: per step the spikes of its three layers, and the answer after T."""
    _, shortcut, stride = SHORTCUTS[kind]
    inner = 6 if kind == "zero padding" else 4

    def fire(name, current):
        v = memory.get(name, start) + current
        spikes = (v >= 1).float()
        memory[name] = v - spikes if reset == "subtract" else torch.where(v >= 1, 0.0, v)
        return spikes

    memory, steps, total = {}, [], 0.0
    for _ in range(T):
        a = fire("a", F.conv2d(x, dyadic(4, 2, 3, 3, seed=7), dyadic(4, seed=8), padding=1))
        b = fire("b", F.conv2d(a, dyadic(4, 4, 3, 3, seed=1) / 4, dyadic(4, seed=2) / 4, stride, padding=1))
        c = F.conv2d(b, dyadic(inner, 4, 3, 3, seed=3) / 4, dyadic(inner, seed=4) / 4, padding=1)
        z = fire("z", c + shortcut(a))
        total = total + F.linear(z.sum([2, 3]), dyadic(5, inner, seed=10), dyadic(5, seed=11))
        steps.append({"a": a, "b": b, "z": z})
    return steps, 2 * total / T + dyadic(5, seed=12)


def saved(tmp_path, snn, **settings):
    path = tmp_path / "network.nir"
    export_nir(snn, path, **settings)
    return path


# ---- the same spikes


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("kind", SHORTCUTS)
def test_the_file_runs_as_a_loop_in_plain_torch(tmp_path, kind, start, reset):
    if reset == "zero" and not RESETS:
        with pytest.raises(InvalidArtifact, match=r"v_reset.*upgrade nir"):
            read_nir(saved(tmp_path, block(kind, start, reset)))
        return
    x = pictures()
    expected, answer = by_hand(kind, start, reset, x)
    program = read_nir(saved(tmp_path, block(kind, start, reset)))
    total = 0.0
    for (output, spikes), wanted in zip(program.run(x, T), expected, strict=True):
        assert spikes.keys() == wanted.keys()
        assert all(torch.equal(spikes[name], wanted[name]) for name in wanted)
        total = total + output.flatten(1)
    assert all(sum(float(step[name].sum()) for step in expected) > 0 for name in "abz")
    torch.testing.assert_close(total / T, answer)


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("kind", SHORTCUTS)
def test_verification_finds_no_difference(tmp_path, kind, start):
    for tied in (False, True):
        if tied and kind == "compensated":
            continue  # 1 / 1.25 is not dyadic
        snn = block(kind, start)
        found = verify_export(saved(tmp_path, snn, tie_shortcuts=tied), snn, pictures(), T)
        spikes = [sum(float(step[name].sum()) for step in by_hand(kind, start, "subtract", pictures())[0])
                  for name in "abz"]  # fmt: skip
        assert [layer.spikes for layer in found.layers] == spikes
        assert (found.mismatches, found.same_spikes, found.same_answers) == (0, 3, 3) and found.difference < 1e-5


def test_verification_finds_what_is_wrong(tmp_path):
    """The file of another network: one bias a little larger, one shortcut a little weaker."""
    snn = block("scaled")
    path = saved(tmp_path, snn)
    for name, field, value in (("c0", "bias", dyadic(4, seed=8) + 0.125), ("s", "weight", ONE * 0.375)):
        nodes = tuple(replace(n, op=replace(n.op, **{field: value})) if n.name == name else n for n in snn.nodes)
        found = verify_export(path, replace(snn, nodes=nodes), pictures(), T)
        wrong = {layer.name for layer in found.layers if layer.mismatches}
        assert "z" in wrong and ("a" in wrong) == (name == "c0") and found.same_spikes < 3
        assert f"{found.mismatches:,}" in found.table()


def test_a_membrane_at_its_threshold_fires(tmp_path):
    """0.5 + 0.5 and, from a half, 0.5 + 0.25 + 0.25: spikes by hand."""
    for start, current, expected in ((0.0, 0.5, [0, 1, 0, 1]), (0.5, 0.25, [0, 1, 0, 0, 0, 1])):
        nodes = (
            Node("x", Input(), ()),
            Node("c", Conv2d(torch.ones(1, 1, 1, 1), None), ("x",)),
            Node("n", Neuron(ONE, start), ("c",)),
            Node("flat", Flatten(), ("n",)),
            Node("fc", Linear(torch.ones(1, 1), None), ("flat",)),
            Node("readout", Readout(ONE), ("fc",)),
        )
        program = read_nir(saved(tmp_path, Graph(nodes), input_shape=(1, 1, 1)))
        steps = program.run(torch.full((1, 1, 1, 1), current), len(expected))
        assert [int(spikes["n"]) for _, spikes in steps] == expected


def test_a_correction_is_a_bias(tmp_path):
    correction = dyadic(4, seed=20) / 8
    plain, corrected = block("projection"), block("projection")
    nodes = tuple(replace(n, op=replace(n.op, correction=correction)) if n.name == "z" else n for n in corrected.nodes)
    corrected = replace(corrected, nodes=nodes)
    biased = tuple(
        replace(n, op=replace(n.op, bias=n.op.bias + correction)) if n.name == "c2" else n for n in plain.nodes
    )
    found = verify_export(saved(tmp_path, corrected), replace(plain, nodes=biased), pictures(), T)
    assert found.mismatches == 0 and verify_export(saved(tmp_path, plain), corrected, pictures(), T).mismatches > 0


def test_a_correction_beside_a_tied_shortcut(tmp_path):
    snn = changed("z", correction=dyadic(4, seed=20) / 8)
    path = saved(tmp_path, snn, tie_shortcuts=True)
    assert "s" not in nir.read(str(path)).nodes
    assert verify_export(path, snn, pictures(), T).mismatches == 0


def test_in_float64_the_weights_are_those_of_the_file(tmp_path):
    """Rounded to float32 once, with the gain: 1.1 is not dyadic."""
    snn = changed("c1", spiking=SpikingWeights(gain=1.1))
    settled = _settled(snn, torch.float64)["c1"].op
    assert settled.spiking is None and settled.weight.dtype == torch.float64
    weight = nir.read(str(saved(tmp_path, snn))).nodes["c1"].weight
    assert np.array_equal(settled.weight.numpy(), weight.astype(np.float64))


def test_a_correction_without_a_convolution_gets_one(tmp_path):
    correction = torch.tensor([0.25, -0.125, 0.5, 0.0])
    snn = block("projection")
    again = (Node("n", Neuron(ONE, correction=correction), ("z",)), replace(snn["pool"], inputs=("n",)))
    snn = replace(snn, nodes=(*snn.nodes[:-4], *again, *snn.nodes[-3:])).validate()
    assert verify_export(saved(tmp_path, snn), snn, pictures(), T).mismatches == 0
    v, expected = torch.zeros(3, 4, 3, 3), []
    for step in by_hand("projection", 0.0, "subtract", pictures())[0]:
        v = v + step["z"] + correction.view(-1, 1, 1)
        expected.append((v >= 1).float())
        v = v - expected[-1]
    steps = read_nir(tmp_path / "network.nir").run(pictures(), T)
    assert all(torch.equal(spikes["n"], wanted) for (_, spikes), wanted in zip(steps, expected, strict=True))


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("recipe", ["s-resnet", "s-resnet-released"])
def test_whole_networks(tmp_path, recipe, shortcut):
    model = randomized(CifarResNet(8, width=4, shortcut=shortcut))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    snn = convert(model, [x], recipe, timesteps=8)
    for tied in (False, True):
        found = verify_export(saved(tmp_path, snn, tie_shortcuts=tied), snn, x, 8, dtype="float64")
        assert found.spikes > 1000 and found.mismatches <= 1e-4 * found.spikes and found.same_answers == 4
        assert [layer.name for layer in found.layers] == [node.name for node in snn.neurons]


def test_grouped_and_dilated_convolutions_and_average_pools(tmp_path):
    snn = block("identity")
    nodes = (
        *snn.nodes[:3],
        Node("avg", AvgPool2d((2, 2), (2, 2)), ("a",)),
        Node("g", Conv2d(dyadic(8, 2, 3, 3, seed=30) / 2, None, padding=(2, 2), dilation=(2, 2), groups=2), ("avg",)),
        Node("n", Neuron(ONE), ("g",)),
        Node("flat", Flatten(), ("n",)),
        Node("fc", Linear(dyadic(5, 72, seed=31), dyadic(5, seed=32)), ("flat",)),
        Node("readout", Readout(ONE), ("fc",)),
    )
    snn = replace(snn, nodes=nodes).validate()
    assert verify_export(saved(tmp_path, snn), snn, pictures(), T).mismatches == 0
    graph = nir.read(str(tmp_path / "network.nir"))
    assert {name: type(node).__name__ for name, node in graph.nodes.items()} == {
        "x": "Input", "c0": "Conv2d", "a": "IF", "avg": "Conv2d", "g": "Conv2d", "n": "IF", "fc": "Conv2d",
        "output": "Output",
    }  # fmt: skip
    assert graph.nodes["g"].weight.shape == (8, 4, 3, 3) and int(graph.nodes["g"].groups) == 1
    assert graph.nodes["fc"].weight.shape == (5, 8, 3, 3)


# ---- what is in the file


def test_the_nodes_and_edges_of_a_block(tmp_path):
    """Also where the shortcut was computed first: readers that go depth first need the main branch first."""
    for kind, middle in (("identity", []), ("scaled", ["s"]), ("projection", ["s"]), ("zero padding", ["s"])):
        for shortcut_first in (False, True):
            graph = nir.read(str(saved(tmp_path, block(kind, shortcut_first=shortcut_first))))
            assert set(graph.nodes) == {"x", "c0", "a", "c1", "b", "c2", *middle, "z", "fc", "output"}
            edges = [("x", "c0"), ("c0", "a"), ("a", "c1"), ("c1", "b"), ("b", "c2")]
            edges += [("a", "s"), ("c2", "z"), ("s", "z")] if middle else [("c2", "z"), ("a", "z")]
            assert graph.edges == [*edges, ("z", "fc"), ("fc", "output")]


def test_the_numbers_of_a_block(tmp_path):
    graph = nir.read(str(saved(tmp_path, block("zero padding", 0.5))))
    nodes = graph.nodes
    for node in nodes.values():
        for name in ("weight", "bias", "r", "v_threshold"):
            assert getattr(node, name, np.float32(0)).dtype == np.float32
    assert np.array_equal(nodes["c1"].weight, (dyadic(4, 4, 3, 3, seed=1) / 4).numpy())
    assert [tuple(map(int, getattr(nodes["c1"], n))) for n in ("stride", "padding", "dilation")] == [
        (2, 2), (1, 1), (1, 1),
    ]  # fmt: skip
    weight = np.zeros((6, 4, 1, 1), np.float32)
    weight[range(1, 5), range(4)] = 0.5
    assert np.array_equal(nodes["s"].weight, weight) and tuple(map(int, nodes["s"].stride)) == (2, 2)
    assert not nodes["s"].bias.any()
    # 3 x 3 pixels under an average, the readout's scale of 2, and its correction.
    weight = 2 * dyadic(5, 6, seed=10)[:, :, None, None].expand(5, 6, 3, 3)
    np.testing.assert_allclose(nodes["fc"].weight, weight.numpy(), rtol=1e-6)
    np.testing.assert_allclose(nodes["fc"].bias, (2 * dyadic(5, seed=11) + dyadic(5, seed=12)).numpy(), rtol=1e-6)
    shapes = {name: tuple(map(int, node.output_type["output"])) for name, node in nodes.items()}
    assert shapes == {"x": (2, 6, 6), "c0": (4, 6, 6), "a": (4, 6, 6), "c1": (4, 3, 3), "b": (4, 3, 3),
                      "c2": (6, 3, 3), "s": (6, 3, 3), "z": (6, 3, 3), "fc": (5, 1, 1),
                      "output": (5, 1, 1)}  # fmt: skip
    for name in "abz":
        assert nodes[name].v_threshold.shape == nodes[name].r.shape == shapes[name]
        assert (nodes[name].v_threshold == 1).all() and (nodes[name].r == 1).all()
        assert nodes[name].metadata["v_initial"] == 0.5


def test_what_nir_has_no_word_for_is_in_the_metadata(tmp_path):
    snn = block("scaled").with_provenance(classes=("a", "b"), preprocessing=Preprocessing(6, 6, (0, 0, 0), (1, 1, 1)))
    said = nir.read(str(saved(tmp_path, snn))).metadata
    assert said["producer"].startswith("s-resnet ")
    assert (said["reset"], said["compare"], said["spikes_per_step"], said["dt"]) == ("subtract", ">=", 1, 1.0)
    assert said["timesteps"] == T and said["input_node"] == "x" and said["readout"].startswith("mean")
    assert said["classes"] == '["a", "b"]'
    assert json.loads(said["preprocessing"]) == {"size": 6, "resize": 6, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert nir.read(str(saved(tmp_path, snn, timesteps=99))).metadata["timesteps"] == 99


def test_reset_by_subtraction_is_a_file_of_nir_1_0_4(tmp_path):
    for reset, version in (("subtract", b"1.0.4"), ("zero", b"1.0.8")):
        with h5py.File(saved(tmp_path, block("scaled", reset=reset))) as file:
            assert file["version"][()] == version
            # What nir 1.0.4 takes: any other field, such as metadata of a Conv2d, and it cannot read the file.
            assert set(file["node"]) == {"nodes", "edges", "metadata", "type"}
            assert set(file["node/nodes/c0"]) == {"input_shape", "weight", "stride", "padding", "dilation", "groups",
                                                  "bias", "type"}  # fmt: skip
            assert set(file["node/nodes/x"]) == set(file["node/nodes/output"]) == {"shape", "type"}
            assert set(file["node/nodes/a"]) - {"v_reset"} == {"r", "v_threshold", "metadata", "type"}
            for name in "abz":
                node = file["node/nodes"][name]
                assert ("v_reset" in node) == (reset == "zero")
                if reset == "zero":
                    assert node["v_reset"].shape == node["v_threshold"].shape and not node["v_reset"][()].any()


@pytest.mark.parametrize("kind", ["scaled", "per channel"])
def test_tied_shortcuts_are_bare_edges(tmp_path, kind):
    graph = nir.read(str(saved(tmp_path, block(kind, 0.5), tie_shortcuts=True)))
    assert ("a", "z") in graph.edges and "s" not in graph.nodes
    gain = np.array([0.5, 1.0, 2.0, 0.25] if kind == "per channel" else [0.5] * 4, np.float32)
    assert np.array_equal(graph.nodes["z"].v_threshold, np.broadcast_to(1 / gain[:, None, None], (4, 6, 6)))
    assert np.array_equal(np.broadcast_to(graph.nodes["z"].metadata["v_initial"], 4), 0.5 / gain)
    main = (dyadic(4, 4, 3, 3, seed=3) / 4).numpy() / gain[:, None, None, None]
    assert np.array_equal(graph.nodes["c2"].weight, main)


def test_names_are_python_names_each_once(tmp_path):
    snn = block("scaled")
    names = {"a": "layer1.0.relu", "b": "layer1_0_relu", "c1": "output", "s": "the/shortcut"}
    nodes = tuple(
        Node(names.get(n.name, n.name), n.op, tuple(names.get(name, name) for name in n.inputs)) for n in snn.nodes
    )
    renamed = replace(snn, nodes=nodes).validate()
    graph = nir.read(str(saved(tmp_path, renamed)))
    assert all(name.isidentifier() for name in graph.nodes) and len(graph.nodes) == 10
    assert {node.metadata["name"] for node in graph.nodes.values() if type(node).__name__ == "IF"} == {
        "layer1.0.relu", "layer1_0_relu", "z",
    }  # fmt: skip
    assert verify_export(tmp_path / "network.nir", renamed, pictures(), T).mismatches == 0


# ---- max-pools


def pooled(kernel=3):
    body = lambda net, x: net.head(net.relu(net.bn2(net.conv2(net.pool(net.relu(net.bn1(net.conv1(x))))))))  # noqa: E731
    model = Net(body, pool=torch.nn.MaxPool2d(kernel, 2, kernel // 2))
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return convert(model, [x], RECIPES["s-resnet"].without("compensate"), timesteps=8), x


def test_a_maxpool_is_refused_and_says_what_to_do(tmp_path):
    with pytest.raises(ConversionError, match=r"^pool: got a max-pool.*split_maxpool.*average pooling"):
        export_nir(pooled()[0], tmp_path / "x.nir")


def test_the_split_at_the_host_is_exact(tmp_path):
    snn, x = pooled()
    path = saved(tmp_path, snn, split_maxpool=True)
    assert set(nir.read(str(path)).nodes) == {"pool", "relu", "conv2", "relu_1", "fc", "output"}
    found = verify_export(path, snn, x, 8, dtype="float64")
    assert found.mismatches == 0 and found.spikes > 100 and found.same_answers == 3
    conv, pool = snn["conv1"].op, snn["pool"].op
    expected = F.max_pool2d(F.conv2d(x, conv.weight, conv.bias, padding=1), 3, 2, 1)
    assert isinstance(pool, MaxPool2d)
    torch.testing.assert_close(host_input(snn, x), expected)
    with pytest.raises(ConversionError, match="max-pool"):
        export_nir(block("scaled"), path, split_maxpool=True)
    with pytest.raises(ConversionError, match="max-pool"):
        host_input(block("scaled"), pictures())


def changed(name, **fields):
    snn = block("scaled")
    nodes = tuple(replace(n, op=replace(n.op, **fields)) if n.name == name else n for n in snn.nodes)
    return replace(snn, nodes=nodes)


def swapped(name, op, inputs=None):
    snn = block("scaled")
    nodes = tuple(replace(n, op=op, inputs=inputs or n.inputs) if n.name == name else n for n in snn.nodes)
    return replace(snn, nodes=nodes)


def test_additions_that_convolutions_read(tmp_path):
    """Edges from both parts of the sum to each reader."""
    snn = block("scaled")
    nodes = (
        *snn.nodes[:6],
        Node("sum", Add(), ("c2", "a")),
        Node("c3", Conv2d(dyadic(4, 4, 1, 1, seed=40) / 2, None), ("sum",)),
        Node("z", Neuron(ONE), ("c3", "sum")),
        *snn.nodes[-4:],
    )
    snn = replace(snn, nodes=nodes).validate()
    assert verify_export(saved(tmp_path, snn), snn, pictures(), T).mismatches == 0
    assert {("c2", "c3"), ("a", "c3"), ("c2", "z"), ("a", "z")} <= set(nir.read(str(tmp_path / "network.nir")).edges)


def test_the_recipe_for_few_steps_that_depends_on_no_step_is_exported(tmp_path):
    x = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    snn = convert(randomized(CifarResNet(8)), [x], "calibrated-constant", timesteps=8)
    export_nir(snn, tmp_path / "few.nir")
    found = verify_export(tmp_path / "few.nir", snn, x[:4], 8, "nir", "float64")
    assert found.spikes > 1000 and found.mismatches == 0
    lagged = convert(randomized(CifarResNet(8)), [x], "calibrated-lagged", timesteps=8)
    with pytest.raises(ConversionError, match=r"schedule 'lagged'.*recipe=.calibrated-constant"):
        export_nir(lagged, tmp_path / "lagged.nir")


# ---- directly trained networks: the module's spikes

# Trained networks reset to zero, and torch-based engines warn about themselves.
needs_resets = pytest.mark.skipif(not RESETS, reason="this nir cannot read a reset to zero")
SAID = ("ms_resnet8", "danet11", "sew_resnet8", "spiking_resnet8")  # those with one threshold
ENGINES = {"nir": "nir", "norse": "norse.torch", "sinabs": "sinabs.layers", "snntorch": "snntorch",
           "spikingjelly": "spikingjelly.activation_based.neuron"}  # fmt: skip


@needs_resets
@pytest.mark.parametrize("arch", SAID)
def test_the_file_has_the_spikes_of_a_trained_module(tmp_path, arch):
    model, graph = trained_networks.dyadic(arch)
    export_nir(graph, tmp_path / "x.nir")
    x = dyadic_images()
    logits, seen = watched(model, x, trained_networks.T)
    total = 0.0
    for step, (output, spikes) in enumerate(read_nir(tmp_path / "x.nir").run(x, trained_networks.T)):
        assert spikes.keys() == seen.keys()
        for name, (_, expected) in seen.items():
            assert torch.equal(spikes[name], expected[step]), (name, step)
        total = total + output.flatten(1)
    assert all(float(out.sum()) > 0 for _, out in seen.values())
    torch.testing.assert_close(total / trained_networks.T, logits)


@needs_resets
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("arch", ["ms_resnet8", "sew_resnet8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_engines_have_the_spikes_of_a_trained_network(tmp_path, arch, engine):
    pytest.importorskip(ENGINES[engine], reason=f"{engine} is not installed", exc_type=ImportError)
    _, graph = trained_networks.dyadic(arch)
    export_nir(graph, tmp_path / "x.nir")
    found = verify_export(tmp_path / "x.nir", graph, dyadic_images(), trained_networks.T, engine)
    assert found.mismatches == 0 and found.spikes > 0 and found.same_answers == found.images


@needs_resets
@pytest.mark.parametrize("arch", SAID)
def test_batch_normalization_of_a_trained_network_is_folded(tmp_path, arch):
    _, graph = trained(arch)
    export_nir(graph, tmp_path / "x.nir", input_shape=(3, SIZE, SIZE))
    found = verify_export(tmp_path / "x.nir", graph, dyadic_images(), trained_networks.T, dtype="float64")
    assert found.mismatches == 0 and found.spikes > 0 and found.difference < 1e-5


@needs_resets
def test_leaky_neurons_are_lif_nodes(tmp_path):
    """By NIR's own equation, with steps of dt = 1: v + dt / tau (v_leak - v + r I), here v / 4 + I."""
    _, graph = trained_networks.dyadic("ms_resnet8")
    export_nir(graph, tmp_path / "x.nir")
    nodes = nir.read(str(tmp_path / "x.nir")).nodes
    layers = [node for node in nodes.values() if isinstance(node, nir.LIF)]
    assert len(layers) == len(graph.neurons) and not any(isinstance(node, nir.IF) for node in nodes.values())
    for node in layers:
        v, current = np.float64(0.875), np.float64(0.3125)
        assert np.allclose(v + (node.v_leak - v + node.r * current) / node.tau, v / 4 + current, atol=1e-7)
        assert (node.v_threshold == 0.5).all() and (node.v_reset == 0).all() and node.metadata["decay"] == 0.25
    _, plain = trained_networks.dyadic("sew_resnet8")
    export_nir(plain, tmp_path / "y.nir")
    nodes = nir.read(str(tmp_path / "y.nir")).nodes
    assert {type(node).__name__ for node in nodes.values()} == {"Input", "Conv2d", "IF", "Output"}
    assert all((node.v_reset == 0).all() for node in nodes.values() if isinstance(node, nir.IF))


@needs_resets
def test_sums_of_currents_are_edges(tmp_path):
    """A shortcut's convolution reads all that the sum before it adds up, as the neurons behind that sum do."""
    _, graph = trained_networks.dyadic("ms_resnet8")
    export_nir(graph, tmp_path / "x.nir")
    edges = set(nir.read(str(tmp_path / "x.nir")).edges)
    for reader in ("body_1_0_neuron1", "body_1_0_shortcut_0"):
        assert {before for before, after in edges if after == reader} == {"stem_0", "body_0_0_conv2"}
