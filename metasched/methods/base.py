"""The contract of a quantization method: the controls that it declares, and pure hooks, each with a default.

A method works on one layer at a time: ``quantize`` calls the hooks for each layer that it chose. State is a flat dict
of tensors; controls come in as arguments at each call, one 0-d tensor a control, and are never stored. A method may own
tensors that the optimizer trains (``initialize`` gives them); every hook finds them in its ``state``, beside the
method's own state, and what it returns as state need not have them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw

if TYPE_CHECKING:
    from metasched.methods.tensors import LayerQuantizer

State = dict[str, torch.Tensor]  # of one layer
Values = Mapping[str, torch.Tensor]  # control -> 0-d tensor, of one layer at one step


@dataclass(frozen=True)
class Control:
    """One number per layer, or one for the network, that a method reads at every step.

    Attributes:
        name: ``[a-z][a-z0-9_]*``.
        low, high: closed range of legal values.
        unit: what 1.0 means.
        direction: how it may move over training; a schedule network obeys it by construction.
        end: value at progress 1, or None where the end is free.
        dwell: share of the run, at its end, that must be spent at ``end`` (0: the last step only).
        granularity: what one value stands for; ``network``: a learned schedule has the same value in all layers.
        gradient: ``path`` (true derivative), ``surrogate`` (of a relaxed or straight-through model) or ``none``.
        scale: ``log``: it is learned and searched as its logarithm; ``low`` is above 0 then.
        none_value: the value that, held until the last step, is no schedule at all (the control's ``end`` counts at
            the last one); None where no value is.
        learning_floor: lowest value while hypergradients are taken, unless ``meta.noise_floor`` gives another; None:
            ``low``.
    """

    name: str
    low: float
    high: float
    unit: str
    direction: Literal["free", "nonincreasing", "nondecreasing"]
    end: float | None
    dwell: float = 0.0
    granularity: Literal["layer", "network"] = "layer"
    gradient: Literal["path", "surrogate", "none"] = "path"
    scale: Literal["linear", "log"] = "linear"
    none_value: float | None = None
    learning_floor: float | None = None

    def __post_init__(self) -> None:
        assert self.scale == "linear" or self.low > 0, "a logarithm needs values above 0"
        for value in (self.none_value, self.learning_floor):
            assert value is None or self.low <= value <= self.high, f"{self.name}: {value} is out of range"


class Method(ABC):
    """A quantization algorithm. Implementations are frozen dataclasses: their fields are their parameters.

    The smallest method declares its ``controls`` and has a field ``quantizer``, ``weight`` and ``activation``; each
    other hook has a default, which is described here. Tensors of a layer have the dtype and device of its weight.

    Attributes:
        quantizer: level sets and scales of a layer.
    """

    quantizer: LayerQuantizer

    @property
    @abstractmethod
    def controls(self) -> tuple[Control, ...]:
        """What a schedule has to supply at every step."""

    @abstractmethod
    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """The weight that the forward pass sees, of the shape of w."""

    @abstractmethod
    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """What the layer's activation puts out; x is the input of the activation module that it replaces."""

    @property
    def quantizes(self) -> Quantizes:
        """Which tensors of a layer it quantizes. Default: as the quantizer has level sets for."""
        return self.quantizer.quantizes

    @property
    def bits(self) -> float:
        """log2 of the number of weight levels. Default: of the quantizer's."""
        return self.quantizer.levels.bits

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        """Initial weight, trainable tensors and state of a layer.

        Args:
            w: the float network's weight.
            controls: of the first step.
            draw: random numbers.

        Returns:
            the weight; tensors that the optimizer trains beside it, by name (learned scales; floating point, in the
            weight's dtype); and the state. No name is in both. Default: the quantizer's weight, nothing, and its scale
            as ``{"scale": [C_out or 1, 1, ...]}``.
        """
        w, state = self.quantizer.initialize(w, draw)
        return w, {}, state

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """State at the start of a step, before the forward pass (INQ chooses what is frozen). Default: unchanged."""
        return state

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        """A term of the loss, 0-d; None for none, which is the default."""
        return None

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        """The next weight and state, from the optimizer's proposal for the weight. Default: the proposal."""
        return proposed, state

    def update_trainable(self, state: State, proposed: State, controls: Values) -> State:
        """The next trainable tensors of a layer that has some, from the optimizer's proposal, by the same names.

        ``state`` has them as they were, beside the method's state. Default: the proposal.
        """
        return proposed

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The deployed weight, exactly on its level set. Default: the nearest level.

        Its derivative is that of uniform noise of half-width ``surrogate`` quanta: the hard network's own is zero.
        """
        return self.quantizer.harden(w, state, surrogate)

    def harden_activation(self, x: torch.Tensor, surrogate: float) -> torch.Tensor:
        """The deployed activation, exactly on its level set, with a surrogate derivative likewise."""
        return self.quantizer.harden_activation(x, surrogate)

    def levels_of(self, state: State) -> torch.Tensor:
        """The values that a layer's deployed weight may take, increasing, [C_out or 1, 1, ..., number of levels].

        Default: the quantizer's levels in units of the layer's scale.
        """
        scale = state["scale"][..., None]
        return scale * torch.tensor(self.quantizer.levels.levels, dtype=scale.dtype, device=scale.device)

    def relaxed(self, width: float) -> Self:
        """The method with its discrete choices smoothed over ``width``, to learn through. Default: itself."""
        return self


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
