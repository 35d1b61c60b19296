"""Recipe: a method with its parameters, and the rules that choose what it quantizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from pydantic import ValidationError
from torch import nn

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.field_types import REFUSED
from metasched.core.shown import given, short
from metasched.methods import build_method
from metasched.methods.base import Method
from metasched.methods.config import DEFAULT, MethodConfig
from metasched.methods.spec import declared, find_method
from metasched.network.config import Rule, short_rules

PLAIN = {"weights": "levels", "activations": "activation_levels"}  # what users call them, and the parameters


@dataclass(frozen=True, init=False, repr=False)
class Recipe:
    """How a float model becomes a quantized network.

    >>> recipe = Recipe("joint", weights="ternary", activations="int4", exclude=["stem.*"])
    >>> recipe.method.activation_levels, recipe.rules[0].quantize
    ('int4', False)

    Attributes:
        method: the method with its parameters.
        rules: exceptions. Of several that match a tensor, the last one that says something counts. They count more than
            ``first`` and ``last``.
        first, last: whether the first and the last layer are quantized too.
        redraw: whether the method may draw new weights, as scale ``unit`` does; else a scale fits the model's own.

    Args:
        method: also the name of a method; None: ``joint``.
        rules: a mapping is a rule.
        first, last, redraw: see above.
        exclude: names of modules, globs or types that stay in float: short for rules with ``quantize=False``.
        include: those that are quantized though a default leaves them in float, such as the last layer, or though
            ``exclude`` has a module around them: short for rules with ``quantize=True``. Then come ``rules``.
        parameters: those of ``MethodConfig``, if ``method`` is a name; ``weights`` and ``activations`` are the plain
            words for ``levels`` and ``activation_levels``.

    Raises:
        MetaschedError: an unknown word, or a value that the method cannot have.
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
        *,
        exclude: str | type | Sequence[str | type] = (),
        include: str | type | Sequence[str | type] = (),
        **parameters: Any,
    ) -> None:
        if method is None or isinstance(method, str):
            method = _configured(method or DEFAULT, parameters)
        elif parameters:
            problem = f"is given {', '.join(parameters)} beside a {type(method).__name__}"
            raise MetaschedError("recipe", problem, "set them there, or give the name of the method instead")
        if not isinstance(method, MethodConfig | Method):
            raise MetaschedError(
                "recipe", f"has a {type(method).__name__} for a method", "give a MethodConfig or a name"
            )
        own = (r if isinstance(r, Rule) else _rule(cast(Mapping[str, Any], r)) for r in rules)
        rules = (*short_rules(exclude, include), *own)
        for name, value in (("method", method), ("rules", rules), ("first", first), ("last", last), ("redraw", redraw)):
            object.__setattr__(self, name, value)
        if isinstance(method, MethodConfig):
            for rule in self.rules:
                for parameter, fix in not_by_layer(method, rule).items():
                    problem = f"is not a parameter of {method.name} by layer"
                    raise MetaschedError(f"{named(rule)}: {parameter}", problem, fix)

    def __repr__(self) -> str:
        if not isinstance(self.method, MethodConfig):
            return short(self)
        others = [one for one in given(self) if not one.startswith("method=")]
        words = [one for one in given(self.method) if not one.startswith("name=")]
        return f"Recipe({', '.join([repr(self.method.name), *words, *others])})"

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


def _configured(name: str, parameters: Mapping[str, Any]) -> MethodConfig:
    """A method with parameters, of which some may have their plain words.

    Raises:
        MetaschedError: a word that is no parameter, one in both words, or a value that the method cannot have.
    """
    config, words = find_method(name).config, {name: name for name in parameters}
    for plain, parameter in PLAIN.items():
        if plain in parameters and parameter in parameters:
            raise MetaschedError("recipe", f"{plain} and {parameter} are one parameter", "give one of them")
        if words.pop(plain, None):
            words[parameter] = plain
    known = {*config.__dataclass_fields__, *PLAIN, "rules", "first", "last", "redraw", "exclude", "include"} - {"name"}
    for parameter, word in words.items():
        if parameter not in known and not declared(parameter):
            raise unknown_name("recipe", word, known)
    try:
        method = config(name=name, **{parameter: parameters[word] for parameter, word in words.items()})
        if parameters:
            build_method(method)  # what does not fit shows here
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        word = words.get(str(first["loc"][0]), str(first["loc"][0])) if first["loc"] else ""
        raise MetaschedError(
            f"recipe: {word}", first["msg"], "" if first["type"] == REFUSED else "correct it"
        ) from None
    except MetaschedError as error:
        parameter = error.path.removeprefix("method.")
        raise MetaschedError(f"recipe: {words.get(parameter, parameter)}", error.problem, error.fix) from None
    return method


def not_by_layer(method: MethodConfig, rule: Rule) -> dict[str, str]:
    """Own parameters of methods that a rule sets and this method has not by layer, each with what to do about it."""
    has, found = find_method(method.name).by_layer(method), {}
    for name in rule.overrides:
        if owners := declared(name):
            mend = has.get(name, f"it is for {' and '.join(sorted(owners))}")
            found |= {name: f"leave it out{'; ' if name not in has else ', or '}{mend}"} if mend else {}
    return found


def rules_for(method: MethodConfig, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a recipe for another method, such as a floor: without what it has not by layer."""
    return tuple(replace(rule, **dict.fromkeys(not_by_layer(method, rule))) for rule in rules)


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
