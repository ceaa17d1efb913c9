"""Files of earlier formats: their header and tensors as the present format has them.

1: the networks of the first recipes. 2: whole numbers besides the weights. 3: schedules, spike alphabets, and what
spiking runs alone use. 4: that also for shortcuts. 5: neurons that were trained. 6: what belongs together is a
part with its kind: a neuron's alphabet and gradient, what spiking runs use, whole numbers. Before, all were settings
and tensors of the operation. 7: limits of ReLUs and neurons. 8: several neurons in place of one. 9: numbers for
other T.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import InvalidData, message

Settings = dict[str, Any]
Held = dict[str, Tensor]


def upgraded(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], Held]:
    """The header and the tensors of a file of format 1 to 8 in format 9.

    It moves and renames, and checks what it looks at; the rest is for whoever reads the present format.

    Raises:
        InvalidData: settings of which no network was made.
    """
    held = dict(tensors)
    nodes = []
    for entry in header["nodes"]:
        change = _CHANGES.get(entry["op"]) if header["format"] < 6 else None
        settings = dict(entry["settings"])
        settings = settings if change is None else change(entry["name"], settings, held)
        if header["format"] < 7 and ("limit" in settings or f"{entry['name']}/limit" in held):
            raise _invalid(entry["name"], "limit", "a limit, of a later format", "none")
        if header["format"] < 8 and (settings.get("spikes") or {}).get("kind") == "Copies":
            raise _invalid(entry["name"], "spikes", "copies, of a later format", "none")
        nodes.append({**entry, "settings": settings})
    return {**header, "nodes": nodes, "tuned": []}, held


def _neuron(name: str, settings: Settings, held: Held) -> Settings:
    amplitudes = settings.pop("levels", 1)
    signed, differential = (_flag(name, what, settings.pop(what, False)) for what in ("signed", "differential"))
    one = isinstance(amplitudes, int) and not isinstance(amplitudes, bool) and amplitudes == 1
    if _moved(name, settings, held, "firing", "spikes.thresholds"):
        spikes: Settings = {"kind": "MultiThreshold"}
        if signed or differential or not one:
            raise _invalid(name, "firing", "several thresholds with signs or amplitudes", "them alone")
    elif differential:
        spikes = {"kind": "Differential", "count": amplitudes}
        if signed:
            raise _invalid(name, "differential", "it with signs", "it alone")
    elif one:
        spikes = {"kind": "Signed" if signed else "Binary"}
    else:
        spikes = {"kind": "Amplitudes", "count": amplitudes, "signed": signed}
    shape, width, detached = (settings.pop(what, None) for what in ("surrogate", "width", "detach_reset"))
    surrogate = {"kind": "Surrogate", "shape": shape, "width": width, "detach_reset": detached}
    new = {"spikes": spikes, "quantization_levels": settings.pop("quantization", 0)}
    whole = _moved(name, settings, held, "integer", "integer.threshold")
    if _moved(name, settings, held, "integer_correction", "integer.correction") and not whole:
        raise _invalid(name, "integer_correction", "it without an integer threshold", "both, or none")
    new["integer"] = {"kind": "IntegerNeuron"} if whole else None
    return _with(name, settings, {**new, "surrogate": None if shape is None else surrogate})


def _conv(name: str, settings: Settings, held: Held) -> Settings:
    grid = settings.pop("grid", 0)
    if f"{name}/integer" not in held and (not isinstance(grid, int) or grid):
        raise _invalid(name, "grid", grid, "0 without whole numbers")
    return _synapse(name, settings, held, {"grid": grid})


def _linear(name: str, settings: Settings, held: Held) -> Settings:
    return _synapse(name, settings, held, {"step": settings.pop("integer_step", 1.0)})


def _scale(name: str, settings: Settings, held: Held) -> Settings:
    return _synapse(name, settings, held, {})


def _synapse(name: str, settings: Settings, held: Held, measure: Settings) -> Settings:
    gain = settings.pop("gain", 1.0)
    own = _moved(name, settings, held, "spiking_weight", "spiking.weight")
    whole = _moved(name, settings, held, "integer", "integer.weight")
    if _moved(name, settings, held, "integer_bias", "integer.bias") and not whole:
        raise _invalid(name, "integer_bias", "it without integer weights", "both, or none")
    plain = isinstance(gain, float) and gain == 1.0 and not own
    spiking = None if plain else {"kind": "SpikingWeights", "gain": gain}
    integer = {"kind": "IntegerWeights", **measure} if whole else None
    return _with(name, settings, {"spiking": spiking, "integer": integer})


def _qcfs(name: str, settings: Settings, held: Held) -> Settings:
    return _with(name, settings, {"quantization_levels": settings.pop("levels")})


_CHANGES = {"Neuron": _neuron, "QCFS": _qcfs, "Conv2d": _conv, "Linear": _linear, "Scale": _scale}


def _moved(name: str, settings: Settings, held: Held, old: str, new: str) -> bool:
    """Whether a node has this tensor, which then has its new name."""
    if settings.pop(old, None) is not None:
        raise _invalid(name, old, "a setting", "a tensor, or none")
    found = held.pop(f"{name}/{old}", None)
    if found is not None:
        held[f"{name}/{new}"] = found
    return found is not None


def _with(name: str, settings: Settings, new: Settings) -> Settings:
    """The settings with new ones, which an earlier format does not have."""
    for what in new.keys() & settings.keys():
        raise _invalid(name, what, "a setting of a later format", "none")
    return settings | new


def _flag(name: str, what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, what, value, "true or false")
    return value


def _invalid(name: str, what: str, got: object, expected: str) -> InvalidData:
    return InvalidData(message(str(name), what, got, expected, "Convert the network again"))
