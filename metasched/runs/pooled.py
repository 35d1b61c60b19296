"""Inner runs of an experiment on a pool of worker processes: same numbers as in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from metasched.config.schema import ProblemConfig
from metasched.engines import engine, find_unroll
from metasched.engines.base import ControlGradient, OuterLoss
from metasched.engines.tangent import Slope
from metasched.meta.config import MetaConfig
from metasched.runs.local import Along, Judged, LocalRuns, Reached, Run, Segment
from metasched.runs.pool import Mapper
from metasched.runs.store import Store
from metasched.training.problem import build_problem
from metasched.training.stacked import gradient_mapping_pays, mapping_pays
from metasched.training.state import InnerProblem

_Work = tuple[ProblemConfig, MetaConfig, str, Sequence[Any]]  # the arguments of ``answer``


@dataclass(frozen=True)
class PooledRuns:
    """The runs of LocalRuns, spread over the processes of a pool, or of torchrun; ``store`` keeps the judged ones."""

    config: ProblemConfig
    meta: MetaConfig
    pool: Mapper
    store: Store | None = None

    @property
    def problem(self) -> InnerProblem:
        """See Runs."""
        return build_problem(self.config, relaxation=self.meta.relaxation)

    def of(self, config: ProblemConfig) -> PooledRuns:
        """The runs of another problem, on the same pool."""
        return replace(self, config=config)

    @property
    def label(self) -> str:
        """What is trained, for messages."""
        return self.config.task.label

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        """See Runs."""
        work = self._parts("gradients", runs, self._at_once(len(runs), gradient_mapping_pays))
        return list(chain.from_iterable(self.pool.map(answer, work)))

    def slopes(self, runs: Sequence[Along]) -> list[Slope]:
        """See Runs."""
        return list(chain.from_iterable(self.pool.map(answer, self._parts("slopes", runs, 1))))

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        """See Runs."""
        work = self._parts("judged", runs, self._at_once(len(runs), mapping_pays))
        found = list(chain.from_iterable(self.pool.map(answer, work)))
        for run, judged in zip(runs, found, strict=True):
            if self.store is not None:
                steps = len(next(iter(run.controls.values())))
                self.store.add(self.config, run.controls, [run.seed], steps, "validation", [judged.score])
        return found

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        """See Runs."""
        work = self._parts("segments", segments, self._at_once(len(segments), mapping_pays))
        return list(chain.from_iterable(self.pool.map(answer, work)))

    def _parts(self, question: str, items: Sequence[Any], size: int) -> list[_Work]:
        """The arguments of ``answer``, for ``size`` items at once."""
        return [(self.config, self.meta, question, items[i : i + size]) for i in range(0, len(items), size)]

    def _at_once(self, runs: int, pays: Callable[[InnerProblem, int], bool]) -> int:
        """How many runs a process is given: one, or its share where it can map them."""
        share = -(-runs // self.pool.workers)
        return share if pays(build_problem(self.config), share) else 1


def local_runs(config: ProblemConfig, meta: MetaConfig) -> LocalRuns:
    """The inner runs that these sections describe, in this process."""
    return LocalRuns(
        problem=build_problem(config, relaxation=meta.relaxation),
        played=build_problem(config),
        outer=OuterLoss(meta.objective, meta.surrogate),
        unroll=find_unroll(meta.estimator, meta.memory),
        memory=meta.memory,
        sweeps=engine(meta.estimator) == "sweep",
    )


def answer(config: ProblemConfig, meta: MetaConfig, question: str, items: Sequence[Any]) -> list[Any]:
    """What these runs answer to one of the questions of Runs; runs in any process."""
    return getattr(local_runs(config, meta), question)(items)
