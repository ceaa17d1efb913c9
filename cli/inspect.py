"""``sresnet inspect``: what is in a network.snn."""

from __future__ import annotations

import json
from typing import Any

import click

from .say import say

STEEP = ("arctan", "sigmoid")  # surrogates whose width is a steepness


@click.command()
@click.argument("network", type=click.Path())
def inspect(network: str) -> None:
    """Show the graph of NETWORK.snn: thresholds, shortcut scales, recipe and provenance.

    Of a directly trained network, in place of scales, what its neurons are: thresholds, decay, reset and the surrogate
    gradient that it was trained with.
    """
    import s_resnet

    snn = s_resnet.load(network)
    parts = [_header(snn, network), _nodes(snn)]
    if not snn.trained:  # there nothing is scaled
        parts.append(_shortcuts(snn))
    say("\n\n".join((*parts, _provenance(snn))))


def _header(snn: Any, network: str) -> str:
    source = snn.provenance.get("source", {})
    recipe = snn.provenance.get("recipe", {})
    made = "directly trained" if snn.trained else f"recipe {recipe.get('name')}, tuned"
    return (
        f"{network}: {source.get('arch', 'a module from Python')} as a spiking network, {made} "
        f"for T = {recipe.get('timesteps')}; {len(snn.nodes)} nodes, {len(snn.neurons)} neuron layers"
    )


def _nodes(snn: Any) -> str:
    """One line per node; the scale is what one spike (or unit of current) stands for in the source network."""
    import s_resnet

    scales = s_resnet.scales(snn)
    rows: list[tuple[str, ...]] = [("node", "operation", "threshold", "scale", "weights", "inputs")]
    for node in snn.nodes:
        op = node.op
        threshold = _threshold(op)
        scale = _range(getattr(op, "scale", None)) or (f"{scales[node.name]:.4g}" if node.name in scales else "")
        weight = getattr(op, "weight", None)
        weights = "" if weight is None else "x".join(map(str, weight.shape)) or "1"
        if weights and getattr(op, "integer", None) is not None:
            weights += f" {str(op.integer.dtype).removeprefix('torch.')}"
        rows.append((node.name, type(op).__name__ + _kind(op), threshold, scale, weights, ", ".join(node.inputs)))
    return _table(rows)


def _threshold(op: Any) -> str:
    if not hasattr(op, "threshold"):
        return ""
    if op.integer is not None:
        return f"{int(op.integer.min())} ... {int(op.integer.max())}"
    levels = [op.threshold.max()] if op.firing is None else op.firing
    return ", ".join(f"{float(level):g}" for level in levels)


def _shortcuts(snn: Any) -> str:
    """The shortcut conversion model: what each residual branch is multiplied by."""
    import s_resnet

    rows: list[tuple[str, ...]] = [("neuron", "shortcut synapse", "kind", "lambda_in / lambda_out", "lambda_out")]
    for branch in s_resnet.shortcuts(snn):
        rows.append((branch.neuron, branch.synapse, branch.kind, f"{branch.ratio:.4f}", f"{branch.scale:.4g}"))
    return _table(rows) if len(rows) > 1 else "No residual branches."


def _range(scale: Any) -> str:
    """A scale per channel from its smallest to its largest."""
    if scale is None:
        return ""
    low, high = float(scale.min()), float(scale.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} ... {high:.4g}"


def _kind(op: Any) -> str:
    """What is special about a neuron layer."""
    if not hasattr(op, "schedule"):
        return ""
    words = [op.schedule] if op.schedule != "streaming" else []
    words += ["signed"] if op.signed else []
    words += [f"{op.levels} levels"] if op.levels > 1 else []
    words += ["differential"] if op.differential else []
    if op.surrogate is not None:  # directly trained
        words += [f"decay {op.decay:g}", "reset to zero" if op.reset == "zero" else "reset by subtraction"]
        words += [f"{op.surrogate} of {'steepness' if op.surrogate in STEEP else 'width'} {op.width:g}"]
    return f" ({', '.join(words)})" if words else ""


def _provenance(snn: Any) -> str:
    """Everything else that the artifact knows, without the long lists."""
    shown = dict(snn.provenance)
    if "data" in shown:
        shown["data"] = {k: v for k, v in shown["data"].items() if k != "fingerprints"}
    if "calibration" in shown:
        shown["calibration"] = {k: v for k, v in shown["calibration"].items() if k not in ("scales", "marks")}
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in sorted(shown.items()))


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
