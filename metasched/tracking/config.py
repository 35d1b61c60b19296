"""The section ``tracking`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    """Where metrics go besides the JSON lines of the run folder."""

    wandb: Literal["disabled", "offline", "online"] = "offline"
    """offline keeps the wandb run in the run folder; `wandb sync` uploads it later"""
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")] = "metasched"
    """wandb project"""
