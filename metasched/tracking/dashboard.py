"""The wandb workspace of a project: schedules, scores, and diagnostics of hypergradients."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.methods import METHODS, build_method
from metasched.tracking.metrics import AXES, METRICS, PLACEHOLDER, RESULT, SCORES_PICTURE

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_LOGARITHMIC = {"outer/gradient_norm", "online/gradient_norm"}
_STEPS_AGAINST = {"outer/inner_steps": ("outer/score", "outer/loss"), "online/inner_steps": ("online/score",)}


def build(experiment: Experiment, entity: str) -> Workspace:
    """Builds the workspace, without network access: a section per family of metrics, a panel per metric.

    Args:
        experiment: gives the project, the controls of its method, and the horizons of the tables of scores.
        entity: wandb user or team.

    Raises:
        MetaschedError: wandb-workspaces is not installed.
    """
    with from_extra("dashboard"):
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces

    def line(name: str, axis: str, **more: Any) -> Any:
        unit, pattern = METRICS[name].unit, re.sub(PLACEHOLDER, ".*", name)
        which = {"y": [name]} if pattern == name else {"metric_regex": pattern}
        return reports.LinePlot(
            title=name, x=axis, log_y=name in _LOGARITHMIC, title_x=axis, title_y=unit, **which, **more
        )

    def family(prefix: str) -> list[Any]:
        axis = AXES[f"{prefix}*"]
        left_out = {axis, *_STEPS_AGAINST, *(name for name, metric in METRICS.items() if metric.unit == "text")}
        return [line(name, axis) for name in METRICS if name.startswith(prefix) and name not in left_out]

    shown = METHODS[experiment.method.name].shown
    schedules = [
        reports.LinePlot(
            title=f"{control.name} by layer",
            x=AXES["schedule/*"],
            metric_regex=f"schedule/{control.name}/.*",
            title_x="progress",
            title_y=control.unit,
        )
        for control in build_method(experiment.method).controls
        if shown is None or control.name in shown
    ]
    steps = [multiple * experiment.task.steps for multiple in experiment.compare.horizons]
    tables = [reports.WeavePanelSummaryTable(table_name=f"comparison_{horizon}") for horizon in steps]
    scores = [reports.MediaBrowser(title="scores by arm, one dot per seed", media_keys=[SCORES_PICTURE]), *tables]
    costs = [line(name, axis) for axis, names in _STEPS_AGAINST.items() for name in names]
    means = [f"{RESULT}{name}" for name in ("learned", "floor", "ceiling", "best_published")]
    results = [
        reports.BarPlot(title="test score", metrics=[*means], title_x="score"),
        reports.BarPlot(title="learned minus floor", metrics=[f"{RESULT}difference"], title_x="score"),
    ]
    sections = {
        "Results of runs": results,
        "Learned schedules": schedules,
        "Scores of schedules": scores,
        "Score against compute": costs,
        "Outer loop": family("outer/"),
        "Health of numbers": family("guard/"),
        "Estimator": family("estimator/"),
        "Tuned baselines": family("tune/"),
        "Online": family("online/"),
    }
    return workspaces.Workspace(
        entity=entity,
        project=experiment.tracking.project,
        name="metasched",
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=i < 4)
            for i, (name, panels) in enumerate(sections.items())
        ],
    )


def listing(workspace: Workspace) -> list[str]:
    """What a workspace would show, a line for each section, with the number of its panels, and for each panel."""
    lines = [f"workspace {workspace.name} of {workspace.entity}/{workspace.project}"]
    for section in workspace.sections:
        panels = f"{len(section.panels)} panel{'s' * (len(section.panels) != 1)}"
        lines.append(f"{section.name}: {panels}{'' if section.is_open else ', folded'}")
        lines += [f"  {_panel(panel)}" for panel in section.panels]
    return lines


def _panel(panel: Any) -> str:
    """A panel in a line: its title, what it shows, and its kind."""
    fields = ("metric_regex", "y", "metrics", "media_keys", "table_name")
    what = next((found for field in fields if (found := getattr(panel, field, None))), "")
    names = what if isinstance(what, str) else ", ".join(str(getattr(name, "name", name)) for name in what)
    title, against = getattr(panel, "title", None), getattr(panel, "x", None)
    over = f" over {getattr(against, 'name', against)}" if against else ""
    return f"{f'{title}: ' if title and title != names else ''}{names}{over} ({type(panel).__name__})"


def publish(workspace: Workspace) -> str:
    """Saves the workspace at wandb and returns its address.

    Raises:
        MetaschedError: wandb rejects it (no login, no such entity, no network).
    """
    try:
        workspace.save()
    except Exception as error:  # wandb raises many types
        reason = " ".join(str(error).split())[:200]
        fix = "log in with `wandb login`, and check that entity and project exist"
        raise MetaschedError("dashboard", f"wandb did not take it ({type(error).__name__}: {reason})", fix) from error
    return workspace.url
