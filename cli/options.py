"""Options that several commands have, the same in all of them."""

import re

import click


def _device(_: click.Context, option: click.Parameter, value: str) -> str:
    """A device of :func:`s_resnet.runtime.find_device`, which says whether this machine has it."""
    if value == "mps":
        raise click.BadParameter("mps, the GPU of Macs, is not supported. Leave it out to run on the CPU", param=option)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N", param=option)
    return value


BATCH_SIZE = click.option("--batch-size", metavar="N", type=click.IntRange(1), default=32, show_default=True)
TIMESTEPS = click.option(
    "--timesteps",
    metavar="T",
    type=click.IntRange(1),
    help="How many steps; by default the T that the network was converted or trained for.",
)
FORCE = click.option("--force", is_flag=True, help="Write over files that are there.")
NETWORK = click.argument("network", type=click.Path(), required=False)
CLASSES = click.option(
    "--classes",
    metavar="FILE",
    help="The names of the network's classes in the order of its outputs, one per line; or natural for those of the "
    "data with 2 before 10. By default those that the network was calibrated with.",
)
DEVICE = click.option("--device", metavar="[auto|cpu|cuda|cuda:N]", callback=_device, default="auto", show_default=True)
DOWNLOAD = click.option(
    "--download", is_flag=True, help="Fetch DATA where they are absent: cifar10, cifar100, mnist, events."
)
