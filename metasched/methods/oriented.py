"""A method on a weight whose output channels are not its first dimension: it works on the weight turned around.

Transposed convolutions have weights [C_in, C_out / G, ...], Hugging Face's Conv1D [C_in, C_out]; methods take
[C_out, C_in / G, ...], so that scales by channel, fan-in and masks are those of the equal convolution or linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw
from metasched.methods.base import Coding, Control, Evaluating, Method, State, Values
from metasched.methods.tensors import LayerQuantizer


@dataclass(frozen=True)
class Oriented(Method):
    """The method ``base`` for weights of G groups, [C_in, C_out / G, ...]; states have output channels first."""

    base: Method
    groups: int

    @property
    def quantizer(self) -> LayerQuantizer:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.quantizer

    @property
    def controls(self) -> tuple[Control, ...]:
        return self.base.controls

    @property
    def quantizes(self) -> Quantizes:
        return self.base.quantizes

    @property
    def bits(self) -> float:
        return self.base.bits

    @property
    def coding(self) -> Coding:
        return self.base.coding

    @property
    def fits_activations(self) -> bool:
        return self.base.fits_activations

    def turned(self, w: torch.Tensor) -> torch.Tensor:
        """[C_in, C_out / G, ...] to [C_out, C_in / G, ...], and back."""
        return rows_first(w, self.groups)

    def keeping(self) -> Self:
        return replace(self, base=self.base.keeping())

    @property
    def updates(self) -> bool:
        return self.base.updates

    @property
    def hardens_by_levels(self) -> bool:
        return self.base.hardens_by_levels

    def relaxed(self, width: float) -> Self:
        return replace(self, base=self.base.relaxed(width))

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        first, trainable, state = self.base.initialize(self.turned(w), controls, draw)
        return self.turned(first), trainable, state

    def fit_activation(self, x: torch.Tensor, state: State) -> tuple[State, State]:
        return self.base.fit_activation(x, state)

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        return self.base.prepare(self.turned(w), state, controls, draw)

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.turned(self.base.weight(self.turned(w), state, controls, draw))

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.base.activation(x, state, controls, draw)

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        return self.base.penalty(self.turned(w), state, controls)

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        found, state = self.base.update(self.turned(w), self.turned(proposed), state, controls, draw)
        return self.turned(found), state

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
        """As ``Evaluating.update_evaluated``; called only where the base is such a method."""
        assert isinstance(self.base, Evaluating)

        def turned_loss(w: torch.Tensor) -> torch.Tensor:
            return loss(self.turned(w))

        given = self.turned(w), self.turned(proposed), state, controls, draw
        found, state, here = self.base.update_evaluated(*given, turned_loss, here)
        return self.turned(found), state, here

    def gradient_factors(self, state: State) -> State:
        return self.base.gradient_factors(state)

    def update_trainable(self, state: State, proposed: State, controls: Values) -> State:
        return self.base.update_trainable(state, proposed, controls)

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self.turned(self.base.harden(self.turned(w), state, surrogate))

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return self.base.harden_activation(x, state, surrogate)

    def levels_of(self, state: State) -> torch.Tensor:
        return self.base.levels_of(state)

    def storage(self, w: torch.Tensor, state: State) -> dict[str, tuple[int, int]]:
        return self.base.storage(self.turned(w), state)

    def level_set_of(self, state: State) -> tuple[tuple[float, ...], torch.Tensor] | None:
        return self.base.level_set_of(state)

    def bits_of(self, shape: Sequence[int]) -> float:
        return self.base.bits_of(shape)

    def bits_in(self, state: State, shape: Sequence[int]) -> float:
        return self.base.bits_in(state, shape)


def rows_first(w: torch.Tensor, groups: int) -> torch.Tensor:
    """The weight with its output channels first, [C_out, C_in / G, ...]; from there the same leads back.

    Args:
        w: [C_in, C_out / G, ...] if ``groups`` = G > 0; it is returned as it is if that is 0.
    """
    if groups == 0:
        return w
    if groups == 1:
        return w.transpose(0, 1)
    return w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def oriented(method: Method, groups: int) -> Method:
    """The method for a layer whose weight lies as ``WeightKind.groups`` says."""
    return method if groups == 0 else Oriented(method, groups)
