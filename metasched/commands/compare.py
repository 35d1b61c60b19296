"""``metasched compare``: schedule files and described arms on the same seeds, beside floors and ceiling."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from metasched.commands.estimate import announce, runs_of_compare, timed_arm
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.evaluation.compare import compare, plan_of, publish
from metasched.evaluation.contenders import Contender, described_arm, file_arm, joined, name_of
from metasched.evaluation.floors import runs_of_a_rate, with_tuned_rates
from metasched.evaluation.measured import method_of_named
from metasched.evaluation.references import given_arms
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.exchange.shipped import file_of, unknown_schedule
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_lines import cut_back
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.io.strict_yaml import read_mapping
from metasched.meta.resume import keep_fingerprint
from metasched.runs.cells import CachedPool
from metasched.runs.store import store_at
from metasched.runs.where import open_pool
from metasched.schedules.table import NO_SCHEDULE
from metasched.tracking.console import Console
from metasched.tracking.opening import open_tracker
from metasched.training.problem import build_problem

_SAME_BITS = ("metasched", "torch", "cpu", "cpu_capability", "inner_threads", "device")  # of environment.json


def run(
    experiment: Experiment,
    schedules: Sequence[str],
    folder: RunFolder,
    console: Console,
    reuse: Sequence[Path] = (),
    described: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """``metasched compare``: schedules and described arms against the hand-coded schedules, floors and ceiling.

    Args:
        experiment: task, method, seeds, horizons.
        schedules: names of schedules of the package, and paths of schedule files, which are named by their stem.
        folder: where the comparison is written.
        console: where it is shown.
        reuse: folders of other runs; cells that were computed there are not computed again.
        described: further arms, ``NAME SCHEDULE [FIELD=VALUE ...]`` each.

    Raises:
        MetaschedError: a file that is no schedule, an arm that does not fit, two of one name, a folder without cells.
    """
    others = [_cells_of(path) for path in reuse]
    paths = [path for named in schedules if (path := file_of(named)) is not None]
    described = [*([named, named] for named in schedules if file_of(named) is None), *described]
    for named in schedules:
        if file_of(named) is None and named not in (NO_SCHEDULE, *method_of_named()):
            raise unknown_schedule("--schedule", named)
    keep_fingerprint(folder, build_problem(experiment.problem).fingerprint)
    if folder.resumes.exists():
        paths, described = _of_the_run(folder, paths, described)
    files = [(name_of(path), file_arm(experiment.problem, path)) for path in paths]
    more = [described_arm(experiment, words) for words in described]
    _all_arms(experiment, [*files, *more])  # mistakes show before anything is kept
    if not folder.schedules.exists():
        _keep(paths, described, folder)
    learned = [name for name, _ in files] or [name for name, _ in more]
    return compare_arms(experiment, [*files, *more], learned, folder, console, others)


def compare_arms(
    experiment: Experiment,
    arms: Sequence[tuple[str, Contender]],
    learned: Sequence[str],
    folder: RunFolder,
    console: Console,
    reuse: Sequence[Path] = (),
) -> dict[str, Any]:
    """Arms against the hand-coded schedules, floors and ceiling; the paths and verdicts that a program would read.

    Args:
        experiment: task, method, seeds, horizons.
        arms: with their names.
        learned: names of those that all others are paired with.
        folder: where the comparison is written.
        console: where it is shown.
        reuse: files of cells that need not be computed again.

    Raises:
        MetaschedError: two arms of one name, or a budget of ``compare.tune_floors`` that no arm tells.
    """
    by_name = _all_arms(experiment, arms)
    cut_back(folder.metrics, 0)
    with (
        open_pool(experiment.run) as pool,  # before trackers: they start threads
        closing(open_tracker(experiment, folder, "compare")) as tracker,
        closing(CachedPool(pool, folder.cells, reuse, store_at(experiment.run.store))) as cells,
    ):
        runs = runs_of_compare(experiment, len(by_name), runs_of_a_rate(experiment, by_name))
        announce(runs, timed_arm(experiment, by_name), pool, console)
        if reuse:
            console.note("the plan counts all of them; what the runs of --reuse have trained is not trained again")
        by_name = with_tuned_rates(experiment, by_name, cells, tracker, console)
        comparison = compare(plan_of(experiment), by_name, learned, cells, tracker, console)
        return publish(to_dict(experiment), comparison, by_name, folder, tracker, console)


def _all_arms(experiment: Experiment, arms: Sequence[tuple[str, Contender]]) -> dict[str, Contender]:
    """The arms and those that every comparison has, which go together: names, and the budget for the floors' rates."""
    by_name = joined(*arms, *given_arms(experiment.problem, experiment.compare.baselines))
    runs_of_a_rate(experiment, by_name)
    return by_name


def _cells_of(path: Path) -> Path:
    """The file of cells of another run, with a warning where that ran on something else.

    Raises:
        MetaschedError: it has none, or does not say what it ran on.
    """
    run = RunFolder(path)
    for file in (run.cells, run.environment):
        if not os.path.isfile(file):  # Path.is_file raises on a name too long
            raise MetaschedError("--reuse", f"{path} holds no {file.name}", "give the folder of a run that compared")
    here, there = environment(), read_mapping(run.environment)
    other = [name for name in _SAME_BITS if there.get(name) != here[name]]
    if other:
        warnings.warn(
            f"{path}: ran with another {', '.join(other)}: its bits may differ", MetaschedWarning, stacklevel=2
        )
    return run.cells


def _keep(paths: Sequence[Path], described: Sequence[Sequence[str]], folder: RunFolder) -> None:
    """What the comparison plays, all or nothing: copies of the schedule files, and the described arms."""
    made = folder.path / ".schedules.new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()

    def copied(path: Path, name: str, part: str, number: int) -> Path:
        place = Path(part, f"{number:03d}", f"{name}.json")
        (made / place).parent.mkdir(parents=True)
        write_schedule(made / place, read_schedule(path))
        return folder.schedules / place

    for i, path in enumerate(paths):
        copied(path, name_of(path), "", i)
    kept = []
    for i, (name, named, *fields) in enumerate(described):
        if (file := file_of(named)) is not None:
            named = str(copied(file, "schedule", "arms", i).relative_to(folder.path))
        kept.append([name, named, *fields])
    write_atomic(made / "arms.json", json_text(kept).encode())
    made.rename(folder.schedules)


def _of_the_run(
    folder: RunFolder, given: Sequence[Path], described: Sequence[Sequence[str]]
) -> tuple[list[Path], list[list[str]]]:
    """Schedule files and described arms of a resumed comparison: what it kept, or before it did, those given now."""
    if not folder.schedules.exists():
        if not given and not described:
            problem = "the run was stopped before it kept its schedule files"
            raise MetaschedError("--schedule", problem, "give them again, or start a new run")
        return list(given), [list(words) for words in described]
    if given or described:
        option = "--schedule" if given else "--arm"
        raise MetaschedError(
            option, "cannot be combined with --resume", "leave it out: a run goes on with its own arms"
        )
    arms = folder.schedules / "arms.json"
    kept = json.loads(arms.read_text("utf-8")) if arms.exists() else []  # runs from before described arms have none
    for words in kept:
        if (folder.path / words[1]).is_file():
            words[1] = str(folder.path / words[1])
    return sorted(folder.schedules.glob("[0-9]*/*.json")), kept
