"""The section ``method`` of an experiment: the parameters that all methods share; subclasses add each method's own.

``MethodConfig(name="ana", noise="uniform")`` is an instance of ANA's subclass, which the table of methods names. A
parameter of another method is an error, unless it has its default value: files of older versions list all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from metasched.core.errors import unknown_name
from metasched.core.field_types import STRICT, Float, Refused, Word, refusal
from metasched.methods.spec import METHODS, declared, find_method

DEFAULT = "joint"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MethodConfig:
    """The quantization method and its parameters, which are constant in training; its controls vary."""

    name: Word = DEFAULT
    """name of a method"""
    levels: Word = "ternary"
    """weight levels: binary, ternary, intB, uintB, balancedB, pow2_B, statesN (2^N + 1 of them), midriseB (2^B, no 0),
    normalB (2^B quantiles of the normal distribution)"""
    activation_levels: Word | None = "ternary"
    """activation levels; null keeps activations in float"""
    scale: Literal["unit", "max", "least_squares", "pow2", "learned"] = "unit"
    """how the weight scale is computed; unit: scale 1, and each weight is drawn near a threshold, as in ANA; learned:
    starts as least_squares and is trained (LSQ)"""
    granularity: Literal["tensor", "channel"] = "tensor"
    """one scale for a weight tensor, or one for each output channel"""
    activation_scale: Annotated[Float, Field(gt=0)] | Literal["learned", "clip"] = 1.0
    """value of level 1 of activations; learned: one a layer, fitted to the first batch and trained (LSQ); clip: the
    value of the highest level is, with the gradient of PACT"""

    if TYPE_CHECKING:

        def __init__(self, *, name: str = DEFAULT, **parameters: Any) -> None: ...

    def __new__(cls, *args: object, **given: object) -> Self:
        """An instance of the class of the method ``name``."""
        own = find_method(given.get("name", DEFAULT)).config if cls is MethodConfig else cls
        return object.__new__(own)  # type: ignore[return-value]

    @model_validator(mode="before")
    @classmethod
    def _of_other_methods(cls, given: Any) -> Any:
        """Drops parameters of other methods that have their default value, and raises for the others."""
        values = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not isinstance(values, dict):
            return given
        name = cls.__dataclass_fields__["name"].default
        if values.get("name", name) != name:
            wrong = Refused(
                "name", values["name"], f"must be {name!r} here", "create a new MethodConfig for another method"
            )
            raise refusal("method", wrong)
        own, refused = {}, []
        for key, value in values.items():
            defaults = {} if key in cls.__dataclass_fields__ else declared(key)
            if not defaults:
                own[key] = value
            elif not any(_same(value, default) for default in defaults.values()):
                problem = f"has no effect, because method.name is {name}"
                fix = f"leave it out; it is a parameter of {' and '.join(defaults)}"
                refused.append(Refused(key, value, problem, fix))
        if refused:
            raise refusal("method", *refused)
        return ArgsKwargs(given.args, own) if isinstance(given, ArgsKwargs) else own


def of_part(config: MethodConfig, name: str) -> MethodConfig:
    """The section of one method that a joint method is made of: the fields of the whole that this method has."""
    part = find_method(name).config
    own = {field: getattr(config, field) for field in part.__dataclass_fields__ if hasattr(config, field)}
    return part(**{**own, "name": name})


def of_its_method(value: Any, validated: Callable[[Any], MethodConfig]) -> MethodConfig:
    """Validates a section from YAML with the class of the method that it names."""
    if not isinstance(value, dict):
        return validated(value)
    name = value.get("name", DEFAULT)
    if not isinstance(name, str) or name not in METHODS:
        error = unknown_name("method.name", str(name)[:64], METHODS)
        raise refusal("method", Refused("name", name, error.problem, error.fix))
    return TypeAdapter(METHODS[name].config).validate_python(value)


def _same(value: object, default: object) -> bool:
    return value == default and isinstance(value, bool) == isinstance(default, bool)  # True == 1
