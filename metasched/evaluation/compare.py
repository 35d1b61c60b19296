"""``compare``: every arm on the same fresh seeds, hardened, on the test set, with paired differences and a verdict.

Seeds are drawn from their own stream, which neither learning nor choosing the start ever touches; the test split is
read here only. Every arm trains for the same number of steps at each horizon.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from metasched.config import Experiment
from metasched.errors import MetaschedError
from metasched.evaluation.cells import Remembered, cell_scores, played
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.contenders import (
    Contender,
    described_arm,
    file_arm,
    fresh_seeds,
    hand_coded_arms,
    joined,
    name_of,
    reference_arms,
)
from metasched.evaluation.report import write_report
from metasched.evaluation.statistics import counted, summarize
from metasched.evaluation.verdict import verdicts
from metasched.exchange.export import read_schedule, write_schedule
from metasched.exchange.player import spent_on
from metasched.files import RunFolder, environment, json_text, write_atomic
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


def compare(
    experiment: Experiment,
    contenders: Mapping[str, Contender],
    learned: Sequence[str],
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Comparison:
    """Train every arm from every fresh seed at every horizon, and log each cell.

    Args:
        experiment: seeds and horizons.
        contenders: the arms by name.
        learned: the arms that every other one is paired with.
        pool: where the cells run.
        tracker, console: where each cell is logged and progress is shown.
    """
    seeds = fresh_seeds(experiment)
    horizons = [multiple * experiment.task.steps for multiple in experiment.compare.horizons]
    cells = [(name, steps, seed) for steps in horizons for name in contenders for seed in seeds]
    work = [
        (arm.experiment, controls, part, steps, "test")
        for steps in horizons
        for arm in contenders.values()
        for controls in [played(arm.experiment, arm.schedule, steps)]
        for part in _parts(arm.experiment, seeds, pool)
    ]
    found = (score for part in pool.map(cell_scores, work) for score in part)
    scores: dict[tuple[str, int], list[float]] = {(n, steps): [] for steps in horizons for n in contenders}
    for i, ((name, steps, seed), score) in enumerate(zip(cells, found, strict=True)):
        scores[name, steps].append(score)
        tracker.log({"compare/seed": seed, "compare/arm": name, "compare/horizon": steps, "compare/score": score})
        if (i + 1) % len(seeds) == 0:
            done, total = (i + 1) // len(seeds), len(cells) // len(seeds)
            console.note(
                f"compare {done}/{total}: {name} over {steps} steps: {summarize(counted(scores[name, steps])).mean:.4f}"
            )
    arms = [
        Arm(name, steps, tuple(scores[name, steps]), steps * len(seeds), spent_on(c.schedule), c.experiment.method.name)
        for steps in horizons
        for name, c in contenders.items()
    ]
    return Comparison(tuple(seeds), tuple(arms), tuple(learned))


def publish(
    experiment: Experiment,
    comparison: Comparison,
    contenders: Mapping[str, Contender],
    folder: RunFolder,
    tracker: Tracker,
    console: Console,
) -> dict[str, Any]:
    """Write comparison.json, the plot and the report, log the tables and show them, the verdicts first.

    Returns:
        what a program would want to read: paths, verdicts, mean scores.
    """
    said = verdicts(comparison)
    entry = {**comparison.to_dict(), "verdicts": [verdict.to_dict() for verdict in said]}
    write_atomic(folder.comparison, (json_text(entry, indent=2) + "\n").encode())
    for verdict in said:
        console.note(str(verdict))
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
    report = write_report(experiment, comparison, contenders, folder)
    return {
        "report": str(report),
        "comparison": str(folder.comparison),
        "verdict": entry["verdicts"],
        "arms": {arm.name: arm.summary.mean for arm in comparison.arms},
    }


def run(
    experiment: Experiment,
    paths: Sequence[Path],
    folder: RunFolder,
    console: Console,
    reuse: Sequence[Path] = (),
    described: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """``metasched compare``: schedule files and described arms against the hand-coded schedules, floor and ceiling.

    Args:
        experiment: task, method, seeds, horizons.
        paths: schedule files; each is named by its file's stem.
        folder: where the comparison is written.
        console: where it is shown.
        reuse: folders of other runs; cells that were computed there are not computed again.
        described: further arms, ``NAME SCHEDULE [FIELD=VALUE ...]`` each.

    Raises:
        MetaschedError: a file that is no schedule, an arm that does not fit, two of one name, a folder without cells.
    """
    others = [_cells_of(path) for path in reuse]
    if folder.resumes.exists():
        paths, described = _of_the_run(folder, paths, described)
    files = [(name_of(path), file_arm(experiment, path)) for path in paths]
    more = [described_arm(experiment, words) for words in described]
    arms = joined(*files, *more, *reference_arms(experiment), *hand_coded_arms(experiment))
    if not folder.schedules.exists():
        _keep(paths, described, folder)
    cut_back(folder.metrics, 0)
    tracker = open_tracker(experiment, folder, "compare")
    try:
        with open_pool(experiment.run.workers) as pool, closing(Remembered(pool, folder.cells, others)) as cells:
            learned = [name for name, _ in files] or [name for name, _ in more]
            comparison = compare(experiment, arms, learned, cells, tracker, console)
        return publish(experiment, comparison, arms, folder, tracker, console)
    finally:
        tracker.close()


def _parts(experiment: Experiment, seeds: Sequence[int], pool: Mapper) -> list[Sequence[int]]:
    """The seeds, as many at once as a process trains at once."""
    share = -(-len(seeds) // pool.workers)
    size = share if mapping_pays(build_problem(experiment), share) else 1
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


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
        if os.path.isfile(named):
            named = str(copied(Path(named), "schedule", "arms", i).relative_to(folder.path))
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
        raise MetaschedError(option, "does not go with --resume", "leave it out: a run goes on with its own arms")
    arms = folder.schedules / "arms.json"
    kept = json.loads(arms.read_text("utf-8")) if arms.exists() else []  # runs from before described arms have none
    for words in kept:
        if (folder.path / words[1]).is_file():
            words[1] = str(folder.path / words[1])
    return sorted(folder.schedules.glob("[0-9]*/*.json")), kept
