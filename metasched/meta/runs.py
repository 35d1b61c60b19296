"""Inner runs of an experiment on a pool of worker processes: same numbers as in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metasched.config import Experiment
from metasched.hypergradients import find_unroll
from metasched.hypergradients.base import ControlGradient, OuterLoss
from metasched.hypergradients.runs import Judged, LocalRuns, Run
from metasched.training.pool import Pool
from metasched.training.problem import build_problem
from metasched.training.step import InnerProblem


@dataclass(frozen=True)
class PooledRuns:
    """The runs of LocalRuns, spread over the processes of a pool."""

    experiment: Experiment
    pool: Pool

    @property
    def problem(self) -> InnerProblem:
        """See Runs."""
        return build_problem(self.experiment, relaxation=self.experiment.meta.relaxation)

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """See Runs."""
        return self._spread("gradients", runs)

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """See Runs."""
        return self._spread("judged", runs)

    def _spread(self, question: str, items: Sequence[Any]) -> list[Any]:
        work = [(self.experiment, question, [item]) for item in items]
        return [found for answers in self.pool.map(answer, work) for found in answers]


def local_runs(experiment: Experiment) -> LocalRuns:
    """The inner runs that an experiment describes, in this process."""
    meta = experiment.meta
    return LocalRuns(
        problem=build_problem(experiment, relaxation=meta.relaxation),
        played=build_problem(experiment),
        outer=OuterLoss(meta.objective, meta.surrogate),
        unroll=find_unroll(meta.estimator, meta.memory),
    )


def answer(experiment: Experiment, question: str, items: Sequence[Any]) -> list[Any]:
    """What the runs of an experiment answer to one of the questions of Runs; runs in any process."""
    return getattr(local_runs(experiment), question)(items)
