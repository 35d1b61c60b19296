"""``Study``: learns a schedule for any training function, and compares it with no schedule and with float."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from metasched.core.errors import MetaschedError, unknown_name
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.evaluation.verdict import verdicts
from metasched.exchange.format import Spent
from metasched.exchange.player import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.schedules.table import NO_SCHEDULE
from metasched.study.helping import helped
from metasched.study.judging import Job, Judge
from metasched.study.learners import LearnerSpec, Learning, Tried, find_learner
from metasched.study.schedules import Found, digest, file_of, references, resolved
from metasched.study.storage import Storage
from metasched.study.work import COMPARE, SELECT, Work, check_evaluate, seed_of
from metasched.tasks.fingerprint import code_fingerprint
from metasched.tracking.console import open_console

LEARNED = "learned"


class Study:
    """Learns a schedule for any training function, by ways that need no derivative of it.

        study = metasched.Study(make_model, recipe, fit, example=batch, evaluate=accuracy, steps=300, storage="study")
        study.optimize("portfolio", budget=60)
        study.optimize("es", budget=200)
        study.compare(seeds=16)
        metasched.write_schedule("best.json", study.best().file)

    Args:
        make_model: gives the float model; torch's global generator has the run's seed.
        recipe: ``metasched.Recipe``: the method, and what it quantizes; or a MethodConfig, or the name of a method.
        fit: ``fit(model, player, seed, steps)`` trains the model, which is called like that of ``make_model``, with
            ``player.step()`` after each step of the optimizer. Without ``evaluate`` it gives the score.
        example: a batch, as for ``quantize``.
        evaluate: ``evaluate(model)``, with a parameter ``split`` (``validation`` while learning, ``test`` in
            ``compare``) or ``seed`` if it wants them: the score of the hard network, higher is better.
        steps: T, steps of the optimizer in a run.
        storage: folder, in which each run is stored; where it holds this study, that goes on. None: a temporary one.
        start: where learning starts: ``floor`` (no schedule), a schedule, its name, or the path of its file.
        learn: names of the controls that are learned; None: all.
        judged: runs in which finalists are judged, from the same seeds for all of the study; at least 2.
        knots: K, points in progress that a schedule is linear between.
        directions: at most so many numbers are learned.
        seed: of the study; seeds of runs for learning, for judging finalists and for comparing are never equal.
        quiet: show nothing.

    Raises:
        MetaschedError: an argument that does not fit, or the folder of another study.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        recipe: Any,
        fit: Callable[..., Any],
        *,
        example: Any,
        steps: int,
        evaluate: Callable[..., Any] | None = None,
        storage: str | os.PathLike[str] | None = None,
        start: str | os.PathLike[str] | Schedule = NO_SCHEDULE,
        learn: Sequence[str] | None = None,
        judged: int = 8,
        knots: int = 25,
        directions: int = 20,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        self._given = {k: v for k, v in locals().items() if k not in ("self", "storage", "quiet", "__class__")}
        for name, value, least in (("judged", judged, 2), ("knots", knots, 2), ("directions", directions, 1)):
            _at_least(least, name, value)
        self.work = Work(fit, evaluate, make_model, recipe, example, steps)
        self.seed, self._judged, self._knots, self._directions = seed, judged, knots, directions
        self._learn = _controls(self.work, learn)
        self._start = resolved(start, self.work, knots, "start")
        path = Path(tempfile.mkdtemp(prefix="metasched-")) / "study" if storage is None else Path(storage)
        self.storage = Storage(path, {"steps": steps, "seed": seed, "judged": judged, **self.work.identity()})
        self._console = None if quiet else open_console(sys.stdout)
        self._judge = Judge(self.work, self.storage)
        self._found: list[Found] = []

    def optimize(self, learner: str = "es", *, budget: int, workers: int = 1, **settings: Any) -> Found:
        """Learns, judges the best ones again, from seeds of their own, and stores the one that is best there.

        It starts at the best schedule that calls before it, in this process, have found. So a script that was killed
        and is started again does the same, with the runs that are stored. A larger budget goes on from a smaller one.

        Args:
            learner: ``es``, ``tpe``, ``cmaes``, ``random``, ``pbt``, or ``portfolio``: the schedules of the package.
            budget: runs of the training function, those in which finalists are judged included.
            workers: processes; more than one needs functions that can be pickled. Scripts that are started several
                times on one folder share the work too.
            settings: of the learner: ``runs`` (of a candidate; pairs in a step of ``es``), ``lr``, ``sigma`` and
                ``clip`` of ``es``, ``population`` of ``pbt``.

        Raises:
            MetaschedError: no such learner or setting, a budget that is too small, or ``fit`` failed.
        """
        spec = find_learner(learner)
        if unknown := [name for name in settings if name not in spec.settings]:
            raise unknown_name(f"{learner}: setting", unknown[0], spec.settings)
        fits = _fits(spec, budget, self._judged, settings)
        start = self._start
        if self._found:
            start = resolved(self._schedule(_best(self._found)), self.work, self._knots, "start")
        with self._helped(workers, partial(_learn_too, learner=learner, fits=fits, start=start, settings=settings)):
            best, score = self.learned(learner, fits, start, settings, workers)
        file = file_of(best, start, self.work, spec, score, self._judged, budget, self.seed)
        name = f"{learner}_{digest(file)}.json"
        write_schedule(self.storage.path / name, file)
        found = Found(learner, best.name, score, self._judged, budget, name)
        self._found.append(found)
        self.storage.add_found(asdict(found))
        self._note(f"{learner}: {best.name}, {score:.4f} over {self._judged} runs of its own: {name}")
        return found

    def found(self) -> list[Found]:
        """What all calls of ``optimize`` on this folder have found."""
        return [Found(**row) for row in self.storage.found()]

    def best(self) -> PlayedSchedule:
        """The best of ``found`` by its score; ``metasched.write_schedule(path, study.best().file)`` writes it.

        Raises:
            MetaschedError: nothing was found yet.
        """
        return self._schedule(_best(self.found()))

    def compare(
        self,
        *,
        seeds: int = 16,
        schedules: Sequence[str | os.PathLike[str] | Schedule] = (),
        evaluate: Callable[..., Any] | None = None,
        workers: int = 1,
    ) -> Comparison:
        """Trains under the best schedule, others, and no schedule, and in float, from the same seeds; says the verdict.

        ``ste`` and ``lsq`` are no schedule, with fixed and with learned scales; ``float`` has no quantization. All have
        the learning rate that ``fit`` has. The result is in ``comparison.json`` too.

        Args:
            seeds: number of seeds, at least 2.
            schedules: others for the method: names, paths of files, or objects.
            evaluate: in place of the study's, such as for the test set.
            workers: as for ``optimize``.

        Raises:
            MetaschedError: nothing was found yet, an argument that does not fit, or ``fit`` failed.
        """
        _at_least(2, "seeds", seeds)
        if evaluate is not None:
            check_evaluate(evaluate)
        best = _best(self.found())
        others = [resolved(given, self.work, self._knots, "schedules") for given in schedules]
        arms: dict[str, tuple[MethodConfig, Schedule]] = {
            LEARNED: (self.work.method, self._schedule(best)),
            **{other.name: (self.work.method, other.schedule) for other in others},
            **references(self.work.method),
        }
        if len(arms) < len(others) + 4:
            raise MetaschedError("schedules", "two arms have the same name", f"they are {', '.join(arms)}")
        with self._helped(workers, partial(_score_too, arms=arms, seeds=seeds, evaluate=evaluate)):
            scores = self.scores(arms, seeds, evaluate, workers)
        worst, steps = lowest([score for own in scores.values() for score in own]), self.work.steps
        spent = {LEARNED: (Spent(by=best.learner, inner_steps=best.fits * steps),)}
        comparison = Comparison(
            self._seeds(COMPARE, seeds),
            tuple(
                Arm(name, steps, tuple(own), seeds * steps, spent.get(name, ()), arms[name][0].name, worst)
                for name, own in scores.items()
            ),
            (LEARNED,),
        )
        lines = verdicts(comparison)
        result = {**comparison.to_dict(), "verdict": [line.to_dict() for line in lines]}
        write_atomic(self.storage.path / "comparison.json", json_text(result, indent=1).encode() + b"\n")
        for line in lines:
            self._note(str(line))
        if self._console is not None:
            self._console.table(f"Score of the hard network after {steps} steps", *comparison.rows(steps))
        return comparison

    def learned(
        self, learner: str, fits: int, start: Tried, settings: dict[str, Any], workers: int = 1
    ) -> tuple[Tried, float]:
        """The best finalist of a learner, and its score: what ``optimize`` and its helping processes do."""
        spec, asked, work = find_learner(learner), [0], self.work
        total = fits + (spec.finalists + 1) * self._judged

        def scores(pairs: Sequence[tuple[Schedule, int]]) -> list[float]:
            jobs = [Job(work.method, s, seed, f"{learner}: run {asked[0] + i}") for i, (s, seed) in enumerate(pairs, 1)]
            asked[0] += len(pairs)
            return self._judge.scores(jobs)

        def log(text: str) -> None:
            self._note(f"{learner} {text}{self._judge.eta(total - asked[0], workers)}")

        seeds = self._seeds(SELECT, self._judged)
        first = scores([(start.schedule, seed) for seed in seeds])
        if all(score != score for score in first):
            problem = f"every run of {start.name}, where learning starts, gave NaN"
            raise MetaschedError("fit", problem, "lower its learning rate, or let it give a finite score")
        log(f"starts at {start.name}: {summarize(counted(first, lowest(first))).mean:.4f} over {len(seeds)} runs")
        given = (start, work, self._learn, self._knots, self._directions, self.seed, settings)
        tried = spec.learn(Learning(scores, log, fits, *given))
        finalists = [start, *tried[: spec.finalists]]
        each = [first, *(scores([(t.schedule, seed) for seed in seeds]) for t in finalists[1:])]
        worst = lowest([score for own in each for score in own])
        means = [summarize(counted(own, worst)).mean for own in each]
        best = max(range(len(means)), key=lambda i: means[i])  # of equal ones the start
        return finalists[best], means[best]

    def scores(
        self,
        arms: Mapping[str, tuple[MethodConfig, Schedule]],
        seeds: int,
        evaluate: Callable[..., Any] | None,
        workers: int = 1,
    ) -> dict[str, list[float]]:
        """The score of each arm from each seed: what ``compare`` and its helping processes do."""
        found: dict[str, list[float]] = {}
        by = "" if evaluate is None else code_fingerprint(evaluate)
        for name, (method, schedule) in arms.items():
            own = self._seeds(COMPARE, seeds)
            jobs = [Job(method, schedule, seed, f"compare: {name}", evaluate) for seed in own]
            found[name] = self._judge.scores(jobs, by)
            mean = summarize(counted(found[name], lowest(found[name]))).mean
            eta = self._judge.eta((len(arms) - len(found)) * seeds, workers)
            self._note(f"compare {name}: {mean:.4f} over {seeds} seeds{eta}")
        return found

    def _seeds(self, stream: int, number: int) -> tuple[int, ...]:
        return tuple(seed_of(self.seed, stream, i) for i in range(number))

    def _schedule(self, found: Found) -> PlayedSchedule:
        return PlayedSchedule(read_schedule(self.storage.path / found.file))

    def _note(self, text: str) -> None:
        if self._console is not None:
            self._console.note(text)

    def _helped(self, workers: int, task: Callable[[Study], object]) -> Any:
        return helped(workers, partial(_reopened, self._given, self.storage.path, task))


