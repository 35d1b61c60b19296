"""The section ``run`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Boolean, Int, PathText, Word


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Where and with what the experiment runs."""

    folder: PathText = "runs"
    """run folders are made in here"""
    where: Literal["local", "torchrun", "ray"] | None = None
    """where inner runs are done: on worker processes here, on the ranks of torchrun that has started the command, or on
    a Ray cluster that is running (default: torchrun where it has started the command, else local)"""
    workers: Annotated[Int, Field(ge=0, le=1024)] = 0
    """local only: worker processes; 0: one for each core"""
    store: PathText | None = None
    """file to which each run under a schedule adds a line: the task's features, the schedule on a grid, its score"""
    device: Word = "cpu"
    """torch device that the inner runs train on"""
    dtype: Literal["float32", "float64"] = "float32"
    """of weights, data and schedule"""
    autocast: Boolean = False
    """run the network in bfloat16 while training, where torch.autocast does; all else stays in float32"""
