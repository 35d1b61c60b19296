"""Base of the methods without float weights: the weight tensor itself contains only levels.

    w = scale * (q_0 + k quantum), k in {0, ..., n};    update: k <- transition(k, (proposed - w) / (scale * quantum))

The optimizer computes its update from the gradient at the discrete weight; the transition turns the update into the
next state k. Weights are deployed unchanged, so the derivative of hardening is 1.

Activations are hard from the first step. Their derivative is the density of a noise family of fixed width around each
threshold: ``uniform`` is the rectangular window of GXNOR-Net, ``triangular`` its triangular window.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.methods.base import Method, State, Values
from metasched.methods.config import MethodConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.hard import hard
from metasched.quantizers.noise import NOISE_FAMILIES
from metasched.quantizers.stair import stair


@dataclass(frozen=True)
class Discrete(Method):
    """A method whose weights move by transitions between states; see the module's docstring.

    Attributes:
        quantizer: evenly spaced weight levels, and scales.
        window: noise family whose density is the derivative of activations.
        half_width: half-width of that window in activation quanta, > 0.
        steepness: m > 0, for the probability tanh(m nu) of one more quantum.
    """

    quantizer: LayerQuantizer
    window: str = "uniform"
    half_width: float = 0.5
    steepness: float = 3.0

    @abstractmethod
    def transition(
        self, k: torch.Tensor, step: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        """The next states and the next state of the layer.

        Args:
            k: states, [C_out, ...], integers in [0, ``top``] stored as floats.
            step: the optimizer's update in quanta, with the shape of k.
            state, controls, draw: as in ``Method.update``.
        """

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = self.quantizer.initialize(w, draw)
        return hard(w / state["scale"], self.quantizer.levels) * state["scale"], trainable, state

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return w

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        none = torch.zeros((), dtype=x.dtype, device=x.device)
        width = self.half_width * NOISE_FAMILIES[self.window].unit
        return self.quantizer.scaled(
            x,
            state,
            lambda z, levels: stair(
                z, levels, mean=none, scale=none, family=self.window, forward="mode", backward_scale=width
            ),
        )

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        k, state = self.transition(*self.in_quanta(w, proposed, state), state, controls, draw)
        return self.weight_of(k, state), state

    @property
    def top(self) -> int:
        """The highest state."""
        return len(self.quantizer.levels.levels) - 1

    def in_quanta(self, w: torch.Tensor, proposed: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """The states k of a weight w, and the optimizer's update in quanta; all tensors are [C_out, ...]."""
        levels, scale = self.quantizer.levels, state["scale"]
        first, quantum = levels.levels[0], levels.jumps[0]
        k = (w / scale - first) / quantum
        k = k + (k.round() - k).detach()  # removes rounding errors of scales that are not powers of two
        return k, (proposed - w) / (scale * quantum)

    def weight_of(self, k: torch.Tensor, state: State) -> torch.Tensor:
        """The weight of states k; both are [C_out, ...]."""
        levels = self.quantizer.levels
        return (levels.levels[0] + levels.jumps[0] * k) * state["scale"]

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        level = hard(w / state["scale"], self.quantizer.levels) * state["scale"]
        return level + (w - w.detach())


def even_quantizer(config: MethodConfig) -> LayerQuantizer:
    """The level sets and scales of a configuration, whose weight levels must be evenly spaced.

    Raises:
        MetaschedError: weight levels are not evenly spaced, or a level set does not exist.
    """
    quantizer = layer_quantizer(config)
    if len(set(quantizer.levels.jumps)) > 1:
        problem = "must be evenly spaced, because the weights of this method move from state to state"
        raise MetaschedError(
            "method.levels", problem, "use ternary, statesN (2^N + 1 of them), intB, uintB or balancedB"
        )
    return quantizer
