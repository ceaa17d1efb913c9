"""Reading a network from an ONNX file: operators are looked up in a table of our own, and nothing in it is run."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...errors import BackendUnavailable, InvalidCheckpoint, UnsupportedModel, message
from ...files import opened, reason
from ..loaded import Checkpoint
from ..program import Earlier, Program, Step
from ..program_limits import CHANNELS, SIDE, logits_among
from ..weights.foreign_files import kind_of, refusal
from . import wire
from .network import OnnxGraph, convert_nodes, example_images
from .node import LARGEST as MOST
from .node import Reading, Value, permuted
from .tensors import AGAIN, FLOATS, Tensors, short

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OLDEST, NEWEST = 9, 28  # versions of ONNX's operators
LARGEST = 2**31 - 1  # bytes of a file, as protobuf has it
USUAL = 224  # pixels, where the file takes images of any size


def load(path: Path) -> Checkpoint:
    """The network in an ONNX file, opsets 9 to 28.

    Raises:
        InvalidCheckpoint: the file cannot be read, or its tensors and nodes do not fit each other.
        UnsupportedModel: an operation cannot be converted; the message names its node.
        BackendUnavailable: the package onnx is not installed.
    """
    where, tensors = str(path), Tensors(path)
    model = _parsed(path, tensors)
    opset = _opset(model, where)
    graph = OnnxGraph.of(where, model.graph)
    answer = _answer(model, where)
    images = _images(graph, model, where)
    reading = Reading(where, tensors, opset, images.batch)
    start = example_images(images.shape, images.last)
    found = convert_nodes(graph, reading, answer, start, images.name)
    program, classes = _program(reading, found, images)
    _check_numbers(program, where)
    producer = " ".join(short(text) for text in (model.producer_name, model.producer_version) if text)
    return Checkpoint(
        model=program.eval(),
        arch=f"ONNX opset {opset}" + (f" of {producer}" if producer else ""),
        num_classes=classes,
        input_size=max(program.image_shape[1:]),
        digest=tensors.digest.hexdigest(),
        name=path.name,
        channels=images.shape[0],
        assumed=images.assumed,
    )


# ---- the file ----


def _parsed(path: Path, tensors: Tensors) -> ModelProto:
    """The file as messages; its bytes go into the digest."""
    where = str(path)
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        got, remedy = f"no such module ({error})", "Run: pip install onnx"
        raise BackendUnavailable(message("onnx", "", got, "it installed, to read .onnx files", remedy)) from error
    try:
        with opened(path, LARGEST) as file:
            content = file.read(os.fstat(file.fileno()).st_size)
    except OSError as error:
        remedy = "Pass the path of a readable .onnx file; weights beyond 2 GB belong into files beside it"
        raise InvalidCheckpoint(message(where, "cannot be opened", reason(error), "a readable file", remedy)) from None
    tensors.digest.update(content)
    try:
        wire.scan(content, onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto.FromString(content)
    except wire.Excess as error:
        remedy = "Export the network itself, without functions and metadata"
        raise InvalidCheckpoint(
            message(where, "unfolds to too much", str(error), "nodes and weights of a network", remedy)
        ) from None
    except Exception:  # on damaged bytes the parser can fail in any way
        raise _damaged(path, content) from None
    if not model.graph.node or not model.graph.output:
        raise _damaged(path, content)
    return model  # type: ignore[no-any-return]


def _damaged(path: Path, content: bytes) -> InvalidCheckpoint:
    where = str(path)
    if not content:
        return InvalidCheckpoint(message(where, "empty file", "0 bytes", "a whole ONNX model", AGAIN))
    if content.startswith((b"PK\x03\x04", b"\x80")):  # the beginnings of what torch.save writes
        remedy = "Rename it so that its name ends in .pth"
        return InvalidCheckpoint(
            message(where, "not ONNX", "a checkpoint by its content", "a whole ONNX model", remedy)
        )
    found = kind_of(content[:512], path)
    if found is not None and not found[0].startswith("ONNX"):
        return refusal(where, found)
    got = "truncated, damaged or foreign data"
    return InvalidCheckpoint(message(where, "cannot be read", got, "a whole ONNX model", AGAIN))


def _opset(model: ModelProto, where: str) -> int:
    """The version of ONNX's own operators."""
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(found) != 1 or not OLDEST <= found[0] <= NEWEST:
        got = f"opset {', '.join(map(str, found)) or 'unknown'}"
        remedy = "Convert it with onnx.version_converter.convert_version(model, 17), or export it again"
        raise InvalidCheckpoint(message(where, "ONNX file", got, f"opset {OLDEST} to {NEWEST}", remedy))
    return int(found[0])


def _answer(model: ModelProto, where: str) -> str:
    """The name of the logits: the only output, or the only one that may be ``[B, N]``."""
    outputs = list(model.graph.output)
    shaped = [out.type.tensor_type.HasField("shape") for out in outputs]
    axes = [len(_sizes(out)) if known else None for out, known in zip(outputs, shaped, strict=True)]
    found = logits_among([(str(out.name), rank) for out, rank in zip(outputs, axes, strict=True)])
    if found is None:
        names = ", ".join(short(out.name) for out in outputs[:8])
        remedy = "Keep one: onnx.utils.extract_model(FILE, 'logits.onnx', [IMAGES], [LOGITS])"
        raise UnsupportedModel(message(where, "outputs", names, "the logits [B, N] alone", remedy))
    return found


