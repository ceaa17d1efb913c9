"""ONNX files: the logits of onnxruntime on the same images, from whatever exporter and opset."""

import numpy as np
import onnx
import onnx.reference
import onnx_models
import pytest
import torch
import torchvision
from conftest import randomized
from onnx import helper
from onnx_models import CLASSES, SIDE, Writer, distance, images, loaded, runtime

import s_resnet

CLOSE = 1e-5


def same_logits(folder, model, x=None, given=None):
    """Module and Graph equal onnxruntime; ``given`` is what the file takes where that is not what the Graph takes."""
    x = images() if x is None else x
    expected = runtime(model.SerializeToString(), x if given is None else given)
    found = loaded(folder, model)
    graph = s_resnet.trace(found.model, x[:2])
    assert distance(found.model(x), expected) < CLOSE and distance(graph.run(x), expected) < CLOSE
    assert expected.std() > 0.01
    return found, graph


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 18, 21])
def test_every_opset(tmp_path, opset):
    found, graph = same_logits(tmp_path, onnx_models.resnet(opset))
    assert found.arch == f"ONNX opset {opset} of hand" and found.num_classes == CLASSES
    assert (found.channels, found.input_size, found.name) == (3, SIDE, "m.onnx")
    assert {"Conv_0", "BatchNormalization_1", "Relu_2", "fc"} <= {node.name for node in graph.nodes}


def test_channels_last(tmp_path):
    x = images()
    found, graph = same_logits(tmp_path, onnx_models.channels_last(), x, x.permute(0, 2, 3, 1).contiguous())
    assert found.channels == 3 and not [node for node in graph.nodes if "Transpose" in node.name]


@pytest.mark.parametrize("opset", [11, 16])
def test_names_and_shapes_as_paddle_writes_them(tmp_path, opset):
    _, graph = same_logits(tmp_path, onnx_models.paddle(opset))
    assert {"p2o.Relu.0", "p2o.Add.0", "p2o.MatMul.0"} <= {node.name for node in graph.nodes}
    assert graph.provenance.fixed_size is None


def small(w, x="images", before=3):
    """A convolution with a ReLU, and the mean over the map, in a file of the writer's."""
    return w.add("Relu", w.conv(x, before, 8, bias=True))


def test_the_largest_opset_against_the_reference_of_onnx(tmp_path):
    """onnxruntime takes the newest operators later."""
    opset = min(onnx.defs.onnx_opset_version(), 28)
    model, x = onnx_models.resnet(opset), images()
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"images": x.numpy()})
    assert distance(loaded(tmp_path, model).model(x), torch.from_numpy(expected)) < CLOSE


def test_constants_that_are_inputs_too_and_nodes_in_any_order(tmp_path):
    model = onnx_models.resnet(11)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    expected = runtime(model.SerializeToString(), images())
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    assert distance(loaded(tmp_path, model).model(images()), expected) < CLOSE


@pytest.mark.parametrize("kind", ["flatten", "reshape", "expand"])
def test_a_file_for_one_image_takes_many(tmp_path, kind):
    w = Writer(13)
    x = w.add("GlobalAveragePool", small(w))
    if kind == "expand":
        x = w.add("Concat", x, w.weight(np.zeros((1, 4, 1, 1))), axis=1)
    features = 12 if kind == "expand" else 8
    x = w.add("Flatten", x) if kind == "flatten" else w.add("Reshape", x, w.whole(1, features))
    same_logits(tmp_path, w.model(w.linear(x, features), shape=(1, 3, SIDE, SIDE), out=(1, CLASSES)))


def test_a_file_for_images_that_are_not_square(tmp_path):
    w = Writer(17)
    model = w.model(w.linear(w.add("Flatten", w.add("MaxPool", small(w), kernel_shape=[8, 10])), 504), ("N", 3, 10, 30))
    found, graph = same_logits(tmp_path, model, images(2, 3, 10, 30))
    assert found.input_size == 30 and found.model.image_shape == (3, 10, 30)
    assert found.assumed == ("images of 30 x 30 pixels, where the file says 10 x 30",)
    assert graph.provenance.fixed_size is None or graph.provenance.fixed_size == (10, 30)


def test_a_file_for_images_of_any_size(tmp_path):
    w = Writer(17)
    x = w.add("Flatten", w.add("GlobalAveragePool", small(w)))
    found, graph = same_logits(tmp_path, w.model(w.linear(x, 8), shape=("N", "C", "H", "W")))
    assert (found.channels, found.input_size) == (3, 224) and graph.provenance.fixed_size is None
    assert found.assumed == ("images of 224 x 224 pixels, of those that the file takes",)
    assert found.model(images(2, 3, 20, 24)).shape == (2, CLASSES)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_that_is_said_by_a_word(tmp_path, auto, stride):
    w = Writer(13)
    dilations = [1, 1] if auto.startswith("SAME") else [1, 2]  # onnxruntime has no both
    x = w.conv(small(w), 8, 6, 4, auto_pad=auto, strides=[stride, stride], dilations=dilations)
    same_logits(tmp_path, w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 6)))


