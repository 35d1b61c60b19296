"""``Study``: learns a schedule for any training function, and compares it with no schedule and with float."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from metasched.core.errors import MetaschedError, unknown_name
from metasched.evaluation.comparison import Comparison
from metasched.evaluation.short import show_scores
from metasched.evaluation.verdict import verdicts
from metasched.exchange.format import Spent
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.network.recipe import Recipe
from metasched.schedules.table import NO_SCHEDULE
from metasched.study.comparing import Contest, comparison_of_scores, contested
from metasched.study.helping import helped
from metasched.study.judging import Judge
from metasched.study.learners import find_learner
from metasched.study.learning import Tried
from metasched.study.optimizing import Plan, learned, planned
from metasched.study.playing import recipe_of
from metasched.study.schedules import Found, Given, digest, file_of, resolved, resolved_all
from metasched.study.setup import Setup, at_least, controls_of
from metasched.study.storage import Storage
from metasched.study.work import Work, check_evaluate
from metasched.tracking.console import open_console


class Study:
    """Learns a schedule for any training function, by ways that need no derivative of it.

        study = metasched.Study(make_model, recipe, fit, example=batch, evaluate=accuracy, steps=300, storage="study")
        study.enqueue(metasched.published(recipe))
        study.optimize("es", runs=200)
        study.compare(seeds=16).report("report.html")
        module, player = metasched.prepare(make_model(), recipe, batch, study.best, total_steps=10_000)

    Args:
        make_model: gives the float model; torch's global generator has the run's seed.
        recipe: ``metasched.Recipe``: the method, and what it quantizes; or a MethodConfig, or the name of a method.
        fit: ``fit(model, player, seed, steps)`` trains the model, which is called like that of ``make_model``, with
            ``player.step()`` after each step of the optimizer. Without ``evaluate`` it gives the score.
        example: a batch, as for ``quantize``.
        evaluate: ``evaluate(model)``, with a parameter ``split`` (``validation`` while learning, ``test`` for the
            scores of ``compare``) or ``seed`` if it wants them: the score of the hard network, higher is better.
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
        recipe: Recipe | MethodConfig | str,
        fit: Callable[..., Any],
        *,
        example: Any,
        steps: int,
        evaluate: Callable[..., Any] | None = None,
        storage: str | os.PathLike[str] | None = None,
        start: Given = NO_SCHEDULE,
        learn: Sequence[str] | None = None,
        judged: int = 8,
        knots: int = 25,
        directions: int = 20,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        self._given = {k: v for k, v in locals().items() if k not in ("self", "storage", "quiet", "__class__")}
        for name, value, least in (("judged", judged, 2), ("knots", knots, 2), ("directions", directions, 1)):
            at_least(least, name, value)
        self.work = Work(fit, evaluate, make_model, recipe_of(recipe), example, steps)
        learns = controls_of(self.work, learn)
        self._start = resolved(start, self.work, knots, "start")
        path = Path(tempfile.mkdtemp(prefix="metasched-")) / "study" if storage is None else Path(storage)
        self.storage = Storage(path, {"steps": steps, "seed": seed, "judged": judged, **self.work.identity()})
        self._console = None if quiet else open_console(sys.stdout)
        judge = Judge(self.work, self.storage)
        self._setup = Setup(self.work, judge, learns, knots, directions, judged, seed, self._note)
        self._found: list[Found] = []
        self._queue: list[Tried] = []

    def __repr__(self) -> str:
        about = f"{self.work.method.name}, {self.work.steps} steps, {len(self.storage)} runs of fit"
        return f"Study({str(self.storage.path)!r}: {about}, {len(self.storage.found())} schedules found)"

    def enqueue(self, *schedules: Given | Iterable[Given]) -> None:
        """Has the next call of ``optimize`` try schedules before it learns; the best of them may be where it starts.

        What its runs do not last for waits for the call after it.

        Args:
            schedules: names, paths of files, schedules, or lists of them, such as ``metasched.published(recipe)``.

        Raises:
            MetaschedError: no such schedule, or one of another method.
        """
        self._queue += resolved_all(schedules, self.work, self._setup.knots, "enqueue")

    def optimize(self, by: str = "es", *, runs: int, workers: int = 1, **settings: Any) -> Found:
        """Learns, judges the best ones again, from seeds of their own, and stores the one that is best there.

        It starts at the best schedule that calls before it, in this process, have found, or at the best one that was
        enqueued, if that is better. So a script that was killed and is started again does the same, with the runs that
        are stored. More runs go on from fewer.

        Args:
            by: ``es``, ``tpe``, ``cmaes``, ``random``, ``pbt``, or ``portfolio``: the schedules of the package.
            runs: of the training function, those in which finalists are judged included.
            workers: processes; more than one needs functions that can be pickled. Scripts that are started several
                times on one folder share the work too.
            settings: of the learner: ``pairs`` (of runs in a step), ``lr``, ``sigma`` and ``clip`` of ``es``,
                ``repeats`` (runs of a candidate) of the others, ``population`` of ``pbt``.

        Raises:
            MetaschedError: no such learner or setting, too few runs, or ``fit`` failed.
        """
        spec = find_learner(by)
        if unknown := [name for name in settings if name not in spec.settings]:
            raise unknown_name(f"{by}: setting", unknown[0], spec.settings)
        start = self._start
        if self._found:
            start = resolved(self._schedule(_best(self._found)), self.work, self._setup.knots, "start")
        judged, seed = self._setup.judged, self._setup.seed
        plan = planned(spec, start, self._queue, runs, judged, settings)
        if len(plan.queue) < len(self._queue):
            self._note(
                f"{by}: the runs are for {len(plan.queue)} of {len(self._queue)} enqueued schedules; others wait"
            )
        with self._helped(workers, partial(_learn_too, plan=plan)):
            outcome = learned(self._setup, plan, workers)
        del self._queue[: len(plan.queue)]
        file = file_of(outcome.best, outcome.start, self.work, by, outcome.score, judged, runs, seed)
        name = f"{by}_{digest(file)}.json"
        write_schedule(self.storage.path / name, file)
        found = Found(by, outcome.best.name, outcome.score, judged, runs, name)
        self._found.append(found)
        self.storage.add_found(asdict(found))
        self._note(f"{by}: {found.name}, {found.score:.4f} over {judged} runs of its own: {name}")
        return found

    @property
    def found(self) -> list[Found]:
        """What all calls of ``optimize`` on this folder have found."""
        return [Found(**row) for row in self.storage.found()]

    @property
    def best(self) -> PlayedSchedule:
        """The best of ``found`` by its score; ``metasched.write_schedule(path, study.best.file)`` writes it.

        Raises:
            MetaschedError: nothing was found yet.
        """
        return self._schedule(_best(self.found))

    def compare(
        self,
        *,
        seeds: int = 16,
        schedules: Given | Iterable[Given] = (),
        published: bool = True,
        evaluate: Callable[..., Any] | None = None,
        workers: int = 1,
    ) -> Comparison:
        """Trains under the best schedule, others, no schedule, and in float, from the same seeds; says the verdict.

        ``ste`` and ``lsq`` are no schedule, with fixed and with learned scales; ``float`` has no quantization. The best
        hand-coded schedule of the method is an arm too: each is tried twice, and the three best are judged again, in
        the runs of ``optimize("portfolio")``, on validation. All have the learning rate that ``fit`` has. The result is
        in ``comparison.json`` too.

        Args:
            seeds: number of seeds, at least 2.
            schedules: others for the method: names, paths of files, or schedules.
            published: whether the best hand-coded one is found and compared.
            evaluate: in place of the study's, such as for the test set.
            workers: as for ``optimize``.

        Raises:
            MetaschedError: nothing was found yet, an argument that does not fit, or ``fit`` failed.
        """
        at_least(2, "seeds", seeds)
        if evaluate is not None:
            check_evaluate(evaluate)
        best = _best(self.found)
        others = tuple(resolved_all([schedules], self.work, self._setup.knots, "schedules"))
        contest = Contest(self._schedule(best), others, published, seeds, evaluate)
        with self._helped(workers, partial(_contest_too, contest=contest)):
            arms, scores = contested(self._setup, contest, workers)
        spent = (Spent(by=best.learner, inner_steps=best.runs * self.work.steps),)
        comparison = comparison_of_scores(self._setup, arms, scores, spent)
        lines = verdicts(comparison)
        result = {**comparison.to_dict(), "verdicts": [line.to_dict() for line in lines]}
        write_atomic(self.storage.path / "comparison.json", json_text(result, indent=1).encode() + b"\n")
        for line in lines:
            self._note(str(line))
        if self._console is not None:
            show_scores(comparison, self.work.steps, self._console, "Score of the hard network")
        return comparison

    def _schedule(self, found: Found) -> PlayedSchedule:
        return PlayedSchedule(read_schedule(self.storage.path / found.file))

    def _note(self, text: str) -> None:
        if self._console is not None:
            self._console.note(text)

    def _helped(self, workers: int, task: Callable[[Setup], object]) -> Any:
        return helped(workers, partial(_reopened, self._given, self.storage.path, task))


def _reopened(given: Mapping[str, Any], path: Path, task: Callable[[Setup], object]) -> None:
    task(Study(**given, storage=path, quiet=True)._setup)


def _learn_too(setup: Setup, plan: Plan) -> None:
    learned(setup, plan)


def _contest_too(setup: Setup, contest: Contest) -> None:
    contested(setup, contest)


def _best(found: Sequence[Found]) -> Found:
    if not found:
        raise MetaschedError("study", "has found nothing yet", "call optimize first")
    return max(found, key=lambda one: one.score)
