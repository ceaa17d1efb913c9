"""Programs of torch.export: read as data, they have the answers of the exported program and the Graph of its module."""

import copy
import io
import json
import pickle
import zipfile

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Net, images, load_program, randomized
from mutations import rezipped
from torch import nn
from torch.nn.utils import parametrizations

import s_resnet
from s_resnet.errors import InvalidCheckpoint, SResNetError, UnsupportedModel
from s_resnet.frontend import load_checkpoint, trace
from s_resnet.frontend.weights.checkpoint_file import LARGEST
from s_resnet.models.resnet import CifarResNet

AUTO = torch.export.Dim.AUTO
EVERY = ({0: AUTO, 2: AUTO, 3: AUTO},)  # any number of images of any size


def body(net, x):
    return net.head(net.relu(net.bn2(net.conv2(net.relu(net.bn1(net.conv1(x)))))))


def saved(path, model, x=None, few=False, **options):
    """The path of the program of a module, in all operators or in few."""
    program = torch.export.export(model, (images() if x is None else x,), **options)
    torch.export.save(program.run_decompositions() if few else program, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pt2"


def settled(model, size):
    """A network with random weights whose BatchNorm statistics are those of images."""
    randomized(model).train()
    with torch.no_grad():
        for seed in range(2):
            model(images(4, size, seed=seed))
    return model.eval()


def nodes(graph):
    return [(node.name, type(node.op), node.inputs) for node in graph.nodes]


def assert_same(path, model, x):
    """The answers of the program to 1e-5 of the largest logit; the Graph of the module, node for node, bit for bit."""
    loaded = load_checkpoint(path)
    with torch.no_grad():
        expected = load_program(path).module()(x)
        assert (loaded.model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    two = torch.cat([x, x.flip(3)])[:2]
    graph, own = trace(loaded.model, two), trace(model, two)
    assert nodes(graph) == nodes(own)
    assert torch.equal(graph.run(two), own.run(two))
    return loaded


# ---- what is read ----


def of_torchvision(block, **options):
    """One block in each of the four stages."""
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=7, **options)


def test_a_basic_resnet_of_torchvision_in_few_operators(path):
    model = settled(of_torchvision(torchvision.models.resnet.BasicBlock), 48)
    loaded = assert_same(saved(path, model, images(2, 48), few=True), model, images(2, 48))
    assert (loaded.num_classes, loaded.input_size, loaded.channels, loaded.name) == (7, 48, 3, "net.pt2")
    assert loaded.arch == f"torch.export program of torch {torch.__version__}"
    assert not any(module.training for module in loaded.model.modules())


def test_bottlenecks_of_torchvision(path):
    model = settled(of_torchvision(torchvision.models.resnet.Bottleneck, groups=4, width_per_group=8), 48)
    assert_same(saved(path, model, images(1, 48)), model, images(1, 48))


@pytest.mark.parametrize(("shortcut", "few"), [("A", False), ("A", True), ("B", False)])
def test_cifar_network_exported_for_one_image(path, shortcut, few):
    model = settled(CifarResNet(8, shortcut=shortcut), 32)
    assert_same(saved(path, model, images(1, 32), few), model, images(1, 32))


def test_free_sizes(path):
    model = randomized(CifarResNet(8, width=4))
    loaded = assert_same(saved(path, model, images(2, 32), dynamic_shapes=EVERY), model, images(3, 24))
    assert loaded.input_size == 32 and trace(loaded.model, images()).provenance.fixed_size is None


def test_sizes_that_the_program_computes(path):
    def flattened(net, x):
        y = net.relu(net.conv1(x))
        return net.all(y.view(x.size(0), y.size(1) * y.shape[2] * y.shape[3]))

    model = Net(flattened, all=nn.Linear(8 * 256, 5))
    assert_same(saved(path, model, dynamic_shapes=({0: AUTO},)), model, images(3))


def normalized(net, x):
    return body(net, (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.2]).view(1, 3, 1, 1))


def without_gradients(net, x):
    with torch.no_grad():
        y = net.relu(net.conv1(x))
    return net.head(y)


def in_place(net, x):
    y = net.relu(net.conv1(x))
    z = net.bn2(net.conv2(y))
    z += y
    return net.head(F.relu(z, inplace=True))


def padded_shortcut(net, x):
    y = net.relu(net.conv1(x))[:, :4, ::2, ::2]
    return net.head(torch.cat([y, torch.zeros(len(x), 4, 8, 8)], 1))