POOLS = [
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [0, 1, 0, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "dilations": [2, 2]}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [0, 0, 2, 2], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [16, 16]}),
]


@pytest.mark.parametrize(("kind", "settings"), POOLS, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(POOLS)])
def test_pools(tmp_path, kind, settings):
    w = Writer(13)
    x = w.add(kind, small(w), **settings)
    same_logits(tmp_path, w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 8)))


def test_a_max_pool_that_no_graph_has_is_right_in_the_module_and_refused_by_trace(tmp_path):
    w = Writer(13)
    x = w.add("MaxPool", small(w), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0], name="pool")
    model = w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 8))
    found = loaded(tmp_path, model)
    assert distance(found.model(images()), runtime(model.SerializeToString(), images())) < CLOSE
    with pytest.raises(s_resnet.errors.UnsupportedModel, match=r"node pool: .* value=-inf; expected zeros"):
        s_resnet.trace(found.model, images(2))


def test_one_channel_and_signals(tmp_path):
    w = Writer(13)
    x = w.add("Relu", w.add("Conv", "images", w.random(6, 2, 5), strides=[2], pads=[2, 2]))
    x = w.add("MaxPool", x, kernel_shape=[3], strides=[2], pads=[1, 1])
    x = w.squeeze(w.add("GlobalAveragePool", w.add("Relu", w.norm(x, 6))), [2])
    signals = images(3, 2, 1, 40)
    model = w.model(w.linear(x, 6), shape=("N", 2, 40))
    found, _ = same_logits(tmp_path, model, signals, signals.squeeze(2))
    assert (found.channels, found.input_size) == (2, 40)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    model = onnx_models.resnet(13)
    x = images()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    expected = runtime(model.SerializeToString(), x)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model.graph.input[0].type.tensor_type.elem_type = kind
    found = loaded(tmp_path, model)
    assert {t.dtype for t in found.model.buffers() if t.is_floating_point()} == {torch.float32}
    assert distance(found.model(x), expected) < CLOSE


def test_weights_in_typed_fields_and_constants_computed_from_others(tmp_path):
    """As of a network whose weight normalization was not folded."""
    w = Writer(13)
    raw = w.chance.standard_normal((8, 3, 3, 3)).astype(np.float32)
    w.weights.append(helper.make_tensor("v", onnx.TensorProto.FLOAT, raw.shape, raw.flatten().tolist()))
    size = w.add("Sqrt", w.add("ReduceSum", w.add("Mul", "v", "v"), w.whole(1, 2, 3)))
    scale = w.add("Div", w.add("Identity", w.random(8, 1, 1, 1)), size)
    x = w.add("Relu", w.add("Conv", "images", w.add("Mul", "v", scale), pads=[1] * 4))
    x = w.add("Reshape", w.add("GlobalAveragePool", x), w.whole(0, -1))
    same_logits(tmp_path, w.model(w.linear(x, 8)))


def test_zeros_beside_channels_whose_shape_is_computed(tmp_path):
    """A shortcut of option A: slices, and zeros as many as there are images."""
    w = Writer(13)
    x = small(w)
    half = w.slice(x, [0, 0], [2**31, 2**31], [2, 3])
    half = w.add("Slice", half, w.whole(0, 0), w.whole(999, 999), w.whole(2, 3), w.whole(2, 2))
    sizes = w.slice(w.add("Shape", half), [2], [4], [0])
    batch = w.add("Gather", w.add("Shape", half), w.whole(0), axis=0)
    shape = w.add("Concat", batch, w.whole(4), w.add("Cast", sizes, to=7), axis=0)
    zeros = w.add("ConstantOfShape", shape)
    side = w.add("Concat", half, zeros, axis=1)
    main = w.conv(x, 8, 12, strides=[2, 2])
    x = w.add("Relu", w.add("Add", main, side))
    _, graph = same_logits(tmp_path, w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 12)))
    assert graph.provenance.fixed_size is None


def test_arithmetic_and_parts(tmp_path):
    w = Writer(13)
    x = w.add("Sub", w.add("Div", "images", w.weight([[[0.5]], [[0.25]], [[2.0]]])), w.weight(np.float32(0.1)))
    x = w.add("Gather", x, w.whole(2, 1, 0), axis=1)
    x = w.add("Neg", small(w, x))
    w.nodes.append(helper.make_node("Split", [x, w.whole(3, 5)], ["left", "right"], name="Split", axis=1))
    x = w.add("Relu", w.add("Concat", "right", "left", axis=1))
    x = w.add("Max", w.conv(x, 8, 8), w.weight(np.float32(0)))
    x = w.add("Unsqueeze", w.mean(x, [2, 3], 0), w.whole(2))
    same_logits(tmp_path, w.model(w.linear(w.squeeze(x, [2]), 8)))


