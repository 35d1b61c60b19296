"""The response surface, on laws whose best schedule depends on a feature of the task."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metasched.arena.scores import read_scores
from metasched.cli import main
from metasched.core.errors import MetaschedError
from metasched.exchange.player import load
from metasched.runs.store import read_store
from metasched.search.surface import fit, tried


def row(task: str, x: float, level: float, score: float, seeds: Sequence[int] = (0,), **changes: Any) -> dict[str, Any]:
    grid = {"width": [[level] * 3] * 5}
    one = {
        "task": task,
        "method": "widths",
        "features": {"horizon": x},
        "grid": grid,
        "steps": 10,
        "part": "validation",
    }
    return {**one, "seeds": list(seeds), "scores": [score] * len(seeds), **changes}


def phi(x: float) -> float:
    return math.tanh((x - 2.0) / 0.5)


def law(tasks: Sequence[float], noise: float = 0.0, depends: float = 0.8) -> list[dict[str, Any]]:
    """Schedules of one level; the best is linear in a bounded feature, and tasks differ in level and scale."""
    draws = np.random.default_rng(0)
    rows = []
    for t, x in enumerate(tasks):
        scale, shift = 10.0 ** draws.uniform(-2, 1), draws.normal()
        for level in np.linspace(-1, 1, 9):
            score = -((level - depends * phi(x)) ** 2) + noise * draws.normal()
            rows.append(row(f"task{t}", x, float(level), float(shift + scale * score)))
    return rows


TASKS = [1.3, 1.6, 1.8, 2.0, 2.2, 2.4, 2.7]


def test_a_new_task_is_given_the_schedule_that_is_best_there() -> None:
    surface = fit(tried(law(TASKS), "widths"))
    assert surface.tasks == len(TASKS) and surface.runs == 9 * len(TASKS) and len(surface.grids) == 9
    assert surface.correlation > 0.95
    for x in (1.5, 1.9, 2.1, 2.5):
        ((_, values),) = surface.proposed({"horizon": x})
        assert abs(values[0][0] - 0.8 * phi(x)) < 0.26, x  # stored levels are 0.25 apart


def test_correlation_over_tasks_left_out_is_about_nothing_where_scores_are_noise() -> None:
    draws = np.random.default_rng(1)
    rows = [row(f"task{t}", x, float(z), float(draws.normal())) for t, x in enumerate(TASKS) for z in range(9)]
    assert abs(fit(tried(rows, "widths")).correlation) < 0.5 < fit(tried(law(TASKS, noise=0.1), "widths")).correlation


def test_scores_of_each_task_have_one_scale() -> None:
    found = tried(law(TASKS), "widths")
    for task in {t.task for t in found}:
        own = [t.score for t in found if t.task == task]
        assert np.mean(own) == pytest.approx(0, abs=1e-9) and np.std(own) == pytest.approx(1)


def test_seeds_are_averaged_repetitions_count_once_and_the_test_part_not_at_all() -> None:
    rows = [row("a", 2.0, 0.0, 1.0, seeds=[0]), row("a", 2.0, 0.0, 3.0, seeds=[1]), row("a", 2.0, 0.0, 3.0, seeds=[1])]
    rows += [row("a", 2.0, 1.0, 4.0), row("a", 2.0, 2.0, math.nan), row("a", 2.0, 3.0, 99.0, part="test")]
    rows += [row("b", 2.0, 0.0, 1.0), row("c", 2.0, 0.0, 1.0, method="inq")]
    found = tried(rows, "widths")
    raw = np.array([2.0, 4.0, 1.0])  # a run that diverged counts as the worst
    assert [t.score for t in found] == pytest.approx(list((raw - raw.mean()) / raw.std()))
    assert math.isnan(fit(found).correlation)


def test_nothing_to_go_by_is_refused() -> None:
    with pytest.raises(MetaschedError, match="holds no task"):
        fit(tried(law(TASKS), "inq"))
    other = [row("other", 2.0, float(z), float(z), grid={"noise": [[float(z)] * 3] * 5}) for z in range(3)]
    with pytest.raises(MetaschedError, match="different controls"):
        fit(tried([*law(TASKS), *other], "widths"))


def test_what_is_proposed_is_a_schedule_file(tmp_path: Path, capsys: Any) -> None:
    torch.set_default_dtype(torch.float32)
    config, store, out = tmp_path / "a.yaml", tmp_path / "runs.jsonl", tmp_path / "proposed.json"
    task = "task: {model: mlp, width: 3, depth: 4, steps: 20, batch: 16, train: 64, validation: 32, test: 32}"
    method = "method: {name: widths, activation_levels: null}\nschedule: {start: floor, kind: family}"
    config.write_text(
        f"{task}\n{method}\nmeta: {{estimator: es, steps: 2, runs: 2}}\ncompare: {{seeds: 2, baselines: []}}\n"
    )
    quiet = ["--tracking.wandb=disabled", "--run.workers=1"]
    for steps in (4, 6):
        given = [f"--task.steps={steps}", f"--run.store={store}", "--folder", str(tmp_path / f"run{steps}"), *quiet]
        assert main(["train", str(config), *given]) == 0
    rows = read_store(store)
    assert {r["part"] for r in rows} == {"validation", "test"} and len({r["steps"] for r in rows}) == 2
    assert main(["propose", str(config), "--store", str(store), "-o", str(out)]) == 0
    assert "tasks left out, predictions correlate with scores by " in capsys.readouterr().err
    played = load(str(out))
    assert json.loads(out.read_text())["provenance"]["citation"].startswith("proposed by a response surface")
    assert len(played.file.layers) == 4  # type: ignore[union-attr]
    assert main(["propose", str(config), "--store", str(tmp_path / "none"), "-o", str(out)]) == 2

    arena = tmp_path / "arena.yaml"
    entries = "{entries: [{name: other, set: {task.width: 5, task.steps: 5}}, {name: same, set: {task.steps: 5}}]}"
    arms = f"{{seeds: 2, arms: [{{kind: surface, of: {store}}}]}}"
    arena.write_text(f"{task}\n{method}\ntasks: {entries}\narena: {arms}\n")
    assert main(["arena", "run", str(arena), "--folder", str(tmp_path / "arena"), *quiet[1:]]) == 0
    lines = {line.task: line for line in read_scores(tmp_path / "arena").lines}
    assert all(math.isfinite(score) for score in lines["other"].scores)
    assert "holds no task" in str(lines["same"].error)  # all that is stored was played on this very task
