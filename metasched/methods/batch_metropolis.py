"""Metropolis with the exact change of the loss, evaluated on the batch of the step.

The proposals of a layer (metropolis.py) are assigned at random to ``blocks`` parts. The parts are accepted or rejected
one after the other, each as a whole, with probability min(1, exp(-dE / temperature)). dE is the change of the loss of
the batch by this part alone, given the other weights as they are: earlier layers have already moved, float parameters
have not. A step takes 1 + blocks * layers additional forward passes.

If proposals are symmetric (``uphill`` = 1/2 and updates of constant size), each part is in detailed balance with
exp(-E / temperature), where E is the loss of the batch. Temperatures are in the unit of the loss; with adaptive cooling
they set the acceptance rate instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, State, Values
from metasched.methods.discrete import even_quantizer
from metasched.methods.metropolis import TEMPERATURE, Metropolis
from metasched.methods.parameters import MetropolisConfig
from metasched.quantizers.transitions import acceptance, propose, sampled, within


@dataclass(frozen=True)
class BatchMetropolis(Metropolis):
    """Metropolis with the loss of the batch as energy; see the module's docstring.

    Attributes:
        blocks: number of parts of a layer that are accepted or rejected separately, at least 1.
    """

    blocks: int = 1

    @property
    def controls(self) -> tuple[Control, ...]:
        return (replace(TEMPERATURE, unit="loss of the batch"),)

    def update_evaluated(
        self,
        w: torch.Tensor,
        proposed: torch.Tensor,
        state: State,
        controls: Values,
        draw: Draw,
        loss: Callable[[torch.Tensor], torch.Tensor],
        here: torch.Tensor,
    ) -> tuple[torch.Tensor, State, torch.Tensor]:
        """See ``Evaluating``; differentiable, as the expectation, in w and the temperature, but not in the update."""
        k, step = self.in_quanta(w, proposed, state)
        uniforms = (draw.uniform("jump", k), draw.uniform("direction", k))
        jump = within(k, propose(step, self.steepness, self.uphill, *uniforms), self.top)
        block = (draw.uniform("block", k) * self.blocks).floor()
        chances = draw.uniform("acceptance", k.new_empty(self.blocks))
        temperature, taken, expected, changes = self.temperature(state, controls), k.detach(), k, []
        for b in range(self.blocks):
            part = torch.where(block == b, jump, 0.0)
            there = loss(self.weight_of(taken + part, state))
            chance = acceptance(there - here, temperature)
            accepted = chances[b] < chance
            changes.append(there - here)
            taken, here = torch.where(accepted, taken + part, taken), torch.where(accepted, there, here)
            expected = expected + chance * part
        if self.adaptive:
            state = self.followed(state, controls, torch.stack(changes))
        return self.weight_of(sampled(taken, expected), state), state, here


def build(config: MetropolisConfig) -> Metropolis:
    """The method of a configuration: with the loss of the batch as energy, or its first-order change.

    Raises:
        MetaschedError: levels are not evenly spaced.
    """
    adaptive = config.cooling == "adaptive"
    settings = (even_quantizer(config), config.noise, config.half_width, config.steepness, config.uphill, adaptive)
    return BatchMetropolis(*settings, config.blocks) if config.energy == "batch" else Metropolis(*settings)
