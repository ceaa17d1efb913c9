"""Being stopped: by Ctrl-C, by SIGTERM (as batch systems do) or by a closed terminal; in order and without fail."""

from __future__ import annotations

import _thread
import atexit
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SOON, LATER = 0.05, 10.0  # seconds until the next attempt: after Python ignored one, and after one had no effect


class Stop:
    """The signal that has arrived, if any."""

    def __init__(self) -> None:
        self.number, self.done = int(signal.SIGINT), False
        self._timer: threading.Timer | None = None

    def hear(self, number: int, _: object) -> None:
        """Unwind from wherever the program is, once, so that no half-written file stays."""
        if not self.done:
            self.number = number
            self._again(LATER)
            raise KeyboardInterrupt

    def ignored(self, unraisable: sys.UnraisableHookArgs) -> bool:
        """Whether the interrupt was raised where Python ignores exceptions, as in a fork; if so, try again soon."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return False
        self._again(SOON)
        return True

    def end(self) -> None:
        """The program ends: nothing can be interrupted any more."""
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
    """Have a signal to stop raise KeyboardInterrupt within the block; signals ignored on purpose stay ignored."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # signals are handled nowhere else
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
        # A second Ctrl-C while Python shuts down must not print a traceback.
        atexit.register(lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
