"""Everything that S-ResNet raises on purpose.

    SResNetError
    ├── UnsupportedModel      an operation or module that cannot be traced
    ├── InvalidCheckpoint     a checkpoint file that cannot be read or recognized
    ├── InvalidData           images, labels or settings that do not fit
    ├── ConversionError       a pass that cannot do what its recipe asks
    ├── InvalidArtifact       a .snn file that cannot be read or written
    ├── BackendUnavailable    a device or kernel that is not there
    └── TrainingDiverged      a loss or weight that is NaN or infinite

Besides these there is SResNetWarning, a Python warning: the work goes on, but its result may not mean what it seems to.

Every message has the same form: ``<where>: <what>, got X; expected Y. <what to do>.`` :func:`message` builds it. It is
one line of printable letters, since names in it come from files, and a terminal carries out control characters.
"""

import sys
import warnings

__all__ = [
    "BackendUnavailable",
    "ConversionError",
    "InvalidArtifact",
    "InvalidCheckpoint",
    "InvalidData",
    "SResNetError",
    "SResNetWarning",
    "TrainingDiverged",
    "UnsupportedModel",
    "message",
    "printable",
    "warn",
]


def printable(text: str) -> str:
    """``text`` in one line, with a space for white space and ? for letters that cannot be printed."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def message(where: str, what: str, got: object, expected: object, remedy: str) -> str:
    """The text of an error: ``<where>: <what>, got X; expected Y. <remedy>.``

    Args:
        where: the file, node or function.
        what: the argument or part of it; empty where ``where`` says enough.
        got: what was given, in words or numbers.
        expected: what would have been right.
        remedy: what to do about it, as a sentence with or without its period.
    """
    return f"{where}: {what}{', ' if what else ''}got {got}; expected {expected}. {remedy.removesuffix('.')}."


class SResNetError(Exception):
    """The base class of every error that S-ResNet raises on purpose."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(said) if isinstance(said, str) else said for said in arguments))


class UnsupportedModel(SResNetError):
    """A module contains an operation that cannot be traced; the message names node and source line."""


class InvalidCheckpoint(SResNetError):
    """A checkpoint cannot be read, or its keys and shapes fit no known architecture."""


class InvalidData(SResNetError):
    """Images, labels or a setting do not fit the network or the operation."""


class ConversionError(SResNetError):
    """A pass found nothing to rewrite, or met a graph that it cannot rewrite."""


class InvalidArtifact(SResNetError):
    """A ``.snn`` file is truncated, edited, of a newer format, or cannot be written."""


class BackendUnavailable(SResNetError):
    """A device, kernel or package that was asked for is not there."""


class TrainingDiverged(SResNetError):
    """A loss or a weight became NaN or infinite; the checkpoint of the last good epoch stays."""


class SResNetWarning(UserWarning):
    """Data or a network that can be used, but are probably not what was meant."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(said) if isinstance(said, str) else said for said in arguments))


def warn(message: str, category: type[Warning] = SResNetWarning) -> None:
    """Issue a warning at the line outside of this package that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
