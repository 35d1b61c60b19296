"""What a training function gets: an ordinary module that trains quantized, and the player of its schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.network.playing import Player
from metasched.network.prepare import prepare
from metasched.network.quantize import QuantizedNetwork, quantize
from metasched.schedules.base import Schedule


def method_of(recipe: Any) -> MethodConfig:
    """The method of a recipe, or of a study that is given one in its place; with scales that fit the model's weights.

    Raises:
        MetaschedError: it is neither, or the method is built already.
    """
    method = MethodConfig(name=recipe) if isinstance(recipe, str) else getattr(recipe, "method", recipe)
    if not isinstance(method, MethodConfig):
        problem = f"has a {type(method).__name__}, and floors need the parameters of the method"
        raise MetaschedError("recipe", problem, "give a metasched.Recipe, a MethodConfig or the name of a method")
    if (getattr(recipe, "first", True), getattr(recipe, "last", False)) != (True, False):
        raise MetaschedError("recipe", "has another first or last layer", "leave first and last as they are")
    return method if method.scale != "unit" else replace(method, scale="least_squares")  # as ``prepare`` does


def network_of(model: nn.Module, recipe: Any, example: Any) -> QuantizedNetwork:
    """The network that a recipe makes of a model."""
    return quantize(model, build_method(method_of(recipe)), example)


def prepared(
    model: nn.Module, method: MethodConfig, recipe: Any, example: Any, schedule: Schedule, total_steps: int, seed: int
) -> tuple[nn.Module, Player]:
    """``prepare`` with the method in place of the recipe's own."""
    return prepare(model, method, example, schedule, total_steps, seed)
