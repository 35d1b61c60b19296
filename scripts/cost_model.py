r"""What `metasched train` costs: a model of its CPU seconds, which fit_cost_model.py fits and checks.

With L quantized layers, M multiply-accumulates and A numbers that the modules put out for an example, batches of B,
runs of T steps, and k_m, the cost of a step of method m in steps of `ste`,

    step                 s = k_m (a L + b M B + c A B)
    played run           T s + e (b M + c A) n + i L      n: examples that the network is calibrated and judged on
    differentiated run   h T s
    command              start + sum over phases of runs times seconds of a run

The numbers of inner runs are those of `metasched train`, counted from the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metasched.config.schema import Experiment
from metasched.estimators.guided import FEWER
from metasched.evaluation.confirm import steps_to_confirm
from metasched.training.optimizers.config import RATE_FACTORS

ARMS = ("learned", "learned", "ste", "lsq", "float")  # of a comparison without baselines: what was learned, its start


class Sizes(NamedTuple):
    """What the time of a step depends on.

    Attributes:
        layers: L, quantized layers.
        macs: M, multiply-accumulates of an example's forward pass.
        numbers: A, that the modules put out for an example.
        batch: B.
    """

    layers: int
    macs: float
    numbers: float
    batch: int


class Costs(NamedTuple):
    """The fitted constants, in seconds; factors are ``evaluation`` e, ``hypergradient`` h, and ``methods``, the k_m."""

    layer: float
    mac: float
    number: float
    evaluation: float
    run: float
    hypergradient: float
    start: float
    methods: Mapping[str, float]


class Phase(NamedTuple):
    """Runs of one kind.

    Attributes:
        name: of the part of the command.
        method: one of ``Costs.methods``.
        runs: how many.
        steps: T of each.
        examples: on which the network is calibrated and judged after a run.
        differentiated: whether a run is one of a hypergradient.
    """

    name: str
    method: str
    runs: int
    steps: int
    examples: int
    differentiated: bool = False


def step_seconds(costs: Costs, sizes: Sizes, method: str) -> float:
    """Seconds of a step: k_m (a L + b M B + c A B)."""
    example = costs.mac * sizes.macs + costs.number * sizes.numbers
    return costs.methods[method] * (costs.layer * sizes.layers + example * sizes.batch)


def run_seconds(costs: Costs, sizes: Sizes, phase: Phase) -> float:
    """CPU seconds of one run of a phase."""
    training = phase.steps * step_seconds(costs, sizes, phase.method)
    if phase.differentiated:
        return costs.hypergradient * training
    example = costs.mac * sizes.macs + costs.number * sizes.numbers
    return training + costs.evaluation * example * phase.examples + costs.run * sizes.layers


def total_seconds(costs: Costs, sizes: Sizes, phases: Sequence[Phase]) -> float:
    """CPU seconds of a command."""
    return costs.start + sum(phase.runs * run_seconds(costs, sizes, phase) for phase in phases)


def rounds(runs: int, workers: int) -> int:
    """After how many runs, one after the other, all of a phase are done by so many workers.

    >>> rounds(12, 8)
    2
    """
    return math.ceil(runs / workers)


def learning_speedup(runs: int, workers: int, hypergradient: float, *, guided: bool) -> float:
    """How much faster workers make an outer step of es or of guided; runs of one length, nothing else counted.

    >>> learning_speedup(6, 4, 4.0, guided=False), learning_speedup(6, 4, 4.0, guided=True)
    (4.0, 2.2857142857142856)
    """
    guides = max(1, runs // FEWER) if guided else 0
    alone = guides * hypergradient + 2 * runs
    return alone / (rounds(guides, workers) * hypergradient + rounds(2 * runs, workers))


def phases_of(experiment: Experiment, calibrated: int, validation: int, test: int) -> list[Phase]:
    """The runs of ``metasched train`` for an experiment whose start is given, with es or guided, without baselines.

    Args:
        experiment: the whole configuration.
        calibrated: examples on which batch normalization is estimated.
        validation, test: examples of these parts.
    """
    meta, comparing, steps = experiment.meta, experiment.compare, experiment.task.steps
    assert meta.estimator in ("es", "guided") and comparing.baselines == () and experiment.schedule.start != "best"
    own, pairs = "learned", 2 * meta.runs * meta.steps
    guides = max(1, meta.runs // FEWER) * meta.steps if meta.estimator == "guided" else 0
    confirmed = steps_to_confirm(meta.confirm_runs, 1)
    asked = comparing.tune_floors
    if asked == "as_learned":
        asked = max(len(RATE_FACTORS), pairs + guides + confirmed)
    tuned = len(RATE_FACTORS) * round(asked / len(RATE_FACTORS))
    return [
        Phase("hypergradients", own, guides, steps, 0, differentiated=True),
        Phase("pairs", own, pairs, steps, validation),
        Phase("confirm", own, confirmed, steps, calibrated + validation),
        *(Phase("floors", arm, tuned, steps, calibrated + validation) for arm in ("ste", "lsq", "float")),
        *(
            Phase("compare", arm, comparing.seeds, steps * multiple, calibrated + test)
            for arm in ARMS
            for multiple in comparing.horizons
        ),
    ]
