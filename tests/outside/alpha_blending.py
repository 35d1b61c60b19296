"""A method from outside the package, as somebody's own file: alpha-blending (Liu and Mattina, 2019, arXiv 1903.01061).

w_seen = (1 - alpha) w + alpha Q(w)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as section

from metasched.core.field_types import STRICT, Float, Word
from metasched.core.randomness import Draw
from metasched.methods import MethodSpec, register_method
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.config import MethodConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.hard import hard
from metasched.schedules.curves import HandCoded, rising

BLEND = Control("blend", 0.0, 1.0, "share of the level", "nondecreasing", end=1.0)


@section(frozen=True, kw_only=True, config=STRICT)
class AlphaBlendingConfig(MethodConfig):
    """The section of an experiment."""

    name: Word = "alpha_blending"
    stretch: Annotated[Float, Field(gt=0)] = 1.0
    """factor on the level that is mixed in"""


@dataclass(frozen=True)
class AlphaBlending(Method):
    """A growing share of each weight's level, mixed into the float weight."""

    quantizer: LayerQuantizer
    stretch: float = 1.0

    @property
    def controls(self) -> tuple[Control, ...]:
        return (BLEND,)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        level = hard(w / state["scale"], self.quantizer.levels) * state["scale"]
        return torch.lerp(w, level * self.stretch, controls["blend"])

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, state, 0.5)


def build(config: AlphaBlendingConfig) -> AlphaBlending:
    """As configured."""
    return AlphaBlending(layer_quantizer(config), config.stretch)


def schedules() -> Sequence[HandCoded]:
    """Two ramps."""
    return [
        HandCoded(
            f"alpha_{ramp}", "alpha_blending", "not from a paper", {"blend": partial(rising, ramp=ramp)}, "linear"
        )
        for ramp in ("linear", "cubic")
    ]


def smooth(config: AlphaBlendingConfig) -> bool:
    """Where activations stay in float."""
    return config.activation_levels is None


SPEC = register_method(MethodSpec(AlphaBlendingConfig, "alpha-blending", build, schedules, smooth))
