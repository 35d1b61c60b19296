"""Metropolis: jumps proposed from the gradient, accepted with probability min(1, exp(-dE / temperature)).

    jump d: sign(dw) (kappa + b) dz, or minus that with probability ``uphill``;   w <- w + d if accepted and in range

with kappa and b as in GXNOR, and dE = -d dw / (dz mean |dw|) to first order. Under gradient descent, dE is the change
of the loss in units of the mean change by one quantum over the layer; under Adam, the gradient is replaced by Adam's
scaled gradient. At temperature 0 no jump goes uphill; at a high temperature a share ``uphill`` of the jumps does. With
``uphill`` = 0 the method equals GXNOR at temperature 1, except where a jump would leave the range: GXNOR clips it,
Metropolis rejects it.

With a falling temperature this is simulated annealing (Kirkpatrick et al., Science 220, 1983); adaptive_cooling.py
adapts the temperature. All weights move at once, so for a nonlinear energy the stationary distribution is the Boltzmann
distribution only to first order; batch_metropolis.py uses the exact change of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metasched.core.randomness import Draw
from metasched.methods.adaptive_cooling import adapted
from metasched.methods.base import Control, State, Values
from metasched.methods.discrete import Discrete
from metasched.quantizers.transitions import first_order, metropolis_transition, propose, within

TEMPERATURE = Control(
    "temperature", 0.0, 4.0, "mean change of loss by a quantum", "free", end=None, gradient="surrogate"
)


@dataclass(frozen=True)
class Metropolis(Discrete):
    """Metropolis transitions; see the module's docstring.

    Attributes:
        uphill: r in [0, 1/2], probability of a proposal against the update; 1/2 makes proposals symmetric.
        adaptive: whether the temperature adapts to the acceptance rate; the state then has ``log_factor``, 0-d.
    """

    uphill: float = 0.5
    adaptive: bool = False

    @property
    def controls(self) -> tuple[Control, ...]:
        return (TEMPERATURE,)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = super().initialize(w, controls, draw)
        return w, trainable, {**state, "log_factor": w.new_zeros(())} if self.adaptive else state

    def temperature(self, state: State, controls: Values) -> torch.Tensor:
        """The temperature, 0-d: the control, times the factor of adaptive cooling."""
        return controls["temperature"] * state["log_factor"].exp() if self.adaptive else controls["temperature"]

    def followed(self, state: State, controls: Values, energy_change: torch.Tensor) -> State:
        """The state with the next factor of adaptive cooling, from dE [...] of the proposals of a step."""
        temperature, factor = self.temperature(state, controls), state["log_factor"]
        return {**state, "log_factor": adapted(factor, controls["temperature"], energy_change, temperature)}

    def transition(
        self, k: torch.Tensor, step: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        uniforms = (draw.uniform("jump", k), draw.uniform("direction", k), draw.uniform("acceptance", k))
        temperature = self.temperature(state, controls)
        after = metropolis_transition(k, step, temperature, self.top, self.steepness, self.uphill, uniforms)
        if not self.adaptive:
            return after, state
        jump = within(k, propose(step, self.steepness, self.uphill, *uniforms[:2]), self.top)
        return after, self.followed(state, controls, first_order(jump, step))
