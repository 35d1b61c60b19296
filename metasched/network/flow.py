"""The example pass: what of a model runs, in which order, and which layer feeds which activation (see tracing.py).

Each tensor of the pass is tagged with the nearest layers and activations that it comes from. The tags follow torch
functions; where a model leaves torch (numpy, own C++ functions) they are lost, and the order of calls stands in.

An activation is a use: a call of an activation module or function, told apart by the module whose forward calls it, and
by how many calls that forward has made before. So a module that is called twice is two activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from metasched.core.errors import MetaschedError
from metasched.network.inputs import Inputs
from metasched.network.kinds import ActivationKind

Example = torch.Tensor | tuple[Any, ...] | Mapping[str, Any] | Callable[[Any], object]


class Use(NamedTuple):
    """A call of an activation.

    Attributes:
        caller: name of the module whose forward calls it.
        what: name of the activation module, or of the function.
        module: whether it is a module.
        index: how many calls of it that forward has made before.
    """

    caller: str
    what: str
    module: bool
    index: int


Unit = str | Use  # a layer, by its name (the module's, or that of the weight); or an activation


@dataclass
class Flow:
    """What the first pass of an example ran.

    Attributes:
        ran: layers and activations, in the order of the pass, each once.
        layers: name of a layer -> names of its module and its weight there.
        kinds: activation -> its row.
        sources: layer or activation -> those that its input comes from; empty where that is not known.
        lost: whether something ran whose input does not come from that of the network, as far as is known.
        feeds: layers and activations whose output reaches another one.
        gates: activations whose output is multiplied with another tensor.
        reused: activations in place, whose input is used again under its old name.
        functions: activations of other kinds, as ``name (type, function)``.
        modules: names of all modules that ran.
        inputs: of the pass; None if they are more than tensors and plain values.
    """

    ran: list[Unit] = field(default_factory=list)
    layers: dict[str, tuple[str, str]] = field(default_factory=dict)
    kinds: dict[Use, ActivationKind] = field(default_factory=dict)
    sources: dict[Unit, frozenset[Unit]] = field(default_factory=dict)
    feeds: set[Unit] = field(default_factory=set)
    gates: set[Use] = field(default_factory=set)
    reused: set[Use] = field(default_factory=set)
    functions: dict[str, None] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    lost: bool = False
    inputs: Inputs | None = None

    def name(self, unit: Unit) -> str:
        """What rules and tables call it: ``act``, its second call ``act#2``, a function ``block.relu()``."""
        if isinstance(unit, str):
            return unit
        plain = unit.what if unit.module else f"{unit.caller}.{unit.what}()".lstrip(".")
        alike = [u for u in self.kinds if u[1:3] == unit[1:3] and (unit.module or u.caller == unit.caller)]
        return plain if len(alike) == 1 else f"{plain}#{alike.index(unit) + 1}"


def layer_name(module: str, weight: str) -> str:
    """Name of a layer: that of its module, or that of its weight where this is not called ``weight``."""
    return module if weight == "weight" else f"{module}.{weight}".lstrip(".")


def run_example(module: Callable[..., Any], example: Example) -> None:
    """One pass of a module on an example ([N, ...] if it is a tensor), or as many as a function runs."""
    if isinstance(example, torch.Tensor):
        module(example)
    elif isinstance(example, tuple):
        module(*example)
    elif isinstance(example, Mapping):
        module(**example)
    elif callable(example):
        example(module)
    else:
        problem = f"is a {type(example).__name__}"
        raise MetaschedError(
            "example", problem, "give a tensor, a tuple of arguments, a dict, or a function of the model"
        )
