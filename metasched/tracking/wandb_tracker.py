"""Weights & Biases: a wandb run in the run folder, offline by default; ``wandb sync`` uploads it later."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.io.atomic import write_atomic
from metasched.io.reading import read_regular
from metasched.tracking.metrics import AXES, OF_ARMS, RESULT
from metasched.tracking.tracker import Scalar


class Wandb:
    """One wandb run. Each family of metrics has its own axis, such as ``outer/step``; wandb's step count is not used.

    Until ``close``, the environment variables WANDB_DATA_DIR and WANDB_CACHE_DIR point into the run folder, unless they
    were already set; otherwise wandb would stage artifacts in the home folder.

    Args:
        folder: the run folder; wandb's files go to ``folder/wandb``.
        config: the resolved experiment.
        mode: ``offline`` or ``online``.
        project, group, job_type, name, tags, notes: as in wandb; all runs of an experiment have its name as group.

    The id of the run is stored in ``folder/wandb_id``, so that a resumed run continues the same wandb run. wandb cannot
    delete rows: rows that are logged again after a resume appear twice.

    Raises:
        MetaschedError: wandb is not installed.
        wandb.Error: wandb cannot start, for instance online without a login.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: Literal["offline", "online"],
        project: str,
        group: str,
        job_type: str,
        name: str,
        tags: Sequence[str] = (),
        notes: str = "",
    ) -> None:
        with from_extra("train"):
            import wandb

        self._redirected = [v for v in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR") if v not in os.environ]
        os.environ.update(dict.fromkeys(self._redirected, str((folder / "wandb").resolve())))
        self._wandb = wandb
        try:
            self._run = wandb.init(
                dir=folder,
                config=dict(config),
                mode=mode,
                project=project,
                group=group,
                job_type=job_type,
                name=name,
                tags=list(tags),
                notes=notes,
                id=_run_id(folder / "wandb_id"),
                resume="allow" if mode == "online" else None,
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        except BaseException:
            self._restore()
            raise
        for axis in dict.fromkeys(AXES.values()):
            summary = "none" if axis in {AXES.get(family) for family in OF_ARMS} else None
            self._run.define_metric(axis, hidden=True, summary=summary)
        for family in dict.fromkeys((*AXES, *OF_ARMS)):
            summary = "none" if family in OF_ARMS else None
            self._run.define_metric(family, step_metric=AXES.get(family), summary=summary)

    def log(self, metrics: Mapping[str, Scalar]) -> None:
        """Logs one row of history, which includes its axis; the numbers of a whole run are its summary."""
        result = {name: value for name, value in metrics.items() if name.startswith(RESULT)}
        if result:
            self._run.summary.update(result)
        if row := {name: value for name, value in metrics.items() if name not in result}:
            self._run.log(row)

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any]) -> None:
        """Logs a file as a versioned artifact of type ``kind``."""
        artifact = self._wandb.Artifact(name, type=kind, metadata=dict(metadata))
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Scalar]]) -> None:
        """Logs a table. Its name must not be in a family of metrics: wandb would add the axis of the family."""
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def picture(self, name: str, path: Path) -> None:
        """Logs a PNG file under its name, as media of the run."""
        self._run.log({name: self._wandb.Image(str(path))})

    def close(self) -> None:
        """Ends the run and restores the environment variables."""
        try:
            self._run.finish()
        finally:
            self._restore()

    def _restore(self) -> None:
        for variable in self._redirected:
            os.environ.pop(variable, None)


def _run_id(path: Path) -> str:
    """The id in a file; writes a new one if the file does not exist."""
    if not path.exists():
        write_atomic(path, f"{secrets.token_hex(4)}\n".encode())
    found = read_regular(path, 100, "delete it to start a new wandb run").decode("ascii", "replace").strip()
    if not re.fullmatch("[a-z0-9]{1,64}", found):
        raise MetaschedError(str(path), "does not hold the id of a wandb run", "delete it to start a new wandb run")
    return found
