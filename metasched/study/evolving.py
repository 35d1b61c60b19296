"""Evolution strategies as a learner: the outer loop of ``metasched train``, with the training function as inner run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.meta.config import MetaConfig
from metasched.meta.guards import RunStopped
from metasched.meta.outer import OuterStep, meta_train
from metasched.runs.local import Judged, Run
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import ScheduleNetwork
from metasched.search.tuning import Sampled
from metasched.study.learning import Learning, Tried, section, setting
from metasched.study.work import LEARN, in_stream

PAIRS = 4  # of runs in a step


class _Shape(NamedTuple):
    """What evolution strategies ask of a problem."""

    steps: int
    network: Any


class _Network(NamedTuple):
    layers: tuple[Layer, ...]


class _Fits(NamedTuple):
    """The runs of an outer loop, done by the training function; it has values only."""

    learning: Learning
    meta: MetaConfig
    label: str = "fit"

    @property
    def problem(self) -> _Shape:
        return _Shape(self.learning.work.steps, _Network(self.learning.work.layers))

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        knots = progress_of_steps(self.learning.work.steps)
        played = [(Sampled(knots, dict(run.controls), "linear"), in_stream(run.seed, LEARN)) for run in runs]
        return [Judged(-score, score) for score in self.learning.scores(played)]


def es(learning: Learning) -> list[Tried]:
    """The outer loop with evolution strategies: 2 x ``pairs`` runs a step."""
    pairs = setting(learning.settings, "pairs", PAIRS)
    own = {name: value for name, value in learning.settings.items() if name != "pairs"}
    meta = section(MetaConfig, {"estimator": "es", "steps": learning.runs // (2 * pairs), "runs": pairs, **own})
    schedule = learning.network()

    def log(record: OuterStep) -> None:
        learning.log(f"step {record.step + 1}/{meta.steps}: {record.score:.4f}")

    try:
        meta_train(cast(Any, _Fits(learning, meta)), learning.seed, schedule, log)
    except RunStopped as error:
        fix = "lower the learning rate in fit, or the setting sigma"
        raise MetaschedError("es", "scores of three steps in a row are not finite", fix) from error
    return [_member("es", schedule, learning)]


def _member(name: str, schedule: ScheduleNetwork, learning: Learning) -> Tried:
    with torch.no_grad():
        values = {n: v.detach().clone() for n, v in schedule.at_knots(learning.work.layers).items()}
    return Tried(name, Sampled(schedule.knots, values, "linear"), schedule.knots, "linear")
