"""Recipe: a method with its parameters, and the rules that choose what it quantizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from pydantic import ValidationError
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.methods import build_method
from metasched.methods.base import Method
from metasched.methods.config import MethodConfig
from metasched.network.config import Rule


@dataclass(frozen=True, init=False)
class Recipe:
    """How a float model becomes a quantized network.

    >>> Recipe("joint", rules=[Rule("stem.*", quantize=False), Rule("Linear", levels="int4")]).method.name
    'joint'

    Attributes:
        method: the method with its parameters; a name is the method with its defaults.
        rules: exceptions; a mapping is a rule. Of several that match a tensor, the last one that says something counts.
            They count more than ``first`` and ``last``.
        first, last: whether the first and the last layer are quantized too.
        redraw: whether the method may draw new weights, as scale ``unit`` does; else a scale fits the model's own.
    """

    method: MethodConfig | Method = field(default_factory=MethodConfig)
    rules: tuple[Rule, ...] = ()
    first: bool = True
    last: bool = False
    redraw: bool = False

    def __init__(
        self,
        method: MethodConfig | Method | str | None = None,
        rules: Sequence[Rule | Mapping[str, Any]] = (),
        first: bool = True,
        last: bool = False,
        redraw: bool = False,
    ) -> None:
        if method is None or isinstance(method, str):
            method = MethodConfig() if method is None else MethodConfig(name=method)
        if not isinstance(method, MethodConfig | Method):
            raise MetaschedError(
                "recipe", f"has a {type(method).__name__} for a method", "give a MethodConfig or a name"
            )
        given = tuple(r if isinstance(r, Rule) else _rule(cast(Mapping[str, Any], r)) for r in rules)
        for name, value in (("method", method), ("rules", given), ("first", first), ("last", last), ("redraw", redraw)):
            object.__setattr__(self, name, value)

    def build(self, overrides: Mapping[str, Any] | None = None, where: str = "rule") -> Method:
        """The method, with some of its parameters changed.

        Args:
            overrides: {parameter: value}.
            where: the rule that changes them; error messages begin with it.

        Raises:
            MetaschedError: a value that the method cannot have, or the method is built already.
        """
        method = self.method
        if overrides:
            if isinstance(method, Method):
                problem = f"sets {', '.join(overrides)}, and the recipe's method is built already"
                raise MetaschedError(where, problem, "give the recipe a MethodConfig")
            try:
                method = build_method(replace(method, **overrides))
            except ValidationError as error:
                raise MetaschedError(where, error.errors(include_url=False)[0]["msg"], "correct it") from None
            except MetaschedError as error:
                raise MetaschedError(
                    f"{where}: {error.path.removeprefix('method.')}", error.problem, error.fix
                ) from None
        elif isinstance(method, MethodConfig):
            method = build_method(method)
        return method if self.redraw else method.keeping()


def named(rule: Rule) -> str:
    """The rule as messages name it."""
    return f"rule {rule.match!r}"


def matches(rule: Rule, name: str, owners: Sequence[tuple[str, nn.Module | None]]) -> bool:
    """Whether a rule is about a tensor.

    Args:
        rule: the rule.
        name: of the tensor's site.
        owners: names of the module that it is in and of those around that one, each with the module.
    """
    names = (name, *(other for other, _ in owners if other))
    if rule.match in names or any(fnmatchcase(other, rule.match) for other in names):
        return True
    return any(module is not None and rule.match in _types(module) for _, module in owners)


def _types(module: nn.Module) -> set[str]:
    return {c.__name__ for c in type(module).__mro__} - {"Module", "object"}


def _rule(given: Mapping[str, Any]) -> Rule:
    if not isinstance(given, Mapping) or "match" not in given:
        raise MetaschedError(
            f"rule {given!r}", "names no module", "give it as Rule(match, ...), or a mapping with match"
        )
    return Rule(**{str(key): value for key, value in given.items()})
