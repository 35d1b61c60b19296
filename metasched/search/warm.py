"""A warm start: schedules of a portfolio as the first candidates of a search.

A member is tried as it is, because it is the schedule itself that was good on other tasks, not one nearby. Its score is
also told to the search, at the point of the box nearest to it, if the schedule there is close to it everywhere; a
search over directions has no such point for another schedule. So a warm start never loses a member, and never misleads
the search by a score of something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metasched.config.schema import ProblemConfig
from metasched.core.layer import Layer
from metasched.evaluation.contenders import named_schedule
from metasched.exchange.baselines import TOLERANCE, knots_within
from metasched.exchange.played import PlayedSchedule, check_open_loop
from metasched.exchange.portfolios import portfolio_for
from metasched.methods.base import Control
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.curves import HandCoded
from metasched.search.config import TuneConfig
from metasched.search.tuning import Box, Sampled, box_of
from metasched.training.problem import build_problem

PACKAGE = "portfolio"  # the value of ``tune.warm_start`` that means the package's portfolio
CLOSE = 0.1  # of a control's range, anywhere: what the nearest point may differ by, to stand for the schedule
_POINTS = 101


class Member(NamedTuple):
    """A schedule that is tried first.

    Attributes:
        name: its name, or the path of its file.
        schedule: at the network's own layers.
        point: of the box, that stands for it; None where none is close to it.
    """

    name: str
    schedule: Sampled
    point: list[float] | None


def members(
    config: ProblemConfig, schedule: ScheduleConfig, tune: TuneConfig, learn: Sequence[str], box: Box
) -> list[Member]:
    """The members that ``tune.warm_start`` names, in their order; none where it names nothing.

    Args:
        config: the problem that is trained.
        schedule: section of the experiment: knots and size.
        tune: names the portfolio and the space.
        learn: names of the searched controls.
        box: that is searched.

    Raises:
        MetaschedError: there is no portfolio for the recipe, or a schedule in it does not fit the network.
    """
    if tune.warm_start is None:
        return []
    found = portfolio_for(config.method, warm_portfolio(tune))
    network = build_problem(config).network
    controls = [control for control in network.method.controls if control.name in learn]
    made = []
    for word in found.schedules:
        played = named_schedule(config, word, "tune.warm_start")
        check_open_loop(played, "tune.warm_start")
        own = sampled(played, network.layers)
        point = None
        if tune.space == "family":
            fitted = box_of(schedule, tune, network, played, learn, 0)
            same = fitted.names == box.names  # else its numbers mean something else there
            if same and distance(own, box.member(fitted.first), controls) <= CLOSE:
                point = fitted.first
        made.append(Member(word, own, point))
    return made


def warm_portfolio(tune: TuneConfig) -> str | None:
    """The portfolio that ``tune.warm_start`` names, as ``portfolio_for`` takes it."""
    return None if tune.warm_start == PACKAGE else tune.warm_start


def sampled(schedule: Schedule, layers: Sequence[Layer]) -> Sampled:
    """A schedule of a file at its own knots, for these layers, or one by hand at knots enough for an error of 0.001."""
    assert isinstance(schedule, PlayedSchedule | HandCoded)
    if isinstance(schedule, PlayedSchedule):
        at, kind = schedule.knots, schedule.file.interpolation
    else:
        at, kind = knots_within(schedule, layers, TOLERANCE), schedule.interpolation
    return Sampled(at, schedule(at, layers), kind)


def distance(a: Sampled, b: Sampled, controls: Sequence[Control]) -> float:
    """How far two schedules differ anywhere before the end of the run, in shares of each control's range."""
    progress = progress_of_steps(_POINTS)[:-1]
    one, other = a(progress, ()), b(progress, ())
    each = [((one[c.name] - other[c.name]).abs().max() / (c.high - c.low)).item() for c in controls]
    return max(each, default=0.0)
