"""Networks in ONNX written by hand, as exporters of every age and kind write them."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import s_resnet

SIDE, CLASSES = 16, 5


class Writer:
    """Writes the graph of a network node by node; every method gives the name of what it adds."""

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset, self.chance = opset, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array, name: str = "") -> str:
        array = np.asarray(array, np.float32 if np.asarray(array).dtype == np.float64 else None)
        self.weights.append(numpy_helper.from_array(array, name or f"w{len(self.weights)}"))
        return self.weights[-1].name

    def random(self, *shape: int, scale: float = 1.0) -> str:
        return self.weight((scale * self.chance.standard_normal(shape)).astype(np.float32))

    def add(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **settings) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        made = [f"{name}:{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **settings))
        return made[0]

    def whole(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, np.int64))

    # operators whose form depends on the opset

    def conv(self, x: str, before: int, after: int, kernel: int = 3, bias: bool = False, **settings) -> str:
        fan = before * kernel * kernel // settings.get("group", 1)
        weight = self.random(after, before // settings.get("group", 1), kernel, kernel, scale=(2 / fan) ** 0.5)
        more = [self.random(after, scale=0.1)] if bias else []
        if "pads" not in settings and "auto_pad" not in settings:
            settings["pads"] = [kernel // 2] * 4
        return self.add("Conv", x, weight, *more, **settings)

    def norm(self, x: str, channels: int) -> str:
        numbers = [1 + 0.1 * self.chance.standard_normal(channels), 0.1 * self.chance.standard_normal(channels)]
        numbers += [0.1 * self.chance.standard_normal(channels), 1 + 0.2 * self.chance.random(channels)]
        return self.add("BatchNormalization", x, *(self.weight(part.astype(np.float32)) for part in numbers))

    def pad(self, x: str, pads: list[int]) -> str:
        if self.opset < 11:
            return self.add("Pad", x, pads=pads)
        return self.add("Pad", x, self.whole(*pads))

    def mean(self, x: str, axes: list[int], kept: int) -> str:
        if self.opset < 18:
            return self.add("ReduceMean", x, axes=axes, keepdims=kept)
        return self.add("ReduceMean", x, self.whole(*axes), keepdims=kept)

    def squeeze(self, x: str, axes: list[int]) -> str:
        if self.opset < 13:
            return self.add("Squeeze", x, axes=axes)
        return self.add("Squeeze", x, self.whole(*axes))

    def dropout(self, x: str) -> str:
        return self.add("Dropout", x, **({"ratio": 0.3} if self.opset < 12 else {}))

    def slice(self, x: str, starts: list[int], ends: list[int], axes: list[int]) -> str:
        if self.opset < 10:
            return self.add("Slice", x, starts=starts, ends=ends, axes=axes)
        return self.add("Slice", x, *(self.whole(*numbers) for numbers in (starts, ends, axes)))

    def linear(self, x: str, features: int, classes: int = CLASSES) -> str:
        weight = self.random(classes, features, scale=features**-0.5)
        return self.add("Gemm", x, weight, self.random(classes), transB=1, name="fc")

    def model(self, answer: str, shape=("N", 3, SIDE, SIDE), out=("N", CLASSES)) -> onnx.ModelProto:
        given = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
        logits = helper.make_tensor_value_info(answer, TensorProto.FLOAT, out)
        graph = helper.make_graph(self.nodes, "network", [given], [logits], self.weights)
        opset = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opset, ir_version=min(10, onnx.IR_VERSION), producer_name="hand")


def resnet(opset: int) -> onnx.ModelProto:
    """Two blocks, the second with a projection; BatchNorm not folded."""
    w = Writer(opset)
    stem = w.add("Relu", w.norm(w.conv("images", 3, 8), 8))
    x = w.add("MaxPool", stem, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inner = w.add("Relu", w.norm(w.conv(x, 8, 8), 8))
    x = w.add("Relu", w.add("Add", w.norm(w.conv(inner, 8, 8), 8), x))
    inner = w.add("Relu", w.norm(w.conv(w.pad(x, [0, 0, 1, 1, 0, 0, 1, 1]), 8, 12, strides=[2, 2], pads=[0] * 4), 12))
    side = w.norm(w.conv(x, 8, 12, kernel=1, strides=[2, 2]), 12)
    x = w.add("Relu", w.add("Add", w.norm(w.conv(inner, 12, 12, group=2), 12), side))
    x = w.squeeze(w.mean(w.dropout(x), [2, 3], 1), [2, 3])
    return w.model(w.linear(x, 12))


def small_resnet(classes: int) -> onnx.ModelProto:
    """The same for images of any size and so many classes, in opset 17."""
    w = Writer(17)
    x = w.add("Relu", w.norm(w.conv("images", 3, 8, strides=[2, 2]), 8))
    x = w.add("Relu", w.add("Add", w.norm(w.conv(x, 8, 8), 8), x))
    x = w.add("Flatten", w.add("GlobalAveragePool", x))
    return w.model(w.linear(x, 8, classes), ("N", 3, "H", "W"), ("N", classes))


def channels_last(opset: int = 13) -> onnx.ModelProto:
    """As converters from TensorFlow write it: ``[N, H, W, C]`` outside of the convolutions, padding SAME."""
    w = Writer(opset)

    def conv(x: str, *sizes: int, **settings) -> str:
        x = w.add("Transpose", x, perm=[0, 3, 1, 2])
        return w.add("Transpose", w.conv(x, *sizes, **settings), perm=[0, 2, 3, 1])

    x = w.pad("images", [0, 2, 2, 0, 0, 3, 3, 0])
    x = w.add("Relu", w.add("Add", conv(x, 3, 8, 5, strides=[2, 2], pads=[0] * 4), w.random(8, scale=0.1)))
    x = w.add("Transpose", x, perm=[0, 3, 1, 2])
    x = w.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    x = w.add("Transpose", x, perm=[0, 2, 3, 1])
    inner = w.add("Mul", conv(x, 8, 8, auto_pad="SAME_UPPER"), w.weight(np.full((1, 1, 1, 8), 0.7)))
    inner = w.add("Relu", inner)
    x = w.add("Relu", w.add("Add", w.add("Sub", conv(inner, 8, 8, bias=True), w.random(8, scale=0.1)), x))
    inner = conv(x, 8, 8, 3, strides=[2, 2], auto_pad="SAME_UPPER")
    x = w.add("Relu", w.add("Concat", inner, conv(x, 8, 4, 1, strides=[2, 2]), axis=3))
    x = w.mean(x, [1, 2], 0)
    x = w.add("MatMul", x, w.random(12, CLASSES, scale=0.3), name="dense/MatMul")
    return w.model(w.add("Add", x, w.random(CLASSES), name="dense/BiasAdd"), shape=("N", SIDE, SIDE, 3))


def paddle(opset: int = 11) -> onnx.ModelProto:
    """As Paddle2ONNX writes it: constants as nodes, names with numbers, and shapes computed from the images'."""
    w = Writer(opset)
    x = w.add("Relu", w.norm(w.conv("images", 3, 8, strides=[2, 2]), 8), name="p2o.Relu.0")
    inner = w.add("Relu", w.norm(w.conv(x, 8, 8), 8), name="p2o.Relu.2")
    x = w.add("Relu", w.add("Add", x, w.norm(w.conv(inner, 8, 8), 8), name="p2o.Add.0"), name="p2o.Relu.4")
    side = w.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0, count_include_pad=0)
    x = w.add("Relu", w.add("Add", w.norm(w.conv(side, 8, 8, 1), 8), w.conv(x, 8, 8, strides=[2, 2], bias=True)))
    x = w.add("GlobalAveragePool", x, name="p2o.GlobalAveragePool.0")
    first, last, rest = (
        w.add("Constant", value=numpy_helper.from_array(np.array([number], np.int64))) for number in (0, 1, -1)
    )
    batch = w.add("Slice", w.add("Shape", x), first, last, name="p2o.Slice.0")
    x = w.add("Reshape", x, w.add("Concat", batch, rest, axis=0), name="p2o.Reshape.0")
    x = w.add("MatMul", x, w.random(8, CLASSES, scale=0.4), name="p2o.MatMul.0")
    return w.model(w.add("Add", x, w.random(CLASSES), name="p2o.Add.9"))


def images(count: int = 4, *shape: int) -> torch.Tensor:
    return torch.randn(count, *(shape or (3, SIDE, SIDE)), generator=torch.Generator().manual_seed(0))


def runtime(content: bytes, x: torch.Tensor) -> torch.Tensor:
    """What onnxruntime computes, one image at a time where the file takes no more."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, quiet, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    batches = x.split(given.shape[0]) if isinstance(given.shape[0], int) else [x]
    return torch.cat([torch.from_numpy(session.run(None, {given.name: part.numpy()})[0]) for part in batches])


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a part of the largest logit."""
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def loaded(folder, model: onnx.ModelProto) -> s_resnet.frontend.Checkpoint:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return s_resnet.load_checkpoint(path)
