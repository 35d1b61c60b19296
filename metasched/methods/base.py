"""The contract of a quantization method: the controls that it declares, and pure hooks, each with a default.

A method works on one layer at a time: ``quantize`` calls the hooks for each quantized layer. The state of a layer is a
flat dict of tensors. Controls are arguments of each call, one 0-d tensor each, and are never stored. A method may own
tensors that the optimizer trains: ``initialize`` returns them, and every hook receives them in ``state`` together with
the method's own state. A hook that returns a state may leave them out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch

from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw

if TYPE_CHECKING:
    from metasched.methods.tensors import LayerQuantizer

State = dict[str, torch.Tensor]  # of one layer
Coding = Literal["levels", "by channel", "codes"]
Values = Mapping[str, torch.Tensor]  # control -> 0-d tensor, of one layer at one step


@dataclass(frozen=True)
class Control:
    """One number per layer, or one for the network, that a method reads at every step.

    Attributes:
        name: ``[a-z][a-z0-9_]*``.
        low, high: closed range of legal values.
        unit: what the value 1.0 means.
        direction: how the value may change during training; learned schedules satisfy it by construction.
        end: value at progress 1; None: any value.
        dwell: final share of the run during which the value must equal ``end``; 0: only in the last step.
        granularity: what one value applies to; ``network``: a learned schedule has one value for all layers.
        gradient: ``path`` (true derivative), ``surrogate`` (of a relaxed or straight-through model) or ``none``.
        scale: ``log``: learned and searched as its logarithm, which needs ``low`` > 0.
        none_value: the value which, kept until the last step (where ``end`` holds), means no schedule; None: there is
            no such value.
        learning_floor: lowest value while hypergradients are computed, unless ``meta.noise_floor`` is set; None:
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
        assert self.scale == "linear" or self.low > 0, "a control on a log scale needs low > 0"
        for value in (self.none_value, self.learning_floor):
            assert value is None or self.low <= value <= self.high, f"{self.name}: {value} is out of range"


