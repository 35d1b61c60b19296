"""The wandb workspace, offline: every number that is logged has its panel, against its own axis."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from metasched.cli import main
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.config import CompareConfig
from metasched.tasks.config import TaskConfig
from metasched.tracking.config import TrackingConfig
from metasched.tracking.dashboard import build, listing, publish
from metasched.tracking.metrics import AXES, METRICS, SCORES_PICTURE, unknown_metrics

# wandb-workspaces is written for an older pydantic, which its import says many times
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EXPERIMENT = Experiment(
    task=TaskConfig(steps=30), compare=CompareConfig(horizons=(1, 3)), tracking=TrackingConfig(project="of-mine")
)
TEXT = {name for name, metric in METRICS.items() if metric.unit in ("text", "name")}


def panels() -> list[Any]:
    return [panel for section in build(EXPERIMENT, "me").sections for panel in section.panels]


def lines() -> list[Any]:
    return [panel for panel in panels() if getattr(panel, "y", None)]


def test_it_is_of_the_experiments_project() -> None:
    workspace = build(EXPERIMENT, "me")
    assert (workspace.entity, workspace.project) == ("me", "of-mine")


def test_panels_show_what_is_logged() -> None:
    shown = {name for panel in lines() for name in panel.y}
    assert unknown_metrics(shown) == [] and not shown & TEXT
    families = [prefix[:-1] for prefix in AXES if prefix not in ("schedule/*", "compare/*")]
    axes = {*AXES.values(), "outer/inner_steps", "online/inner_steps"}
    wanted = {name for name in METRICS if name.startswith(tuple(families))} - axes - TEXT
    assert shown == {name for name in wanted if "<" not in name}


def test_names_of_blocks_and_tasks_are_found_by_their_patterns() -> None:
    patterns = {panel.title: panel.metric_regex for panel in panels() if getattr(panel, "metric_regex", None)}
    assert patterns["estimator/agreement/<block>"] == "estimator/agreement/.*"
    for name in ("agreement/<block>", "loss/<task>", "score/<task>", "weight/<task>"):
        logged = f"estimator/{name.partition('<')[0]}digits"
        assert [title for title, p in patterns.items() if re.fullmatch(p, logged)] == [f"estimator/{name}"]


def test_each_is_against_its_axis_or_against_compute() -> None:
    for panel in lines():
        (name,) = panel.y
        prefix = name.split("/")[0]
        assert panel.x in (AXES[f"{prefix}/*"], f"{prefix}/inner_steps")


def test_schedules_are_found_by_their_pattern() -> None:
    patterns = [panel.metric_regex for panel in panels() if getattr(panel, "metric_regex", None)]
    for control in ("weight_noise", "noise_mean", "freeze_fraction"):
        assert sum(bool(re.fullmatch(p, f"schedule/{control}/layer1.conv")) for p in patterns) == 1


def test_tables_are_those_of_the_horizons() -> None:
    assert [panel.table_name for panel in panels() if hasattr(panel, "table_name")] == [
        "comparison_30",
        "comparison_90",
    ]


def test_scores_by_arm_are_the_picture_that_a_comparison_logs() -> None:
    (keys,) = [panel.media_keys for panel in panels() if hasattr(panel, "media_keys")]
    assert keys == [SCORES_PICTURE]


def test_results_of_runs_are_bars_beside_each_other() -> None:
    bars = [panel.metrics for panel in panels() if type(panel).__name__ == "BarPlot"]
    names = [str(getattr(name, "name", name)) for own in bars for name in own]
    assert {*names} == {f"result/{n}" for n in ("learned", "floor", "ceiling", "best_published", "difference")}
    assert unknown_metrics(names) == []


def test_a_dry_run_says_what_it_would_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("name: tiny\ntracking: {project: of-mine}\n")
    assert main(["dashboard", str(config), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dry run: nothing is sent to wandb; ")
    assert lines[1] == "workspace metasched of ENTITY/of-mine" and "Results of runs: 2 panels" in lines
    assert "  learned minus floor: result/difference (BarPlot)" in lines
    assert "  weight_noise by layer: schedule/weight_noise/.* over schedule/progress (LinePlot)" in lines
    workspace = build(EXPERIMENT, "me")
    assert len(listing(workspace)) == 1 + len(workspace.sections) + len(panels())
    assert main(["dashboard", str(config)]) == 2
    assert "required: --entity (or --dry-run)" in capsys.readouterr().err


def test_a_service_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise ValueError("no\nsuch entity")

    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", refuse)
    with pytest.raises(MetaschedError, match=r"dashboard: wandb did not take it .ValueError: no such entity."):
        publish(build(EXPERIMENT, "me"))