def test_settings_that_exporters_seldom_write(tmp_path):
    """Pads of some axes, uneven parts, indices from the end, a division toward zero, Gemm with factors."""
    w = Writer(18)
    x = w.add("Pad", small(w), w.whole(1, 0, 0, 2), "", w.whole(3, 2))
    w.nodes.append(helper.make_node("Split", [w.conv(x, 8, 8)], ["a", "b", "c"], name="parts", axis=1, num_outputs=3))
    x = w.add("Gather", w.add("Concat", "c", "a", "b", axis=1), w.whole(-1, 0, 3, -5, 2), axis=1)
    x = w.add("GlobalAveragePool", w.add("Max", x, w.weight(np.float32(0)), w.weight(np.float32(-1))))
    rest = w.add("Add", w.add("Div", w.whole(-7), w.whole(2)), w.whole(2))
    x = w.add("Reshape", x, w.add("Concat", w.whole(0), rest, axis=0))
    x = w.add("Gemm", x, w.random(5, CLASSES), w.random(CLASSES), alpha=0.5, beta=2.0)
    same_logits(tmp_path, w.model(x))


def test_the_logits_among_several_outputs(tmp_path):
    w = Writer(13)
    x = w.add("GlobalAveragePool", small(w))
    logits = w.linear(w.add("Flatten", x), 8)
    model = w.model(logits)
    model.graph.output.append(helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, ("N", 8, 1, 1)))
    assert loaded(tmp_path, model).num_classes == CLASSES
    model.graph.output.append(helper.make_tensor_value_info("Flatten_4:0", onnx.TensorProto.FLOAT, ("N", 8)))
    with pytest.raises(s_resnet.errors.UnsupportedModel, match=r"got fc:0, .*; expected the logits \[B, N\] alone"):
        loaded(tmp_path, model)


@pytest.mark.parametrize("opset", [9, 13])
def test_a_clip_is_a_rectifier_that_saturates(tmp_path, opset):
    """ReLU6 as exporters write it, and a ReLU that is written as a clip."""
    w = Writer(opset)
    limits = (0.0, 1.5)
    x = w.conv("images", 3, 8)
    if opset < 11:
        x = w.add("Clip", x, min=limits[0], max=limits[1], name="relu6")
        x = w.add("Clip", w.conv(x, 8, 8), min=0.0, name="relu")
    else:
        x = w.add("Clip", x, *(w.weight(np.float32(limit)) for limit in limits), name="relu6")
        x = w.add("Clip", w.conv(x, 8, 8), w.weight(np.float32(0)), name="relu")
    model = w.model(w.linear(w.add("Flatten", w.add("GlobalAveragePool", x)), 8))
    _, graph = same_logits(tmp_path, model)
    ops = {node.name: node.op for node in graph.nodes}
    assert isinstance(ops["relu6"], s_resnet.graph.ops.ReLU) and isinstance(ops["relu"], s_resnet.graph.ops.ReLU)
    assert (ops["relu6"].limit, ops["relu"].limit) == (1.5, None)


# ---- torch's exporters ----


def bottlenecks():
    return randomized(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], CLASSES, groups=2))


def cifar():
    return randomized(s_resnet.models.CifarResNet(8, CLASSES, 4))


EXPORTS = {
    "script": (bottlenecks, {"dynamic_axes": {"images": {0: "batch"}}}),
    "script, any size": (cifar, {"dynamic_axes": {"images": {0: "batch", 2: "height", 3: "width"}}}),
    "script, one image": (bottlenecks, {"opset_version": 13}),
    "script, BatchNorm kept": (cifar, {"training": torch.onnx.TrainingMode.PRESERVE, "opset_version": 11}),
    "dynamo": (bottlenecks, {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}),
    "dynamo, one image, BatchNorm kept": (cifar, {"optimize": False}),
}


@pytest.mark.filterwarnings("ignore")  # exporters warn of each other
@pytest.mark.parametrize("way", EXPORTS)
def test_what_torch_exports(tmp_path, way):
    make, options = EXPORTS[way]
    model, dynamo, x = make(), way.startswith("dynamo"), images(2, 3, 32, 32)
    options = {"verbose": False, **options} if dynamo else {"input_names": ["images"], **options}
    example = x[:1] if "one image" in way else x
    torch.onnx.export(model, (example,), tmp_path / "m.onnx", dynamo=dynamo, external_data=False, **options)
    found = s_resnet.load_checkpoint(tmp_path / "m.onnx")
    expected = runtime((tmp_path / "m.onnx").read_bytes(), x)
    graph = s_resnet.trace(found.model, x)
    assert max(distance(answer, expected) for answer in (found.model(x), graph.run(x), model(x))) < CLOSE
    assert found.arch.startswith("ONNX opset ") and "pytorch" in found.arch
    assert found.input_size == (224 if "any size" in way else 32)
    norms = [node for node in graph.nodes if isinstance(node.op, s_resnet.graph.ops.BatchNorm2d)]
    assert bool(norms) == ("kept" in way)
