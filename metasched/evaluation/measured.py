"""Published schedules with a number for each layer that is measured in the network before training.

They have names, as hand-coded schedules do, and are made for one problem: ``measured_schedule`` measures and gives a
HandCoded for its layers. The inner steps of a comparison do not count the measurement, whose cost is that of about
three training steps for each Hessian-vector product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from metasched.config.schema import ProblemConfig
from metasched.schedules.curves import HandCoded
from metasched.schedules.table import method_of_hand_coded
from metasched.schedules.tempering import hestia_hessian
from metasched.training.curvature import initial_traces
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem


class Measured(NamedTuple):
    """A kind of schedule: the method that plays it, and how it is made for a problem."""

    family: str
    make: Callable[[InnerProblem], HandCoded]


def _hestia(problem: InnerProblem) -> HandCoded:
    return hestia_hessian(list(initial_traces(problem).values()))


MEASURED: dict[str, Measured] = {"temperature_hestia_hessian": Measured("temperature", _hestia)}


def method_of_named() -> dict[str, str]:
    """Name of each hand-coded and each measured schedule -> name of its method."""
    return method_of_hand_coded() | {name: row.family for name, row in MEASURED.items()}


def measured_names(method: str) -> tuple[str, ...]:
    """The names of the measured schedules that a method plays."""
    return tuple(name for name, row in MEASURED.items() if row.family == method)


def measured_schedule(config: ProblemConfig, name: str) -> HandCoded:
    """A measured schedule for the network of a problem, the same object each time.

    Args:
        config: the problem; its method is the schedule's.
        name: a key of MEASURED.
    """
    assert config.method.name == MEASURED[name].family, (config.method.name, name)
    return _made(config, build_problem(config).fingerprint, name)


@lru_cache(maxsize=8)
def _made(config: ProblemConfig, fingerprint: str, name: str) -> HandCoded:
    return MEASURED[name].make(build_problem(config))