def pools(net, x):
    return net.head(F.avg_pool2d(F.max_pool2d(net.relu(net.conv1(x)), 3, 2, 1), 2, ceil_mode=True))


def halves(net, x):
    a, b = torch.cat([net.relu(net.conv1(x))] * 2, 1).chunk(2, 1)
    return net.head(a + 2 * b)


def shared(net, x):
    return net.head(net.relu(net.conv2(net.relu(net.conv2(net.relu(net.conv1(x)))))))


def squeezed(net, x):
    return net.fc(F.adaptive_avg_pool2d(net.relu(net.conv1(x)), 1).squeeze(-1).squeeze(-1))


FORWARDS = (normalized, without_gradients, in_place, padded_shortcut, pools, halves, shared, squeezed)


@pytest.mark.parametrize("forward", FORWARDS)
def test_what_networks_do(path, forward):
    model = Net(forward)
    assert_same(saved(path, model, images(1)), model, images(1))


def test_what_networks_do_in_few_operators(path):
    model = Net(lambda net, x: sum(forward(net, x) for forward in FORWARDS if forward is not without_gradients))
    loaded = load_checkpoint(saved(path, model, few=True))
    assert torch.allclose(loaded.model(images()), model(images()), atol=1e-5)
    assert torch.allclose(trace(loaded.model, images()).run(images()), model(images()), atol=1e-4)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weights_that_are_computed(path, norm):
    model = Net(body)
    model.conv2 = norm(model.conv2).eval()
    assert_same(saved(path, model), model, images())


def test_a_weight_of_two_names(path):
    model = Net(
        lambda net, x: net.head(net.relu(net.conv3(net.relu(net.conv2(net.conv1(x)))))), conv3=nn.Conv2d(8, 8, 3)
    )
    model.conv3.weight, model.conv3.bias, model.conv3.padding = model.conv2.weight, None, (1, 1)
    assert_same(saved(path, model), model, images())


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(path, dtype, few):
    model = Net(body).to(dtype)
    loaded = load_checkpoint(saved(path, model, images().to(dtype), few))
    assert torch.allclose(loaded.model(images()), copy.deepcopy(model).float()(images()), atol=1e-6)
    assert trace(loaded.model, images()).run(images()).dtype == torch.float32


@pytest.mark.parametrize(
    "outputs",
    [
        lambda x, logits: {"pooled": x.mean([2, 3]), "logits": logits},
        lambda x, logits: (x, logits),
    ],
)
def test_the_logits_among_several_outputs(path, outputs):
    model = Net(lambda net, x: outputs(x, body(net, x)))
    loaded = load_checkpoint(saved(path, model))
    assert torch.equal(loaded.model(images()), Net(body)(images()))


def test_signals_are_images_of_height_1(path):
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    x = torch.randn(2, 3, 16)
    loaded = load_checkpoint(saved(path, model, x))
    assert loaded.model.image_shape == (3, 1, 16)
    assert torch.equal(loaded.model(x.unsqueeze(2)), model(x))
    assert torch.allclose(trace(loaded.model, x.unsqueeze(2)).run(x.unsqueeze(2)), model(x), atol=1e-6)


def test_any_file_name(tmp_path):
    model = Net(body)
    written = saved(tmp_path / "net.pt2", model).rename(tmp_path / "net.pth")
    assert torch.equal(load_checkpoint(written).model(images()), model(images()))


def test_convert_from_python(path):
    model = randomized(CifarResNet(8, 5, 4))
    loaded = load_checkpoint(saved(path, model, images(2, 16)))
    batches = [images(8, 16)]
    snn, own = (s_resnet.convert(m, batches, "s-resnet", timesteps=4) for m in (loaded.model, model))
    assert torch.equal(snn(images(2, 16), timesteps=4), own(images(2, 16), timesteps=4))


# ---- what is refused by name ----


