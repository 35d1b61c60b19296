"""Methods that change what another one does, the parts of ``joint``; alone, each changes STE.

    w_seen = M_n(... M_1(B(w), w) ..., w)        B: the base, such as ``ana``; M_i: the modifiers, in their order

B is ``ste`` for a modifier that is used alone.
"""

from __future__ import annotations

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Method, State, Values

_HALF_QUANTUM = 0.5  # half-width of the uniform density that is the straight-through estimator


class Modifier(Method):
    """A method whose forward pass is a function of that of another one; see the module's docstring."""

    def seen_weight(
        self, seen: torch.Tensor, w: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        """The weight that the forward pass uses instead of ``seen``. Default: ``seen``.

        Args:
            seen: what the base and the modifiers before this one give, [C_out, ...].
            w: the weight that the optimizer trains, of the same shape.
            state, controls, draw: as in ``weight``.
        """
        return seen

    def seen_activation(
        self, seen: torch.Tensor, x: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> torch.Tensor:
        """The activation that the forward pass uses instead of ``seen``, for the input x; both are [N, ...].

        Default: ``seen``.
        """
        return seen

    def own_state(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """The state that the modifier adds to the base's, before training. Default: none.

        Args:
            w: the initial weight, [C_out, ...].
            state: the base's state and trainable tensors.
            controls: control -> 0-d tensor, at the first step.
            draw: random numbers of this layer.
        """
        return {}

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = self.quantizer.initialize(w, draw)
        return w, trainable, state | self.own_state(w, state | trainable, controls, draw)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.seen_weight(self.quantizer.harden(w, state, _HALF_QUANTUM), w, state, controls, draw)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.seen_activation(self.quantizer.harden_activation(x, state, _HALF_QUANTUM), x, state, controls, draw)

    def hardened(self, hardened: torch.Tensor, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The deployed weight [C_out, ...] instead of ``hardened``, of the same shape. Default: ``hardened``."""
        return hardened

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self.hardened(self.quantizer.harden(w, state, surrogate), w, state, surrogate)
