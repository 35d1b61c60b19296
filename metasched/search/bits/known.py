"""Scores of allocations that outlive a run: those in a file are not computed again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metasched.core.errors import MetaschedError
from metasched.io.json_lines import JsonLines, read_json_lines
from metasched.search.bits.problem import Choice


class KnownScores:
    """A score with a file of what it gave: ``{"about": ..., "choice": [...], "score": ...}``, an allocation a line.

    Args:
        score: of an allocation, a function of it and of all that ``about`` says.
        path: the file.
        about: text; scores of a line with another one are not used.

    Raises:
        MetaschedError: the file does not hold scores, or cannot be written.
    """

    def __init__(self, score: Callable[[Choice], float], path: Path, about: str) -> None:
        self._score, self._about = score, about
        self._known = _read(path, about) if path.exists() else {}
        self._lines = JsonLines(path)

    def __call__(self, choice: Choice) -> float:
        """The score of an allocation."""
        key = json.dumps(choice)
        if key not in self._known:
            self._known[key] = score = self._score(choice)
            self._lines.write({"about": self._about, "choice": choice, "score": score})
        return self._known[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()


def _read(path: Path, about: str) -> dict[str, float]:
    found = {}
    for number, line in enumerate(read_json_lines(path), 1):
        choice, score = line.get("choice"), line.get("score")
        if not (isinstance(choice, list) and _is_score(score)):
            raise MetaschedError(f"{path}: line {number}", "does not hold a score", "delete the line")
        if line.get("about") == about:
            found[json.dumps(choice)] = float(score)  # pyright: ignore[reportArgumentType]
    return found


def _is_score(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or value in ("nan", "inf", "-inf")
