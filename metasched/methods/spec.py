"""The table of methods: one row, a ``MethodSpec``, per method.

This file does not import torch, so that the command line can list the methods and their parameters quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metasched.core.errors import MetaschedError
from metasched.core.lazy import origin
from metasched.core.rows import check_row, find_row

if TYPE_CHECKING:
    from metasched.methods.base import Method
    from metasched.methods.config import MethodConfig


def no_schedules() -> Sequence[Any]:
    """The schedules of a method that has no hand-coded ones: none."""
    return ()


def never(config: Any) -> bool:
    """False for every configuration."""
    return False


def only_activations(config: Any) -> tuple[str, ...]:
    """Of the scales, those of activations may be learned."""
    return ("activation_scale",)


def nothing(config: Any) -> str:
    """Empty: nothing is missing."""
    return ""


def no_parts(config: Any) -> tuple[str, ...]:
    """A method that is not made of others has no parts."""
    return ()


def by_no_layer(config: Any) -> Mapping[str, str]:
    """A method whose own parameters are the same in all layers."""
    return {}


@dataclass(frozen=True, repr=False)
class MethodSpec:
    """One row of the table of methods.

    Attributes:
        config: class of the section ``method`` of an experiment: a subclass of MethodConfig with the method's own
            parameters, whose field ``name`` has the method's name as default.
        summary: description in a few words.
        builder: config -> Method.
        schedules: () -> the method's hand-coded schedules (``HandCoded``); their family is the method's name.
        smooth: config -> whether an inner step is smooth in the controls almost everywhere; if so, `metasched check`
            compares hypergradients with finite differences.
        shown: names of the controls on the dashboard; None: all.
        activation_parameters: the own parameters that count for activations only.
        learns: config -> those of the fields ``scale`` and ``activation_scale`` that may be ``learned``.
        floor_needs: config -> what to set so that the network trains as without a schedule if each control has its
            ``none_value``; empty if it does.
        part: whether it can be a part of ``joint``, which needs float weights.
        parts: config -> names of the methods that it is made of; () for a method of its own.
        by_layer: config -> {own parameter that a rule may set for its layers: what to set so that it can, or nothing}.
        ignores: dotted fields of an experiment that it does not read, though most methods do.
        former: former name of a control -> the controls that have its meaning now; each gets what was written for it.
    """

    config: type[MethodConfig]
    summary: str
    builder: Callable[[Any], Method]
    schedules: Callable[[], Sequence[Any]] = no_schedules
    smooth: Callable[[Any], bool] = never
    shown: tuple[str, ...] | None = None
    activation_parameters: tuple[str, ...] = ()
    learns: Callable[[Any], tuple[str, ...]] = only_activations
    floor_needs: Callable[[Any], str] = nothing
    part: bool = True
    parts: Callable[[Any], tuple[str, ...]] = no_parts
    by_layer: Callable[[Any], Mapping[str, str]] = by_no_layer
    ignores: tuple[str, ...] = ()
    former: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        return f"MethodSpec({self.name}: {self.summary})"

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.config.__dataclass_fields__["name"].default

    @property
    def origin(self) -> str:
        """Where its configuration is defined."""
        return origin(self.config)

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters, without those that all methods share: {name: default}."""
        shared = self.config.__mro__[-2].__dataclass_fields__
        return {name: f.default for name, f in self.config.__dataclass_fields__.items() if name not in shared}


METHODS: dict[str, MethodSpec] = {}
QUANTIZERS = ("levels", "activation_levels", "scale", "granularity", "activation_scale")  # what all configurations have
FLOOR, CEILING = "ste", "float"  # no schedule, and no quantization: every comparison contains both


def register_method(spec: MethodSpec) -> MethodSpec:
    """Add a method to the table of this process; configurations and commands can then use its name.

    Call it at the top level of the method's module: worker processes import the module and then know the method too.

    Raises:
        MetaschedError: an invalid name, a name that is in use, or a parameter for which another method has a different
            default.

    """
    check_row(METHODS, "method.name", spec)
    for name, default in spec.parameters.items():
        for other, theirs in declared(name).items():
            if other != spec.name and theirs != default:
                problem = f"has the default {default!r} here, but {theirs!r} in the method {other}"
                raise MetaschedError(f"method.{name}", problem, "rename it, or give it the same default")
    METHODS[spec.name] = spec
    return spec


def find_method(name: object) -> MethodSpec:
    """The row of a method.

    Raises:
        MetaschedError: no such method.
    """
    return find_row(METHODS, "method.name", name)


def draws_weights(config: MethodConfig) -> bool:
    """Whether a configured method draws the weights of a network anew, unless it is told to keep them."""
    return config.scale == "unit" and "method.scale" not in find_method(config.name).ignores


def declared(parameter: str) -> dict[str, Any]:
    """{method: default} for the methods that have an own parameter with this name."""
    return {spec.name: spec.parameters[parameter] for spec in METHODS.values() if parameter in spec.parameters}