def refused(path, kind, *words, **options):
    with pytest.raises(kind) as caught:
        loaded = load_checkpoint(path, **options)
        trace(loaded.model, images())
    text = str(caught.value)
    assert text.isprintable() and all(word in text for word in words), text


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda net, x: net.head(F.gelu(net.conv1(x))), ["node gelu", "nn.ReLU"]),
        (lambda net, x: body(net, x).softmax(1), ["node softmax", "logits"]),
        (lambda net, x: (body(net, x), net.fc(x[:, 0, 0, :8])), ["2 outputs: linear, linear_1", "logits alone"]),
        (lambda net, x: net.head(net.up(x)), ["node up", "conv_transpose2d"]),
        (lambda net, x: net.head(net.conv1(x)) * x.mean(), ["node mean", "(2, 3, 16, 16)"]),
        (lambda net, x: F.dropout(body(net, x), 0.5, True), ["node dropout", "model.eval()"]),
    ],
)
def test_what_cannot_be_converted_is_named(path, forward, words):
    refused(saved(path, Net(forward, up=nn.ConvTranspose2d(3, 8, 2))), UnsupportedModel, *words)


@pytest.mark.parametrize("few", [False, True])
def test_a_program_for_training(path, few):
    refused(saved(path, Net(body).train(), few=few), UnsupportedModel, "node bn1", "training mode", "model.eval()")


def test_two_inputs(path):
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    torch.export.save(torch.export.export(Two(), (images(), images())), path)
    refused(path, UnsupportedModel, "2 inputs: x, y")


def test_an_architecture_is_not_asked_for(path):
    refused(saved(path, Net(body)), InvalidCheckpoint, "Leave out arch", arch="resnet18")


def test_a_weight_that_is_not_finite(path):
    model = Net(body)
    model.conv2.weight.data[0, 0] = float("nan")
    refused(saved(path, model), InvalidCheckpoint, "tensor conv2.weight", "9 of 576")


def test_our_own_spiking_program(path):
    snn = s_resnet.convert(randomized(CifarResNet(8, 5, 4)), [images(8, 16)], "phased", timesteps=2)
    s_resnet.export.export_torch(snn, path, 2)
    refused(path, InvalidCheckpoint, "a spiking network that sresnet export wrote")


# ---- hostile and foreign archives ----


def other(path, parts):
    """An archive of these parts."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"net/{name}", content)
    return path


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"data/aotinductor/model/x.so": "x"}, ["AOTInductor", "torch.export.save"]),
        ({"models/a.json": "{}", "models/b.json": "{}"}, ["2 programs"]),
        ({"archive_version": "1", "models/model.json": "{}"}, ["pt2 1", "again"]),
        ({"models/model.json": "[" * 10**5}, ["no JSON"]),
        ({"models/model.json": "{}," * 2**21}, ["lists and dicts"]),
        ({"models/model.json": '{"schema_version": {"major": 7}}'}, ["schema 7", "again"]),
        ({}, ["0 programs"]),
    ],
)
def test_other_archives(path, parts, words):
    said = {"archive_format": "pt2", "archive_version": "0", **parts}
    refused(other(path, said), InvalidCheckpoint, *words)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A program that the tests below change."""
    return saved(tmp_path_factory.mktemp("program") / "net.pt2", Net(body), images(1)).read_bytes()


def changed(path, written, part, change):
    """The program with the JSON of one part changed."""

    def edit(name, content):
        if not name.endswith(part):
            return content
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    path.write_bytes(rezipped(written, edit))
    return path


def node(tree, at):
    return tree["graph_module"]["graph"]["nodes"][at]


def renamed(tree):
    node(tree, 2)["outputs"] = node(tree, 1)["outputs"]


def circular(tree):
    node(tree, 0)["inputs"][0]["arg"]["as_tensor"]["name"] = "relu_"


def unknown(tree):
    node(tree, 0)["target"] = "torch.ops.aten.system.default"


def python(tree):
    node(tree, 0)["target"] = "os.system"


def huge(tree):
    tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][2] = {"as_int": 2**60}


def large(tree):
    tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][2] = {"as_int": 2**16}
    tree["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][3] = {"as_int": 2**16}


def without_argument(tree):
    del node(tree, 0)["inputs"][1]


def two_arguments(tree):
    node(tree, 0)["inputs"].append(node(tree, 0)["inputs"][0])


def other_type(tree):
    node(tree, 0)["inputs"][3]["arg"] = {"as_ints": ["1", None]}


def slow(tree):
    node(tree, 0)["inputs"][4]["arg"] = {"as_ints": [5000, 5000]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (renamed, "there is already"),
        (circular, "not defined before"),
        (unknown, "aten.system.default"),
        (python, "os.system"),
        (huge, "1152921504606846976"),
        (large, "numbers at once"),
        (slow, "numbers at once"),
        (without_argument, "no argument weight"),
        (two_arguments, "two arguments"),
        (other_type, "str as int"),
    ],
)
def test_programs_that_do_not_hold_together(path, written, change, word):
    refused(changed(path, written, "models/model.json", change), (InvalidCheckpoint, UnsupportedModel), word)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strides", [{"as_int": -1}] * 4),
        ("strides", [{"as_int": 2**40}] * 4),
        ("storage_offset", {"as_int": 1}),
        ("sizes", [{"as_int": 2**31}, {"as_int": 2**31}, {"as_int": 0}, {"as_int": 1}]),
        ("sizes", [{"as_int": 8}]),
        ("dtype", 99),
        ("layout", 1),
    ],
)
def test_weights_that_are_not_in_the_file(path, written, name, value):
    def change(tree):
        tree["config"]["conv1.weight"]["tensor_meta"][name] = value

    refused(changed(path, written, "model_weights_config.json", change), InvalidCheckpoint)


