"""The joint method: noise annealing and freezing in each layer at once.

    w_seen_i = (1 - m_i) A(w)_i + m_i Q(w_i)

where A is the noisy stair of ANA and m the mask of frozen weights of INQ: the live weights are annealed, the frozen
ones are equal to their levels. With freeze fraction 0 this is ANA. INQ, whose live weights are in float, is the case in
which A is the identity; for ternary levels, the expectation under uniform noise of half-width 0.5 is the identity on
[-1, 1]. If the forward is the mode and the noise is narrower than half a quantum, the live weights already are on their
levels; freezing then affects only the gradient and the update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from metasched.core.randomness import Draw
from metasched.methods.ana import ANA
from metasched.methods.ana import build as build_ana
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.inq import INQ
from metasched.methods.table import JointConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer


@dataclass(frozen=True)
class Joint(Method):
    """ANA's noise on the live weights and the activations, and INQ's partition of the weights."""

    ana: ANA
    inq: INQ

    @property
    def quantizer(self) -> LayerQuantizer:
        return self.ana.quantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return (*self.ana.controls, *self.inq.controls)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        _, _, state = self.inq.initialize(w, controls, draw)
        w, trainable, noisy = self.ana.initialize(w, controls, draw)
        return w, trainable, {**state, **noisy}

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return self.inq.prepare(w, state, controls, draw)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.inq.blend(self.ana.weight(w, state, controls, draw), w, state)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.ana.activation(x, state, controls, draw)

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return self.inq.update(w, proposed, state, controls, draw)

    def relaxed(self, width: float) -> Joint:
        return replace(self, inq=self.inq.relaxed(width))


def build(config: JointConfig) -> Joint:
    """The method of a configuration."""
    return Joint(build_ana(config), INQ(layer_quantizer(config), config.partition))
