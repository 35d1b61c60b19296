"""What a method declares to all that uses methods: one ``MethodSpec`` each, in one table.

This file imports no torch, so that a command line can list the methods and their parameters at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from metasched.core.errors import MetaschedError, unknown_name

if TYPE_CHECKING:
    from metasched.methods.base import Method
    from metasched.methods.config import MethodConfig


@dataclass(frozen=True)
class Lazy:
    """A function that is imported when it is first called.

    Attributes:
        place: ``package.module:function``.

    >>> Lazy("math:sqrt")(4)
    2.0
    """

    place: str

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)(*arguments)


def no_schedules() -> Sequence[Any]:
    """Of a method without hand-coded schedules."""
    return ()


def never(config: Any) -> bool:
    """Whatever the parameters."""
    return False


@dataclass(frozen=True)
class MethodSpec:
    """One row of the table of methods.

    Attributes:
        config: the section ``method`` of an experiment: a subclass of MethodConfig whose field ``name`` is the method's
            name, with the method's own parameters.
        summary: what it is, in a few words.
        builder: config -> Method.
        schedules: gives the method's hand-coded schedules (``HandCoded``), whose family is the method's name.
        smooth: config -> whether what an inner step computes is smooth in the controls almost everywhere; there
            `metasched check` holds hypergradients against finite differences.
        shown: names of the controls that a dashboard shows; None: all.
        activation_parameters: the own parameters that count for activations only.
    """

    config: type[MethodConfig]
    summary: str
    builder: Callable[[Any], Method]
    schedules: Callable[[], Sequence[Any]] = no_schedules
    smooth: Callable[[Any], bool] = never
    shown: tuple[str, ...] | None = None
    activation_parameters: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the method."""
        return self.config.__dataclass_fields__["name"].default

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters, beside those that all methods have: {name: default}."""
        shared = self.config.__mro__[-2].__dataclass_fields__
        return {name: f.default for name, f in self.config.__dataclass_fields__.items() if name not in shared}


METHODS: dict[str, MethodSpec] = {}
FLOOR, CEILING = "ste", "float"  # no schedule at all, and no quantization: every comparison has both


def register_method(spec: MethodSpec) -> MethodSpec:
    """Add a method to the table; from then on its name works wherever a method is named, in this process.

    Call it where the module of the method is imported, so that worker processes, which import it too, know the method.

    Raises:
        MetaschedError: a name that is no name or is taken, or a parameter that another method has with another default.

    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", spec.name):
        raise MetaschedError("method.name", f"{spec.name!r} is no name", "use a to z, 0 to 9 and _, a letter first")
    taken = METHODS.get(spec.name)
    if taken is not None and _place(taken) != _place(spec):
        raise MetaschedError("method.name", f"{spec.name!r} is taken by {'.'.join(_place(taken))}", "choose another")
    for name, default in spec.parameters.items():
        for other, theirs in declared(name).items():
            if other != spec.name and theirs != default:
                problem = f"has the default {default!r}, and {theirs!r} in the method {other}"
                raise MetaschedError(f"method.{name}", problem, "give it another name, or the same default")
    METHODS[spec.name] = spec
    return spec


def find_method(name: object) -> MethodSpec:
    """The row of a method.

    Raises:
        MetaschedError: no such method.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise unknown_name("method.name", str(name), METHODS)
    return METHODS[name]


def declared(parameter: str) -> dict[str, Any]:
    """The methods that have a parameter of this name of their own, and its default in each."""
    return {spec.name: spec.parameters[parameter] for spec in METHODS.values() if parameter in spec.parameters}


def _place(spec: MethodSpec) -> tuple[str, str]:
    return spec.config.__module__, spec.config.__qualname__
