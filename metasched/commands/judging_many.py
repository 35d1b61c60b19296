"""What was learned over many tasks, judged on fresh ones: confirmed against its start, and compared with all arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from metasched.commands.train import LEARNED, START
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.confirm import Confirmation, summary
from metasched.evaluation.contenders import Contender
from metasched.evaluation.over_tasks import PlayedTask, over_tasks, play_tasks, rows
from metasched.evaluation.statistics import summarize
from metasched.families.drawing import distinct, drawn_tasks
from metasched.families.family import DrawnTask, TaskFamily
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.runs.cells import CachedPool
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker

Arms = Callable[[DrawnTask], Mapping[str, Contender]]


def fresh_tasks(experiment: Experiment, family: TaskFamily, purpose: str) -> list[DrawnTask]:
    """Tasks that neither learning nor the other purpose has drawn, without repetitions.

    Raises:
        MetaschedError: fewer than two, which have no interval.
    """
    n = experiment.tasks.examples
    found = distinct(drawn_tasks(family, derive_seed(experiment.seed, f"{purpose} tasks"), n))
    if len(found) < 2:
        problem = f"gives {len(found)} different task in {n} draws, and an interval over tasks needs two"
        raise MetaschedError("tasks.entries", problem, "give more entries, let them draw, or raise tasks.examples")
    return found


def confirmed(
    experiment: Experiment,
    tasks: Sequence[DrawnTask],
    pair: Arms,
    start: str,
    cells: CachedPool,
    tracker: Tracker,
    console: Console,
) -> Confirmation | None:
    """What was learned against its start on fresh tasks, which are the unit; None where that is not asked for."""
    if not (runs := experiment.meta.confirm_runs):
        console.note("what was learned was not confirmed to be better than its start: meta.confirm_runs is 0")
        return None
    done = _logger("confirm", tasks, (LEARNED, START), tracker, console)
    found = play_tasks(tasks, pair, runs, (experiment.seed, "confirm"), "validation", cells, done)
    d = over_tasks(found, LEARNED, START)
    steps = sum(2 * runs * t.task.experiment.task.steps for t in found)
    score = summarize([t.mean(START) for t in found])
    confirmation = Confirmation(start, score, d, steps, f"fresh tasks of {runs} meta-validation seeds")
    tracker.log(summary(confirmation))
    console.note(str(confirmation))
    return confirmation


def compared_arms(
    experiment: Experiment,
    tasks: Sequence[DrawnTask],
    arms: Arms,
    cells: CachedPool,
    tracker: Tracker,
    console: Console,
) -> list[PlayedTask]:
    """All arms on other fresh tasks, scored on their test parts."""
    done = _logger("compare", tasks, (LEARNED,), tracker, console)
    return play_tasks(tasks, arms, experiment.compare.seeds, (experiment.seed, "compare"), "test", cells, done)


def _logger(
    axis: str, tasks: Sequence[DrawnTask], shown: Sequence[str], tracker: Tracker, console: Console
) -> Callable[[PlayedTask], None]:
    count = 0

    def done(found: PlayedTask) -> None:
        nonlocal count
        for arm, scores in found.scores.items():
            for seed, score in zip(found.seeds, scores, strict=True):
                own = {"task": count, "arm": arm, "seed": seed, "score": score}
                tracker.log({f"{axis}/{name}": value for name, value in own.items()})
        count += 1
        said = ", ".join(f"{arm} {found.mean(arm):.4f}" for arm in shown)
        diverged = f" ({found.diverged} runs diverged)" if found.diverged else ""
        console.note(f"{axis} {count}/{len(tasks)}: {found.task.label}: {said}{diverged}")

    return done


def publish_tasks(
    experiment: Experiment,
    compared: Sequence[PlayedTask],
    confirmation: Confirmation | None,
    folder: RunFolder,
    tracker: Tracker,
    console: Console,
) -> None:
    """Writes ``over_tasks.json``, and shows and logs the table."""
    others = [arm for arm in compared[0].scores if arm != LEARNED]
    differences = {arm: over_tasks(compared, LEARNED, arm)._asdict() for arm in others}
    entry = {
        "format": "metasched.over_tasks",
        "version": 1,
        "experiment": experiment.name,
        "unit": "task",
        "part": "test",
        "tasks": [t.to_dict() for t in compared],
        "differences": {arm: {"of": LEARNED, **d} for arm, d in differences.items()},
        "confirmed": confirmation.to_dict() if confirmation else None,
    }
    write_atomic(folder.over_tasks, (json_text(entry, indent=2) + "\n").encode())
    columns, table = rows(compared, LEARNED)
    console.table(
        f"Hardened test score on {len(compared)} fresh tasks of {len(compared[0].seeds)} seeds", columns, table
    )
    tracker.table("over_tasks", columns, table)
