"""The section ``quantize`` of an experiment, and its rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError
from metasched.core.field_types import STRICT, Boolean, Float, Refused, Word, refusal

OVERRIDES = (
    "levels",
    "activation_levels",
    "scale",
    "granularity",
    "activation_scale",
    "sparsity",
)  # parameters of the method


def _name_of_class(value: object) -> object:
    return value.__name__ if isinstance(value, type) else value


@dataclass(frozen=True, config=STRICT)
class Rule:
    """What is done with the tensors of some modules; of several rules the last one that says something counts.

    >>> Rule("classifier", quantize=False).match
    'classifier'
    """

    match: Annotated[Word, Field(min_length=1), BeforeValidator(_name_of_class)]
    """name of a module or tensor, glob (`layer1.*`), or type (`Conv2d`); it holds for all modules inside too"""
    quantize: Boolean | None = None
    """true: quantized; false: in float; null: as without the rule"""
    levels: Word | None = None
    """weight levels; null: those of the method"""
    channel_bits: Annotated[str, Field(pattern=r"^[1-9]*$", min_length=1, max_length=2**16)] | None = None
    """weight levels by output channel, one digit for each: of so many bits, in the family of the levels"""
    activation_levels: Word | None = None
    """activation levels; null: those of the method"""
    scale: Literal["unit", "max", "least_squares", "pow2", "learned"] | None = None
    """how the weight scale is computed; null: as the method does"""
    granularity: Literal["tensor", "channel"] | None = None
    """one scale for a weight tensor, or one for each output channel; null: as the method does"""
    activation_scale: Annotated[Float, Field(gt=0)] | Literal["learned"] | None = None
    """value of level 1 of activations; null: that of the method"""
    sparsity: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """share of the weights of each layer that are zero at the end; null: that of the method"""
    activation: Literal["replace", "keep", "float"] | None = None
    """replace: the quantizer stands for the activation function; keep: the function's output is quantized; float"""

    @property
    def overrides(self) -> dict[str, Any]:
        """Parameters of the method that the rule sets: {name: value}."""
        return {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}


_init = Rule.__init__


def _in_one_line(self: Rule, *args: Any, **given: Any) -> None:
    try:
        _init(self, *args, **given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        which = args[0] if args else given.get("match", "")
        place = ".".join("match" if part == 0 else str(part) for part in first["loc"])
        known = ", ".join(f.name for f in fields(Rule))
        raise MetaschedError(f"rule {which!r}: {place}", first["msg"], f"a rule has {known}") from None


Rule.__init__ = _in_one_line  # type: ignore[method-assign]  # pydantic itself does not call it


def short_rules(exclude: Any, include: Any) -> tuple[Rule, ...]:
    """The rules that ``exclude`` and ``include`` are short for: those of ``include`` come later, and so count more.

    Args:
        exclude, include: names of modules, globs or types, or a single one of them.

    Raises:
        MetaschedError: something else, or the same in both.

    >>> [(rule.match, rule.quantize) for rule in short_rules(["stem", "layer1.*"], "layer1.0.conv1")]
    [('stem', False), ('layer1.*', False), ('layer1.0.conv1', True)]
    """
    without, with_too = list(_matches("exclude", exclude)), list(_matches("include", include))
    if both := [match for match in without if match in with_too]:
        raise MetaschedError("include", f"names {both[0]!r}, and exclude does too", "leave it out of one of them")
    return (*(Rule(match, quantize=False) for match in without), *(Rule(match, quantize=True) for match in with_too))


def _matches(word: str, given: Any) -> Iterator[str]:
    items = (given,) if isinstance(given, str | type) else given
    if not isinstance(items, Sequence):
        raise MetaschedError(word, f"is a {type(given).__name__}", "give a list of names, globs or types of modules")
    for i, item in enumerate(items):
        if not isinstance(item, str | type) or not item:
            raise MetaschedError(f"{word}[{i}]", f"is {item!r}", "give the name, a glob or the type of a module")
        yield str(_name_of_class(item))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantizeConfig:
    """Which tensors are quantized."""

    first: Boolean = True
    """quantize the first convolution or linear layer"""
    last: Boolean = False
    """quantize the last one"""
    rules: tuple[Rule, ...] = ()
    """exceptions for modules that `match` names (by name, glob such as `layer1.*`, or type), and all inside them; the
    last rule that says something counts; `exclude: [...]` and `include: [...]` beside it are short for rules before
    these with `quantize: false` and `quantize: true`"""
    redraw: Boolean | None = None
    """whether the scale `unit` may draw weights anew; null: it may, unless the task starts from pretrained ones"""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        """The section with rules in the place of ``exclude`` and ``include``."""
        if not isinstance(given, dict) or not {"exclude", "include"} & given.keys():
            return given
        own = dict(given)
        try:
            short = short_rules(own.pop("exclude", ()), own.pop("include", ()))
        except MetaschedError as error:
            wrong = Refused(error.path, given.get(error.path.partition("[")[0]), error.problem, error.fix)
            raise refusal("quantize", wrong) from None
        rules = own.get("rules", ())
        return {**own, "rules": [*short, *rules]} if isinstance(rules, list | tuple) else own
