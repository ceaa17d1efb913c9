"""The program: the group of commands, and what a mistake looks like."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from typing import Any

import click

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
    """Commands whose interruption is said here: click would first write to a terminal that may be gone."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise click.Abort(*getattr(stopped, "__notes__", ())) from stopped


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *a: _version(*a),
    help="Show the version and the kernel that runs here, and exit.",
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


for _command in (convert, evaluate, inspect, verify, report, export, train, demo):
    sresnet.add_command(_command)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import s_resnet

    say(f"sresnet {s_resnet.__version__}, {s_resnet.kernels.describe()}")
    context.exit()


def main() -> None:
    """Run the command line: exit 0 done, 1 our error in one line, 2 usage, 130 interrupted, 143 terminated."""
    # Threads that wait by spinning make two threads slower than one on a busy machine; has to be set before torch.
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
            _fail(f"standard output: cannot be written, got {lost.strerror}; expected room. All files are written.", 1)
    sys.exit(1 if lost else result)


def _one_line(error: Exception) -> str:
    """What to say of an error that was foreseen; others are raised again."""
    if _out_of_memory(error):
        return "memory: got none left; expected room for a batch. Lower --batch-size or --input-size."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        unheard()  # what was to be said with it
        where = os.fsdecode(error.filename) if error.filename else "output"
        return f"{where}: cannot be written, got {error.strerror}; expected room. Free some, or choose another place."
    if "DataLoader worker" in str(error):
        return (
            f"workers: got one that was killed ({error}); expected all to live. Give more shared memory (docker "
            "run --shm-size), or where there is that option --workers 0."
        )
    # Importing s_resnet costs a second; an error of ours can only come up once it is imported.
    ours = sys.modules.get("s_resnet")
    if ours is None or not isinstance(error, ours.SResNetError):
        raise error
    return spoken(str(error))


def _keep_freed_memory() -> None:
    """Have the allocator reuse large blocks: giving each back to the system and getting it anew took half of the time.

    For the C library of Linux; others stay as they are.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: no block of its own for each large tensor
        library.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD


def _out_of_memory(error: Exception) -> bool:
    said = str(error) if isinstance(error, RuntimeError) else ""  # torch has an own class for the GPU's only
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _fail(message: str, code: int) -> None:
    _say(f"Error: {' '.join(message.splitlines())}")  # a file name may hold a line break
    sys.exit(code)


def _say(message: str) -> None:
    # Of torchrun's processes the first speaks for all: an error of one is raised in every one.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        say(message, err=True)
    else:
        time.sleep(1)  # torchrun ends the others as soon as one is gone: the first has to have spoken


if __name__ == "__main__":
    main()
