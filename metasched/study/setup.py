"""What all runs of a study share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metasched.core.errors import MetaschedError, unknown_name
from metasched.study.judging import Judge
from metasched.study.learning import Learning, Scores, Tried
from metasched.study.work import Work, seed_of


@dataclass(frozen=True)
class Setup:
    """What all runs of a study share.

    Attributes:
        work: what is trained.
        judge: gives scores.
        learn: names of the controls that are learned.
        knots, directions: of schedule networks.
        judged: runs in which a finalist is judged.
        seed: of the study.
        note: shows a line.
    """

    work: Work
    judge: Judge
    learn: tuple[str, ...]
    knots: int
    directions: int
    judged: int
    seed: int
    note: Callable[[str], None]

    def seeds(self, stream: int, number: int) -> tuple[int, ...]:
        """The first seeds of a stream."""
        return tuple(seed_of(self.seed, stream, i) for i in range(number))

    def learning(
        self, scores: Scores, log: Callable[[str], None], runs: int, start: Tried, settings: dict[str, object]
    ) -> Learning:
        """What a learner is given; the arguments are those of ``Learning``."""
        own = (self.work, self.learn, self.knots, self.directions, self.seed)
        return Learning(scores, log, runs, start, *own, settings)


def controls_of(work: Work, learn: Sequence[str] | None) -> tuple[str, ...]:
    """The controls that are learned.

    Raises:
        MetaschedError: the method has none, or none of such a name.
    """
    known = [c.name for c in work.controls]
    if not known:
        fix = "take one of those that `metasched list` shows schedules of"
        raise MetaschedError("recipe.method", f"{work.method.name} has no control to learn", fix)
    for name in learn or ():
        if name not in known:
            raise unknown_name("learn", name, known)
    return tuple(known if learn is None else learn)


def at_least(least: int, name: str, value: object) -> None:
    """Refuses what is no number, or too low.

    Raises:
        MetaschedError: it is.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MetaschedError(name, f"must be at least {least}, got {value!r}", "correct it")
