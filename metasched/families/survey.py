"""What a few drawn tasks of each entry say before any work: costs of runs, and layers at which a schedule is fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from metasched.families.drawing import cheaper, few_of_each, mean_costs, shares
from metasched.families.family import DrawnTask, TaskFamily
from metasched.training.problem import build_problem


class Survey(NamedTuple):
    """What was seen.

    Attributes:
        family: of tasks.
        examples: a few of each entry.
        costs: mean of each entry: multiply-accumulates of the forward passes of a run.
        probabilities: with which entries are drawn while learning.
        reference: the example with the most layers, the first such one.
        fingerprint: of the tasks of all examples.
    """

    family: TaskFamily
    examples: Sequence[Sequence[DrawnTask]]
    costs: tuple[float, ...]
    probabilities: tuple[float, ...]
    reference: DrawnTask
    fingerprint: str

    @property
    def steps(self) -> float:
        """Mean training steps of a run of a drawn task."""
        return sum(q * s for q, s in zip(self.probabilities, self._steps(), strict=True))

    @property
    def steps_by_share(self) -> float:
        """The same where entries are drawn by their shares."""
        return sum(p * s for p, s in zip(shares(self.family), self._steps(), strict=True))

    def lines(self) -> list[str]:
        """For the console, one an entry."""
        entries = zip(self.family.config.entries, shares(self.family), self.probabilities, strict=True)
        return [
            f"  {entry.name}: {p:.0%} of the mean, {q:.0%} of the draws, a run of about {steps:.0f} steps and "
            f"{cost:.2g} multiply-accumulates (forward)"
            for (entry, p, q), steps, cost in zip(entries, self._steps(), self.costs, strict=True)
        ]

    def _steps(self) -> list[float]:
        return [fmean(task.experiment.task.steps for task in of_entry) for of_entry in self.examples]


def survey(family: TaskFamily, seed: int) -> Survey:
    """Builds a few tasks of each entry, and looks at them.

    Raises:
        MetaschedError: one cannot be built.
    """
    examples = few_of_each(family, seed)
    costs = mean_costs(examples)
    q = cheaper(shares(family), costs) if family.config.cheaper else shares(family)
    problems = [(task, build_problem(task.problem)) for of_entry in examples for task in of_entry]
    reference = max(problems, key=lambda found: len(found[1].network.layers))[0]
    prints = "/".join(problem.fingerprint for _, problem in problems)
    fingerprint = hashlib.blake2b(prints.encode(), digest_size=16).hexdigest()
    return Survey(family, examples, tuple(costs), tuple(q), reference, fingerprint)
