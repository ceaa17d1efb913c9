"""``sresnet inspect``: what is in a network.snn."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.argument("network", type=click.Path())
def inspect(network: str) -> None:
    """Show the graph of NETWORK.snn: thresholds, shortcut scales, recipe and provenance."""
    import s_resnet

    snn = s_resnet.load(network)
    click.echo("\n\n".join((_header(snn, network), _nodes(snn), _shortcuts(snn), _provenance(snn))))


def _header(snn: Any, network: str) -> str:
    source = snn.provenance.get("source", {})
    recipe = snn.provenance.get("recipe", {})
    return (
        f"{network}: {source.get('arch', 'a module from Python')} as a spiking network, recipe {recipe.get('name')}, "
        f"tuned for T = {recipe.get('timesteps')}; {len(snn.nodes)} nodes, {len(snn.neurons)} neuron layers"
    )


def _nodes(snn: Any) -> str:
    """One line per node; the scale is what one spike (or unit of current) stands for in the source network."""
    scales = snn.provenance.get("calibration", {}).get("scales", {})
    rows: list[tuple[str, ...]] = [("node", "operation", "threshold", "scale", "weights", "inputs")]
    for node in snn.nodes:
        op = node.op
        threshold = f"{float(op.threshold.max()):g}" if hasattr(op, "threshold") else ""
        if threshold and op.integer is not None:
            threshold = f"{int(op.integer.min())} ... {int(op.integer.max())}"
        scale = f"{scales[node.name]:.4g}" if node.name in scales else ""
        weight = getattr(op, "weight", None)
        weights = "" if weight is None else "x".join(map(str, weight.shape)) or "1"
        if weights and getattr(op, "integer", None) is not None:
            weights += f" {str(op.integer.dtype).removeprefix('torch.')}"
        rows.append((node.name, type(op).__name__, threshold, scale, weights, ", ".join(node.inputs)))
    return _table(rows)


def _shortcuts(snn: Any) -> str:
    """The shortcut conversion model: what each residual branch is multiplied by."""
    import s_resnet

    scales = snn.provenance.get("calibration", {}).get("scales", {})
    rows: list[tuple[str, ...]] = [("neuron", "shortcut synapse", "kind", "lambda_in / lambda_out", "lambda_out")]
    for node in snn.neurons:
        if len(node.inputs) < 2:
            continue
        for name in node.inputs[1:]:
            op = snn[name].op
            kind = "identity" if isinstance(op, s_resnet.Scale) else "projection"
            ratio = float(op.weight.mean()) if kind == "identity" else _ratio(snn, name, scales, node.name)
            rows.append((node.name, name, kind, f"{ratio:.4f}", f"{scales.get(node.name, 1.0):.4g}"))
    return _table(rows) if len(rows) > 1 else "No residual branches."


def _ratio(snn: Any, name: str, scales: dict[str, float], neuron: str) -> float:
    """lambda_in / lambda_out of a projection: the neuron that feeds it against the one that integrates it."""
    feeder = snn[name].inputs[0]
    while feeder not in scales and snn[feeder].inputs:
        feeder = snn[feeder].inputs[0]
    return scales.get(feeder, 1.0) / scales.get(neuron, 1.0)


def _provenance(snn: Any) -> str:
    """Everything else that the artifact knows, without the long lists."""
    shown = dict(snn.provenance)
    if "data" in shown:
        shown["data"] = {k: v for k, v in shown["data"].items() if k != "fingerprints"}
    if "calibration" in shown:
        shown["calibration"] = {k: v for k, v in shown["calibration"].items() if k != "scales"}
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in sorted(shown.items()))


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
