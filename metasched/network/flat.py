"""Flat dicts of tensors, ``layer/name``, of all layers of a network: what its functions take and give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from metasched.core.layer import Layer

Tensors = dict[str, torch.Tensor]
ControlRow = Mapping[str, torch.Tensor]  # control -> [L], the controls of one step
Call = Callable[..., Any]  # call(params, *args, **kwargs) runs a module with these parameters
Model = Callable[..., Any]  # model(*args, **kwargs) runs a network as it is


def of_layers(state: Tensors) -> Mapping[str, Tensors]:
    """Each layer's own part of the method state, by its name; of a layer without one, nothing."""
    owns: defaultdict[str, Tensors] = defaultdict(dict)
    for key, value in state.items():
        layer, _, name = key.rpartition("/")
        owns[layer][name] = value
    return owns


def prefixed(layer: Layer, own: Tensors, but: Tensors | None = None) -> Tensors:
    """Tensors of a layer as ``layer/name``, but for those names that ``but`` has."""
    return without({f"{layer.name}/{key}": value for key, value in own.items()}, but or {})


def without(tensors: Tensors, others: Tensors) -> Tensors:
    """The tensors whose names others do not have."""
    return {name: t for name, t in tensors.items() if name not in others}


def rows(controls: Mapping[str, torch.Tensor], step: int) -> Tensors:
    """The row of one step, control -> [L], out of a whole run's, control -> [T, L]."""
    return {name: values[step] for name, values in controls.items()}


def rows_of(controls: Mapping[str, torch.Tensor], steps: range) -> Tensors:
    """The rows of some steps, control -> [len(steps), L], out of a whole run's, control -> [T, L]."""
    return {name: values[steps.start : steps.stop] for name, values in controls.items()}
