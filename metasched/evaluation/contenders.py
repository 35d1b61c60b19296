"""The arms of a comparison: schedules of any method, on the same task, steps and seeds.

Those that every comparison has are in references.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from metasched.config.load import of_method, with_fields
from metasched.config.schema import Experiment, ProblemConfig
from metasched.core.errors import MetaschedError, did_you_mean, unknown_name
from metasched.core.randomness import derive_seed
from metasched.evaluation.comparison import REFERENCES
from metasched.evaluation.measured import MEASURED, measured_names, measured_schedule, method_of_named
from metasched.evaluation.tuned_rate import TunedRate
from metasched.exchange.played import PlayedSchedule, warn_of_guesses
from metasched.exchange.player import check_method
from metasched.exchange.schedule_file import read_schedule
from metasched.exchange.shipped import file_of, is_local_file, learned_names
from metasched.methods.config import MethodConfig
from metasched.methods.spec import FLOOR
from metasched.runs.cells import bound
from metasched.schedules.base import Schedule
from metasched.schedules.curves import HandCoded
from metasched.schedules.table import (
    NO_SCHEDULE,
    floor_of,
    hand_coded,
    has_floor,
    joined_schedules,
    method_of_hand_coded,
    schedules_of,
)
from metasched.tasks.table import OF_TABLES
from metasched.training.problem import build_problem

_SAME_DATA = (
    "factory",
    "args",
    "name",
    "root",
    *OF_TABLES,
    "train",
    "validation",
    "test",
    "data_seed",
    "image_size",
    "steps",
    "batch",
    "pretrained",
)


class Contender(NamedTuple):
    """One arm.

    Attributes:
        problem: task, method and optimizer that it trains.
        schedule: what the method plays.
        tuned: how the learning rate of ``problem`` was chosen; None: it is the experiment's.
    """

    problem: ProblemConfig
    schedule: Schedule
    tuned: TunedRate | None = None


def hand_coded_arms(config: ProblemConfig, names: Sequence[str] | None) -> list[tuple[str, Contender]]:
    """The hand-coded schedules that ``compare.baselines`` names, of any method, or (None) all of the problem's method.

    Those of the floor and the ceiling are left out: every comparison has them.

    Raises:
        MetaschedError: no method has a schedule of that name, or schedules that are joined do not fit together.
    """
    if names is None:
        own = schedules_of(config.method) | {
            n: measured_schedule(config, n) for n in measured_names(config.method.name)
        }
        return [(n, Contender(config, s)) for n, s in own.items() if n not in REFERENCES]
    arms = [(name, _hand_coded_arm(config, name, f"compare.baselines[{i}]")) for i, name in enumerate(names)]
    return [(name, arm) for name, arm in arms if name not in REFERENCES]


def _hand_coded_arm(config: ProblemConfig, name: str, path: str) -> Contender:
    """A hand-coded schedule, or several of different methods joined by +, which ``joint`` plays together."""
    if name in MEASURED:
        config = by_method(config, MEASURED[name].family)
        return Contender(config, measured_schedule(config, name))
    known = method_of_hand_coded()
    parts = name.split("+")
    for part in parts:
        if part not in known:
            error = unknown_name(path, part, method_of_named())
            raise MetaschedError(path, error.problem, f"{error.fix}; `metasched list` shows them")
    if len(parts) == 1:
        return Contender(by_method(config, known[name]), hand_coded(known[name])[name])
    of = "+".join(known[part] for part in parts)
    method = of_method(of_method(config.method, FLOOR), "joint", {"of": of}, path)
    return Contender(config._replace(method=method), joined_schedules(parts, method, path))


def file_arm(config: ProblemConfig, path: Path) -> Contender:
    """A schedule file, played by the method that it is for.

    If this is the method of the experiment, the experiment's parameters are used. Otherwise the quantizers are those of
    the experiment, and the other parameters those of the file.

    Raises:
        MetaschedError: the file is not a schedule, or the method cannot use it.
    """
    config = config._replace(method=_method_of_file(config.method, path))
    return Contender(config, read_playable(path, config))


def _method_of_file(method: MethodConfig, path: Path) -> MethodConfig:
    """The method of a schedule file, with the quantizers of another; the other itself if it has the same name."""
    own = read_schedule(path).method
    return method if own.name == method.name else of_method(method, own.name, own.parameters, str(path))


def schedule_arm(config: ProblemConfig, schedule: Schedule) -> Contender:
    """A schedule object, played by the method that it is for, where it says so, or else by the problem's.

    Raises:
        MetaschedError: its method cannot play it.
    """
    if isinstance(schedule, PlayedSchedule):
        own = schedule.file.method
        config = config._replace(method=of_method(config.method, own.name, own.parameters, "schedule"))
    elif isinstance(schedule, HandCoded):
        config = by_method(config, schedule.family)
    return Contender(config, schedule)


def described_arm(experiment: Experiment, words: Sequence[str]) -> tuple[str, Contender]:
    """Name and arm from the words ``NAME SCHEDULE [FIELD=VALUE ...]`` of the option ``--arm``.

    SCHEDULE is the name of a schedule of the package, or the path of a schedule file. The method of the arm is that of
    the schedule, unless a field ``method.name`` is given.

    Raises:
        MetaschedError: too few words, no such schedule, an invalid field, or different data, steps or seeds.
    """
    if len(words) < 2:
        raise MetaschedError("--arm", f"is {' '.join(words)!r}", "give NAME SCHEDULE [FIELD=VALUE ...]")
    name, named, *fields = words
    if not any(field.startswith("method.name=") for field in fields):
        method = of_method(experiment.method, method_of_named().get(named, experiment.method.name))
        if (file := file_of(named)) is not None:
            method = _method_of_file(experiment.method, file)
        experiment = replace(experiment, method=method)
    own = with_fields(experiment, fields, f"--arm {name}")
    if any(getattr(own.task, f) != getattr(experiment.task, f) for f in _SAME_DATA) or own.seed != experiment.seed:
        raise MetaschedError(f"--arm {name}", "has other data, steps or seeds", "leave those fields out")
    return name, Contender(own.problem, named_schedule(own.problem, named, f"--arm {name}"))


def named_schedule(config: ProblemConfig, named: str, path: str) -> Schedule:
    """The hand-coded schedule of the problem's method that has a name, its floor, a learned one, or that in a file.

    Args:
        config: what plays it.
        named: a name, ``floor`` (no schedule), or a path; see shipped.py.
        path: what error messages begin with.

    Raises:
        MetaschedError: neither a hand-coded schedule of the method nor a schedule file for it, or it has no floor.
    """
    if named == NO_SCHEDULE:
        return floor_of(config.method, path)
    family = schedules_of(config.method)
    if named in family:
        return family[named]
    if named in measured_names(config.method.name):
        return measured_schedule(config, named)
    file = file_of(named)
    if file is None:
        problem = f"{named!r} is neither a hand-coded schedule of {config.method.name} nor a file"
        others = (*measured_names(config.method.name), *learned_names(config.method.name))
        names = [*[NO_SCHEDULE] * has_floor(config.method), *family, *others]
        hint = is_local_file(named) + did_you_mean(named, names)
        raise MetaschedError(path, problem, f"{hint}use a file, or one of {', '.join(names)}")
    return read_playable(file, config)


def read_playable(path: Path, config: ProblemConfig) -> Schedule:
    """The schedule of a file, which this problem's method and network can play, for this task at its own horizon.

    Raises:
        MetaschedError: the file is not a schedule, or is for another method.
    """
    file, network = read_schedule(path), build_problem(config).network
    check_method(file, config.method.name, network.method.controls, str(path))
    schedule = bound(config, PlayedSchedule(file), config.task.steps)
    warn_of_guesses(schedule, network.layers, str(path))
    return schedule


def name_of(path: Path) -> str:
    """Name of the arm of a schedule file: its own name, or that of its run folder if it is ``schedule.json``.

    >>> name_of(Path("wide.json")), name_of(Path("runs/digits-001/schedule.json"))
    ('wide', 'digits-001')
    """
    return path.stem if path.stem != "schedule" else path.resolve().parent.name


def joined(*arms: tuple[str, Contender]) -> dict[str, Contender]:
    """{name: arm} of all arms, in order; equal arms with the same name are merged.

    Raises:
        MetaschedError: different arms have the same name.
    """
    by_name: dict[str, Contender] = {}
    for name, arm in arms:
        if by_name.setdefault(name, arm) != arm:
            raise MetaschedError(name, "is the name of two arms", "rename one of them")
    return by_name


def by_method(config: ProblemConfig, name: str) -> ProblemConfig:
    """The problem with another method and the same quantizers."""
    return config._replace(method=of_method(config.method, name))


def fresh_seeds(seed: int, number: int) -> list[int]:
    """The inner seeds of an experiment's comparisons, from a stream of their own."""
    return [derive_seed(seed, "compare", i) for i in range(number)]
