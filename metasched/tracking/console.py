"""Progress of an experiment on the console: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from metasched.core.errors import printable
from metasched.tracking.tracker import Scalar

_SHOWN = {  # metric -> label and format
    "outer/loss": ("loss", ".4f"),
    "outer/score": ("score", ".4f"),
    "outer/best": ("best", ".4f"),
    "outer/skipped": ("skipped", "d"),
    "outer/seconds": ("seconds", ".1f"),
    "outer/gradient_norm": ("|gradient|", ".1e"),
}


class Console(Protocol):
    """Shows the progress of an experiment. Text is escaped, so that it cannot control the terminal."""

    def outer(self, step: int, total: int, metrics: Mapping[str, Scalar]) -> None:
        """Shows that outer step ``step`` of 1..total is done, with its metrics."""
        ...

    def note(self, text: str) -> None:
        """Shows one line."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Shows a small table."""
        ...

    def close(self) -> None:
        """Removes the progress bar."""
        ...


def open_console(stream: TextIO) -> Console:
    """A console with a progress bar if the stream is a terminal, with plain lines if it is a file or a pipe."""
    return _Live(stream) if stream.isatty() else _Plain(stream)


def summary(metrics: Mapping[str, Scalar]) -> str:
    """The metrics of an outer step on one line.

    >>> summary({"outer/loss": 0.51234, "outer/skipped": 1, "outer/step": 3})
    'loss 0.5123  skipped 1'
    """
    return "  ".join(f"{label} {metrics[name]:{form}}" for name, (label, form) in _SHOWN.items() if name in metrics)


class _Plain:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def outer(self, step: int, total: int, metrics: Mapping[str, Scalar]) -> None:
        self.note(f"outer step {step}/{total}  {summary(metrics)}")

    def note(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        cells = [[_cell(value) for value in row] for row in (columns, *rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        self.note(title)
        for row in cells:
            self.note("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def close(self) -> None:
        self._stream.flush()


class _Live:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._terminal = Terminal(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("outer"),
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=self._terminal,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def outer(self, step: int, total: int, metrics: Mapping[str, Scalar]) -> None:
        self._progress.start()
        self._progress.update(self._task, total=total, completed=step, description=summary(metrics), visible=True)
        if step == total:
            self._progress.stop()

    def note(self, text: str) -> None:
        self._terminal.print(printable(text), markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(printable(title), "bold"), title_justify="left")
        for column in columns:
            table.add_column(Text(printable(column)))
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        self._terminal.print(table)

    def close(self) -> None:
        self._progress.stop()


def _cell(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
