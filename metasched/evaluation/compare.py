"""Comparison: every arm on the same fresh seeds, hardened, on the test split, with paired differences and a verdict.

Seeds come from a separate stream, which neither learning nor the choice of the initial schedule uses; the test split is
read only here. At each horizon every arm trains for the same number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metasched.config.schema import Experiment
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.confirm import Confirmation
from metasched.evaluation.contenders import Contender, fresh_seeds
from metasched.evaluation.headline import headline, numeric_table
from metasched.evaluation.report import write_report
from metasched.evaluation.short import show_scores
from metasched.evaluation.statistics import lowest
from metasched.evaluation.verdict import verdicts
from metasched.exchange.format import Spent
from metasched.exchange.player import spent_on
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.network.size import network_bytes
from metasched.runs.cells import cell_scores, played, shares
from metasched.runs.pool import Mapper
from metasched.tracking.console import Console, watched
from metasched.tracking.metrics import RESULT, SCORES_PICTURE
from metasched.tracking.plots import plot_comparison
from metasched.tracking.tracker import Tracker
from metasched.training.problem import build_problem


class Plan(NamedTuple):
    """What all arms of a comparison have in common.

    Attributes:
        seeds: of the inner runs, the same for each arm.
        horizons: T, training steps of an inner run; each horizon is a comparison of its own.
        worst: score that counts for a run that diverged; None: the lowest of all scores.
    """

    seeds: tuple[int, ...]
    horizons: tuple[int, ...]
    worst: float | None


def plan_of(experiment: Experiment) -> Plan:
    """The plan that the section ``compare`` of an experiment describes."""
    settings, steps = experiment.compare, experiment.task.steps
    return Plan(
        tuple(fresh_seeds(experiment.seed, settings.seeds)),
        tuple(multiple * steps for multiple in settings.horizons),
        build_problem(experiment.problem).task.worst_score,
    )


def compare(
    plan: Plan,
    contenders: Mapping[str, Contender],
    learned: Sequence[str],
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Comparison:
    """Trains every arm from every fresh seed at every horizon, and logs each score.

    Args:
        plan: seeds and horizons.
        contenders: the arms by name.
        learned: names of the arms with which all others are compared.
        pool: runs the training.
        tracker, console: receive scores and progress.
    """
    seeds, horizons, own = plan
    cells = [(name, steps, seed) for steps in horizons for name in contenders for seed in seeds]
    work = [
        (arm.problem, controls, part, steps, "test")
        for steps in horizons
        for arm in contenders.values()
        for controls in [played(arm.problem, arm.schedule, steps)]
        for part in shares(arm.problem, seeds, pool)
    ]
    parts = watched(console, "runs to compare", pool.map(cell_scores, work), len(cells))
    found = (score for part in parts for score in part)
    scores: dict[tuple[str, int], list[float]] = {(n, steps): [] for steps in horizons for n in contenders}
    for (name, steps, seed), score in zip(cells, found, strict=True):
        of_arm = scores[name, steps]
        of_arm.append(score)
        tracker.log(score_row(len(of_arm) - 1, seed, name, steps, score))
    bytes_of = {name: network_bytes(build_problem(arm.problem).network) for name, arm in contenders.items()}
    worst = lowest([s for of_arm in scores.values() for s in of_arm]) if own is None else own
    arms = [
        Arm(
            name,
            steps,
            tuple(scores[name, steps]),
            steps * len(seeds),
            (Spent(by="lr", inner_steps=c.tuned.inner_steps),) if c.tuned else spent_on(c.schedule),
            c.problem.method.name,
            worst,
            c.tuned,
            bytes_of[name],
        )
        for steps in horizons
        for name, c in contenders.items()
    ]
    return Comparison(seeds, tuple(arms), tuple(learned))


def score_row(index: int, seed: int, arm: str, steps: int, score: float) -> dict[str, float | int | str]:
    """What is logged of one score of a comparison."""
    about = {"compare/index": index, "compare/seed": seed, "compare/arm": arm, "compare/horizon": steps}
    return {**about, "compare/score": score}


def publish(
    config: Mapping[str, Any],
    comparison: Comparison,
    contenders: Mapping[str, Contender],
    folder: RunFolder,
    tracker: Tracker,
    console: Console,
    confirmation: Confirmation | None = None,
    start: tuple[str, Contender] | None = None,
) -> dict[str, Any]:
    """Writes comparison.json, the plot and the report; shows and logs the verdicts and tables.

    Args:
        config: the experiment, as ``to_dict`` has it.
        comparison: the scores.
        contenders: the arms by name.
        folder: where it is written.
        tracker, console: receive verdicts and tables.
        confirmation: of what was learned, if it was confirmed.
        start: name and arm of what learning started at, for the report.

    Returns:
        a summary for programs: paths, verdicts and mean scores.
    """
    said = verdicts(comparison)
    entry = {**comparison.to_dict(), "verdicts": [verdict.to_dict() for verdict in said]}
    if confirmation is not None:
        entry["confirmed"] = confirmation.to_dict()
    write_atomic(folder.comparison, (json_text(entry, indent=2) + "\n").encode())
    for verdict in said:
        console.note(str(verdict))
    notes = [] if confirmation is None else [str(confirmation)]
    for note in notes:
        console.note(note)
    for horizon in comparison.horizons:
        show_scores(comparison, horizon, console)
        tracker.table(f"comparison_{horizon}", *numeric_table(comparison, horizon))
    tracker.log({f"{RESULT}{name}": value for name, value in headline(comparison).items()})
    scores = {h: {name: arm.counted for name, arm in comparison.at(h).items()} for h in comparison.horizons}
    folder.plots.mkdir(exist_ok=True)
    picture = folder.plots / "comparison.png"
    plot_comparison(picture, scores, comparison.learned)
    tracker.picture(SCORES_PICTURE, picture)
    report = write_report(config, comparison, contenders, folder, notes, start)
    return {
        "report": str(report),
        "comparison": str(folder.comparison),
        "verdict": entry["verdicts"],
        "arms": {arm.name: arm.summary.mean for arm in comparison.arms},
    }