# ---- the images ----


@dataclass(frozen=True)
class _Images:
    """What the file takes.

    Attributes:
        name: of the input.
        shape: ``(C, H, W)``, or ``(C, L)`` of signals; where the file takes any size, the usual one.
        last: whether the file has the channels last.
        batch: how many images it takes; None for any number.
        assumed: what is assumed of their size, in words.
    """

    name: str
    shape: tuple[int, ...]
    last: bool
    batch: int | None
    assumed: tuple[str, ...]


def _sizes(info: ValueInfoProto) -> list[int | None]:
    """The sizes that are declared; None for any."""
    dims = info.type.tensor_type.shape.dim
    return [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims]


def _images(graph: OnnxGraph, model: ModelProto, where: str) -> _Images:
    """The one input, and how images lie in it."""
    if len(graph.inputs) != 1:
        names = ", ".join(map(short, graph.inputs[:8])) or "none"
        remedy = "Export the network with its images as the only input"
        raise UnsupportedModel(message(where, "inputs", names, "one, of images", remedy))
    (info,) = (given for given in model.graph.input if given.name == graph.inputs[0])
    kind, sizes = info.type.tensor_type, _sizes(info)
    if kind.elem_type not in FLOATS or len(sizes) not in (3, 4):
        got = f"a tensor of type {kind.elem_type} with {len(sizes)} axes"
        remedy = "Export the network itself, without what prepares its images"
        raise UnsupportedModel(
            message(where, f"input {short(info.name)}", got, "floating-point images [B, C, H, W]", remedy)
        )
    last = len(sizes) == 4 and _channels_last(graph, info.name, sizes)
    batch, *rest = sizes
    channels, *sides = (rest[-1], *rest[:-1]) if last else rest
    channels = channels or _channels(graph)
    shape = (channels, *(USUAL if side is None else side for side in sides))
    sane = 1 <= channels <= CHANNELS and all(1 <= side <= SIDE for side in shape) and math.prod(shape) <= MOST
    if not sane or (batch is not None and batch < 1):
        got = f"images of {tuple(sizes)}"
        raise InvalidCheckpoint(message(where, f"input {short(info.name)}", got, "positive sizes", AGAIN))
    return _Images(info.name, shape, last, batch, _assumed(sides, shape[1:]))


def _assumed(said: Sequence[int | None], sides: Sequence[int]) -> tuple[str, ...]:
    """What is assumed of the size of the images, where the file takes several, or none that is square."""
    if len(sides) == 2 and None in said:
        return (f"images of {max(sides)} x {max(sides)} pixels, of those that the file takes",)
    if len(set(sides)) > 1:
        return (f"images of {max(sides)} x {max(sides)} pixels, where the file says {sides[0]} x {sides[1]}",)
    return ()


def _channels_last(graph: OnnxGraph, name: str, sizes: Sequence[int | None]) -> bool:
    """Whether images are ``[B, H, W, C]``: by the first transpose behind them, or else by the sizes."""
    for _ in range(8):
        readers = list(graph.consumers(name))
        if len(readers) != 1 or not readers[0].output:
            break
        if readers[0].op_type == "Transpose":
            orders = [tuple(said.ints) for said in readers[0].attribute if said.name == "perm"]
            return orders == [(0, 3, 1, 2)]
        if readers[0].op_type not in ("Add", "Sub", "Mul", "Div", "Cast", "Identity", "Pad"):
            break
        name = readers[0].output[0]
    return sizes[3] in (1, 2, 3, 4) and sizes[1] not in (1, 2, 3, 4)


def _channels(graph: OnnxGraph) -> int:
    """The channels that the first convolution takes; 3 where no convolution tells."""
    for node in graph.nodes:
        weight = graph.tensors.get(node.input[1]) if node.op_type == "Conv" and len(node.input) > 1 else None
        if weight is not None and len(weight.dims) > 1:
            groups = [said.i for said in node.attribute if said.name == "group"]
            return int(weight.dims[1]) * int((groups or [1])[0])
    return 3


# ---- the program ----


def _program(reading: Reading, answer: Value, images: _Images) -> tuple[Program, int]:
    """The module of the steps, and the number of its logits."""
    if not answer.is_activation or answer.step is None or len(answer.shape) not in (2, 4):
        got = (
            f"an output of shape {answer.shape}"
            if answer.is_activation
            else "an output that does not depend on the images"
        )
        remedy = "Export the network with its logits as the output"
        raise UnsupportedModel(message(reading.where, "output", got, "logits [B, N]", remedy))
    steps, end = list(reading.steps), answer.step
    if not answer.plain:
        steps.append(Step("output", "Transpose", permuted, (Earlier(end), answer.axes), result="output"))
        end = "output"
    return Program(steps, "images", end, images.shape), answer.shape[1]


def _check_numbers(program: nn.Module, where: str) -> None:
    """Check that the weights are finite.

    Raises:
        InvalidCheckpoint: one is not; the message names its node.
    """
    for name, tensor in program.named_buffers():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            node: Any = program.get_submodule(name.rpartition(".")[0])
            got = f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} weights NaN or infinite"
            remedy = "Export a network from before the training diverged"
            raise InvalidCheckpoint(message(f"{where}: node {node.label}", "", got, "finite float32 weights", remedy))
