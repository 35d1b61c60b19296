"""Opens the trackers that an experiment asks for."""

from __future__ import annotations

from pathlib import Path

from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.extras import require
from metasched.io.json_lines import JsonLines
from metasched.io.run_folder import RunFolder
from metasched.tracking.tracker import Several, Tracker, warn_dropped
from metasched.tracking.wandb_tracker import Wandb

_LONGEST_TAG = 64  # characters, of wandb


def open_tracker(experiment: Experiment, folder: RunFolder, job_type: str) -> Several:
    """Opens the JSON lines of the run folder and, unless it is disabled or cannot start, wandb.

    Args:
        experiment: its section ``tracking`` configures wandb; its name is the group in wandb.
        folder: the run folder.
        job_type: the command: ``train``, ``tune``, ``online`` or ``compare``.

    Raises:
        MetaschedError: a package that the run needs at its end is not installed.
    """
    require_report()
    trackers: list[Tracker] = [JsonLines(folder.metrics)]
    mode = experiment.tracking.wandb
    if mode != "disabled":
        try:
            trackers.append(
                Wandb(
                    folder.path,
                    to_dict(experiment),
                    mode=mode,
                    project=experiment.tracking.project,
                    group=experiment.name,
                    job_type=job_type,
                    name=f"{experiment.method.name}-{Path(experiment.schedule.start).stem}-s{experiment.seed}",
                    tags=tags(experiment),
                    notes=notes(experiment, job_type),
                )
            )
        except Exception as error:  # not installed, no login or no network: the run goes on without wandb
            warn_dropped("Wandb", error)
    return Several(trackers)


def tags(experiment: Experiment) -> list[str]:
    """By which runs are found in wandb: method, levels, estimator, and task."""
    method = experiment.method
    levels = f"activations {method.activation_levels}" if method.activation_levels else "float activations"
    found = [method.name, f"weights {method.levels}", levels, experiment.meta.estimator, experiment.task.label]
    return list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in found))


def notes(experiment: Experiment, job_type: str) -> str:
    """What a run is, in a sentence."""
    task = experiment.task
    return (
        f"metasched {job_type}: {experiment.method.name} on {task.label}, {task.steps} steps, starting at "
        f"{Path(experiment.schedule.start).stem}, seed {experiment.seed}"
    )


def require_report() -> None:
    """Raises before a run begins if it cannot end: its statistics and plots need packages of the extra ``train``.

    Raises:
        MetaschedError: one of them is not installed.
    """
    require("train", "scipy", "matplotlib", "PIL")
