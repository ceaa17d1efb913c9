"""ONNX files that cannot be converted or should not be believed: one line that names the node, in bounded memory."""

import os
import random
import resource
import sys

import mutations
import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import CLASSES, Writer, distance, images, runtime

import s_resnet
from s_resnet.errors import BackendUnavailable, InvalidCheckpoint, UnsupportedModel
from s_resnet.frontend.onnx import wire


def put(folder, content):
    path = folder / "m.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def refused(path, kind, words):
    with pytest.raises(kind) as caught:
        s_resnet.load_checkpoint(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and words in said and "\n" not in said and len(said) < 1000, said
    return said


def node(model, name):
    return next(node for node in model.graph.node if node.name == name)


def last_behind(kind, **settings):
    """The network with one operator more behind its logits."""
    model = onnx_models.resnet(13)
    model.graph.node.append(helper.make_node(kind, ["fc:0"], ["end"], name="end/op", **settings))
    model.graph.output[0].name = "end"
    return model


# ---- what cannot be converted, by node ----


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("Softmax", {}, "node end/op: cannot be converted, got operator Softmax; expected logits: probabilities"),
        ("Sigmoid", {}, "extract_model(FILE, 'logits.onnx', [IMAGES], ['fc:0'])"),
        ("HardSwish", {}, "got operator HardSwish; expected ReLU"),
        ("Frobnicate", {}, "node end/op: cannot be converted, got operator Frobnicate; expected a convolution"),
        ("FusedConv", {"domain": "com.microsoft"}, "com.microsoft::FusedConv; expected an operator of ONNX itself"),
        ("QuantizeLinear", {}, "QuantizeLinear, of a quantized network; expected floating-point weights"),
        ("QLinearConv", {}, 'recipe.with_weights("int8")'),
        ("LayerNormalization", {}, "expected BatchNorm"),
        ("Cast", {"to": 7}, "a cast of an activation to whole numbers"),
        ("Relu", {"alpha": 1.0}, "with the setting 'alpha'"),
        ("Flatten", {"axis": 1.5}, "with the setting 'axis' of type 1"),
        ("Flatten", {"axis": 9}, "along axis 9 of 2"),
        ("Flatten", {"axis": 0}, "of 7 images; expected the images along the first axis"),
        ("Transpose", {"perm": [1, 1]}, "perm (1, 1)"),
        ("MaxPool", {"kernel_shape": [3, 3]}, "4 axes"),
        ("Dropout", {}, None),
    ],
    ids=str,
)
def test_what_stands_at_the_end(tmp_path, kind, settings, words):
    path = put(tmp_path, last_behind(kind, **settings))
    if words is None:
        assert s_resnet.load_checkpoint(path).num_classes == CLASSES
    else:
        refused(path, UnsupportedModel, words)


def test_branches_are_refused(tmp_path):
    model = onnx_models.resnet(13)
    made = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["fc:0"], ["b"])], "then", [], [made])
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    model.graph.node.append(yes)
    model.graph.node.append(helper.make_node("If", ["yes"], ["end"], "choice", then_branch=branch, else_branch=branch))
    model.graph.output[0].name = "end"
    refused(put(tmp_path, model), UnsupportedModel, "node choice: cannot be converted, got operator If, which has")


def test_a_network_in_training_mode(tmp_path):
    model = onnx_models.resnet(15)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    refused(put(tmp_path, model), UnsupportedModel, f"node {norm.name}: cannot be converted, got BatchNormalization in")


def test_a_gate_is_refused_by_name(tmp_path):
    w = Writer(13)
    x = w.add("Relu", w.conv("images", 3, 8))
    x = w.add("Mul", x, w.add("Sigmoid", w.conv(w.add("GlobalAveragePool", x), 8, 8, 1), name="se/gate"))
    model = w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 8))
    refused(put(tmp_path, model), UnsupportedModel, "node se/gate: cannot be converted, got operator Sigmoid")


def test_a_saturating_or_leaky_rectifier_is_refused_by_trace_or_taken(tmp_path):
    w = Writer(13)
    x = w.add("LeakyRelu", w.conv("images", 3, 8), name="leaky", alpha=0.1)
    model = w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 8))
    found = s_resnet.load_checkpoint(put(tmp_path, model))
    assert distance(found.model(images()), runtime(model.SerializeToString(), images())) < 1e-5
    with pytest.raises(UnsupportedModel, match="node leaky: cannot be converted, got operator LeakyRelu"):
        s_resnet.trace(found.model, images(2))


# ---- what a file says that is not so ----


def edited(change, base=onnx_models.resnet, opset=13):
    model = base(opset)
    change(model)
    return model


def of_conv(change):
    return lambda model: change(node(model, "Conv_0"), next(t for t in model.graph.initializer if t.name == "w0"))


