"""Schedules that are there already, tried in order: those of the package, and those that a user enqueues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metasched.core.errors import MetaschedError
from metasched.exchange.player import PlayedSchedule, check_method, load
from metasched.exchange.shipped import learned_names
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.schedules.table import schedules_of
from metasched.study.learning import REPEATS, Learning, Tried, mean_scores, named, setting
from metasched.study.work import LEARN, seed_of


def in_order(learning: Learning, known: Sequence[Tried]) -> list[Tried]:
    """Schedules with their mean scores over the same runs, the best first; of equal ones the earlier."""
    repeats, found, seen = repeats_of(learning.settings), list[Tried](), list[float]()
    seeds = [seed_of(learning.seed, LEARN, run) for run in range(repeats)]  # the same for all
    for tried in known:
        (mean,) = mean_scores(learning, [tried.schedule], [seeds], seen)
        found.append(tried._replace(score=mean))
        learning.log(f"{len(found)}/{len(known)}: {tried.name} {mean:.4f}")
    return sorted(found, key=lambda t: -t.score)


def repeats_of(settings: dict[str, Any]) -> int:
    """Runs in which each is tried."""
    return setting(settings, "repeats", REPEATS)


def portfolio(learning: Learning) -> list[Tried]:
    """The shipped schedules of the method in their order, learned ones first, as far as the runs last."""
    known = shipped(learning.work.method, learning.work.controls)
    total = min(len(known), learning.runs // repeats_of(learning.settings))
    if total < len(known):
        learning.log(f"the runs are for {total} of {len(known)} schedules")
    return in_order(learning, known[:total])


def shipped(method: MethodConfig, controls: Sequence[Control]) -> list[Tried]:
    """The schedules of the package that a method can play: the learned ones, then the hand-coded ones."""
    found = []
    for name in learned_names(method.name):
        schedule = load(name)
        assert isinstance(schedule, PlayedSchedule)
        try:
            check_method(schedule.file, method.name, controls, name)
        except MetaschedError:  # of other parameters of the method, such as the parts of joint
            continue
        found.append(named(name, schedule, 25))
    return [*found, *(named(name, schedule, 25) for name, schedule in schedules_of(method).items())]
