"""GXNOR: discrete state transition. Weights are states of a discrete space, without float weights behind them.

    w <- clip(w + sign(dw) (kappa + b) dz),   b ~ Bernoulli(tanh(m nu / dz)),   |dw| = kappa dz + nu,  0 <= nu < dz

dw is the optimizer's step times ``temperature``, and dz the distance between two states. A step smaller than dz moves
its weight with a probability of about m |dw| / dz: how large the steps are is how much the weights jump about, and the
authors anneal the learning rate. ``temperature`` is that rate for the discrete weights of one layer, relative to the
optimizer's, which goes on driving what is in float (normalization, biases).

Source: Deng et al., GXNOR-Net, Neural Networks 100:49-58, 2018, arXiv 1705.09283; AcrossV/Gated-XNOR, which clips after
the jump, as we do. We differ: the temperature has one value for each layer; the authors' first epoch at rate 0, which
only discretizes, is ``initialize``; their jump to a random state when training is stuck is dead code, and is not here.
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
    """As configured.

    Raises:
        MetaschedError: levels that are not evenly spaced.
    """
    return GXNOR(even_quantizer(config), config.noise, config.half_width, config.steepness)
