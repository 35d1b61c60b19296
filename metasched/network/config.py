"""The section ``quantize`` of an experiment."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from metasched.core.field_types import STRICT, Boolean


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantizeConfig:
    """Which layers are quantized."""

    first: Boolean = True
    """quantize the first convolution or linear layer"""
    last: Boolean = False
    """quantize the last one"""
