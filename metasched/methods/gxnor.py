"""GXNOR: discrete state transition. Weights are states of a discrete space; there are no float copies.

    w <- clip(w + sign(dw) (kappa + b) dz),   b ~ Bernoulli(tanh(m nu / dz)),   |dw| = kappa dz + nu,  0 <= nu < dz

dw is the optimizer's update times ``temperature``; dz is the distance between two states. An update smaller than dz
moves its weight with a probability of about m |dw| / dz, so the size of the updates sets how often weights jump, and
the authors anneal the learning rate. ``temperature`` is the learning rate of the discrete weights of one layer relative
to that of the optimizer, which still applies to the float parameters (normalization, biases).

Source: Deng et al., GXNOR-Net, Neural Networks 100:49-58, 2018, arXiv 1705.09283; AcrossV/Gated-XNOR, which clips after
the jump, as we do. We differ: each layer has its own temperature; ``initialize`` replaces the authors' first epoch at
rate 0, which only discretizes; their jump to a random state when training is stuck is dead code and left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.discrete import Discrete, even_quantizer
from metasched.methods.parameters import GXNORConfig
from metasched.quantizers.transitions import discrete_transition

STEP_TEMPERATURE = Control("temperature", 0.0, 4.0, "the optimizer's step", "free", end=None, gradient="surrogate")


@dataclass(frozen=True)
class GXNOR(Discrete):
    """Discrete state transition; see the module's docstring."""

    @property
    def controls(self) -> tuple[Control, ...]:
        return (STEP_TEMPERATURE,)

    def transition(
        self, k: torch.Tensor, step: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        step, uniform = controls["temperature"] * step, draw.uniform("jump", k)
        return discrete_transition(k, step, self.top, self.steepness, uniform), state


def build(config: GXNORConfig) -> GXNOR:
    """The method of a configuration.

    Raises:
        MetaschedError: levels are not evenly spaced.
    """
    return GXNOR(even_quantizer(config), config.noise, config.half_width, config.steepness)
