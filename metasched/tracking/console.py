"""Progress of an experiment on the console: bars with rate and time left in a terminal, a few lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import NamedTuple, Protocol, TextIO, TypeVar

from metasched.core.errors import printable
from metasched.tracking.tracker import Scalar

_SHOWN = {  # metric -> label and format
    "outer/loss": ("loss", ".4f"),
    "outer/score": ("score", ".4f"),
    "outer/best": ("best", ".4f"),
    "outer/skipped": ("skipped", "d"),
    "outer/gradient_norm": ("|gradient|", ".1e"),
}
_KERNEL = "JPY_PARENT_PID"  # in the environment of Jupyter's kernels and of the commands of their cells
_LINES = 5  # of one piece of work, where there is no terminal
_SOON = 3  # outer steps that have a line each
_QUICK = 1.0  # seconds between two lines, of which the last one is shown in any case
_SILENT = 60.0  # seconds after which there is a line in any case
_NARROW = 60  # columns below which there is no bar beside the numbers
_Item = TypeVar("_Item")


class Console(Protocol):
    """Shows the progress of an experiment. Text is escaped, so that it cannot control the terminal."""

    def progress(self, what: str, done: int, total: int, said: str = "") -> None:
        """Shows how much of a piece of work is done; its first call says where it starts, mostly at 0."""
        ...

    def outer(self, step: int, total: int, metrics: Mapping[str, Scalar]) -> None:
        """Shows that outer step ``step`` of 1..total is done, with its metrics."""
        ...

    def note(self, text: str) -> None:
        """Shows one line."""
        ...

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]], marked: Collection[str] = ()
    ) -> None:
        """Shows a small table; rows whose first cell is marked stand out."""
        ...

    def close(self) -> None:
        """Removes the progress bar."""
        ...


def open_console(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Console:
    """A console with progress bars if the stream is a terminal that can move its cursor, otherwise with plain lines.

    A cell ``!metasched`` of a notebook has a terminal, but whatever it has shown stays, each refresh of a bar too.
    """
    redraws = stream.isatty() and _KERNEL not in os.environ and os.environ.get("TERM") != "dumb"
    return _Live(stream, clock) if redraws else _Plain(stream, clock)


def watched(console: Console, what: str, work: Iterable[_Item], total: int, size: int = 1) -> Iterator[_Item]:
    """The items of some work, as they come, with its progress.

    Args:
        console: shows it.
        what: is done, in the plural: ``runs to choose the start``.
        work: gives the items.
        total: number of units.
        size: units of an item; of a sequence of scores, one each.
    """
    done = 0
    console.progress(what, 0, total)
    for item in work:
        done = min(total, done + (len(item) if isinstance(item, list) else size))
        console.progress(what, done, total)
        yield item


def summary(metrics: Mapping[str, Scalar]) -> str:
    """The metrics of an outer step on one line.

    >>> summary({"outer/loss": 0.51234, "outer/skipped": 1, "outer/step": 3})
    'loss 0.5123  skipped 1'
    """
    return "  ".join(f"{label} {metrics[name]:{form}}" for name, (label, form) in _SHOWN.items() if name in metrics)


def fitting(text: str, room: int) -> str:
    """As many of the parts of a line, which two spaces separate, as there is room for.

    >>> fitting("2.1/s, 9 s left  loss 0.5123  score 0.8", 32)
    '2.1/s, 9 s left  loss 0.5123'
    """
    while len(text) > room and "  " in text:
        text = text.rpartition("  ")[0]
    return text if len(text) <= room else text.rpartition(", ")[2]  # the time left


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(7.3), duration(75), duration(4000)
    ('7 s', '1:15', '1:06:40')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Work(NamedTuple):
    """A piece of work in progress: where it started and when, how far it was at the last line, and when that was."""

    what: str
    first: int
    began: float
    shown: int
    at: float

    def pace(self, done: int, total: int, now: float) -> str:
        """Rate and time left; at the end, what it took."""
        seconds, units = now - self.began, done - self.first
        if done >= total:
            return f"in {duration(seconds)}"
        if not units or seconds <= 0:
            return ""
        rate = units / seconds
        return f"{f'{rate:.1f}/s' if rate >= 1 else f'{1 / rate:.1f} s each'}, {duration((total - done) / rate)} left"


def _starts(work: _Work | None, what: str, done: int) -> bool:
    return work is None or work.what != what or done < work.shown


class _Plain:
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._work: _Work | None = None

    def progress(self, what: str, done: int, total: int, said: str = "", soon: int = 0) -> None:
        now = self._clock()
        if self._work is None or _starts(self._work, what, done):
            self._work = _Work(what, done, now, done, now)
            if not soon:
                return
        work = self._work
        if soon < done < total and now - work.at < _QUICK:  # the first outer steps are shown at once
            return
        further = done >= total or done * _LINES // max(total, 1) > work.shown * _LINES // max(total, 1)
        if done and (further or done <= soon or now - work.at >= _SILENT):
            self._work = work._replace(shown=done, at=now)
            self.note("  ".join(part for part in (f"{what} {done}/{total}", said, work.pace(done, total, now)) if part))

    def outer(self, step: int, total: int, metrics: Mapping[str, Scalar]) -> None:
        self.progress("outer step", step, total, summary(metrics), _SOON)

    def note(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]], marked: Collection[str] = ()
    ) -> None:
        cells = [[_cell(value) for value in row] for row in (columns, *rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        self.note(title)
        for row in cells:
            self.note("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def close(self) -> None:
        self._stream.flush()


class _Live:
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self._clock = clock
        self._terminal = Terminal(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.fields[what]}", markup=False),
            MofNCompleteColumn(),
            *([BarColumn(bar_width=10)] if self._terminal.width >= _NARROW else []),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=self._terminal,
            expand=True,
        )
        self._work: _Work | None = None

    def progress(self, what: str, done: int, total: int, said: str = "") -> None:
        now = self._clock()
        if self._work is None or _starts(self._work, what, done):
            self.close()
            self._work = _Work(what, done, now, done, now)
            self._task = self._progress.add_task("", total=total, completed=done, what=printable(what))
            self._progress.start()
        self._work = self._work._replace(shown=done)
        room = self._terminal.width - len(what) - 2 * len(str(total)) - 4  # two gaps, a slash and a column to spare
        room -= 11 if self._terminal.width >= _NARROW else 0
        text = fitting("  ".join(part for part in (self._work.pace(done, total, now), said) if part), room)
        self._progress.update(self._task, completed=done, total=total, description=printable(text))
        if done >= total:
            self.close()

    def outer(self, step: int, total: int, metrics: Mapping[str, Scalar]) -> None:
        self.progress("outer step", step, total, summary(metrics))

    def note(self, text: str) -> None:
        self._terminal.print(printable(text), markup=False, soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]], marked: Collection[str] = ()
    ) -> None:
        from rich.table import Table
        from rich.text import Text

        self.note("")
        cells = [[_cell(value) for value in row] for row in rows]
        words = [
            max(len(word) for row in (columns, *cells) for word in row[i].split() or [""]) for i in range(len(columns))
        ]
        if sum(words) + 2 * len(words) > self._terminal.width:  # no name is broken, which could not be copied
            self.note(title)
            for row in cells:
                self._terminal.print(Text(row[0], "bold cyan" if row[0] in marked else "bold"))
                rest = "; ".join(f"{name}: {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell)
                for line in wrap(rest, self._terminal.width - 1, initial_indent="  ", subsequent_indent="  "):
                    self.note(line)
            return
        table = Table(
            title=Text(printable(title), "bold"), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style=""
        )
        for i, column in enumerate(columns):
            table.add_column(Text(printable(column), "dim"), overflow="fold", no_wrap=i == 0)
        for row in cells:
            table.add_row(*(Text(cell, "bold cyan" if row[0] in marked else "") for cell in row))
        self._terminal.print(table)

    def close(self) -> None:
        if self._work is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._work = None


def _cell(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
