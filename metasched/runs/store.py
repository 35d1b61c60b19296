"""A store of runs: one line of JSON for each group of runs under one schedule, which many commands may append to.

    {"task": fingerprint, "method": name, "features": {...}, "grid": {control: [[...], ...]}, "steps": T, "part": ...,
     "seeds": [...], "scores": [...]}

The grid has the values of each control at MOMENTS of progress x DEPTHS of the network, in the space in which schedules
are learned: logarithms on a log scale. Between them values are linear: a table [T, L] is an approximation of it, and
what is played from a grid is not exactly what was stored.

A line is appended in one write, under a lock of the file, so that several processes may append at once. What was left
of a line by a crash stays a line of its own, which readers leave out.
"""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.core.layer import Layer
from metasched.io.json_text import json_text
from metasched.io.reading import read_regular
from metasched.methods.base import Control
from metasched.schedules.base import progress_of_steps
from metasched.schedules.feedback import is_closed_loop
from metasched.schedules.interpolation import interpolate
from metasched.schedules.space import into, out_of, straight
from metasched.training.features import features_of_problem
from metasched.training.problem import build_problem

MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEPTHS = (0.0, 0.5, 1.0)
_MAX_BYTES = 2**32


class Store:
    """Appends runs to a file.

    Args:
        path: of the file, which is made where it is not there.

    Raises:
        MetaschedError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._append(b"")

    def add(
        self,
        config: ProblemConfig,
        controls: Mapping[str, torch.Tensor],
        seeds: Sequence[int],
        steps: int,
        part: str,
        scores: Sequence[float],
    ) -> None:
        """Appends runs under one schedule.

        Args:
            config: what was trained.
            controls: the schedule that was played, {control: [T, L]}; nothing is kept of a closed-loop one.
            seeds: of the runs.
            steps: T.
            part: on which they were scored.
            scores: one each; NaN where a run diverged.
        """
        problem = build_problem(config, steps=steps)
        declared, layers = problem.network.method.controls, problem.network.layers
        if not declared or is_closed_loop(controls):
            return  # a floor or the ceiling, where nothing is scheduled, or values that follow from the run
        row = {
            "task": problem.fingerprint,
            "method": config.method.name,
            "features": features_of_problem(config, steps),
            "grid": {c.name: grid_of(c, controls[c.name], layers).tolist() for c in declared if c.name in controls},
            "steps": steps,
            "part": part,
            "seeds": list(seeds),
            "scores": list(scores),
        }
        self._append(json_text(row).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                end = os.lseek(descriptor, 0, os.SEEK_END)
                torn = line and end and os.pread(descriptor, 1, end - 1) != b"\n"
                line = b"\n" + line if torn else line
                while line:  # if the disk is almost full, only a part is written
                    line = line[os.write(descriptor, line) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            fix = "check that its folder exists, is writable and has free space, or leave run.store out"
            raise MetaschedError(f"run.store: {self._path}", f"cannot be written ({error.strerror})", fix) from error


def store_at(path: str | None) -> Store | None:
    """The store of ``run.store``; None where there is none."""
    return None if path is None else Store(Path(path))


def read_store(path: Path) -> list[dict[str, Any]]:
    """The rows of a store; lines that are not whole are left out, with a warning.

    Raises:
        MetaschedError: it cannot be read, or a line is none of a store.
    """
    rows, torn = [], 0
    for number, line in enumerate(read_regular(path, _MAX_BYTES, "give the file of run.store").split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            torn += 1
            continue
        if not isinstance(row, dict) or not _NAMES <= row.keys():
            raise MetaschedError(
                f"{path}: line {number}", "is no line of a store of runs", "give the file of run.store"
            )
        rows.append({**row, "scores": [float(score) for score in row["scores"]]})
    if torn:
        warnings.warn(f"{path}: {torn} lines are incomplete and were left out", MetaschedWarning, stacklevel=2)
    return rows


_NAMES = {"task", "method", "features", "grid", "steps", "part", "seeds", "scores"}


def grid_of(control: Control, values: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """The values [T, L] of a control at MOMENTS and DEPTHS, in the learned space: [5, 3], or [5, 1] if network-wide."""
    line = into(control, values.detach().double().cpu())
    line = (
        interpolate(line.new_tensor(MOMENTS), progress_of_steps(len(line)), line, "linear")
        if len(line) > 1
        else (line.expand(len(MOMENTS), -1))
    )
    if control.granularity == "network":
        return line
    return _between(line, line.new_tensor([layer.depth for layer in layers]), line.new_tensor(DEPTHS))


class GridSchedule:
    """The schedule of a grid, on any layers: linear in progress and depth between its values, in the learned space.

    Args:
        controls: of the method.
        grid: {control: [5, 3], or [5, 1]}.
    """

    def __init__(self, controls: Sequence[Control], grid: Mapping[str, torch.Tensor]) -> None:
        self.controls = tuple(c for c in controls if c.name in grid)
        self.grid = grid

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T], float64."""
        moments, depths = progress.new_tensor(MOMENTS), progress.new_tensor([layer.depth for layer in layers])
        found = {}
        for control in self.controls:
            line = interpolate(progress, moments, self.grid[control.name].to(progress), "linear")
            if control.granularity != "network":
                line = _between(line, progress.new_tensor(DEPTHS), depths)
            if (end := straight(control).end) is not None:
                line = torch.where((progress >= 1 - control.dwell)[:, None], end, line)
            found[control.name] = out_of(control, line, len(layers)).clamp(control.low, control.high)
        return found


def _between(values: torch.Tensor, known: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Values [T, D] at depths ``known`` [D], increasing, linear between them: [T, len(at)]."""
    if len(known) == 1:
        return values.expand(-1, len(at))
    return interpolate(at, known, values.T.contiguous(), "linear").T
