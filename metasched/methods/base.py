"""The contract of a quantization method: controls that it declares, and four pure hooks (and two around a run).

A method works on one layer at a time: ``quantize`` calls the hooks for each layer that it chose. State is a flat dict
of tensors; controls come in as arguments at each call, one 0-d tensor a control, and are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw

State = dict[str, torch.Tensor]  # of one layer
Values = Mapping[str, torch.Tensor]  # control -> 0-d tensor, of one layer at one step


@dataclass(frozen=True)
class Control:
    """One number per layer that a method reads at every step.

    Attributes:
        name: ``[a-z][a-z0-9_]*``.
        low, high: closed range of legal values.
        unit: what 1.0 means.
        direction: how it may move over training; a schedule network obeys it by construction.
        end: value at progress 1, or None where the end is free.
        dwell: share of the run, at its end, that must be spent at ``end`` (0: the last step only).
        granularity: what one value stands for.
        gradient: ``path`` (true derivative), ``surrogate`` (of a relaxed or straight-through model) or ``none``.
    """

    name: str
    low: float
    high: float
    unit: str
    direction: Literal["free", "nonincreasing", "nondecreasing"]
    end: float | None
    dwell: float = 0.0
    granularity: Literal["layer", "channel", "network"] = "layer"
    gradient: Literal["path", "surrogate", "none"] = "path"


class Method(Protocol):
    """A quantization algorithm. Implementations are frozen dataclasses: their fields are their parameters."""

    @property
    def controls(self) -> tuple[Control, ...]:
        """What a schedule has to supply at every step."""
        ...

    @property
    def quantizes(self) -> Quantizes:
        """Which tensors of a layer it quantizes."""
        ...

    @property
    def bits(self) -> float:
        """log2 of the number of weight levels."""
        ...

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State]:
        """Initial weight and state of a layer, from the float network's weight and the controls of the first step."""
        ...

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """The weight that the forward pass sees."""
        ...

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """What the layer's activation puts out; x is the input of the activation module that it stands for."""
        ...

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """State at the start of a step, before the forward pass (INQ chooses what is frozen)."""
        ...

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        """A term of the loss; None for none."""
        ...

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        """What becomes of the optimizer's proposal for this layer's weight."""
        ...

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The deployed weight, exactly on its level set.

        Its derivative is that of uniform noise of half-width ``surrogate`` quanta: the hard network's own is zero.
        """
        ...

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        """The deployed activation, exactly on its level set, with a surrogate derivative likewise."""
        ...

    def relaxed(self, width: float) -> Method:
        """The same method with its discrete choices smoothed over ``width``, to learn through; itself without any."""
        ...


@runtime_checkable
class Evaluating(Protocol):
    """What a method has beside its hooks that evaluates the loss in its update."""

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
        """In place of ``update``.

        Args:
            w, proposed, state, controls, draw: as for ``update``.
            loss: of the batch, 0-d, for another weight of this layer.
            here: its value at w.

        Returns:
            the weight, the state, and the loss at the weight.
        """
        ...
