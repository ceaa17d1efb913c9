"""Export to NIR, the Neuromorphic Intermediate Representation: an HDF5 file that other engines read."""

from __future__ import annotations

import importlib
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BackendUnavailable, ConversionError, InvalidData, message
from ..files import replacing
from ..graph.graph import Graph, check_spiking
from ..graph.inputs import check_size
from ..graph.neuron import Neuron
from ..graph.ops import LARGEST_PIXEL, Conv2d, Input, Node
from ..version import __version__
from .fold import Shape, squared
from .lower import Lowered, lower

# The last version in which IF nodes reset by subtraction, and the first in which they reset to a value.
SUBTRACTS, RESETS = "1.0.4", "1.0.8"
OUTPUT = "output"
EXTRA = "nir"


def export_nir(
    snn: Graph,
    path: str | os.PathLike[str],
    *,
    timesteps: int | None = None,
    tie_shortcuts: bool = False,
    split_maxpool: bool = False,
    input_shape: Shape | None = None,
) -> None:
    """Write a spiking network as a NIR file of Input, Conv2d, IF or LIF, and Output nodes (docs/reference/nir.md).

    An addition becomes several edges into each node that reads it. A converted network has threshold 1 and resistance
    1, all in float32; the answer is the mean of the outputs over the steps, in the units of the source's logits. A
    neuron with decay d and reset to zero is LIF with ``tau = r = 1 / (1 - d)`` and ``v_leak`` 0, which for dt = 1 is
    ``v[t] = v[t-1] + (r I - v[t-1]) / tau = d v[t-1] + I``.

    The metadata hold what NIR cannot express: reset by subtraction, the membrane at the start, firing at
    ``v >= threshold``, at most one spike per step, the number of steps. For reset by subtraction the file has no
    ``v_reset``, as in NIR 1.0.4, where IF resets by subtraction; nir 1.0.8 reads it as well. A network that resets to
    zero has ``v_reset`` = 0, which only newer readers know.

    Args:
        snn: a converted or directly trained network.
        path: the file to write, whole or not at all.
        timesteps: T, for the metadata; by default the one that the network was converted for.
        tie_shortcuts: whether identity shortcuts become bare edges, with their gain in the threshold of the neuron that
            reads them (:func:`s_resnet.export.lower.lower`): the same spikes, fewer synapses, thresholds other than 1.
        split_maxpool: whether the part up to a max-pool in the stem stays at the host; the file then starts with the
            pool's output (:func:`host_input`), the same current at every step, computed once per image.
        input_shape: ``(C, H, W)`` of one image; by default the one that the network was converted with.

    Raises:
        ConversionError: the network has something that NIR cannot express; the message names the node.
        InvalidData: no input shape is known.
        BackendUnavailable: nir is not installed.
        SResNetError: the file cannot be written.
    """
    nir, h5py = require("nir", EXTRA), require("h5py", EXTRA)
    check_spiking(snn, "export")
    shape = input_shape or snn.provenance.input_shape or ()
    if len(shape) != 3:
        remedy = "Pass input_shape, as the network does not say"
        raise InvalidData(message("export", "", f"input_shape {tuple(shape)}", "(channels, height, width)", remedy))
    check_size(snn.provenance, shape[1:], "export")
    if timesteps is None:
        timesteps = snn.provenance.recipe.timesteps
    snn = snn.at(timesteps or 1)
    lowered = lower(snn.to("cpu"), shape, tie_shortcuts, split_maxpool)
    resets = {node.op.reset for node in lowered.nodes if isinstance(node.op, Neuron)}
    if len(resets) > 1:
        remedy = "Convert all neurons with the same reset"
        raise InvalidData(message("export", "", "neurons of both resets", "one for the whole network", remedy))
    (reset,) = resets
    graph = _graph(nir, lowered, _metadata(snn, lowered, reset, timesteps))
    written = io.BytesIO()  # HDF5 itself gives no reason when a disk is full
    nir.write(written, graph)
    with h5py.File(written, "r+") as file:
        _settle_reset(file, reset)
    with replacing(path) as temporary:
        temporary.write_bytes(written.getvalue())


