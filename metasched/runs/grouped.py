"""A task's own group of runs, whose antithetic pairs are put on one scale with those of other tasks.

    L_i+- -> m_i +- h_i / s,    m_i = (L_i+ + L_i-) / 2,    h_i = (L_i+ - L_i-) / 2

``group``: s is the root mean square of h over the pairs of the group; ``sign``: s = |h_i|, so that only the sign of a
pair counts (Metz et al., 2022, arXiv 2211.09760); ``none``: s = 1. Means stay, so that losses are reported as they are.
A pair with a loss that is not finite stays as it is, and is left out of s. Where s is 0, so is h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metasched.engines.base import ControlGradient
from metasched.engines.tangent import Slope
from metasched.runs.local import Along, Judged, Reached, Run, Runs, Segment
from metasched.training.state import InnerProblem

Normalize = Literal["group", "sign", "none"]


@dataclass(frozen=True)
class GroupedRuns:
    """Runs of one task; ``judged`` takes pairs, one after the other, and normalizes their losses."""

    runs: Runs
    normalize: Normalize

    @property
    def problem(self) -> InnerProblem:
        """See Runs."""
        return self.runs.problem

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """See Runs; as they are."""
        return self.runs.gradients(runs)

    def slopes(self, runs: Sequence[Along]) -> list[Slope]:
        """See Runs; as they are."""
        return self.runs.slopes(runs)

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """See Runs, with normalized losses."""
        found = self.runs.judged(runs)
        losses = normalized([j.loss for j in found], self.normalize)
        return [j._replace(loss=loss) for j, loss in zip(found, losses, strict=True)]

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        """See Runs; as they are."""
        return self.runs.segments(segments)


def normalized(losses: Sequence[float], how: Normalize) -> list[float]:
    """The losses of pairs, one after the other, on one scale.

    >>> normalized([3.0, 1.0, 5.0, 5.0], "sign")
    [3.0, 1.0, 5.0, 5.0]
    >>> normalized([30.0, 10.0, 4.0, 6.0], "sign")
    [21.0, 19.0, 4.0, 6.0]
    """
    if how == "none":
        return list(losses)
    assert len(losses) % 2 == 0
    halves = [(a - b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
    finite = [h for h in halves if math.isfinite(h)]
    size = math.sqrt(math.fsum(h * h for h in finite) / len(finite)) if finite else 1.0
    found: list[float] = []
    for a, b, h in zip(losses[::2], losses[1::2], halves, strict=True):
        scale = abs(h) if how == "sign" else size
        if not math.isfinite(h) or not scale:
            found += [a, b]
        else:
            found += [(a + b) / 2 + h / scale, (a + b) / 2 - h / scale]
    return found
