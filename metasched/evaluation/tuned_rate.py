"""A learning rate of an arm that was chosen on meta-validation, and what was tried for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class TunedRate:
    """The learning rate of an arm, chosen on meta-validation.

    Attributes:
        lr: the chosen rate.
        tried: (rate, mean hardened score on meta-validation) of each rate that was tried, in ascending order.
        runs: inner runs of each rate, from the same seeds.
        inner_steps: training steps of all these runs.
    """

    lr: float
    tried: tuple[tuple[float, float], ...]
    runs: int
    inner_steps: int

    @property
    def score(self) -> float:
        """The mean score of the chosen rate on meta-validation; the best of several, so it flatters the rate."""
        return dict(self.tried)[self.lr]

    @property
    def steps(self) -> int:
        """T, the training steps of each of these runs: the horizon at which the rate was chosen."""
        return self.inner_steps // (self.runs * len(self.tried))

    @property
    def at_the_end(self) -> bool:
        """Whether the chosen rate is the lowest or the highest that was tried: a better one may lie beyond."""
        return self.lr in (self.tried[0][0], self.tried[-1][0])

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for JSON."""
        tried = [{"lr": lr, "score": score} for lr, score in self.tried]
        return {"lr": self.lr, "tried": tried, "runs": self.runs, "inner_steps": self.inner_steps}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """The record that ``to_dict`` has written."""
        tried = tuple((float(t["lr"]), float(t["score"])) for t in entry["tried"])
        return cls(float(entry["lr"]), tried, entry["runs"], entry["inner_steps"])