def require(module: str, package: str) -> Any:
    """Import an optional module.

    Raises:
        BackendUnavailable: it is not installed; the message names the package to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        got, remedy = f"no such module ({error})", f"Run: pip install {package}"
        raise BackendUnavailable(message(module, "", got, "it installed", remedy)) from error


def _graph(nir: Any, lowered: Lowered, metadata: Mapping[str, Any]) -> Any:
    names = _names(lowered)
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    for node in lowered.nodes:
        name, shape = names[node.name], lowered.shapes[node.name]
        if isinstance(node.op, Input):
            nodes[name] = nir.Input(input_type={"input": np.array(shape)})
        elif isinstance(node.op, Conv2d):
            nodes[name] = _conv2d(nir, node, lowered.shapes[node.inputs[0]])
        else:
            assert isinstance(node.op, Neuron)
            nodes[name] = _neuron(nir, node.op, shape)
            nodes[name].metadata["name"] = node.name
        edges += [(names[before], name) for before in node.inputs]
    last = lowered.nodes[-1].name
    nodes[OUTPUT] = nir.Output(output_type={"output": np.array(lowered.shapes[last])})
    edges.append((names[last], OUTPUT))
    graph = nir.NIRGraph(nodes=nodes, edges=edges)
    graph.metadata = dict(metadata)
    return graph


def _names(lowered: Lowered) -> dict[str, str]:
    """Unique names that can be attributes in Python and groups in HDF5: without dots and slashes."""
    taken, names = {OUTPUT}, {}
    for node in lowered.nodes:
        plain = "".join(letter if letter.isalnum() else "_" for letter in node.name)
        name, count = plain, 1
        while name in taken:
            count += 1
            name = f"{plain}_{count}"
        taken.add(name)
        names[node.name] = name
    return names


def _conv2d(nir: Any, node: Node, shape: Shape) -> Any:
    """The convolution with a square kernel, as nir computes the size of the result from the kernel's height alone."""
    assert isinstance(node.op, Conv2d)
    op = squared(node.op, shape)
    if op is None:
        got = f"a kernel of {tuple(node.op.weight.shape[2:])} over {tuple(shape[1:])} pixels"
        expected = "a square one, or odd or even numbers in both directions, as nir reads no others"
        raise ConversionError(message(node.name, "", got, expected, "Use a square kernel in the model"))
    assert op.bias is not None
    return nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=_array(op.weight),
        stride=op.stride,
        padding=op.padding,
        dilation=op.dilation,
        groups=1,
        bias=_array(op.bias),
    )


def _neuron(nir: Any, op: Neuron, shape: Shape) -> Any:
    threshold = op.threshold.view(-1, 1, 1).expand(shape)
    ones = np.ones(shape, np.float32)
    start = op.initial_potential * op.threshold
    said = {"v_initial": _array(start) if start.ndim else float(start)}
    if op.decay == 1.0:
        node = nir.IF(r=ones, v_threshold=_array(threshold))
    else:
        tau = ones / np.float32(1 - op.decay)
        node = nir.LIF(tau=tau, r=tau.copy(), v_leak=0 * ones, v_threshold=_array(threshold))
        said["decay"] = op.decay
    node.metadata = said
    return node


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _metadata(snn: Graph, lowered: Lowered, reset: str, timesteps: int | None) -> dict[str, Any]:
    """What NIR cannot express, as texts and numbers; lists as JSON."""
    answers = {
        "current": "mean of the output over the steps, in the units of the source's logits",
        "spikes": "spike count of the output; a tie has no answer",
    }
    first = lowered.nodes[0].name
    said: dict[str, Any] = {
        "producer": f"s-resnet {__version__}",
        "reset": reset,
        "compare": ">=",
        "spikes_per_step": 1,
        "initial_potential": "v_initial of each neuron node",
        "dt": 1.0,
        "input": f"the value of {first!r} for the preprocessed image, the same at every step",
        "input_node": first,
        "readout": answers[lowered.readout],
    }
    grid = getattr(snn.nodes[0].op, "grid", 0)
    if grid and first == snn.nodes[0].name:
        largest = LARGEST_PIXEL * grid
        said["input"] = f"clip(round({grid} x), -{largest}, {largest}) of the preprocessed image x, at every step"
    if timesteps is not None:
        said["timesteps"] = int(timesteps)
    known = snn.provenance.to_json()
    return {
        **said,
        **{name: json.dumps(known[name]) for name in ("preprocessing", "classes", "source") if name in known},
    }


def _settle_reset(file: Any, reset: str) -> None:
    """Keep ``v_reset`` only in neurons that reset to a value, whatever version of nir wrote the file."""
    for node in file["node/nodes"].values():
        if node["type"][()] not in (b"IF", b"LIF"):
            continue
        if "v_reset" in node:
            del node["v_reset"]
        if reset == "zero":
            node["v_reset"] = np.zeros_like(node["v_threshold"][()])
    del file["version"]
    file["version"] = SUBTRACTS if reset == "subtract" else RESETS
