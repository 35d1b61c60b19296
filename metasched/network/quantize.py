"""``quantize(model, method)``: an ordinary module and a method make a network that runs under given controls.

The module itself stays as it is: a copy has the sites (see sites.py).
"""

from __future__ import annotations

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods.base import Method
from metasched.network.choosing import choose
from metasched.network.flow import Example
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recipe import Recipe


def quantize(
    model: nn.Module, recipe: Recipe | Method, example: Example, *, first: bool | None = None, last: bool | None = None
) -> QuantizedNetwork:
    """Wrap a model: choose its layers and say what each quantizes (see choosing.py).

    Args:
        model: any module; it is copied, and what is in eval mode in a model in training mode stays there.
        recipe: what quantizes them; a method is a recipe without rules, which may draw the weights anew.
        example: an input batch, used for one pass in eval mode: a tensor [N, ...], a tuple of arguments, a dict of
            keyword arguments, or a function of the module that runs it (of several passes the first one counts).
        first, last: with a method, whether the first (default: yes) and the last layer (no) are quantized too.

    Raises:
        MetaschedError: nothing to quantize, a model that is a single layer, a layer that shares its weight with one
            that is not quantized, a computed weight, or a rule that matches nothing.
    """
    if isinstance(recipe, Method):
        recipe = Recipe(recipe, first=first is not False, last=last is True, redraw=True)
    elif first is not None or last is not None:
        raise MetaschedError("quantize", "first and last are of the recipe", "set them there: Recipe(..., last=True)")
    found = choose(model, recipe, example)
    floats = tuple(str(t) for t in found.tensors if t.layer is None and not t.excuse)
    keeps = not recipe.redraw
    return QuantizedNetwork(found.module, recipe.build(), found.layers, floats, found.methods, keeps, found.tensors)
