"""Inner runs of an experiment on a pool of worker processes: same numbers as in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metasched.config.schema import Experiment
from metasched.engines import engine, find_unroll
from metasched.engines.base import ControlGradient, OuterLoss
from metasched.runs.local import Along, Judged, LocalRuns, Reached, Run, Segment
from metasched.engines.tangent import Slope
from metasched.training.stacked import gradient_mapping_pays, mapping_pays
from metasched.runs.pool import Mapper
from metasched.training.problem import build_problem
from metasched.training.step import InnerProblem


@dataclass(frozen=True)
class PooledRuns:
    """The runs of LocalRuns, spread over the processes of a pool, or of torchrun."""

    experiment: Experiment
    pool: Mapper

    @property
    def problem(self) -> InnerProblem:
        """See Runs."""
        return build_problem(self.experiment, relaxation=self.experiment.meta.relaxation)

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """See Runs."""
        return self._spread("gradients", runs, self._at_once(len(runs), gradient_mapping_pays))

    def slopes(self, runs: Sequence[Along]) -> list[Slope]:
        """See Runs."""
        return self._spread("slopes", runs)

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """See Runs."""
        return self._spread("judged", runs, self._at_once(len(runs), mapping_pays))

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        """See Runs."""
        return self._spread("segments", segments, self._at_once(len(segments), mapping_pays))

    def _spread(self, question: str, items: Sequence[Any], at_once: int = 1) -> list[Any]:
        work = [(self.experiment, question, part) for part in _parts(items, at_once)]
        return [found for answers in self.pool.map(answer, work) for found in answers]

    def _at_once(self, runs: int, pays: Callable[[InnerProblem, int], bool]) -> int:
        """How many runs a process is given: one, or its share where it can map them."""
        share = -(-runs // self.pool.workers)
        return share if pays(build_problem(self.experiment), share) else 1


def _parts(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def local_runs(experiment: Experiment) -> LocalRuns:
    """The inner runs that an experiment describes, in this process."""
    meta = experiment.meta
    return LocalRuns(
        problem=build_problem(experiment, relaxation=meta.relaxation),
        played=build_problem(experiment),
        outer=OuterLoss(meta.objective, meta.surrogate),
        unroll=find_unroll(meta.estimator, meta.memory),
        memory=meta.memory,
        sweeps=engine(meta.estimator) == "sweep",
    )


def answer(experiment: Experiment, question: str, items: Sequence[Any]) -> list[Any]:
    """What the runs of an experiment answer to one of the questions of Runs; runs in any process."""
    return getattr(local_runs(experiment), question)(items)
