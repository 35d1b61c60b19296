"""A distribution of tasks: each seed gives a task, which is an experiment's problem with some fields set and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment, ProblemConfig
from metasched.config.writing import to_dict
from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator
from metasched.families.config import TaskEntry, TasksConfig
from metasched.methods.spec import CEILING, QUANTIZERS
from metasched.tasks.base import Task, examples
from metasched.training.features import features_of_problem
from metasched.training.problem import build_problem


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
        """Of an inner run, up to a factor: steps, times the examples of a batch, times the weights of the network."""
        problem = build_problem(self.problem)
        weights = sum(layer.num_weights for layer in problem.network.layers)
        return float(problem.steps * examples(problem.task.batch(0, 0)) * weights)


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


def with_values(experiment: Experiment, values: Mapping[str, Any], where: str) -> Experiment:
    """The experiment with some fields changed; another ``method.name`` takes the quantizers along, and nothing else.

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
    for path, value in values.items():
        *sections, field = path.split(".")
        part = document
        for section in sections:
            part = part.setdefault(section, {})
            if not isinstance(part, dict):
                raise MetaschedError(f"{where}: {path}", f"{section} is not a section", "correct the path")
        part[field] = value
    try:
        return experiment_of(document)
    except MetaschedError as error:
        raise MetaschedError(f"{where}: {error.path}", error.problem, error.fix) from None


def _draw(among: Any, seed: int, index: int) -> Any:
    """One of a list, or a number that is log-uniform between two."""
    draws = generator(seed, "task field", index)
    if isinstance(among, list):
        return among[int(torch.randint(len(among), (), generator=draws))]
    low, high = among["from"], among["to"]
    share = float(torch.rand((), generator=draws, dtype=torch.float64))
    value = min(high, max(low, math.exp(math.log(low) + share * (math.log(high) - math.log(low)))))
    return round(value) if isinstance(low, int) and isinstance(high, int) else value
