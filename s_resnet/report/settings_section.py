"""What was run, and where the network came from."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..runtime.display import Table
from .network_report import NetworkReport, Networks

GROUPS = {
    "calibration": "calibration",
    "data": "calibration data",
    "compensation": "compensation",
    "preprocessing": "preprocessing",
    "versions": "converted with",
}


def facts_table(networks: Networks) -> Table:
    """Settings and provenance, a column for each network."""
    rows: dict[str, list[str]] = {}
    for place, net in enumerate(networks):
        for name, value in _facts(net).items():
            rows.setdefault(name, [""] * len(networks))[place] = value
    names = [net.network for net in networks] if len(networks) > 1 else ["value"]
    facts = tuple((name, *values) for name, values in rows.items())
    return Table(("setting", *names), facts, texts=1 + len(networks))


def _facts(net: NetworkReport) -> dict[str, str]:
    known, report = net.provenance, net.report
    source, groups = known.source, known.without_lists().to_json()
    seen = f", {report.calibrated_on:,} of them calibrated on" if report.calibrated_on else ""
    trained = f"directly trained for T = {report.trained_for}"
    facts = {
        "network": net.network,
        "network, SHA-256": net.sha256,
        "source": " ".join(part for part in (source.arch, source.name) if part is not None),
        "source, SHA-256": source.sha256 or "",
        "recipe": trained if net.trained else f"{report.recipe}, tuned for T = {known.recipe.timesteps or 'unknown'}",
        "spikes": report.alphabet,
        "ReLUs clipped at": " to ".join(dict.fromkeys(f"{limit:.4g}" for limit in net.limits or ())),
        "measured on": net.data,
        "images": f"{report.images:,}{seen}",
        "device": f"{report.device}, kernel {report.kernel}",
        "simulation": f"{report.images_per_second:.3g} images/s",
    }
    for group, title in GROUPS.items():
        if net.trained and group == "calibration":  # there was none
            continue
        part = groups.get(group)
        for name, value in sorted(part.items()) if isinstance(part, Mapping) else ():
            if name != "curve":  # of the compensation: report.json has it
                titled = f"{title} {name}" if group == "versions" else f"{title}, {name.replace('_', ' ')}"
                facts[titled] = _brief(value)
    return {name: value for name, value in facts.items() if value}


def _brief(value: object) -> str:
    """A setting as people read it."""
    if isinstance(value, list):
        return ", ".join(map(_brief, value)) or "none"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def passes(net: NetworkReport) -> list[tuple[str, str]]:
    """The recipe's passes with their settings."""
    found = []
    for step in net.provenance.recipe.passes or ():
        found.append((step.name, ", ".join(f"{name} = {_brief(value)}" for name, value in step.extra.items())))
    return found
