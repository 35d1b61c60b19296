"""Where metrics go: one small protocol, several trackers as one, and one that only remembers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from metasched.core.errors import MetaschedError
from metasched.tracking.metrics import unknown_metrics

Scalar = float | int | str


class Tracker(Protocol):
    """Takes what an experiment reports. Names of metrics are those of ``metasched.tracking.metrics``."""

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """One row: an axis (``outer/step``) with what was measured there."""
        ...

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """A file that the run made, such as a learned schedule (kind ``schedule``)."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """A table, such as the scores of a comparison."""
        ...

    def picture(self, name: str, path: Path) -> None:
        """A PNG file that the run made, such as the scores of a comparison as dots."""
        ...

    def close(self) -> None:
        """Nothing comes after this."""
        ...


class Memory:
    """Keeps everything, for tests; refuses a metric whose name is not in the table of metrics."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Scalar]] = []
        self.artifacts: list[tuple[Path, str, str, dict[str, Any]]] = []
        self.tables: dict[str, tuple[list[str], list[list[Scalar]]]] = {}
        self.pictures: dict[str, Path] = {}
        self.closed = False

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """Keeps one row."""
        assert not unknown_metrics(metrics), unknown_metrics(metrics)
        self.rows.append(dict(metrics))

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Keeps the call."""
        self.artifacts.append((path, name, kind, dict(metadata)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Keeps the table."""
        self.tables[name] = (list(columns), [list(row) for row in rows])

    def picture(self, name: str, path: Path) -> None:
        """Keeps the call."""
        self.pictures[name] = path

    def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True


class Several:
    """Hands everything to several trackers; one that fails is dropped with a warning, and the run goes on.

    A MetaschedError is no such failure: it ends the run, as when the run folder cannot be written any more.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """One row, to each."""
        self._each(lambda tracker: tracker.log(metrics))

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """One file, to each."""
        self._each(lambda tracker: tracker.artifact(path, name, kind, metadata))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """One table, to each."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def picture(self, name: str, path: Path) -> None:
        """One picture, to each."""
        self._each(lambda tracker: tracker.picture(name, path))

    def close(self) -> None:
        """Closes each."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except MetaschedError:
                raise
            except Exception as error:  # whatever a tracking service throws must not end hours of training
                self._trackers.remove(tracker)
                warn_dropped(type(tracker).__name__, error)


def warn_dropped(name: str, error: Exception) -> None:
    """Says, once for a tracker, that it takes nothing more."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    warnings.warn(f"{name} failed ({text}); the run goes on without it", RuntimeWarning, stacklevel=4)
