"""The protocol of trackers, several trackers as one, and a tracker in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from metasched.core.errors import MetaschedError
from metasched.tracking.metrics import unknown_metrics

Scalar = float | int | str


class Tracker(Protocol):
    """Receives what an experiment reports. Names of metrics are those of ``metasched.tracking.metrics``."""

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """Logs one row: the value of an axis (``outer/step``) and the metrics there."""
        ...

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Logs a file of the run, such as a learned schedule (kind ``schedule``)."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Logs a table, such as the scores of a comparison."""
        ...

    def picture(self, name: str, path: Path) -> None:
        """Logs a PNG file of the run, such as the plot of a comparison."""
        ...

    def close(self) -> None:
        """Closes the tracker; nothing is logged afterwards."""
        ...


class Memory:
    """Keeps everything in memory, for tests; fails for a metric that is not in the table of metrics."""

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
        """Keeps the arguments."""
        self.artifacts.append((path, name, kind, dict(metadata)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Keeps the table."""
        self.tables[name] = (list(columns), [list(row) for row in rows])

    def picture(self, name: str, path: Path) -> None:
        """Keeps the path."""
        self.pictures[name] = path

    def close(self) -> None:
        """Records that it was closed."""
        self.closed = True


class Several:
    """Forwards everything to several trackers; drops one that fails, with a warning, and the run continues.

    A MetaschedError, for instance because the run folder cannot be written, is raised and ends the run.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """Logs one row with each tracker."""
        self._each(lambda tracker: tracker.log(metrics))

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Logs one file with each tracker."""
        self._each(lambda tracker: tracker.artifact(path, name, kind, metadata))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Logs one table with each tracker."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def picture(self, name: str, path: Path) -> None:
        """Logs one picture with each tracker."""
        self._each(lambda tracker: tracker.picture(name, path))

    def close(self) -> None:
        """Closes each tracker."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except MetaschedError:
                raise
            except Exception as error:  # a failure of a tracking service must not end the training
                self._trackers.remove(tracker)
                warn_dropped(type(tracker).__name__, error)


def warn_dropped(name: str, error: Exception) -> None:
    """Warns that a tracker has failed and is no longer used."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    warnings.warn(f"{name} failed ({text}); the run goes on without it", RuntimeWarning, stacklevel=4)
