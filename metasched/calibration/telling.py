"""What a calibration from Python says where nobody asked for its progress: nothing, unless it is long."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from metasched.tracking.console import Console, duration, open_console

if TYPE_CHECKING:
    from metasched.calibration.walking import Progress

_LONG = 5.0  # seconds without a word


class TellIfLong:
    """Shows the units that are done, from the fifth second on.

    Args:
        opened: gives the console, when there is something to say.
    """

    def __init__(self, opened: Callable[[], Console] = lambda: open_console(sys.stdout)) -> None:
        self._opened = opened
        self._console: Console | None = None

    def __call__(self, progress: Progress) -> None:
        """Takes note of how far the calibration is."""
        if self._console is None:
            if progress.seconds < _LONG or progress.done == progress.total:
                return
            self._console = self._opened()
            left = "" if progress.left is None else f", about {duration(progress.left)} left"
            self._console.note(f"calibrate: {progress.done}/{progress.total} units{left}")
        self._console.progress("units", progress.done, progress.total, progress.unit)
        if progress.done == progress.total:
            self._console.close()
