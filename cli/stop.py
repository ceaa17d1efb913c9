"""Being stopped: by Ctrl-C, by SIGTERM as from a batch system, or with the terminal; in order, and never in vain."""

from __future__ import annotations

import _thread
import atexit
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SOON, LATER = 0.05, 10.0  # seconds until it is tried again: where Python had to ignore it, and where nothing has come


class Stop:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.number, self.done = int(signal.SIGINT), False
        self._timer: threading.Timer | None = None

    def hear(self, number: int, _: object) -> None:
        """Unwind from wherever the program is, so that no half file stays; until it is over only once."""
        if not self.done:
            self.number = number
            self._again(LATER)
            raise KeyboardInterrupt

    def ignored(self, unraisable: Any) -> bool:
        """Whether it was raised where Python ignores exceptions, such as while a process is forked; then try again."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return False
        self._again(SOON)
        return True

    def end(self) -> None:
        """From now on nothing can be interrupted: the program ends."""
        self.done = True
        if self._timer is not None:
            self._timer.cancel()

    def _again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.done:
            self._timer = threading.Timer(seconds, _thread.interrupt_main, (self.number,))
            self._timer.daemon = True
            self._timer.start()


@contextmanager
def obeyed() -> Iterator[Stop]:
    """Within, a signal to stop raises KeyboardInterrupt until the program ends; what is ignored on purpose stays so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there signals are handled
        yield stop
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None if stop.ignored(unraisable) else hook(unraisable)
    for number, handler in before.items():
        if handler in usual:
            signal.signal(number, stop.hear)
    try:
        yield stop
    finally:
        stop.end()
        sys.unraisablehook = hook
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, handler)
        # Impatience while Python takes itself down has no traceback.
        atexit.register(lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
