"""Runs of the training function: each done once, by whichever process comes first, and stored."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.study.storage import Storage
from metasched.study.work import SPLITS, Work, describe

_POLL = 0.05  # seconds between two looks at what another process is doing


@dataclass(frozen=True)
class Job:
    """One run of the training function.

    Attributes:
        method, schedule: what is trained, under which schedule.
        seed: of the run.
        label: what errors call it.
        evaluate: in place of the work's own.
    """

    method: MethodConfig
    schedule: Schedule
    seed: int
    label: str
    evaluate: Callable[..., Any] | None = None

    def key(self, layers: Sequence[Layer], steps: int, scored_by: str) -> str:
        """What the score is a function of, within a study, as 32 hexadecimal digits.

        Values enter in float32, so that a processor that rounds differently finds the same key.
        """
        with torch.no_grad():
            values = self.schedule(progress_of_steps(steps), layers)
        found = hashlib.blake2b(digest_size=16)
        found.update(json.dumps([describe(self.method), self.seed, scored_by], sort_keys=True, default=str).encode())
        for name in sorted(values):
            found.update(name.encode())
            found.update(values[name].to(torch.float32).cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass
class Judge:
    """Scores of jobs, from the storage where they are there; the others are run and stored.

    Attributes:
        work: what is trained.
        storage: of the study.
    """

    work: Work
    storage: Storage
    _seconds: list[float] = field(default_factory=list)

    @cached_property
    def layers(self) -> Sequence[Layer]:
        """The quantized layers, whose values a key is made of."""
        return self.work.layers

    def scores(self, jobs: Sequence[Job], scored_by: str = "") -> list[float]:
        """The score of each job, in their order; NaN for a run that diverged.

        Args:
            jobs: to be done.
            scored_by: hash of their ``evaluate``, empty for the work's own.

        Raises:
            MetaschedError: the training function failed, with its own error as the cause.
        """
        keys = [job.key(self.layers, self.work.steps, scored_by) for job in jobs]
        waiting = {key: job for key, job in zip(keys, jobs, strict=True) if self.storage.get(key) is None}
        while waiting:
            did = [key for key, job in waiting.items() if self._do(key, job)]
            self.storage.refresh()
            waiting = {key: job for key, job in waiting.items() if self.storage.get(key) is None}
            if waiting and not did:
                time.sleep(_POLL)  # another process is doing them, and its claims end with it
        rows = [self.storage.get(key) for key in keys]
        return [float(row["score"]) for row in rows if row is not None]

    def eta(self, runs: int, workers: int) -> str:
        """About how long so many runs will take, as the end of a line; empty where none was done here.

        >>> Judge(None, None, [2.0, 4.0]).eta(40, 2)  # pyright: ignore
        ', about 60 s left'
        """
        if not self._seconds or runs <= 0:
            return ""
        seconds = runs * sum(self._seconds) / len(self._seconds) / workers
        shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        return f", about {shown if seconds < 6000 else f'{seconds / 3600:.1f} h'} left"

    def _do(self, key: str, job: Job) -> bool:
        with self.storage.claim(key) as mine:
            if not mine:
                return False
            self.storage.refresh()
            if self.storage.get(key) is not None:
                return False
            began = time.perf_counter()
            score = self._run(job)
            seconds = time.perf_counter() - began
            self._seconds.append(seconds)
            row = {"key": key, "label": job.label, "method": job.method.name, "seed": job.seed}
            split = SPLITS[job.seed % 4]
            self.storage.append({**row, "split": split, "score": score, "seconds": round(seconds, 3)})
            return True

    def _run(self, job: Job) -> float:
        try:
            return self.work.score(job.method, job.schedule, job.seed, job.evaluate)
        except MetaschedError as error:
            raise MetaschedError(f"{job.label}: {error.path}", error.problem, error.fix) from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            fix = "the traceback of fit is above this one; what was done is stored, and the same call goes on"
            raise MetaschedError(
                f"{job.label}, seed {job.seed}", f"the training function failed: {what}", fix
            ) from error
