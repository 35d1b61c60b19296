"""``metasched play``: trains a task under the first few schedules of a portfolio, and judges the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from metasched.arena.arms import means_on_validation, named_arm
from metasched.commands.compare import compare_arms
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import joined
from metasched.exchange.portfolios import portfolio_for
from metasched.io.atomic import write_atomic
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.runs.cells import CachedPool
from metasched.runs.ranks import refuse_ranks
from metasched.runs.where import open_pool
from metasched.tracking.console import Console


def words_to_try(experiment: Experiment, tries: int, portfolio: str | None, schedules: Sequence[str]) -> list[str]:
    """The names or paths of the schedules to try: those that are given, or the first of the portfolio of the recipe.

    Raises:
        MetaschedError: there is no portfolio for the method and its bits, or torchrun has started this.
    """
    refuse_ranks("play")
    return list(schedules) or list(portfolio_for(experiment.method, portfolio).schedules[:tries])


def play(experiment: Experiment, words: Sequence[str], folder: RunFolder, console: Console) -> dict[str, Any]:
    """Tries schedules on meta-validation, and compares the best with floors and ceiling on the test part.

    Args:
        experiment: task, method, ``arena.choice_runs`` and the section ``compare``.
        words: names or paths of the schedules.
        folder: where ``choice.json`` and the comparison are written.
        console: where they are shown.

    Raises:
        MetaschedError: no such schedule, or the task cannot play it.
    """
    arms = joined(*(named_arm(experiment.problem, word, "schedule") for word in words))
    runs, steps = experiment.arena.choice_runs if len(arms) > 1 else 0, experiment.task.steps
    seeds = [derive_seed(experiment.seed, "play", run) for run in range(runs)]
    means: dict[str, float] = {}
    if runs:
        with open_pool(experiment.run) as pool, closing(CachedPool(pool, folder.cells)) as cells:
            means = means_on_validation(arms, seeds, steps, cells)
        for name, mean in means.items():
            console.note(f"{name}: {mean:.4f} on meta-validation, {runs} runs")
    best = max(means, key=lambda name: means[name]) if means else next(iter(arms))
    of = f"best of {len(arms)}, which flatters its score there" if runs else "the only one, so at no run"
    console.note(f"chosen: {best}, {of}")
    choice = {"chosen": best, "runs": runs, "inner_steps": len(arms) * runs * steps, "scores": means}
    write_atomic(folder.path / "choice.json", (json_text(choice, indent=1) + "\n").encode())
    settings = experiment.compare
    if settings.baselines is None:
        experiment = replace(experiment, compare=replace(settings, baselines=()))
    found = compare_arms(experiment, [(best, arms[best])], [best], folder, console)
    return {"chosen": best, **found}


def check_tries(tries: int) -> int:
    """The number of schedules to try.

    Raises:
        MetaschedError: it is below 1.
    """
    if tries < 1:
        raise MetaschedError("--try", f"must be at least 1, got {tries}", "try one schedule or more")
    return tries
