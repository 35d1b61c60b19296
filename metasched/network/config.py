"""The section ``quantize`` of an experiment, and its rules."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError
from metasched.core.field_types import STRICT, Boolean, Float, Word

OVERRIDES = (
    "levels",
    "activation_levels",
    "scale",
    "granularity",
    "activation_scale",
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
    activation_levels: Word | None = None
    """activation levels; null: those of the method"""
    scale: Literal["unit", "max", "least_squares", "pow2", "learned"] | None = None
    """how the weight scale is computed; null: as the method does"""
    granularity: Literal["tensor", "channel"] | None = None
    """one scale for a weight tensor, or one for each output channel; null: as the method does"""
    activation_scale: Annotated[Float, Field(gt=0)] | Literal["learned"] | None = None
    """value of level 1 of activations; null: that of the method"""
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantizeConfig:
    """Which tensors are quantized."""

    first: Boolean = True
    """quantize the first convolution or linear layer"""
    last: Boolean = False
    """quantize the last one"""
    rules: tuple[Rule, ...] = ()
    """exceptions for modules that `match` names (by name, glob such as `layer1.*`, or type), and all inside them; the
    last rule that says something counts"""
    redraw: Boolean | None = None
    """whether the scale `unit` may draw weights anew; null: it may, unless the task starts from pretrained ones"""
