"""SIGINT and SIGTERM: they raise an exception, and end the process after a few seconds in any case."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

WITHIN = 4.0  # seconds after which the process is ended if the exception has not


class Terminated(KeyboardInterrupt):
    """SIGTERM; a subclass of KeyboardInterrupt, so that handlers of interrupts clean up too."""


@contextmanager
def stop_on_signals(say: Callable[[type[KeyboardInterrupt]], None]) -> Iterator[None]:
    """Inside this context, SIGINT raises KeyboardInterrupt and SIGTERM raises Terminated.

    The process is ended at a second signal, or WITHIN seconds after the first. This holds only in the main thread, and
    only for signals that are not ignored. Worker processes end with this one.

    Args:
        say: called before the process is ended, with the class of the exception.
    """
    timers: list[threading.Timer] = []

    def end(number: int) -> None:
        say(_error(number))
        os._exit(128 + number)

    def handle(number: int, frame: FrameType | None) -> None:
        if timers:
            end(number)
        timers.append(threading.Timer(WITHIN, end, [number]))
        timers[0].daemon = True
        timers[0].start()
        raise _error(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        caught = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _error(number: int) -> type[KeyboardInterrupt]:
    return Terminated if number == signal.SIGTERM else KeyboardInterrupt
