"""The two kinds of schedule that can be learned, a network and a hand-coded family; either may be closed-loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.schedules.base import Schedule
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.feedback import FeedbackSchedule
from metasched.schedules.network import ScheduleNetwork

LearnableSchedule = ScheduleNetwork | ScheduleFamily


def build_learnable(
    config: ScheduleConfig,
    controls: Sequence[Control],
    base: Schedule,
    learn: Sequence[str],
    layers: Sequence[Layer],
    seed: int,
) -> LearnableSchedule:
    """The learnable schedule of a configuration, with its initial parameters.

    Args:
        config: kind, knots and size.
        controls: all controls of the method.
        base: the schedule that a network starts at and that a family is fitted to.
        learn: names of the learned controls.
        layers: the layers at which a family is fitted.
        seed: seed of the initial weights of a network.

    Raises:
        MetaschedError: the configuration has feedback, which ``build_trained`` is for.
    """
    refuse_feedback(config)
    if config.kind == "family":
        return ScheduleFamily(controls, base, learn, knots=config.knots, layers=layers)
    return ScheduleNetwork(
        controls,
        base,
        learn,
        knots=config.knots,
        hidden=config.hidden,
        seed=seed,
        layers=layers,
        most=config.directions,
    )


def build_trained(
    config: ScheduleConfig,
    controls: Sequence[Control],
    base: Schedule,
    learn: Sequence[str],
    layers: Sequence[Layer],
    seed: int,
) -> LearnableSchedule | FeedbackSchedule:
    """``build_learnable``, with the gains of a closed-loop schedule where the configuration has feedback.

    Raises:
        MetaschedError: feedback, and no control is learned.
    """
    open_loop = build_learnable(replace(config, feedback=False), controls, base, learn, layers, seed)
    if not config.feedback:
        return open_loop
    if not open_loop.learned:
        raise MetaschedError("schedule.feedback", "is on, and no control is learned", "set it to false")
    return FeedbackSchedule(open_loop)


def refuse_feedback(config: ScheduleConfig) -> None:
    """Refuses feedback where schedules are learned or searched as functions of progress and layers alone.

    Raises:
        MetaschedError: the configuration has it.
    """
    if config.feedback:
        problem = "is learned by `metasched train` alone, on one task"
        raise MetaschedError("schedule.feedback", problem, "set it to false, or leave it out")