def setting(name, *numbers):
    def change(model):
        conv = node(model, "Conv_0")
        kept = [said for said in conv.attribute if said.name != name]
        del conv.attribute[:]
        conv.attribute.extend([*kept, helper.make_attribute(name, list(numbers) if len(numbers) > 1 else numbers[0])])

    return change


def dims(*sizes):
    return of_conv(lambda conv, weight: (weight.ClearField("dims"), weight.dims.extend(sizes)))


def infinite(conv, weight):
    weight.raw_data = np.full((8, 3, 3, 3), np.inf, np.float32).tobytes()


def outside(**said):
    def change(conv, weight):
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in said.items():
            weight.external_data.add(key=key, value=value)

    return of_conv(change)


HUGE = 2**40
LIES = {
    "no opset": (lambda m: m.ClearField("opset_import"), InvalidCheckpoint, "opset unknown; expected opset 9 to 28"),
    "old opset": (lambda m: setattr(m.opset_import[0], "version", 8), InvalidCheckpoint, "version_converter"),
    "new opset": (lambda m: setattr(m.opset_import[0], "version", 99), InvalidCheckpoint, "got opset 99"),
    "huge": (dims(HUGE), InvalidCheckpoint, f"tensor w0, got 864 bytes; expected {4 * HUGE} for its shape"),
    "overflow": (dims(2**47, 2**47), InvalidCheckpoint, "tensor w0, got 864 bytes"),
    "negative": (dims(-1, 3, 3, 3), InvalidCheckpoint, "tensor w0, got a shape of 4 axes (-1, 3, 3, 3)"),
    "many axes": (dims(*[1] * 1000), InvalidCheckpoint, "a shape of 1000 axes"),
    "other rank": (dims(8, 27), UnsupportedModel, "node Conv_0: cannot be converted, got a convolution with weights"),
    "no numbers": (of_conv(lambda c, w: w.ClearField("raw_data")), InvalidCheckpoint, "0 numbers in float_data"),
    "text": (of_conv(lambda c, w: setattr(w, "data_type", 8)), InvalidCheckpoint, "tensor w0, got data type 8"),
    "four bits": (of_conv(lambda c, w: setattr(w, "data_type", 22)), InvalidCheckpoint, "tensor w0, got data type 22"),
    "infinite": (of_conv(infinite), InvalidCheckpoint, "node Conv_0: got 216 of 216 weights NaN or infinite"),
    "whole weights": (of_conv(lambda c, w: setattr(w, "data_type", 6)), UnsupportedModel, "node Conv_0: cannot be"),
    "two of a name": (lambda m: m.graph.node.append(m.graph.node[0]), InvalidCheckpoint, "a name that two values have"),
    "two tensors": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), InvalidCheckpoint, "two values"),
    "circle": (lambda m: m.graph.node[1].input.__setitem__(0, "Conv_4:0"), InvalidCheckpoint, "waits for its own"),
    "from nowhere": (
        lambda m: m.graph.node[1].input.__setitem__(0, "x"),
        InvalidCheckpoint,
        "'x', which nothing",
    ),
    "no answer": (lambda m: setattr(m.graph.output[0], "name", "x"), InvalidCheckpoint, "output x, got nothing"),
    "constant": (lambda m: setattr(m.graph.output[0], "name", "w0"), InvalidCheckpoint, "output w0"),
    "no nodes": (lambda m: m.graph.ClearField("node"), InvalidCheckpoint, "cannot be read"),
    "two inputs": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("z", 1, [1])),
        UnsupportedModel,
        "inputs, got images, z; expected one",
    ),
    "text as images": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8),
        UnsupportedModel,
        "input images, got a tensor of type 8",
    ),
    "huge images": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 2**20),
        InvalidCheckpoint,
        "input images, got images of",
    ),
    "no images": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", -4),
        InvalidCheckpoint,
        "positive sizes",
    ),
    "stride 0": (setting("strides", 0, 1), UnsupportedModel, "node Conv_0: cannot be converted, got sizes (0, 1)"),
    "huge pads": (setting("pads", 2**62, 0, 0, 0), UnsupportedModel, "node Conv_0: cannot be converted, got pads"),
    "large pads": (setting("pads", *[60_000] * 4), UnsupportedModel, "expected at most 67108864 numbers an image"),
    "three strides": (setting("strides", 1, 1, 1), UnsupportedModel, "2 positive ones"),
    "no groups": (setting("group", 0), UnsupportedModel, "node Conv_0: cannot be converted, got operator Conv of"),
    "odd groups": (setting("group", 5), UnsupportedModel, "node Conv_0: cannot be converted, got operator Conv of"),
    "other kernel": (setting("kernel_shape", 5, 5), UnsupportedModel, "node Conv_0: cannot be converted"),
    "odd word": (setting("auto_pad", "SIDEWAYS"), UnsupportedModel, "auto_pad 'SIDEWAYS'"),
    "a type for another": (setting("strides", "x"), UnsupportedModel, "with the setting 'strides' of type 3"),
    "no setting": (setting("color", 1), UnsupportedModel, "with the setting 'color'"),
    "absolute": (outside(location="/etc/passwd", length="864"), InvalidCheckpoint, "a file in the folder of the .onnx"),
    "above": (outside(location="../secret", length="864"), InvalidCheckpoint, "a file in the folder of the .onnx file"),
    "hidden above": (outside(location="a/../../secret"), InvalidCheckpoint, "a file in the folder of the .onnx file"),
    "drive": (outside(location="C:\\secret"), InvalidCheckpoint, "a file in the folder of the .onnx file"),
    "the folder": (outside(location="."), InvalidCheckpoint, "a file in the folder of the .onnx file"),
    "nothing": (outside(location=""), InvalidCheckpoint, "a file in the folder of the .onnx file"),
    "absent": (outside(location="absent"), InvalidCheckpoint, "Copy absent into the folder of the .onnx file"),
    "beyond": (outside(location="m.onnx", offset="999999"), InvalidCheckpoint, "bytes 999999 to 1000863 of m.onnx"),
    "before": (outside(location="m.onnx", offset="-1"), InvalidCheckpoint, "got offset '-1'; expected a number of"),
    "other length": (outside(location="m.onnx", length="10"), InvalidCheckpoint, "got 10 bytes; expected 864"),
    "huge length": (outside(location="m.onnx", length="9" * 30), InvalidCheckpoint, "expected a number of bytes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    change, kind, words = LIES[lie]
    refused(put(tmp_path, edited(change)), kind, words)


@pytest.mark.parametrize(
    "content",
    [b"\x08", b"hello world", b"\x08\x07\x12\x03abc", bytes(range(256)) * 4],
    ids=["cut", "text", "no graph", "all bytes"],
)
def test_no_onnx_at_all(tmp_path, content):
    refused(put(tmp_path, content), InvalidCheckpoint, "damaged or foreign data; expected a whole ONNX model")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file, got 0 bytes"),
        (b"PK\x03\x04" + b"\0" * 100, "a checkpoint by its content; expected a whole ONNX model. Rename it"),
        (b"<!DOCTYPE html><title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
    ids=["empty", "zip", "web page", "pointer"],
)
def test_another_file_is_said_by_its_content(tmp_path, content, words):
    refused(put(tmp_path, content), InvalidCheckpoint, words)


def test_every_beginning_of_a_file(tmp_path):
    whole = onnx_models.resnet(13).SerializeToString()
    for end in range(1, len(whole), len(whole) // 60):
        with pytest.raises(s_resnet.SResNetError):
            s_resnet.load_checkpoint(put(tmp_path, whole[:end]))


def test_absent_folders_and_files(tmp_path):
    refused(tmp_path / "absent.onnx", InvalidCheckpoint, "cannot be opened, got No such file")
    (tmp_path / "folder.onnx").mkdir()
    refused(tmp_path / "folder.onnx", InvalidCheckpoint, "cannot be opened")


def test_arch_is_refused(tmp_path):
    path = put(tmp_path, onnx_models.resnet(13))
    with pytest.raises(InvalidCheckpoint, match="got arch 'resnet18'; expected none, since this file says which"):
        s_resnet.load_checkpoint(path, "resnet18")


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"onnx: got no such module .*Run: pip install onnx"):
        s_resnet.load_checkpoint(put(tmp_path, b"\x08\x07"))


# ---- weights beside the file ----


def test_weights_beside_the_file(tmp_path):
    model = onnx_models.resnet(13)
    expected = runtime(model.SerializeToString(), images())
    plain = s_resnet.load_checkpoint(put(tmp_path, model)).digest
    (tmp_path / "sub").mkdir()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="sub/weights", size_threshold=0)
    found = s_resnet.load_checkpoint(tmp_path / "m.onnx")
    assert distance(found.model(images()), expected) < 1e-5 and found.digest != plain
    weights = bytearray((tmp_path / "sub" / "weights").read_bytes())
    weights[0] ^= 1
    (tmp_path / "sub" / "weights").write_bytes(weights)
    assert s_resnet.load_checkpoint(tmp_path / "m.onnx").digest != found.digest


