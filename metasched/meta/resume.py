"""``metasched train --resume``: what a stopped run goes on from, and what it must agree with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metasched.config.fields import fields
from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.config.writing import differing, dump_yaml, to_dict
from metasched.core.errors import MetaschedError, MetaschedWarning, unknown_name
from metasched.estimators import build_estimator
from metasched.estimators.base import Estimator
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment, version
from metasched.io.json_lines import JsonLines, read_json_lines
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.io.strict_yaml import read_mapping
from metasched.meta.checkpoint import Checkpoint, check_fit, read_checkpoint
from metasched.meta.extending import rebased, sum_is_kept
from metasched.meta.outer import OuterState
from metasched.runs.pooled import PooledRuns
from metasched.schedules.shared import LearnedSchedule


def resumed_experiment(
    folder: RunFolder, config: Path | None, overrides: Sequence[str], allowed: Sequence[str]
) -> Experiment:
    """The experiment that a stopped run goes on with; what differs is written down with what it runs on now.

    Args:
        folder: of the run.
        config: a configuration to hold against the run's own, or None.
        overrides: fields to override in either.
        allowed: dotted paths of fields that may differ from now on.

    Raises:
        MetaschedError: a field differs that may not, or the run has finished and is not extended.
    """
    names = [f.path for f in fields()]
    for name in allowed:
        if name not in names:
            raise unknown_name("--allow", name, names)
    own = load_experiment(folder.config)
    given = load_experiment(config or folder.config, overrides)
    was, now = to_dict(own), to_dict(given)
    changes = differing(now, was)
    finished = folder.done.exists()
    longer = finished and given.meta.steps > own.meta.steps
    if finished and not longer:
        problem = f"holds a run that has finished, of {own.meta.steps} outer steps"
        raise MetaschedError(str(folder.path), problem, "read its results, give more --meta.steps, or start a new run")
    if longer:
        sum_is_kept(own.meta.steps, own.meta.steps, given.meta.steps)
    allowed = [*allowed, *["meta.steps"] * longer]
    for name in changes:
        if name not in allowed:
            raise _differs(name, was, now)
    _allowed_before(folder)
    lines = JsonLines(folder.resumes)
    changed = {name: {"was": _at(was, name), "is": _at(now, name)} for name in changes}
    lines.write({"allowed": changed, "environment": environment()})
    lines.close()
    if changes and not folder.checkpoint.exists():  # else once the checkpoint is known to fit
        write_config(folder, now)
    return given


def write_config(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """From now on this experiment, as ``to_dict`` has it, is what a resume goes on with."""
    write_atomic(folder.config, dump_yaml(config).encode())


def keep_fingerprint(folder: RunFolder, fingerprint: str) -> None:
    """Writes down which task a run trains; a run that is resumed must train that.

    Raises:
        MetaschedError: it is another task.
    """
    if not folder.task.exists():  # a new run, or one from before fingerprints
        write_atomic(folder.task, (json_text({"fingerprint": fingerprint}) + "\n").encode())
        return
    _same_task(read_mapping(folder.task).get("fingerprint"), fingerprint)


def _same_task(was: object, now: str) -> None:
    if was != now:
        problem = "has another fingerprint than in the run that is resumed: its model, data or code has changed"
        raise MetaschedError("task", problem, "put it back, or start a new run")


def last_checkpoint(config: Mapping[str, Any], folder: RunFolder, fingerprint: str) -> Checkpoint | None:
    """The checkpoint in a run folder; None where the run was stopped before the first one.

    Args:
        config: the experiment that goes on, as ``to_dict`` has it.
        folder: of the run.
        fingerprint: of the task that goes on.

    Raises:
        MetaschedError: it cannot be used, or is of another experiment.
    """
    if not folder.checkpoint.exists():
        return None
    checkpoint = read_checkpoint(folder.checkpoint)
    if checkpoint.fingerprint:
        _same_task(checkpoint.fingerprint, fingerprint)
    allowed = _allowed_before(folder)
    for name in differing(config, checkpoint.config):
        if name not in allowed:
            raise _differs(name, checkpoint.config, config)
    other = [f"{p} {v}" for p, v in checkpoint.versions.items() if version(p) != v]
    if other:
        warnings.warn(
            f"{folder.checkpoint}: was written with {', '.join(other)}: bits may differ", MetaschedWarning, stacklevel=2
        )
    return checkpoint


def resumable_state(
    checkpoint: Checkpoint,
    folder: RunFolder,
    base: str,
    schedule: LearnedSchedule,
    runs: PooledRuns,
    estimator: Estimator | None = None,
) -> OuterState:
    """The state of a checkpoint, once it is known to be one of this schedule and this estimator.

    Args:
        checkpoint: of the run.
        folder: of the run.
        base: a hash of the values of the schedule that learning starts at.
        schedule: the learnable schedule, as it is built.
        runs: of the run.
        estimator: of the run; None: the one that ``meta`` names.

    Raises:
        MetaschedError: the start has changed, or a part of the state does not fit.
    """
    if checkpoint.base != base:
        what = f"{checkpoint.start} has other values than when the run started"
        raise MetaschedError("schedule.start", what, "put the schedule back, or start a new run")
    try:
        check_fit(checkpoint, schedule, runs.meta.steps)
        state = rebased(checkpoint.state, checkpoint.config["meta"]["steps"], runs.meta.steps)
        if state.step:
            (estimator or build_estimator(runs.meta)).check(schedule, runs, runs.meta.runs, state.estimator)
    except MetaschedError as error:
        raise MetaschedError(f"{folder.checkpoint}: {error.path}", error.problem, error.fix) from None
    return state


def _allowed_before(folder: RunFolder) -> set[str]:
    """The fields that were allowed to differ when the run was resumed, now or before."""
    lines = read_json_lines(folder.resumes) if folder.resumes.exists() else []
    return {name for line in lines for name in (line.get("allowed") or ()) if isinstance(name, str)}


def _differs(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> MetaschedError:
    problem = f"is {_at(now, name)!r}, and {_at(was, name)!r} in the run that is resumed"
    return MetaschedError(name, problem, f"leave it as it was, or add `--allow {name}` and answer for it")


def _at(document: Any, name: str) -> Any:
    for part in name.split("."):
        document = document.get(part) if isinstance(document, Mapping) else None
    return document
