"""The program: its group of commands, and how errors are shown."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from typing import NoReturn

import click

from .compare import compare
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .export import export
from .inspect import inspect
from .report import report
from .say import closed, say, unheard
from .stop import obeyed
from .train import train
from .verify import verify
from .words import spoken


class _Commands(click.Group):
    """Commands whose interruption is reported here: click would first write to a terminal that may be gone."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise click.Abort(*getattr(stopped, "__notes__", ())) from stopped


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *arguments: _version(*arguments),
    help="Show the version and the kernel that is used here, and exit.",
)
@click.pass_context
def sresnet(context: click.Context) -> None:
    """Turn a trained ResNet into a spiking ResNet, run it, and see what it costs.

    \b
    Start here:
      sresnet demo                                     the whole story in minutes, offline
      sresnet convert resnet50.pth --calibration DIR   writes resnet50-calibrated-T16.snn
      sresnet evaluate                                 its accuracy, beside the ANN's
    """
    if context.invoked_subcommand is None:
        say(context.get_help())


for _command in (convert, evaluate, compare, inspect, verify, report, export, train, demo):
    sresnet.add_command(_command)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version."""
    if not wanted or context.resilient_parsing:
        return
    import s_resnet

    say(f"sresnet {s_resnet.__version__}, {s_resnet.kernels.describe()}")
    context.exit()


def main() -> None:
    """Run the command line: exit 0 done, 1 an error in one line, 2 usage, 130 interrupted, 143 terminated."""
    # Threads that spin while they wait make two threads slower than one on a busy machine. Set before torch is there.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _keep_freed_memory()
    with obeyed() as stop:
        try:
            result = sresnet.main(prog_name="sresnet", standalone_mode=False)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt) as stopped:
            stop.end()
            _say(" ".join(("Interrupted.", *map(str, stopped.args))))
            sys.exit(128 + stop.number)
        except Exception as error:
            _fail(_one_line(error), 1)
        lost = unheard()
        if lost is not None and not closed(lost):
            _fail(
                f"standard output: cannot be written, got {lost.strerror}; expected free space. All files are written.",
                1,
            )
    sys.exit(1 if lost else result)


def _one_line(error: Exception) -> str:
    """The message of an expected error; any other is raised again."""
    if _out_of_memory(error):
        return "memory: got none left; expected enough for a batch. Lower --batch-size or --input-size."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        unheard()  # what is still to be printed may fail the same way
        where = os.fsdecode(error.filename) if error.filename else "output"
        return (
            f"{where}: cannot be written, got {error.strerror}; expected free space. Free some, or choose another "
            "place."
        )
    if "DataLoader worker" in str(error):
        return (
            f"workers: got one that was killed ({error}); expected all to keep running. Give more shared memory "
            "(docker run --shm-size), or pass --workers 0 if the command has that option."
        )
    # Importing s_resnet takes a second, and an error of ours can only occur after that.
    ours = sys.modules.get("s_resnet")
    if ours is None or not isinstance(error, ours.SResNetError):
        raise error
    return spoken(str(error))


def _keep_freed_memory() -> None:
    """Have the allocator keep large blocks: returning each to the system and asking for it again took half of the time.

    Only for the C library of Linux.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: no separate mapping for each large tensor
        library.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has a class for that only on GPUs."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _fail(message: str, code: int) -> NoReturn:
    """Show an error and exit."""
    _say(f"Error: {' '.join(message.splitlines())}")  # a file name may hold a line break
    sys.exit(code)


def _say(message: str) -> None:
    """Print on stderr; of torchrun's processes the first speaks for all, as an error of one is raised in every one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        say(message, err=True)
    else:
        time.sleep(1)  # torchrun ends the others as soon as one exits: let the first one speak before


if __name__ == "__main__":
    main()