def test_no_link_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(864))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "weights").symlink_to(tmp_path / "secret")
    (inner / "up").symlink_to(tmp_path)
    (inner / "circle").symlink_to(inner / "circle")
    for place in ("weights", "up/secret", "circle"):
        path = put(inner, edited(outside(location=place)))
        said = refused(path, InvalidCheckpoint, f"weights in {place!r}" if place != "circle" else "tensor w0")
        assert "secret" not in said or place == "up/secret"
    (inner / "real").write_bytes(np.zeros((8, 3, 3, 3), "f4").tobytes())
    (inner / "link").symlink_to(inner / "real")
    assert s_resnet.load_checkpoint(put(inner, edited(outside(location="link")))).num_classes == CLASSES


def test_one_file_beside_it_is_not_read_again_and_again(tmp_path):
    """A few bytes for each of thousands of tensors would else unfold to any size."""
    w = Writer(13)
    x = "images"
    for _ in range(12):
        x = w.add("Conv", x, w.random(3, 3, 1, 1))
    model = w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 3))
    for tensor in model.graph.initializer[:12]:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")
    (tmp_path / "weights").write_bytes(np.ones(9, "f4").tobytes())
    refused(put(tmp_path, model), InvalidCheckpoint, "tensor w4, got 180 bytes of weights, which has 36; expected each")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(put(tmp_path, edited(outside(location="pipe"))), InvalidCheckpoint, "no regular file")


