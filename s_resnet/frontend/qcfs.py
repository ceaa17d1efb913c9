"""An ANN that is trained for conversion: its ReLUs quantize as T steps of spikes do, with learned thresholds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.arguments import whole_number
from ..errors import InvalidData, UnsupportedModel, message
from ..graph.graph import Graph
from ..graph.module import submodule
from ..graph.ops import QCFS, BatchNorm2d, Conv2d, Linear, Node, ReLU
from ..kernels.surrogate.qcfs import qcfs
from .trace import checked, trace

THRESHOLDS = "thresholds."  # the beginning of their names in a state dict
THRESHOLD = 4.0  # the initial one: outputs of batch normalization are seldom larger


class QCFSModule(nn.Module):
    """The ANN ``source`` with a QCFS activation in place of every call of a ReLU, ``[B, C, H, W] -> [B, N]``.

    Each call site has its own learned threshold, also where the source calls one module at several sites. The modules
    of the source are used, not copied: they are trained under the names that they have there, and the state dict is
    that of the source with ``thresholds.<node>`` added. Constants outside of convolutions, linear layers and batch
    normalization, such as a scale per branch, are not trained.

    Args:
        source: a network that :func:`s_resnet.trace` follows, with batch normalization as modules of its own.
        example_batch: ``[B, C, H, W]``, for tracing.
        levels: L, the T that the spiking network will need.
        thresholds: initial thresholds by node name; by default the limit of the ReLU, in whose place they are, or else
            4.

    Raises:
        InvalidData: a spiking network, dropout, thresholds of other nodes, or ``levels`` below 1.
        UnsupportedModel: as :func:`s_resnet.trace`.

    Source: Bu et al., ICLR 2022 (arXiv:2303.04347).
    """

    def __init__(
        self,
        source: nn.Module,
        example_batch: Tensor,
        levels: int = 8,
        thresholds: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        levels = whole_number(levels, "qcfs", "levels")
        parts = checked(source).named_modules()
        dropped = [name for name, m in parts if isinstance(m, nn.Dropout | nn.Dropout2d) and m.p > 0]
        if dropped:
            raise InvalidData(
                message(f"{dropped[0]}", "", "dropout, which qcfs training leaves out", "none", "Set p to 0")
            )
        self.traced, self.levels = trace(source, example_batch), levels
        if self.traced.neurons:
            raise InvalidData(message("qcfs", "", "a spiking network", "an ANN with ReLUs", "Train it as it is"))
        for name, child in source.named_children():
            self.add_module(name, child)
        self.owners = {node.name: self._owner(node) for node in self.traced.nodes}
        relus = {node.name: node.op for node in self.traced.nodes if isinstance(node.op, ReLU)}
        sites, start = list(relus), thresholds
        if start is None:
            limits = {name: op.limit for name, op in relus.items()}
            start = {n: torch.tensor(THRESHOLD) if limit is None else limit.max() for n, limit in limits.items()}
        if set(sites) != set(start):
            other = min(set(sites) ^ set(start))
            got = f"thresholds that differ at {other!r}"
            raise InvalidData(message("qcfs", "", got, "one for each ReLU", "Pass those of this network"))
        self.thresholds = nn.Module()
        for name in sites:
            path, _, leaf = name.rpartition(".")
            parent = submodule(self.thresholds, path) if path else self.thresholds
            parent.register_parameter(leaf, nn.Parameter(start[name].detach().clone()))

    def _owner(self, node: Node) -> str | None:
        """The path of the module that a node with learned tensors calls; None for other nodes."""
        if not isinstance(node.op, Conv2d | Linear | BatchNorm2d):
            return None
        modules = dict(self.named_modules())
        for path in (node.name, re.sub(r"_\d+$", "", node.name)):  # "_1" is its second call
            if isinstance(modules.get(path), nn.Conv2d | nn.Linear | nn.BatchNorm2d) and _plain(modules[path]):
                return path
        got = f"{type(node.op).__name__} that is no module's own"
        expected = "nn.Conv2d, nn.Linear or nn.BatchNorm2d, with their own forward"
        raise UnsupportedModel(message(f"{node.name}", "", got, expected, "Make it a module of the model"))

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the quantized ANN."""
        values: dict[str, Tensor] = {}
        learned = self.learned_thresholds()
        for node in self.traced.nodes:
            owner, inputs = self.owners[node.name], [values[name] for name in node.inputs] or [images]
            if owner is not None:
                values[node.name] = self.get_submodule(owner)(*inputs)
            elif node.name in learned:
                values[node.name] = qcfs(inputs[0], learned[node.name].abs(), self.levels)
            else:
                values[node.name] = node.op.run(*inputs)
        return values[self.traced.nodes[-1].name]

    def learned_thresholds(self) -> dict[str, Tensor]:
        """The thresholds by node name; the absolute value of a negative one counts."""
        return dict(self.thresholds.named_parameters())

    def graph(self) -> Graph:
        """The analog Graph with QCFS activations and the present weights, which :func:`s_resnet.convert` converts."""
        learned = self.learned_thresholds()

        def op(node: Node) -> Any:
            owner = self.owners[node.name]
            if node.name in learned:
                return QCFS(learned[node.name].detach().abs().cpu(), self.levels)
            if owner is None:
                return node.op
            own = self.get_submodule(owner)
            names = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
            fields = {field: getattr(own, name, None) for name, field in names.items()}
            tensors = {field: value.detach().cpu().clone() for field, value in fields.items() if value is not None}
            return replace(node.op, **tensors)  # type: ignore[type-var]

        nodes = tuple(replace(node, op=op(node)) for node in self.traced.nodes)
        return replace(self.traced, nodes=nodes)


def _plain(module: nn.Module) -> bool:
    """Whether a call of the module is its operation and nothing else."""
    return type(module).forward in (nn.Conv2d.forward, nn.Linear.forward, nn.BatchNorm2d.forward)
