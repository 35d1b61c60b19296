"""The loss of a float network whose weights are rounded to nearest, with bits by layer or channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods.base import Method
from metasched.methods.oriented import Oriented
from metasched.network.config import Rule
from metasched.network.flow import Example
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe
from metasched.network.sites import copied
from metasched.search.bits.problem import BitProblem, Bits, Choice
from metasched.search.bits.resources import levels_of_bits

Loss = Callable[[nn.Module], torch.Tensor | float]


class Rounding(NamedTuple):
    """The weights of all layers on levels of one number of bits, [C_out, ...] each, and the methods."""

    weights: tuple[torch.Tensor, ...]
    methods: tuple[Method, ...]


def rounded(
    model: nn.Module, recipe: Recipe, example: Example, problem: BitProblem, bits: int, *, by_channel: bool = False
) -> Rounding:
    """The weights of a model rounded to nearest on levels of so many bits, at the scales that the recipe fits to them.

    ``least_squares`` is that scale where the recipe has ``unit`` or ``learned``. With ``by_channel`` each output
    channel has a scale of its own, whatever the recipe says.
    """
    granularity = "channel" if by_channel else None
    levels = levels_of_bits(recipe, bits)
    rules = tuple(Rule(layer.name, levels=levels, granularity=granularity) for layer in problem.layers)
    network = quantize(model, replace(recipe, rules=(*recipe.rules, *rules), redraw=False), example)
    own = {name: p.detach() for name, p in model.named_parameters()}
    params, state = network.initialize(own, network.neutral(), seed=0)
    with torch.no_grad():
        hard = network.harden(params, state)
    methods = tuple(network.method_of(i) for i in range(len(network.layers)))
    weights = (turned(m, hard[layer.weight_key]) for m, layer in zip(methods, network.layers, strict=True))
    return Rounding(tuple(w.detach() for w in weights), methods)


def turned(method: Method, w: torch.Tensor) -> torch.Tensor:
    """A layer's weight [...] with output channels first, [C_out, ...]; from there the same leads back."""
    return method.turned(w) if isinstance(method, Oriented) else w


class Rounded:
    """Scores allocations: minus the loss of the model with the weights of each layer on levels of its bits.

    Activations and all else stay as they are; the model is in eval mode.

    Args:
        model: the trained float network; it stays as it is.
        recipe: method, scales and rules; its weights are kept.
        example: as for ``quantize``.
        problem: layers and choices of bits.
        loss: of a module, 0-d, lower is better: on data that the network was not trained on.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, example: Example, problem: BitProblem, loss: Loss) -> None:
        self._loss, self._problem = loss, problem
        self._module = copied(model).eval()
        self._places = [self._module.get_parameter(layer.weight_key) for layer in problem.layers]

        @cache
        def rounding(b: int, by_channel: bool) -> Rounding:
            return rounded(model, recipe, example, problem, problem.bits[b], by_channel=by_channel)

        self._rounding = rounding

    @torch.no_grad()
    def __call__(self, choice: Choice) -> float:
        """Minus the loss under an allocation; NaN where it is no number."""
        return -float(self._loss(self.module(choice)))

    @torch.no_grad()
    def module(self, choice: Choice) -> nn.Module:
        """The rounded network itself, in eval mode; the next call changes it."""
        for i, bits in enumerate(choice):
            self._places[i].copy_(self._weight(i, bits))
        return self._module

    def _weight(self, layer: int, bits: Bits) -> torch.Tensor:
        if isinstance(bits, int):
            found = self._rounding(bits, False)
            return turned(found.methods[layer], found.weights[layer])
        rows = [self._rounding(b, True).weights[layer][c] for c, b in enumerate(bits)]
        return turned(self._rounding(bits[0], True).methods[layer], torch.stack(rows))


def check_loss(loss: Loss, model: nn.Module) -> float:
    """The loss of the float network.

    Raises:
        MetaschedError: it is no finite number.
    """
    with torch.no_grad():
        found = loss(copied(model).eval())
    try:
        number = float(found)
    except (TypeError, ValueError, RuntimeError):
        raise MetaschedError("allocate: loss", f"gives a {type(found).__name__}, no number", "return a loss") from None
    if not math.isfinite(number):
        raise MetaschedError(
            "allocate: loss", f"is {number} for the float network", "give a trained network, clean data"
        )
    return number
