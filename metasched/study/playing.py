"""What a training function gets: an ordinary module that trains quantized, and the player of its schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.network.playing import Player
from metasched.network.prepare import prepare
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recipe import Recipe, rules_for
from metasched.schedules.base import Schedule


def recipe_of(given: Any) -> Recipe:
    """The recipe of a study, which may be given a method, or the name of one.

    Raises:
        MetaschedError: it is neither, or the method is built already.
    """
    recipe = Recipe(given) if isinstance(given, str | MethodConfig) else given
    if not isinstance(recipe, Recipe) or not isinstance(recipe.method, MethodConfig):
        wrong = recipe.method if isinstance(recipe, Recipe) else recipe
        problem = f"has a {type(wrong).__name__}, and floors need the parameters of the method"
        raise MetaschedError("recipe", problem, "give a metasched.Recipe, a MethodConfig or the name of a method")
    return recipe


def method_of(recipe: Recipe) -> MethodConfig:
    """The method of a recipe of ``recipe_of``; with scales that fit the model's weights, if it keeps them."""
    assert isinstance(recipe.method, MethodConfig)
    keeps = recipe.method.scale == "unit" and not recipe.redraw
    return replace(recipe.method, scale="least_squares") if keeps else recipe.method  # as ``prepare`` does


def network_of(model: nn.Module, recipe: Recipe, example: Any) -> QuantizedNetwork:
    """The network that a recipe makes of a model."""
    return quantize(model, recipe, example)


def prepared(
    model: nn.Module,
    method: MethodConfig,
    recipe: Recipe,
    example: Any,
    schedule: Schedule,
    total_steps: int,
    seed: int,
) -> tuple[nn.Module, Player]:
    """``prepare`` with a method in place of the recipe's own."""
    recipe = replace(recipe, method=method, rules=rules_for(method, recipe.rules))
    return prepare(model, recipe, example, schedule, total_steps, seed)
