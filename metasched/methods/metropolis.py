"""Metropolis: jumps proposed from the gradient, accepted with probability min(1, exp(-dE / temperature)).

    jump d: sign(dw) (kappa + b) dz, or minus that with probability ``uphill``;   w <- w + d if accepted and in range

with kappa and b as in GXNOR, and dE = -d dw / (dz mean |dw|) to first order: for gradient descent, the change of the
loss in units of its mean change by one quantum over the layer; under Adam, that of the gradient as Adam scales it. At
temperature 0 no jump goes uphill, and at a high one a share ``uphill`` of them does. GXNOR at its temperature 1 is the
special case ``uphill`` = 0, wherever no jump would leave the range: GXNOR goes to the end of it, Metropolis stays.

Simulated annealing is this method under a falling temperature (Kirkpatrick et al., Science 220, 1983). All weights move
at once, so that for an energy that is not linear the stationary distribution is Boltzmann's only to first order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.methods.base import Control, Values
from metasched.methods.discrete import Discrete
from metasched.quantizers.transitions import metropolis_transition
from metasched.randomness import Draw

TEMPERATURE = Control(
    "temperature", 0.0, 4.0, "mean change of loss by a quantum", "free", end=None, gradient="surrogate"
)


@dataclass(frozen=True)
class Metropolis(Discrete):
    """Metropolis transitions; see the module's docstring.

    Attributes:
        uphill: r, the share of proposals against the step; 1/2 makes them symmetric.
    """

    uphill: float = 0.5

    @property
    def controls(self) -> tuple[Control, ...]:
        return (TEMPERATURE,)

    def transition(self, k: torch.Tensor, step: torch.Tensor, top: int, controls: Values, draw: Draw) -> torch.Tensor:
        uniforms = (draw.uniform("jump", k), draw.uniform("direction", k), draw.uniform("acceptance", k))
        return metropolis_transition(k, step, controls["temperature"], top, self.steepness, self.uphill, uniforms)