def test_layouts_of_other_releases(path, written):
    """Torch 2.9 gives nodes no name of their own; torch 2.8 keeps all weights in one pickle, which is not read."""

    def unnamed(tree):
        for one in tree["graph_module"]["graph"]["nodes"]:
            del one["name"]

    before = load_checkpoint(changed(path, written, "models/model.json", lambda tree: None))
    after = load_checkpoint(changed(path, written, "models/model.json", unnamed))
    assert torch.equal(after.model(images()), before.model(images()))
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist() if "weights" not in name}
    refused(other(path, {**parts, "data/weights/model.pt": b"x"}), InvalidCheckpoint, "one pickle", "2.9 or newer")


def test_one_number_that_unfolds_to_a_weight(path, written):
    def change(tree):
        meta = tree["config"]["conv1.weight"]["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 2**14}] * 4, [{"as_int": 0}] * 4

    refused(changed(path, written, "model_weights_config.json", change), InvalidCheckpoint, "bytes of weights")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "model_weights_config.json", "weight_99"])
def test_weights_come_from_parts_of_the_archive(path, written, name):
    def change(tree):
        tree["config"]["conv1.weight"]["path_name"] = name

    refused(changed(path, written, "model_weights_config.json", change), InvalidCheckpoint, "no part")


def test_nothing_is_unpickled(path, written):
    """Neither the example inputs, which torch's own reader unpickles, nor a weight that is marked as a pickle."""

    class Touch:
        def __reduce__(self):
            return (open, (str(path.with_name("touched")), "w"))

    poison = pickle.dumps(Touch())
    path.write_bytes(rezipped(written, lambda name, part: poison if "sample_inputs" in name else part))
    load_checkpoint(path)

    def change(tree):
        tree["config"]["conv1.weight"]["use_pickle"] = True

    marked = changed(path, written, "model_weights_config.json", change).read_bytes()
    path.write_bytes(rezipped(marked, lambda name, part: poison if name.endswith("weight_0") else part))
    refused(path, InvalidCheckpoint, "tensor conv1.weight", "pickled")
    assert not path.with_name("touched").exists()


def test_a_truth_is_no_number(path, written):
    """Nor is it the first of torch's types."""

    def change(tree):
        tree["config"]["conv1.weight"]["tensor_meta"]["dtype"] = True

    refused(changed(path, written, "model_weights_config.json", change), InvalidCheckpoint, "bool as 'dtype'")


def test_flipped_bits_and_zip_tricks(path, written):
    at = written.index(b"weight_0") + 200  # in the numbers
    path.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
    refused(path, InvalidCheckpoint, "damaged")
    path.write_bytes(written[: len(written) // 2])
    refused(path, InvalidCheckpoint)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(written)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    path.write_bytes(out.getvalue())
    refused(path, InvalidCheckpoint, "compressed")
    path.write_bytes(written)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], "x")
    refused(path, InvalidCheckpoint, "one name")
    entry = written.rindex(b"PK\1\2")  # the last one of the directory: at 8 its flags, at 24 its size
    for at, value in ((8, b"\1\0"), (24, b"\0\0\0\x40")):
        path.write_bytes(written[: entry + at] + value + written[entry + at + len(value) :])
        refused(path, InvalidCheckpoint, "encrypted or larger than the file")


def test_a_file_that_is_too_large(path, written):
    path.write_bytes(written)
    with path.open("r+b") as file:
        file.truncate(LARGEST + 1)  # a hole in the file takes no space
    with pytest.raises(SResNetError):
        load_checkpoint(path)
