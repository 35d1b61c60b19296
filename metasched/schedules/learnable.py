"""The two kinds of schedule that can be learned: a network, and a hand-coded family with a few parameters."""

from __future__ import annotations

from collections.abc import Sequence

from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.schedules.base import Schedule
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.family import ScheduleFamily
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
    """
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
