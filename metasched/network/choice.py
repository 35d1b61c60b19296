"""What the rules of a recipe say about each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods.base import Method
from metasched.methods.by_channel import by_channel
from metasched.network.recipe import Recipe, matches, named
from metasched.quantizers.levels import name_with_bits


@dataclass(frozen=True)
class Choice:
    """What the rules say about one tensor.

    Attributes:
        quantize: whether it is quantized; None: they say nothing.
        why: the rule that says so.
        activation: what a site does with the activation function; None: they say nothing.
        overrides: parameters of the method: {name: value}.
        where: the last rule that overrides one.
        channel_bits: one digit for each output channel; empty: all channels have the same levels.
    """

    quantize: bool | None
    why: str
    activation: Literal["replace", "keep", "float"] | None
    overrides: Mapping[str, Any]
    where: str
    channel_bits: str = ""


class Rules:
    """The rules of a recipe, and which of them have matched something so far."""

    def __init__(self, recipe: Recipe, module: nn.Module) -> None:
        self.recipe = recipe
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self._matched: set[int] = set()

    def about(self, name: str, owner: str, kind: str = "") -> Choice:
        """What they say about the tensor ``name`` in the module ``owner``; ``kind``: of an activation function."""
        parts = owner.split(".") if owner else []
        around = [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
        owners = [(other, self.modules.get(other)) for other in around]
        quantize, why, activation, where, channel_bits = None, "", None, "", ""
        overrides: dict[str, Any] = {}
        for i, rule in enumerate(self.recipe.rules):
            if rule.match != kind and not matches(rule, name, owners):
                continue
            self._matched.add(i)
            if rule.quantize is not None:
                quantize, why = rule.quantize, named(rule)
            activation = rule.activation or activation
            if rule.levels is not None or rule.channel_bits is not None:
                channel_bits = rule.channel_bits or ""
            overrides |= rule.overrides
            if rule.overrides or rule.channel_bits:
                where = named(rule)
        return Choice(quantize, why, activation, overrides, where, channel_bits)

    def methods(self, choices: list[Choice]) -> tuple[Method, ...]:
        """The method of each layer; empty if it is the recipe's for all."""
        base = self.recipe.build()
        found = tuple(self.recipe.build(c.overrides, c.where) if c.overrides else base for c in choices)
        return () if all(method == base for method in found) else found

    def by_channel(self, choice: Choice, overrides: Mapping[str, Any], channels: int) -> Method:
        """The method of a layer whose rules give bits by channel.

        Args:
            choice: what the rules say about the layer.
            overrides: {parameter: value} of the layer, those about its activation too.
            channels: C_out of the layer.

        Raises:
            MetaschedError: another number of channels, levels without a number of bits, or a method that cannot do it.
        """
        method = self.recipe.method
        if isinstance(method, Method):
            raise MetaschedError(choice.where, "gives bits by channel, and the method is built", "give a MethodConfig")
        levels = overrides.get("levels", method.levels)

        def part(bits: int) -> Method:
            own = {"levels": name_with_bits(levels, bits, choice.where), "granularity": "channel"}
            return self.recipe.build({**overrides, **own}, choice.where)

        return by_channel(tuple(map(int, choice.channel_bits)), part, channels, choice.where)

    def refuse_unused(self) -> None:
        """Raises a MetaschedError for the first rule that has matched nothing."""
        for i, rule in enumerate(self.recipe.rules):
            if i not in self._matched:
                problem = "matches no weight or activation that the example reaches"
                raise MetaschedError(
                    named(rule), problem, "give the name of a module, a glob such as 'layer1.*', or a type"
                )