class Method(ABC):
    """A quantization algorithm. Implementations are frozen dataclasses: their fields are their parameters.

    The smallest method has ``controls``, a field ``quantizer``, ``weight`` and ``activation``; every other hook has a
    default. The weight w of a layer is [C_out, ...] in any floating dtype (float64 in tests), and all tensors of the
    layer have its dtype and device. The scale in a state is [1, 1, ...] or [C_out, 1, ...]; each control is 0-d.

    Attributes:
        quantizer: level sets and scales of a layer.
        freezes: whether its update holds weights still, and so must come after those of other parts of ``joint``.
        trained_size: whether the size of the deployed weight is known after training only.
        tables: whether it quantizes tables of embeddings, without a rule, and no other layer.
    """

    freezes: ClassVar[bool] = False
    trained_size: ClassVar[bool] = False
    tables: ClassVar[bool] = False
    quantizer: LayerQuantizer

    @property
    def _own_quantizer(self) -> LayerQuantizer | None:
        """The field ``quantizer``; None for a method that has all of its hooks itself."""
        return getattr(self, "quantizer", None)

    @property
    @abstractmethod
    def controls(self) -> tuple[Control, ...]:
        """The controls that a schedule must supply at every step."""

    @abstractmethod
    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """The quantized weight that the forward pass uses, during training.

        Args:
            w: the weight that the optimizer trains, [C_out, ...].
            state: the layer's state and trainable tensors.
            controls: control -> 0-d tensor, at this step.
            draw: random numbers of this layer and step.

        Returns:
            shape and dtype of w; differentiable in w, the trainable tensors and the controls.
        """

    @abstractmethod
    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        """The quantized activation that replaces the layer's activation function, during training.

        Args:
            x: [...], the input of the activation module.
            state, controls, draw: as in ``weight``.

        Returns:
            shape and dtype of x.
        """

    @property
    def quantizes(self) -> Quantizes:
        """The tensors of a layer that are quantized. Default: those for which the quantizer has a level set."""
        return self.quantizer.quantizes

    @property
    def bits(self) -> float:
        """log2 of the number of weight levels. Default: from the quantizer."""
        return self.quantizer.levels.bits

    @property
    def coding(self) -> Coding:
        """What stands for a number of a weight: one of the layer's levels, one of its channel's, or a share of a code.

        Default: ``levels``.
        """
        return "levels"

    def bits_of(self, shape: Sequence[int]) -> float:
        """Bits of a number of a weight with this shape, [C_out, ...]. Default: ``bits``, whatever the shape."""
        return self.bits

    def bits_in(self, state: State, shape: Sequence[int]) -> float:
        """Mean bits of a number of the deployed weight, whose shape is [C_out, ...]. Default: ``bits_of`` the shape."""
        return self.bits_of(shape)

    def of_cost(self, share: float) -> Self:
        """The method for a layer with this share, in [0, 1], of the multiply-accumulates of the costliest layer.

        Default: itself. Where no pass multiplies with the weight, its number of elements counts.
        """
        return self

    def refusal(self, shape: Sequence[int]) -> str:
        """Why the method cannot take a weight of this shape, [C_out, ...], as ``problem; fix``; empty if it can.

        Default: it takes all.
        """
        return ""

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        """Initial weight, trainable tensors and state of a layer.

        Args:
            w: weight of the float network, [C_out, ...].
            controls: control -> 0-d tensor, at the first step.
            draw: random numbers of this layer.

        Returns:
            the weight [C_out, ...]; a dict of the tensors that the optimizer trains besides it, such as learned scales,
            in the dtype of w; and the state. No name may be in both dicts. Default: the quantizer's weight, no
            trainable tensor, and the state ``{"scale": [C_out or 1, 1, ...]}``; a learned scale is a trainable tensor.
        """
        return self.quantizer.initialize(w, draw)

    def keeping(self) -> Self:
        """The method for a layer that keeps its weights. Default: a scale fits them where ``unit`` draws new ones."""
        own = self._own_quantizer
        if own is None or own.scale != "unit":
            return self
        return replace(self, quantizer=replace(own, scale="least_squares"))  # pyright: ignore[reportArgumentType]

    @property
    def updates(self) -> bool:
        """Whether ``prepare`` or ``update`` does anything. Default: whether the method has one of its own."""
        return type(self).prepare is not Method.prepare or type(self).update is not Method.update

    @property
    def fits_activations(self) -> bool:
        """Whether trainable tensors start at the first inputs of activations; then ``fit_activation`` gives them.

        Default: as the quantizer, for learned scales of activations.
        """
        own = self._own_quantizer
        return own is not None and own.fits_activations

    def fit_activation(self, x: torch.Tensor, state: State) -> tuple[State, State]:
        """Trainable tensors that start at the first input of a layer's activation, before training.

        Args:
            x: [N, ...], that input in the hard network, detached.
            state: the layer's state and trainable tensors so far.

        Returns:
            further trainable tensors [...], and further state. Default: the quantizer's learned scale, 0-d, or none.
        """
        own = self._own_quantizer
        return ({}, {}) if own is None else own.fit_activation(x)

    def allocated(self, weights: Sequence[torch.Tensor], values: Sequence[Values]) -> Sequence[Values]:
        """The controls that ``prepare`` gets in each layer, where they depend on all layers. Default: unchanged.

        Global pruning finds the share of each layer here.

        Args:
            weights: of each layer, [C_out, ...].
            values: of each layer, {control: 0-d}.
        """
        return values

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """The state at the start of a step, before the forward pass. Default: unchanged.

        INQ chooses the frozen weights here. w is [C_out, ...]; each control is 0-d.
        """
        return state

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        """A term that is added to the loss, 0-d, for the weight w [C_out, ...]. Default: None, no term."""
        return None

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        """The next weight and state. Default: the optimizer's proposal, and the state unchanged.

        Args:
            w: the weight before the optimizer's step, [C_out, ...].
            proposed: the weight after it, [C_out, ...].
            state, controls, draw: as in ``weight``.

        Returns:
            the next weight, with the shape of w, and the next state.
        """
        return proposed, state

    def gradient_factors(self, state: State) -> State:
        """Factors on the gradients of trainable tensors, which the optimizer gets multiplied by them.

        Args:
            state: the state of the layer.

        Returns:
            {name of a trainable tensor: 0-d}. Default: LSQ's factor for learned scales, none for others.
        """
        own = self._own_quantizer
        return {} if own is None else own.gradient_factors(state)

    def update_trainable(self, state: State, proposed: State, controls: Values) -> State:
        """The next trainable tensors of a layer. Default: the optimizer's proposal, learned scales kept above 0.

        Args:
            state: the method's state and the trainable tensors before the optimizer's step.
            proposed: name -> trainable tensor [...] after it.
            controls: control -> 0-d tensor, at this step.

        Returns:
            tensors with the names and shapes of ``proposed``.
        """
        own = self._own_quantizer
        return proposed if own is None else own.in_bounds(proposed)

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The deployed weight: every element is a level times its scale. Default: the nearest level.

        The derivative of the hard quantizer is zero, so the derivative here is that of the stair under uniform noise.

        Args:
            w: weight at the end of training, [C_out, ...].
            state: the layer's state and trainable tensors.
            surrogate: half-width of the uniform noise in quanta, > 0.

        Returns:
            shape and dtype of w.
        """
        return self.quantizer.harden(w, state, surrogate)

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The deployed activation for an input x [N, ...]: every element is a level times the activation scale.

        The derivative is that of the stair under uniform noise of half-width ``surrogate`` quanta, as in ``harden``.
        ``state`` is the layer's state with its trainable tensors.
        """
        return self.quantizer.harden_activation(x, state, surrogate)

    @property
    def hardens_by_levels(self) -> bool:
        """Whether ``harden_activation`` is the quantizer's level set. Default: whether it is the default."""
        return type(self).harden_activation is Method.harden_activation

    def levels_of(self, state: State) -> torch.Tensor:
        """The values that a layer's deployed weight may take, increasing along the last dimension.

        Default: the quantizer's levels times the layer's scale.

        Returns:
            [C_out, 1, ..., K] or [1, 1, ..., K] for K levels: the shape of the scale, and one more dimension.
        """
        scale = state["scale"][..., None]
        return scale * torch.tensor(self.quantizer.levels.levels, dtype=scale.dtype, device=scale.device)

    def storage(self, w: torch.Tensor, state: State) -> dict[str, tuple[int, int]]:
        """What is stored of a layer's deployed weight: {what: (number of elements, bits of each)}.

        Args:
            w: the weight, [C_out, ...].
            state: the layer's state and trainable tensors.

        Returns:
            default: the index of each element's level in ``levels``, of K levels in ceil(log2 K) bits, and the numbers
            of ``scale`` in 32; a method without levels stores ``float`` of 32 bits.
        """
        own = self._own_quantizer
        if own is None:
            return {"float": (w.numel(), 32)}
        bits = (len(own.levels.levels) - 1).bit_length()
        return {"levels": (w.numel(), bits), "scale": (state["scale"].numel(), 32)}

    def level_set_of(self, state: State) -> tuple[tuple[float, ...], torch.Tensor] | None:
        """The level set of a layer's deployed weight, and its scale, [C_out or 1, 1, ...]; None where there is none.

        Default: those of the quantizer.
        """
        own, scale = self._own_quantizer, state.get("scale")
        return None if own is None or scale is None else (own.levels.levels, scale.detach().clone())

    def relaxed(self, width: float) -> Self:
        """The method with its discrete choices smoothed over ``width``, for hypergradients. Default: itself."""
        return self


@runtime_checkable
class Evaluating(Protocol):
    """The additional hook of a method whose update evaluates the loss, such as Metropolis on the batch."""

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
        """The next weight, state and loss; called instead of ``update``.

        Args:
            w, proposed, state, controls, draw: as in ``update``.
            loss: weight of this layer [C_out, ...] -> loss of the batch, 0-d.
            here: the loss at w, 0-d.

        Returns:
            the next weight, with the shape of w; the next state; and the loss at that weight, 0-d.
        """
        ...
