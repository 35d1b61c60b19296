"""A distribution of tasks: each seed gives a task, which is an experiment's problem with some fields set and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metasched.config.ignored import unread
from metasched.config.load import experiment_of
from metasched.config.schema import Experiment, ProblemConfig
from metasched.config.writing import OWN_TASK, to_dict
from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.families.config import TaskEntry, TasksConfig
from metasched.methods.spec import CEILING, QUANTIZERS
from metasched.network.operations import operations
from metasched.tasks.base import Task
from metasched.tasks.config import TaskConfig
from metasched.training.features import features_of_problem
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem, ingredients


class DrawnTask(NamedTuple):
    """A task that a family has given.

    Attributes:
        name: of its entry.
        experiment: with its fields set; it has no section ``tasks``.
        weight: of its entry.
    """

    name: str
    experiment: Experiment
    weight: float

    @property
    def label(self) -> str:
        """What messages call it: its entry, and its training steps."""
        return f"{self.name} ({self.experiment.task.steps} steps)"

    @property
    def problem(self) -> ProblemConfig:
        """What its inner problem depends on."""
        return self.experiment.problem

    @property
    def task(self) -> Task:
        """The task itself."""
        return build_problem(self.problem).task

    @property
    def features(self) -> dict[str, float]:
        """What a schedule may know of it, see core/features.py."""
        return features_of_problem(self.problem)

    @property
    def cost(self) -> float:
        """Of an inner run: its steps, times the multiply-accumulates of a training batch in the float network."""
        return float(self.problem.task.steps * _products(_without_length(self.problem)))


class NamedTask(NamedTuple):
    """A task of an entry that ``TaskFamily.drawn(entry, seed)`` makes, and its name."""

    name: str
    entry: TaskEntry
    seed: int


class TaskFamily:
    """A distribution of tasks.

    Args:
        experiment: what the tasks have in common; its section ``tasks`` has the entries, at least one.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.config = experiment.tasks
        assert self.config.entries
        self._base = replace(experiment, tasks=TasksConfig())

    def sample(self, seed: int) -> DrawnTask:
        """A task: a function of the seed alone. An entry is drawn by its weight, and then its fields.

        Raises:
            MetaschedError: the fields do not make an experiment.
        """
        weights = torch.tensor([entry.weight for entry in self.config.entries], dtype=torch.float64)
        index = int(torch.multinomial(weights, 1, generator=generator(seed, "task entry")))
        return self.drawn(self.config.entries[index], seed)

    def drawn(self, entry: TaskEntry, seed: int) -> DrawnTask:
        """The task of an entry for a seed, which plays no part where nothing is drawn.

        Raises:
            MetaschedError: the fields do not make an experiment.
        """
        chosen = {**entry.set, **{f: _draw(among, seed, i) for i, (f, among) in enumerate(sorted(entry.draw.items()))}}
        return DrawnTask(entry.name, with_values(self._base, chosen, f"tasks.{entry.name}"), entry.weight)

    def each(self) -> list[DrawnTask]:
        """One task of each entry, from seed 0; where nothing is drawn these are all there are."""
        return [self.drawn(entry, 0) for entry in self.config.entries]

    def all(self) -> list[NamedTask]:
        """The ``count`` tasks of each entry, in the order of the entries; none is made yet.

        The name of a task is that of its entry, with the number of the draw where fields are drawn.
        """
        return [
            NamedTask(f"{entry.name}.{seed}" if entry.draw else entry.name, entry, seed)
            for entry in self.config.entries
            for seed in range(entry.count)
        ]


def with_values(experiment: Experiment, values: Mapping[str, Any], where: str) -> Experiment:
    """The experiment with some fields changed.

    Another ``method.name`` takes the quantizers along, and nothing else; another ``task.factory`` takes nothing of the
    section but the steps. Fields of the section ``task`` that are not changed, and that the changed one does not read,
    go back to their defaults. A relative ``task.root`` lies in that of the experiment, if it has one.

    Args:
        experiment: what is changed.
        values: {dotted path: value}, a value as YAML has it.
        where: what error messages begin with.

    Raises:
        MetaschedError: a field that does not exist, or a value that it cannot have.
    """
    document = to_dict(experiment)
    name = values.get("method.name", experiment.method.name)
    if name != experiment.method.name:
        document["method"] = {f: v for f, v in document["method"].items() if f in QUANTIZERS and name != CEILING}
    if {"task.factory", "task.name"} & values.keys():
        own = OWN_TASK if "task.factory" in values else document["task"].keys() - {"factory", "args"}
        document["task"] = {f: v for f, v in document["task"].items() if f in own}
    for path, value in values.items():
        *sections, field = path.split(".")
        part = document
        for section in sections:
            part = part.setdefault(section, {})
            if not isinstance(part, dict):
                raise MetaschedError(f"{where}: {path}", f"{section} is not a section", "correct the path")
        part[field] = value
    root = values.get("task.root")
    if isinstance(root, str) and experiment.task.root is not None:
        document["task"]["root"] = str(Path(experiment.task.root, root))
    try:
        found = experiment_of(document, values.keys())
    except MetaschedError as error:
        raise MetaschedError(f"{where}: {error.path}", error.problem, error.fix) from None
    names = {path.removeprefix("task.") for path in unread(found) - values.keys() if path.startswith("task.")}
    return replace(found, task=replace(found.task, **{name: getattr(TaskConfig, name) for name in names}))


def _without_length(config: ProblemConfig) -> ProblemConfig:
    """The problem at one horizon and one optimizer, on which the work of a step does not depend."""
    return config._replace(task=replace(config.task, steps=1), optimizer=OptimizerConfig())


@lru_cache(maxsize=256)
def _products(config: ProblemConfig) -> int:
    """Multiply-accumulates of the float network's forward pass of a training batch."""
    made = ingredients(config)
    with torch.random.fork_rng(devices=[]):  # a loss may draw
        return max(1, sum(operations(made.model, made.example).values()))


def _draw(among: Any, seed: int, index: int) -> Any:
    """One of a list, or a number that is log-uniform between two."""
    draws = generator(seed, "task field", index)
    if isinstance(among, list):
        return among[int(torch.randint(len(among), (), generator=draws))]
    low, high = among["from"], among["to"]
    share = float(torch.rand((), generator=draws, dtype=torch.float64))
    value = min(high, max(low, math.exp(math.log(low) + share * (math.log(high) - math.log(low)))))
    return round(value) if isinstance(low, int) and isinstance(high, int) else value
