"""The program: the group of commands, and what a mistake looks like."""

from __future__ import annotations

import os
import sys

import click

from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .inspect import inspect


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=lambda *a: _version(*a))
def sresnet() -> None:
    """Turn a trained ResNet into a spiking ResNet, run it, and see what it costs.

    \b
    Start here:
      sresnet demo                                     the whole story in minutes, offline
      sresnet convert resnet50.pth --calibration DIR   writes resnet50.snn
      sresnet evaluate --timesteps 256                 accuracy at T = 1, 2, 4, ... 256
    """


for _command in (convert, evaluate, inspect, demo):
    sresnet.add_command(_command)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import s_resnet

    click.echo(f"sresnet {s_resnet.__version__}, {s_resnet.describe_kernels()}")
    context.exit()


def main() -> None:
    """Run the command line: exit 0 done, 1 our error in one line, 2 usage, 130 interrupted."""
    # Threads that wait by spinning make two threads slower than one on a busy machine; has to be set before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        sys.exit(sresnet.main(prog_name="sresnet", standalone_mode=False))
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except Exception as error:
        # Importing s_resnet costs a second; an error of ours can only come up once it is imported.
        ours = sys.modules.get("s_resnet")
        if ours is None or not isinstance(error, ours.SResNetError):
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
