"""``compare``: every schedule on the same fresh seeds, hardened, on the test set, with paired differences.

Seeds are drawn from their own stream, which neither learning nor choosing the start ever touches; the test split is
read here only. Every arm trains for the same number of steps at each horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metasched.config import Experiment
from metasched.errors import MetaschedError, unknown_name
from metasched.evaluation.cells import cell_scores, played
from metasched.evaluation.statistics import PairedDifference, Summary, paired_difference, summarize
from metasched.exchange.export import read_schedule
from metasched.exchange.player import PlayedSchedule, check_method, match_layers
from metasched.files import RunFolder, json_text, write_atomic
from metasched.network import QuantizedNetwork
from metasched.randomness import derive_seed
from metasched.schedules.base import Schedule
from metasched.schedules.table import hand_coded
from metasched.tracking import Tracker, open_tracker
from metasched.tracking.console import Console
from metasched.tracking.plots import plot_comparison
from metasched.training.mapped import mapping_pays
from metasched.training.pool import Pool
from metasched.training.problem import build_problem


@dataclass(frozen=True)
class Arm:
    """One schedule at one horizon.

    Attributes:
        name: of the schedule.
        horizon: T, inner steps of each run.
        scores: final score of the hardened network on the test split, one a seed.
        inner_steps: training steps that this arm spent: T for each seed.
    """

    name: str
    horizon: int
    scores: tuple[float, ...]
    inner_steps: int

    @property
    def summary(self) -> Summary:
        """Mean, standard deviation, n."""
        return summarize(self.scores)


@dataclass(frozen=True)
class Comparison:
    """All arms at all horizons, on the same seeds in the same order.

    Attributes:
        seeds: the inner seeds.
        arms: of each horizon, in the order given.
        learned: names of the arms that others are compared against.
    """

    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    learned: tuple[str, ...]

    def at(self, horizon: int) -> dict[str, Arm]:
        """The arms of one horizon by name."""
        return {arm.name: arm for arm in self.arms if arm.horizon == horizon}

    @property
    def horizons(self) -> list[int]:
        """The horizons, in inner steps."""
        return sorted({arm.horizon for arm in self.arms})

    def difference(self, arm: Arm, other: Arm) -> PairedDifference:
        """Mean paired difference arm - other with its 95 % interval."""
        return paired_difference(arm.scores, other.scores)

    def rows(self, horizon: int) -> tuple[list[str], list[list[str]]]:
        """The table of a horizon, best mean first: columns and rows as text."""
        arms = self.at(horizon)
        learned = [arms[name] for name in self.learned if name in arms]
        columns = ["schedule", "mean", "sd", "n", "inner steps"]
        columns += [f"{arm.name} - this [95 % interval]" for arm in learned]
        rows = []
        for arm in sorted(arms.values(), key=lambda a: -a.summary.mean):
            s = arm.summary
            row = [arm.name, f"{s.mean:.4f}", f"{s.sd:.4f}", str(s.n), str(arm.inner_steps)]
            for reference in learned:
                d = self.difference(reference, arm)
                row.append("" if reference is arm else f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]")
            rows.append(row)
        return columns, rows

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        arms = []
        for arm in self.arms:
            entry: dict[str, Any] = {
                "name": arm.name,
                "horizon": arm.horizon,
                **arm.summary._asdict(),
                "inner_steps": arm.inner_steps,
                "scores": list(arm.scores),
            }
            references = [self.at(arm.horizon)[n] for n in self.learned if n in self.at(arm.horizon)]
            entry["differences"] = {r.name: self.difference(r, arm)._asdict() for r in references if r is not arm}
            arms.append(entry)
        return {"seeds": list(self.seeds), "learned": list(self.learned), "arms": arms}


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
        MetaschedError: it is no schedule, is for another method, or has no layer that one of the network's is like.
    """
    file = read_schedule(path)
    check_method(file, experiment.method.name, network.method.controls, str(path))
    schedule = PlayedSchedule(file)
    try:
        match_layers(schedule.layers, network.layers)
    except MetaschedError as error:
        raise MetaschedError(f"{path}: {error.path}", error.problem, error.fix) from None
    return schedule


def compare(
    experiment: Experiment,
    schedules: Mapping[str, Schedule],
    learned: Sequence[str],
    pool: Pool,
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
                f"compare {done}/{total}: {name} over {steps} steps: {summarize(scores[name, steps]).mean:.4f}"
            )
    arms = [Arm(n, steps, tuple(scores[n, steps]), steps * len(seeds)) for steps in horizons for n in schedules]
    return Comparison(tuple(seeds), tuple(arms), tuple(learned))


def publish(comparison: Comparison, folder: RunFolder, tracker: Tracker, console: Console) -> None:
    """Write comparison.json and the plot, log the table and show it."""
    write_atomic(folder.comparison, (json_text(comparison.to_dict(), indent=2) + "\n").encode())
    for horizon in comparison.horizons:
        columns, rows = comparison.rows(horizon)
        console.table(f"Hardened test score after {horizon} steps", columns, rows)
        tracker.table(f"comparison_{horizon}", columns, rows)
    scores = {h: {name: arm.scores for name, arm in comparison.at(h).items()} for h in comparison.horizons}
    folder.plots.mkdir(exist_ok=True)
    plot_comparison(folder.plots / "comparison.png", scores, comparison.learned)


def run(experiment: Experiment, paths: Sequence[Path], folder: RunFolder, console: Console) -> dict[str, Any]:
    """``metasched compare``: schedule files against the hand-coded schedules.

    Args:
        experiment: task, method, seeds, horizons.
        paths: schedule files; each is named by its file's stem.
        folder: where the comparison is written.
        console: where it is shown.

    Raises:
        MetaschedError: a file that is no schedule, is for another method, or whose layers do not fit the network.
    """
    problem = build_problem(experiment)
    files: dict[str, Schedule] = {}
    for path in paths:
        schedule = read_playable(path, experiment, problem.network)
        name = path.stem if path.stem != "schedule" else path.resolve().parent.name
        if name in files:
            raise MetaschedError(str(path), f"a second schedule named {name!r}", "rename one of the files")
        files[name] = schedule
    arms = {**files, **baselines(experiment)}
    if not arms:
        raise MetaschedError("compare.baselines", "nothing to compare", "name a schedule file or a baseline")
    tracker = open_tracker(experiment, folder, "compare")
    try:
        with Pool(experiment.run.workers) as pool:
            comparison = compare(experiment, arms, list(files), pool, tracker, console)
        publish(comparison, folder, tracker, console)
    finally:
        tracker.close()
    return {"comparison": str(folder.comparison), "arms": {a.name: a.summary.mean for a in comparison.arms}}
