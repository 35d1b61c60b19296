"""The section ``method`` of an experiment: what all methods have, and each method's own parameters beside it.

``MethodConfig(name="ana", noise="uniform")`` is an instance of the class that ANA declares (a subclass, in the table of
methods). A parameter of another method is refused, except at its default: files that older versions wrote list all.
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
    """The quantization method and its fixed parameters; what varies over training are its controls."""

    name: Word = DEFAULT
    """a name of the table of methods"""
    levels: Word = "ternary"
    """weight levels: binary, ternary, intB, uintB, balancedB, pow2_B, statesN (2^N + 1 of them)"""
    activation_levels: Word | None = "ternary"
    """activation levels; null keeps activations in float"""
    scale: Literal["unit", "max", "least_squares", "pow2"] = "unit"
    """size of a level unit; unit starts each weight near a threshold, as ANA does"""
    granularity: Literal["tensor", "channel"] = "tensor"
    """one scale for a weight tensor or one for each output channel"""
    activation_scale: Annotated[Float, Field(gt=0)] = 1.0
    """size of an activation quantum"""

    if TYPE_CHECKING:

        def __init__(self, *, name: str = DEFAULT, **parameters: Any) -> None: ...

    def __new__(cls, *args: object, **given: object) -> Self:
        """An instance of the class of the method ``name``."""
        own = find_method(given.get("name", DEFAULT)).config if cls is MethodConfig else cls
        return object.__new__(own)  # type: ignore[return-value]

    @model_validator(mode="before")
    @classmethod
    def _of_other_methods(cls, given: Any) -> Any:
        """Leaves out parameters of other methods that are at their default; refuses them where they are not."""
        values = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not isinstance(values, dict):
            return given
        name = cls.__dataclass_fields__["name"].default
        if values.get("name", name) != name:
            wrong = Refused(
                "name", values["name"], f"must be {name!r} here", "make a new MethodConfig for another method"
            )
            raise refusal("method", wrong)
        own, refused = {}, []
        for key, value in values.items():
            defaults = {} if key in cls.__dataclass_fields__ else declared(key)
            if not defaults:
                own[key] = value
            elif not any(_same(value, default) for default in defaults.values()):
                problem = f"has no effect, because method.name is {name}"
                refused.append(Refused(key, value, problem, f"leave it out; it is for {' and '.join(defaults)}"))
        if refused:
            raise refusal("method", *refused)
        return ArgsKwargs(given.args, own) if isinstance(given, ArgsKwargs) else own


def of_its_method(value: Any, validated: Callable[[Any], MethodConfig]) -> MethodConfig:
    """A section as YAML has it, validated by the class of the method that it names."""
    if not isinstance(value, dict):
        return validated(value)
    name = value.get("name", DEFAULT)
    if not isinstance(name, str) or name not in METHODS:
        error = unknown_name("method.name", str(name)[:64], METHODS)
        raise refusal("method", Refused("name", name, error.problem, error.fix))
    return TypeAdapter(METHODS[name].config).validate_python(value)


def _same(value: object, default: object) -> bool:
    return value == default and isinstance(value, bool) == isinstance(default, bool)  # True == 1
