"""The section on settings and provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .markup import Html, element, joined, paragraph, section, table
from .study import Study

Studies = Sequence[Study]
GROUPS = {
    "calibration": "calibration",
    "data": "calibration data",
    "compensation": "compensation",
    "preprocessing": "preprocessing",
    "versions": "converted with",
}


def settings(studies: Studies, command: str, created: str) -> Html:
    """What was run, and where it came from."""
    rows: dict[str, list[str]] = {}
    for place, study in enumerate(studies):
        for name, value in _facts(study).items():
            rows.setdefault(name, [""] * len(studies))[place] = value
    names = (study.network for study in studies) if len(studies) > 1 else ("value",)
    facts = [(name, *values) for name, values in rows.items()]
    made = [("command", command)] * bool(command) + [("created", created)]
    return section(
        "settings",
        "Settings and provenance",
        table(("setting", *names), facts, "What was run", 1 + len(studies)),
        *(_passes(study, len(studies) > 1) for study in studies),
        element("dl", *(joined((element("dt", name), element("dd", element("code", value)))) for name, value in made)),
        paragraph("Every figure of this page is in report.json beside it.", kind="note"),
    )


def _facts(study: Study) -> dict[str, str]:
    known, report = study.provenance, study.report
    recipe, source = known.get("recipe", {}), known.get("source", {})
    seen = f", {report.calibrated_on:,} of them calibrated on" if report.calibrated_on else ""
    facts = {
        "network": study.network,
        "network, SHA-256": study.sha256,
        "source": " ".join(str(source[name]) for name in ("arch", "name") if name in source),
        "source, SHA-256": str(source.get("sha256", "")),
        "recipe": f"directly trained for T = {report.trained_for}"
        if study.trained
        else f"{report.recipe}, tuned for T = {recipe.get('timesteps', 'unknown')}",
        "spikes": report.alphabet,
        "measured on": study.data,
        "images": f"{report.images:,}{seen}",
        "device": f"{report.device}, kernel {report.kernel}",
        "simulation": f"{report.images_per_second:.3g} images/s",
    }
    for group, title in GROUPS.items():
        if study.trained and group == "calibration":  # there was none
            continue
        for name, value in known.get(group, {}).items():
            if name != "curve":  # of the compensation: report.json has it
                facts[f"{title} {name}" if group == "versions" else f"{title}, {name.replace('_', ' ')}"] = _brief(
                    value
                )
    return {name: value for name, value in facts.items() if value}


def _brief(value: object) -> str:
    """A setting as people read it."""
    if isinstance(value, list):
        return ", ".join(map(_brief, value)) or "none"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _passes(study: Study, several: bool) -> Html:
    """The recipe's passes with their settings."""
    entries = []
    for step in study.provenance.get("recipe", {}).get("passes", ()):
        options = ", ".join(f"{name} = {_brief(value)}" for name, value in step.items() if name != "pass")
        entries.append(element("li", element("code", step["pass"]), f": {options}" if options else ""))
    title = element("h3", f"Passes of {study.network}" if several else "Passes")
    return joined((title, element("ol", *entries))) if entries else Html("")
