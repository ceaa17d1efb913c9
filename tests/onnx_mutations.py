"""Mutations of ONNX files, for the tests and for tests/fuzz.py."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parent / "frontend"))
import onnx_models

import s_resnet

NUMBERS = [0, 1, 2, 3, 7, -1, -2, 16, 255, 2**16, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1]
KINDS = [
    *("Relu", "Conv", "Add", "Mul", "Div", "Reshape", "Flatten", "Transpose", "Concat", "Gemm", "MatMul", "MaxPool"),
    *("AveragePool", "Pad", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Expand", "ConstantOfShape", "Shape"),
    *("Range", "Where", "Cast", "Clip", "ReduceMean", "ReduceSum", "Max", "Pow", "If", "Loop", "Identity", "Dropout"),
]
SETTINGS = ["axis", "axes", "perm", "pads", "strides", "kernel_shape", "dilations", "group", "to", "alpha", "split"]


def bases() -> list[bytes]:
    made = [onnx_models.resnet(9), onnx_models.resnet(13), onnx_models.resnet(18)]
    made += [onnx_models.channels_last(), onnx_models.paddle()]
    return [model.SerializeToString() for model in made]


def mutate(contents: list[bytes], chance: random.Random) -> bytes:
    """A file with one to three things changed in its messages."""
    model = onnx.ModelProto.FromString(chance.choice(contents))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        chance.choice([_node, _node, _setting, _setting, _tensor, _tensor, _whole, _graph])(model, chance)
    return model.SerializeToString()


def use(path: Path) -> None:
    """Load it; where its images are small, run it, trace it and run the Graph."""
    found = s_resnet.load_checkpoint(path)
    for tensor in found.model.buffers():
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all())
    if found.input_size > 64:
        return
    x = torch.randn(2, found.channels, found.input_size, found.input_size, generator=torch.Generator().manual_seed(0))
    graph = s_resnet.trace(found.model, x)
    assert bool(graph.run(x).isfinite().all())


def _numbers(chance: random.Random) -> list[int]:
    return [chance.choice(NUMBERS) for _ in range(chance.choice([0, 1, 2, 3, 4, 4, 6, 8]))]


def _node(model: onnx.ModelProto, chance: random.Random) -> None:
    nodes = model.graph.node
    if not nodes:
        return
    node, kind = chance.choice(nodes), chance.randrange(9)
    names = [name for other in nodes for name in (*other.input, *other.output)]
    if kind < 3:
        node.op_type = chance.choice([*KINDS, "", "x" * 500, "\x1b[2J"])
    elif kind == 3 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice([*names, "", "nowhere"])
    elif kind == 4:
        node.input.append(chance.choice([*names, ""]))
    elif kind == 5:
        nodes.remove(node)
    elif kind == 6:
        nodes.append(node)
    elif kind == 7 and node.output:
        node.output[0] = chance.choice([*names, ""])
    else:
        node.name = chance.choice(["", "input", "a\nb", "x" * 10_000, "\x1b]0;owned\x07"])


def _setting(model: onnx.ModelProto, chance: random.Random) -> None:
    node = chance.choice(model.graph.node or [onnx.NodeProto()])
    kind = chance.randrange(6)
    if kind == 0 and node.attribute:
        node.attribute.remove(chance.choice(node.attribute))
    elif kind < 4 and node.attribute:
        said = chance.choice(node.attribute)
        if said.type == onnx.AttributeProto.INTS:
            said.ints[:] = _numbers(chance)
        said.i, said.f = chance.choice(NUMBERS), chance.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
        if kind == 3:
            said.type = chance.randrange(16)
    else:
        value: Any = chance.choice([chance.choice(NUMBERS), _numbers(chance) or [0], "SAME_UPPER", 0.5, b"\xff\xfe"])
        node.attribute.append(helper.make_attribute(chance.choice(SETTINGS), value))


def _tensor(model: onnx.ModelProto, chance: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor, kind = chance.choice(model.graph.initializer), chance.randrange(9)
    if kind < 2:
        tensor.dims[:] = _numbers(chance)
    elif kind == 2:
        tensor.data_type = chance.randrange(30)
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data) + 1)]
    elif kind == 4:
        tensor.raw_data = bytes(chance.randrange(256) for _ in range(min(4096, len(tensor.raw_data))))
    elif kind == 5:
        count = len(tensor.raw_data) // 8
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, TensorProto.INT64, [count], [chance.choice(NUMBERS) for _ in range(count)])
        )
    elif kind == 6:
        tensor.data_location = TensorProto.EXTERNAL
        where = chance.choice(["", ".", "..", "/etc/passwd", "../x", "mutated-sealed.onnx", "a\0b", "x" * 5000])
        tensor.external_data.add(key="location", value=where)
        key = chance.choice(["offset", "length"])
        tensor.external_data.add(key=key, value=chance.choice(["0", "-1", "864", "9" * 40, "x"]))
    elif kind == 7:
        tensor.name = chance.choice(["", chance.choice(model.graph.initializer).name])
    else:
        tensor.float_data.extend([0.0] * chance.choice([1, 1000]))


def _whole(model: onnx.ModelProto, chance: random.Random) -> None:
    """The file itself: versions, domains, unknown fields."""
    kind = chance.randrange(4)
    if kind == 0:
        model.opset_import[0].version = chance.choice([*NUMBERS, *range(7, 30)])
    elif kind == 1:
        model.opset_import.add(domain=chance.choice(["", "ai.onnx", "other"]), version=13)
    elif kind == 2:
        model.producer_name = chance.choice(["", "\x1b[2J", "x" * 10_000])
    else:
        model.functions.add(name="f", domain="other")


def _graph(model: onnx.ModelProto, chance: random.Random) -> None:
    """What goes in and comes out."""
    given = chance.choice([*model.graph.input, *model.graph.output])
    kind, dims = chance.randrange(6), given.type.tensor_type.shape.dim
    if kind < 3 and dims:
        chance.choice(dims).dim_value = chance.choice(NUMBERS)
    elif kind == 3 and dims:
        dims.pop()
    elif kind == 4:
        given.type.tensor_type.elem_type = chance.randrange(25)
    else:
        given.name = chance.choice(["", "x", chance.choice(model.graph.node or [onnx.NodeProto(name="x")]).name])
