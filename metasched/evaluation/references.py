"""The arms that every comparison has: two floors and a ceiling, with the experiment's optimizer.

The floors train the experiment's quantizers without a schedule, hard from the first step: ``ste`` with fixed scales,
``lsq`` with learned ones. The ceiling, ``float``, is the same network without quantization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.evaluation.comparison import LSQ
from metasched.evaluation.contenders import Contender, by_method, hand_coded_arms
from metasched.methods.config import MethodConfig
from metasched.methods.spec import CEILING, FLOOR
from metasched.schedules.table import hand_coded
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem


def given_arms(config: ProblemConfig, baselines: Sequence[str] | None) -> list[tuple[str, Contender]]:
    """What every comparison plays: floors, ceiling and the hand-coded schedules of ``hand_coded_arms``."""
    return [*reference_arms(config), *hand_coded_arms(config, baselines)]


def reference_arms(config: ProblemConfig) -> list[tuple[str, Contender]]:
    """The floors and the ceiling, with their names.

    ``ste`` has the scales of the experiment; where those are learned, the fixed ones that they would start from:
    ``least_squares`` for weights, and 1 for activations. ``lsq`` learns one scale for each output channel of a weight,
    and one for each quantized activation. (If the first batch does not reach all of these, at which their scales would
    start, ``lsq`` has the activations of ``ste``.)
    """
    ste, none = by_method(fixed_scales(config), FLOOR), hand_coded(FLOOR)[FLOOR]
    lsq = _with_learned_scales(by_method(config, FLOOR))
    ceiling = by_method(fixed_scales(config), CEILING)
    return [
        (FLOOR, Contender(ste, none)),
        (LSQ, Contender(lsq, none)),
        (CEILING, Contender(ceiling, hand_coded(CEILING)[CEILING])),
    ]


def with_learned_scales(method: MethodConfig) -> MethodConfig:
    """The method with learned scales of weights by channel, and of activations if they are quantized."""
    learned = replace(method, scale="learned", granularity="channel")
    return learned if method.activation_levels is None else replace(learned, activation_scale="learned")


def without_learned_scales(method: MethodConfig) -> MethodConfig:
    """The method with fixed scales: the ones that learned ones would start from, and 1 for activations."""
    if method.scale == "learned":
        method = replace(method, scale="least_squares")
    return replace(method, activation_scale=1.0) if isinstance(method.activation_scale, str) else method


def _with_learned_scales(config: ProblemConfig) -> ProblemConfig:
    """The problem with learned scales of weights, and of activations if they are quantized and reached."""
    fixed = without_learned_scales(config.method)
    both = config._replace(method=with_learned_scales(fixed))
    if fixed.activation_levels is None:
        return both
    problem = build_problem(both)
    try:
        problem.initial(problem.network.neutral())
    except MetaschedError:
        return both._replace(method=replace(both.method, activation_scale=fixed.activation_scale))
    return both


def fixed_scales(config: ProblemConfig) -> ProblemConfig:
    """The problem with fixed scales, and without the rules of the optimizer for learned ones."""
    optimizer = config.optimizer
    kept = tuple(group for group in optimizer.groups if group.match != "scale")
    config = config._replace(method=without_learned_scales(config.method))
    return config if kept == optimizer.groups else with_optimizer(config, replace(optimizer, groups=kept))


def with_optimizer(config: ProblemConfig, optimizer: OptimizerConfig) -> ProblemConfig:
    """The problem with another optimizer, also where the task has one of its own."""
    if optimizer == OptimizerConfig() and build_problem(config).task.optimizer is not None:
        # a section at its defaults would mean the task's own, so the rate is one rounding error higher
        optimizer = replace(optimizer, lr=math.nextafter(optimizer.lr, math.inf))
    return config._replace(optimizer=optimizer)
