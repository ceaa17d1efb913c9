"""What several commands have in common: their options, and the forms of DATA."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import click

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
Triple = tuple[float, float, float]

DATA = """\b
DATA is a directory of class folders, cifar10:DIR, cifar100:DIR, mnist:DIR, imagenet:DIR,
digits, an .npz with x uint8 [B,H,W,3] or prepared signals [B,C,L] and y, or events:
cifar10dvs:DIR, dvsgesture:DIR."""


class Option(Protocol):
    """A decorator that adds an option to a command."""

    def __call__(self, command: F, /) -> F: ...


def takes(options: Callable[P, T]) -> Callable[[Callable[[T], None]], Callable[P, None]]:
    """Make a command take its options as one object; ``{DATA}`` in its docstring becomes the forms of DATA."""

    def decorate(command: Callable[[T], None]) -> Callable[P, None]:
        @wraps(command)
        def called(*arguments: P.args, **given: P.kwargs) -> None:
            command(options(*arguments, **given))

        called.__doc__ = inspect.cleandoc(command.__doc__ or "").replace("{DATA}", DATA)
        return called

    return decorate


@dataclass(frozen=True)
class Images:
    """Which images were asked for.

    Attributes:
        data: DATA, or None for the data that the network was calibrated on.
        limit: how many of them, or None for all.
        classes: a file of class names, or ``natural``, or None.
        download: whether absent data may be fetched.
    """

    data: str | None
    limit: int | None
    classes: str | None
    download: bool


def _device(_: click.Context, option: click.Parameter, value: str) -> str:
    """A name that :func:`s_resnet.runtime.find_device` knows; whether this machine has the device is said there."""
    if value == "mps":
        raise click.BadParameter(
            "mps (the GPU of Macs) is not supported. Leave out --device to run on the CPU", param=option
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N", param=option)
    return value


def _channels(_: click.Context, option: click.Parameter, value: str | None) -> Triple | None:
    """Three numbers, one per channel, written R,G,B."""
    try:
        red, green, blue = (float(part) for part in value.split(",")) if value else (0.0, 0.0, 0.0)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not three numbers such as 0.485,0.456,0.406", param=option) from error
    return (red, green, blue) if value else None


def steps(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Time steps written 8,16,32."""
    try:
        found = tuple(int(part) for part in value.split(",")) if value else (1,)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of steps such as 8,16,32", param=option) from error
    if min(found) < 1:
        raise click.BadParameter(f"{value!r} has a step below 1", param=option)
    return found if value else None


def _per_channel(name: str, statistic: str) -> Option:
    """``--mean`` or ``--std``."""
    return click.option(
        name,
        metavar="R,G,B",
        callback=_channels,
        show_default="ImageNet's",
        help=f"Per-channel {statistic} of the training images, for pixels in [0, 1].",
    )


def data(use: str) -> Option:
    """``--data`` of a command that needs images to ``use``, such as "evaluate on"."""
    default = "the held-out part of the calibration data"
    return click.option("--data", metavar="DATA", show_default=default, help=f"Images to {use}.")


def count(name: str, help: str, default: int | str | None = None, least: int = 1, metavar: str = "N") -> Option:
    """An option that counts; a default in words is what None stands for."""
    fixed = default if isinstance(default, int) else None
    shown = default if isinstance(default, str) else True
    kind = click.IntRange(least)
    return click.option(name, metavar=metavar, type=kind, default=fixed, show_default=shown, help=help)


def limit(default: int | str = "all") -> Option:
    """``--limit``."""
    return count("--limit", "Use only N images, a seeded random subset over all classes.", default)


def json_file(help: str = "Also write the results to FILE as JSON.") -> Option:
    """``--json``."""
    kind = click.Path(dir_okay=False, readable=False, path_type=Path)
    return click.option("--json", "json_file", metavar="FILE", type=kind, help=help)


def output(help: str, default: str | None = None) -> Option:
    """``-o`` of a command that writes one file: required, or with a ``default`` in words that the command knows."""
    kind = click.Path(dir_okay=False, readable=False, path_type=Path)
    required = default is None
    return click.option(
        "-o", "--output", metavar="FILE", type=kind, required=required, show_default=default or True, help=help
    )


BATCH_SIZE = count("--batch-size", "Images per batch.", 32)
TIMESTEPS = count("--timesteps", "Number of time steps.", "the T that the network was converted or trained for", 1, "T")
FORCE = click.option("--force", is_flag=True, help="Overwrite existing files.")
NETWORK = click.argument("network", type=click.Path(path_type=Path), required=False)
INPUT_SIZE = count(
    "--input-size",
    "Height and width of the images in pixels.",
    "the size in an .onnx or .pt2 file, 32 for CIFAR networks, else 224",
)
MEAN, STD = _per_channel("--mean", "mean"), _per_channel("--std", "standard deviation")
CALIBRATION_IMAGES = count(
    "--calibration-images", "Number of images to calibrate on, a seeded random subset over all classes.", 1024, least=2
)
CLASSES = click.option(
    "--classes",
    metavar="FILE",
    show_default="those that the network knows, else ImageNet's for some of its classes, else the data's",
    help="Names of the network's classes in the order of its outputs, one per line; or natural for the names in the "
    "data, with 2 before 10.",
)
DEVICE = click.option(
    "--device", metavar="[auto|cpu|cuda|cuda:N]", callback=_device, default="auto", help="Device to run on."
)
MEMORY = click.option(
    "--memory",
    metavar="SIZE",
    show_default="half of what is free",
    help="Memory that the process may hold in all: 4GB, 500MB, or a share such as 50%. With less, fewer images are "
    "processed at a time; results do not depend on it.",
)
DOWNLOAD = click.option(
    "--download", is_flag=True, help="Download DATA if absent: cifar10, cifar100, mnist, or events."
)
