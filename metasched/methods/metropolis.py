"""Metropolis: jumps proposed from the gradient, accepted with probability min(1, exp(-dE / temperature)).

    jump d: sign(dw) (kappa + b) dz, or minus that with probability ``uphill``;   w <- w + d if accepted and in range

with kappa and b as in GXNOR, and dE = -d dw / (dz mean |dw|) to first order: for gradient descent, the change of the
loss in units of its mean change by one quantum over the layer; under Adam, that of the gradient as Adam scales it. At
temperature 0 no jump goes uphill, and at a high one a share ``uphill`` of them does. GXNOR at its temperature 1 is the
special case ``uphill`` = 0, wherever no jump would leave the range: GXNOR goes to the end of it, Metropolis stays.

Simulated annealing is this method under a falling temperature (Kirkpatrick et al., Science 220, 1983), or an adaptive
one (adaptive_cooling.py). All weights move at once, so that for an energy that is not linear the stationary
distribution is Boltzmann's only to first order; batch_metropolis.py has the change of the loss itself.
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
        uphill: r, the share of proposals against the step; 1/2 makes them symmetric.
        adaptive: whether the temperature follows what is accepted; its factor is in the state.
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
        """The control, times the factor of adaptive cooling."""
        return controls["temperature"] * state["log_factor"].exp() if self.adaptive else controls["temperature"]

    def followed(self, state: State, controls: Values, energy_change: torch.Tensor) -> State:
        """The state after the proposals of a step, of these changes of energy, under adaptive cooling."""
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