def _reopened(given: Mapping[str, Any], path: Path, task: Callable[[Study], object]) -> None:
    task(Study(**given, storage=path, quiet=True))


def _learn_too(study: Study, **call: Any) -> None:
    study.learned(**call)


def _score_too(study: Study, **call: Any) -> None:
    study.scores(**call)


def _fits(spec: LearnerSpec, budget: int, judged: int, settings: dict[str, Any]) -> int:
    """The runs that are left for learning, without those of the finalists, of which the start is one.

    Raises:
        MetaschedError: there are too few.
    """
    kept = (spec.finalists + 1) * judged
    least = kept + spec.least(settings)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < least:
        problem = f"is {budget!r} runs of fit: {spec.name} judges {spec.finalists + 1} schedules {judged} times"
        raise MetaschedError("budget", f"{problem}, and needs {least - kept} to learn", f"give at least {least}")
    return budget - kept


def _best(found: Sequence[Found]) -> Found:
    if not found:
        raise MetaschedError("study", "has found nothing yet", "call optimize first")
    return max(found, key=lambda one: one.score)


def _controls(work: Work, learn: Sequence[str] | None) -> tuple[str, ...]:
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


def _at_least(least: int, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MetaschedError(name, f"must be at least {least}, got {value!r}", "correct it")
