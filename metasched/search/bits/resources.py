"""Resource models: what b bits for the weights of a layer cost, in bytes, in bit operations, or in milliseconds.

size         packed levels: ceil(n b / 8) bytes for n weights; scales and what stays in float are the fixed part
operations   m b a bit operations for m multiply-accumulates with activations of a bits: those of the recipe, or 32
             where these stay in float; a layer in float costs m 32 a
latency      a table of the user's: milliseconds of each layer at each number of bits
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, parse
from metasched.methods.config import MethodConfig
from metasched.network.config import Rule
from metasched.network.flow import Example, run_example
from metasched.network.operations import operations
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recipe import Recipe
from metasched.network.sites import copied
from metasched.network.size import FLOAT_BITS, packed_size, sizes
from metasched.quantizers.levels import name_with_bits
from metasched.search.bits.problem import BitProblem
from metasched.search.config import AllocateConfig

Latency = Mapping[str, Mapping[int, float]]  # layer -> bits -> milliseconds
UNITS = {"size": "bytes", "operations": "bit operations", "latency": "ms"}
_TABLE = 'give {"layer": {"2": 0.5, "8": 1.5}, ...}, milliseconds for each number of bits'


@dataclass(frozen=True)
class Sizes:
    """What the resource models read of a network.

    Attributes:
        layers: what gets bits.
        macs: multiply-accumulates of each in a pass of the example.
        other_macs: those of all that stays in float.
        other_bytes: bytes of all but the packed levels.
        activation_bits: of activations; 32 where they stay in float.
    """

    layers: tuple[Layer, ...]
    macs: tuple[int, ...]
    other_macs: int
    other_bytes: int
    activation_bits: int


def bit_problem(model: nn.Module, recipe: Recipe, example: Example, settings: AllocateConfig) -> BitProblem:
    """The problem that a section ``allocate`` describes for the layers that a recipe quantizes.

    Raises:
        MetaschedError: the model or the recipe does not fit, the levels have no number of bits, a layer is missing in
            the latency table, or nothing fits the budget.
    """
    bits = tuple(sorted({*settings.bits}))
    if not bits:
        raise MetaschedError("allocate.bits", "is empty", "give at least one number of bits, such as [2, 4, 8]")
    for b in bits:
        levels_of_bits(recipe, b)
    names = [layer.name for layer in quantize(model, recipe, example).layers]
    equal = rules_of(recipe, dict.fromkeys(names, bits[0]))  # the recipe's own rules about levels do not count
    network = quantize(model, replace(recipe, rules=(*recipe.rules, *equal)), example)
    measured = measure(network, model, example)
    latency = read_latency(settings.latency) if settings.latency is not None else None
    if settings.resource == "latency" and latency is None:
        raise MetaschedError("allocate.latency", "is missing", f"name a JSON file; {_TABLE}")
    cost, fixed = costs(measured, bits, settings.resource, latency, settings.latency or "")
    budget = budget_of(measured, settings, latency)
    unit = UNITS[settings.resource]
    problem = BitProblem(measured.layers, bits, cost, fixed, budget, unit, measured.macs)
    problem.check()
    return problem


def measure(network: QuantizedNetwork, model: nn.Module, example: Example) -> Sizes:
    """What the resource models read of a network, made of the model; the example is run once."""
    counts = operations(copied(model).eval(), lambda module: run_example(module, example))
    macs = tuple(counts[layer.weight_key] for layer in network.layers)
    others = sum(t.bytes for t in sizes(network) if t.what != "levels")
    levels = getattr(getattr(network.method, "quantizer", None), "activation_levels", None)
    activations = FLOAT_BITS if levels is None else math.ceil(levels.bits)
    return Sizes(network.layers, macs, sum(counts.values()) - sum(macs), others, activations)


def costs(
    measured: Sizes, bits: Sequence[int], resource: str, latency: Latency | None = None, table: str = ""
) -> tuple[tuple[tuple[float, ...], ...], float]:
    """The costs [L][B] of the layers at these bits, and the fixed cost of the rest.

    Args:
        measured: the network.
        bits: B choices.
        resource: ``size``, ``operations`` or ``latency``.
        latency: with ``latency``, the table.
        table: its name, for messages.

    Raises:
        MetaschedError: the table lacks a layer, or bits of it.
    """
    if resource == "size":
        rows = [[float(packed_size(layer.num_weights, b)) for b in bits] for layer in measured.layers]
        return tuple(map(tuple, rows)), float(measured.other_bytes)
    if resource == "operations":
        a = measured.activation_bits
        rows = [[float(m * b * a) for b in bits] for m in measured.macs]
        return tuple(map(tuple, rows)), float(measured.other_macs * FLOAT_BITS * a)
    assert latency is not None
    found = []
    for layer in measured.layers:
        if layer.name not in latency:
            raise MetaschedError(table, f"has no layer {layer.name!r}", f"add it: {_TABLE}")
        row = latency[layer.name]
        if lacking := [b for b in bits if b not in row]:
            named = ", ".join(map(str, lacking))
            fix = "add them, or leave those bits out of allocate.bits"
            raise MetaschedError(table, f"has no time of layer {layer.name!r} at {named} bits", fix)
        found.append(tuple(row[b] for b in bits))
    return tuple(found), 0.0


def budget_of(measured: Sizes, settings: AllocateConfig, latency: Latency | None = None) -> float:
    """The budget in the unit of the resource; ``N bits`` is the cost of N bits in all layers.

    Raises:
        MetaschedError: the latency table has no times at N bits.
    """
    if not isinstance(settings.budget, str):
        return float(settings.budget)
    uniform = int(settings.budget.split()[0])
    cost, fixed = costs(measured, (uniform,), settings.resource, latency, settings.latency or "")
    return fixed + sum(row[0] for row in cost)


def levels_of_bits(recipe: Recipe, bits: int) -> str:
    """The name of the levels of a recipe's family that take so many bits; 1 bit is ``binary``.

    Raises:
        MetaschedError: the family has no numbers of bits, or the recipe has a method that is built already.
    """
    if not isinstance(recipe.method, MethodConfig):
        raise MetaschedError("recipe", "has a method that is built already", "give it a MethodConfig or a name")
    return name_with_bits(recipe.method.levels, bits, "method.levels")


def rules_of(recipe: Recipe, bits: Mapping[str, int | str]) -> tuple[Rule, ...]:
    """One rule for each layer that gives it levels of so many bits; of bits by channel there is a digit for each."""
    return tuple(
        Rule(layer, channel_bits=b) if isinstance(b, str) else Rule(layer, levels=levels_of_bits(recipe, b))
        for layer, b in bits.items()
    )


def read_latency(path: str) -> dict[str, dict[int, float]]:
    """The times in a JSON file: ``{"layer": {"bits": milliseconds, ...}, ...}``; layers that get no bits are ignored.

    Raises:
        MetaschedError: the file cannot be read or has another form, or a time is not above 0.
    """
    content = read_regular(os.path.expanduser(path), MAX_BYTES, _TABLE)
    try:
        tree: Any = parse(content)
    except MetaschedError as error:
        raise MetaschedError(f"{path}: {error.path}".removesuffix(": "), error.problem, _TABLE) from None
    if not isinstance(tree, dict) or not all(isinstance(row, dict) for row in tree.values()):
        raise MetaschedError(path, "is not a table of layers", _TABLE)
    found: dict[str, dict[int, float]] = {}
    for layer, row in tree.items():
        found[layer] = {}
        for bits, time in row.items():
            if not re.fullmatch(r"[1-9]\d?", bits):
                raise MetaschedError(f"{path}: {layer}", f"has {bits!r}, which is no number of bits", _TABLE)
            if isinstance(time, bool) or not isinstance(time, int | float) or not 0 < time < math.inf:
                raise MetaschedError(f"{path}: {layer}.{bits}", f"is {time!r}, and no time above 0", _TABLE)
            found[layer][int(bits)] = float(time)
    return found