# ---- bombs ----


def number(value):
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(field, content):
    return number(field << 3 | 2) + number(len(content)) + content


def nested(depth):
    """Graphs in settings of nodes of graphs."""
    content = b""
    for _ in range(depth):
        content = message(1, message(5, message(6, content)))
    return message(7, content)


BOMBS = {
    "empty nodes": (message(7, message(1, b"") * 2**19), "more than 262144 fields"),
    "empty names": (message(7, message(1, message(1, b"") * 2**19)), "more than 262144 fields"),
    "nested": (nested(40), "messages nested more than 64 deep"),
    "deeply nested": (nested(20_000), "messages nested more than 64 deep"),
    "many nodes": (
        message(7, (message(1, message(2, b"y")) * 20_000) + message(12, b"")),
        "20000 nodes; expected at most",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    content, words = BOMBS[name]
    opset = message(8, b"\x10\x0d")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(put(tmp_path, opset + content), InvalidCheckpoint, words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


@pytest.mark.parametrize("name", ["fc:0", "Conv", "kernel_shape", "Conv_0", "images"])
def test_names_in_another_encoding_are_refused(tmp_path, name):
    content = onnx_models.resnet(13).SerializeToString()
    written = bytes([len(name)]) + name.encode()
    assert written in content
    refused(put(tmp_path, content.replace(written, written[:1] + b"\xff" + written[2:])), InvalidCheckpoint, "damaged")


def test_the_walk_through_the_bytes_takes_what_the_parser_takes():
    wire.scan(onnx_models.resnet(13).SerializeToString(), onnx.ModelProto.DESCRIPTOR)
    for content in (b"\x80" * 11, b"\x0b", b"\x3a\x05\x00", b"\x09\x00", b"\x0f"):
        with pytest.raises(wire.Damaged):
            wire.scan(content, onnx.ModelProto.DESCRIPTOR)


def growing(kind, count):
    """Constants that each operation makes larger."""
    w = Writer(13)
    x = w.weight(np.ones((1, 64), np.float32))
    for _ in range(count):
        if kind == "concat":
            x = w.add("Concat", x, x, axis=0)
        elif kind == "expand":
            x = w.add("Expand", x, w.whole(2**20, 64))
        elif kind == "shape":
            x = w.add("ConstantOfShape", w.whole(2**20, 2**20))
        elif kind == "outer":
            x = w.add("Add", w.add("ConstantOfShape", w.whole(2**14, 1)), w.add("ConstantOfShape", w.whole(1, 2**14)))
        elif kind == "product":
            w.add(
                "MatMul",
                w.add("ConstantOfShape", w.whole(2**12, 2**10)),
                w.add("ConstantOfShape", w.whole(2**10, 2**12)),
            )
            x = f"{w.nodes[-1].name}:0"
        elif kind == "pad":
            x = w.pad(x, [60_000, 60_000, 60_000, 60_000])
        else:
            x = w.add("Range", w.weight(np.int64(0)), w.weight(np.int64(2**40)), w.weight(np.int64(1)))
    y = w.add("Flatten", w.add("GlobalAveragePool", w.add("Relu", w.conv("images", 3, 8))))
    return w.model(w.add("Add", w.linear(y, 8), w.add("ReduceSum", x)))


@pytest.mark.parametrize(
    ("kind", "count"),
    [("concat", 40), ("expand", 9), ("shape", 1), ("outer", 1), ("product", 1), ("pad", 1), ("range", 1)],
)
def test_constants_that_grow(tmp_path, kind, count):
    path = put(tmp_path, growing(kind, count))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, UnsupportedModel, "node ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_a_sample_of_mutated_files(tmp_path):
    """make fuzz runs thousands."""
    reader = mutations.READERS["onnx"](tmp_path)
    outcomes = {mutations.tried(reader, mutations.mutated(reader, tmp_path, random.Random(seed))) for seed in range(80)}
    assert outcomes == {"accepted", "refused"}
