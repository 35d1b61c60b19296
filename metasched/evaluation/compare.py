"""``compare``: every schedule on the same fresh seeds, hardened, on the test set, with paired differences.

Seeds are drawn from their own stream, which neither learning nor choosing the start ever touches; the test split is
read here only. Every arm trains for the same number of steps at each horizon.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from metasched.config import Experiment
from metasched.errors import MetaschedError, unknown_name
from metasched.evaluation.cells import Remembered, cell_scores, played
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.report import write_report
from metasched.evaluation.statistics import counted, summarize
from metasched.exchange.export import read_schedule, write_schedule
from metasched.exchange.player import PlayedSchedule, check_method, spent_on, warn_of_other_kinds
from metasched.files import RunFolder, environment, json_text, write_atomic
from metasched.network import QuantizedNetwork
from metasched.randomness import derive_seed
from metasched.schedules.base import Schedule
from metasched.schedules.table import hand_coded
from metasched.tracking import Tracker, cut_back, open_tracker
from metasched.tracking.console import Console
from metasched.tracking.metrics import SCORES_PICTURE
from metasched.tracking.plots import plot_comparison
from metasched.training.mapped import mapping_pays
from metasched.training.pool import Mapper
from metasched.training.problem import build_problem
from metasched.training.ranks import open_pool
from metasched.yaml_reader import read_mapping

_SHOWN = 2  # schedules whose differences to all others fit into a terminal
_SAME_BITS = ("metasched", "torch", "cpu", "cpu_capability", "inner_threads", "device")  # of environment.json


def fresh_seeds(experiment: Experiment) -> list[int]:
    """The inner seeds of comparisons, from a stream of their own."""
    return [derive_seed(experiment.seed, "compare", i) for i in range(experiment.compare.seeds)]


def baselines(experiment: Experiment) -> dict[str, Schedule]:
    """The hand-coded schedules that the configuration names, or all of the method's family.

    Raises:
        MetaschedError: a name that the family does not have.
    """
    family = hand_coded(experiment.method.name)
    names = experiment.compare.baselines
    for i, name in enumerate(names or ()):
        if name not in family:
            raise unknown_name(f"compare.baselines[{i}]", name, family)
    return {name: family[name] for name in (names if names is not None else family)}


def read_playable(path: Path, experiment: Experiment, network: QuantizedNetwork) -> PlayedSchedule:
    """The schedule of a file, which this experiment's method and network can play.

    Raises:
        MetaschedError: it is no schedule, or is for another method.
    """
    file = read_schedule(path)
    check_method(file, experiment.method.name, network.method.controls, str(path))
    schedule = PlayedSchedule(file)
    warn_of_other_kinds(schedule.layers, network.layers, str(path))
    return schedule


def name_of(path: Path) -> str:
    """What a schedule file goes by: its own name, or that of the run folder that it lies in.

    >>> name_of(Path("wide.json")), name_of(Path("runs/digits-001/schedule.json"))
    ('wide', 'digits-001')
    """
    return path.stem if path.stem != "schedule" else path.resolve().parent.name


def compare(
    experiment: Experiment,
    schedules: Mapping[str, Schedule],
    learned: Sequence[str],
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Comparison:
    """Train under every schedule from every fresh seed at every horizon, and log each cell.

    Args:
        experiment: task, method, seeds, horizons.
        schedules: the arms by name.
        learned: the arms that every other one is paired with.
        pool: where the cells run.
        tracker, console: where each cell is logged and progress is shown.
    """
    seeds = fresh_seeds(experiment)
    horizons = [multiple * experiment.task.steps for multiple in experiment.compare.horizons]
    cells = [(name, steps, seed) for steps in horizons for name in schedules for seed in seeds]
    controls = {(n, steps): played(experiment, schedules[n], steps) for steps in horizons for n in schedules}
    share = -(-len(seeds) // pool.workers)
    size = share if mapping_pays(build_problem(experiment), share) else 1
    work = [
        (experiment, controls[name, steps], seeds[i : i + size], steps, "test")
        for steps in horizons
        for name in schedules
        for i in range(0, len(seeds), size)
    ]
    found = (score for part in pool.map(cell_scores, work) for score in part)
    scores: dict[tuple[str, int], list[float]] = {key: [] for key in controls}
    for i, ((name, steps, seed), score) in enumerate(zip(cells, found, strict=True)):
        scores[name, steps].append(score)
        tracker.log({"compare/seed": seed, "compare/arm": name, "compare/horizon": steps, "compare/score": score})
        if (i + 1) % len(seeds) == 0:
            done, total = (i + 1) // len(seeds), len(cells) // len(seeds)
            console.note(
                f"compare {done}/{total}: {name} over {steps} steps: {summarize(counted(scores[name, steps])).mean:.4f}"
            )
    arms = [
        Arm(name, steps, tuple(scores[name, steps]), steps * len(seeds), spent_on(schedule))
        for steps in horizons
        for name, schedule in schedules.items()
    ]
    return Comparison(tuple(seeds), tuple(arms), tuple(learned))


def publish(comparison: Comparison, folder: RunFolder, tracker: Tracker, console: Console) -> None:
    """Write comparison.json and the plot, log the table and show it."""
    write_atomic(folder.comparison, (json_text(comparison.to_dict(), indent=2) + "\n").encode())
    shown = comparison.learned if len(comparison.learned) <= _SHOWN else comparison.learned[:1]
    for horizon in comparison.horizons:
        console.table(f"Hardened test score after {horizon} steps", *comparison.rows(horizon, shown))
        tracker.table(f"comparison_{horizon}", *comparison.rows(horizon))
    if shown != comparison.learned:
        console.note(f"differences to {shown[0]}, the first one given; those to the others are in the report")
    scores = {h: {name: counted(arm.scores) for name, arm in comparison.at(h).items()} for h in comparison.horizons}
    folder.plots.mkdir(exist_ok=True)
    picture = folder.plots / "comparison.png"
    plot_comparison(picture, scores, comparison.learned)
    tracker.picture(SCORES_PICTURE, picture)


def run(
    experiment: Experiment, paths: Sequence[Path], folder: RunFolder, console: Console, reuse: Sequence[Path] = ()
) -> dict[str, Any]:
    """``metasched compare``: schedule files against the hand-coded schedules.

    Args:
        experiment: task, method, seeds, horizons.
        paths: schedule files; each is named by its file's stem.
        folder: where the comparison is written.
        console: where it is shown.
        reuse: folders of other runs; cells that were computed there are not computed again.

    Raises:
        MetaschedError: a file that is no schedule or is for another method; a folder without cells.
    """
    others = [_cells_of(path) for path in reuse]
    problem = build_problem(experiment)
    if folder.resumes.exists():
        paths = _of_the_run(folder, paths)
    files: dict[str, Schedule] = {}
    for path in paths:
        schedule = read_playable(path, experiment, problem.network)
        name = name_of(path)
        if name in files:
            raise MetaschedError(str(path), f"a second schedule named {name!r}", "rename one of the files")
        files[name] = schedule
    arms = {**files, **baselines(experiment)}
    if not arms:
        raise MetaschedError("compare.baselines", "nothing to compare", "name a schedule file or a baseline")
    if not folder.schedules.exists():
        _keep(dict(zip(files, paths, strict=True)), folder)
    cut_back(folder.metrics, 0)
    tracker = open_tracker(experiment, folder, "compare")
    try:
        with open_pool(experiment.run.workers) as pool, closing(Remembered(pool, folder.cells, others)) as cells:
            comparison = compare(experiment, arms, list(files), cells, tracker, console)
        publish(comparison, folder, tracker, console)
        report = write_report(experiment, comparison, arms, folder)
    finally:
        tracker.close()
    means = {arm.name: arm.summary.mean for arm in comparison.arms}
    return {"report": str(report), "comparison": str(folder.comparison), "arms": means}


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
        warnings.warn(f"{path}: ran with another {', '.join(other)}: its bits may differ", stacklevel=2)
    return run.cells


def _keep(paths: Mapping[str, Path], folder: RunFolder) -> None:
    """Copies of the schedule files, all or none: what a resumed comparison plays."""
    made = folder.path / ".schedules.new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for i, (name, path) in enumerate(paths.items()):
        (made / f"{i:03d}").mkdir()
        write_schedule(made / f"{i:03d}" / f"{name}.json", read_schedule(path))
    made.rename(folder.schedules)


def _of_the_run(folder: RunFolder, given: Sequence[Path]) -> list[Path]:
    """The schedule files of a comparison that is resumed: those that it kept, or before it did those given now."""
    if not folder.schedules.exists():
        if not given:
            problem = "the run was stopped before it kept its schedule files"
            raise MetaschedError("--schedule", problem, "give them again, or start a new run")
        return list(given)
    if given:
        raise MetaschedError(
            "--schedule", "does not go with --resume", "leave it out: a run goes on with its own files"
        )
    return sorted(folder.schedules.glob("*/*.json"))
