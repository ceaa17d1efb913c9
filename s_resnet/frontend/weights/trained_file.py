"""The checkpoint that ``sresnet train`` writes: it says itself which network it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch

from ...errors import InvalidCheckpoint, InvalidData, message
from ...graph.provenance import Provenance
from ...models.catalog import build
from ..loaded import Checkpoint
from ..qcfs import QCFSModule
from .recognize import difference
from .state_dict import fill, stored

FORMAT = 1  # the version of what ``sresnet train`` writes
# The largest sensible settings of a training checkpoint, so that no file makes us build an enormous network.
MOST = {"timesteps": 2**16, "channels": 2**10, "size": 2**10, "classes": 2**20, "width": 2**16, "levels": 2**16}


def is_trained(content: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is the content of a file of ``sresnet train``."""
    return isinstance(content, dict) and {"format", "arch", "settings"} <= content.keys()


def trained(content: Mapping[str, Any], arch: str | None, digest: str, path: Path) -> Checkpoint:
    """The network in a file of ``sresnet train``, after whichever epoch."""
    where, again = str(path), "Train it again, or copy the file again"
    version, name = content["format"], content["arch"]
    if not isinstance(version, int) or version > FORMAT:
        upgrade = "Upgrade S-ResNet"
        raise InvalidCheckpoint(
            message(where, "training checkpoint", f"format {version}", f"at most {FORMAT}", upgrade)
        )
    if arch not in (None, name):
        raise InvalidCheckpoint(message(where, "architecture", repr(name), repr(arch), "Leave out arch"))
    try:
        settings, state = content["settings"], stored(dict(content["state_dict"]), where, path.stat().st_size)
        steps, channels, size, classes = (settings[key] for key in ("timesteps", "channels", "size", "classes"))
        options = {"width": settings["width"], "normalize_input": settings.get("normalize_input", False)}
        for key, most in MOST.items():
            optional = key in ("timesteps", "width", "levels") and settings.get(key) is None
            if not optional and (type(settings[key]) is not int or not 1 <= settings[key] <= most):
                raise ValueError(f"{key} {settings[key]!r}, expected 1 to {most}")
        with torch.device("meta"):
            shape = (channels, size, size)
            model = build(name, classes, timesteps=steps, input_shape=shape, **options).float()
        said = Provenance.from_json({name: content[name] for name in ("classes", "preprocessing", "data")})
        expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        _, differing = difference(expected, {key: tuple(tensor.shape) for key, tensor in state.items()})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, InvalidData) as error:
        got, wanted = f"no network ({error})", "what sresnet train wrote"
        raise InvalidCheckpoint(message(where, "training checkpoint", got, wanted, again)) from None
    if differing:
        raise InvalidCheckpoint(message(where, "names and shapes", differing, f"exactly those of {name}", again))
    fill(model, state, where)
    if "thresholds" in content:
        try:
            model = QCFSModule(model, torch.zeros(2, channels, size, size), settings["levels"], content["thresholds"])
        except (LookupError, TypeError, AttributeError, RuntimeError, InvalidData) as error:
            raise InvalidCheckpoint(
                message(where, "thresholds", str(error), "one tensor for each ReLU", again)
            ) from None
    return Checkpoint(
        model=model.eval(),
        arch=name,
        num_classes=classes,
        input_size=size,
        digest=digest,
        name=path.name,
        timesteps=steps,
        channels=channels,
        classes=said.classes or (),
        preprocessing=said.preprocessing,
        data=said.data,
    )
