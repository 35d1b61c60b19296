"""``inspect``: what a recipe quantizes of a model, what stays in float and why, and how much of the work that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from metasched.core.errors import MetaschedError, printable
from metasched.core.extras import from_extra
from metasched.core.shown import Printed
from metasched.methods.base import Coding, Method
from metasched.methods.config import MethodConfig
from metasched.network.choosing import Chosen, choose
from metasched.network.flow import Example, run_example
from metasched.network.operations import PRODUCTS, operations
from metasched.network.recipe import Recipe
from metasched.network.sites import copied
from metasched.network.weights import OWN, Tensor

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]: an extra
    from rich.table import Table

_WIDTH = 120  # columns of a table where there is no terminal
_NAMED = 5  # tensors in the message of ``strict``


@dataclass(frozen=True)
class Row:
    """A tensor of the model.

    Attributes:
        module: name of the tensor's site, by which rules choose it.
        tensor: ``weight``, ``activation``, or ``product`` of two activations.
        type: class of the module, or kind of the function.
        quantized: whether the recipe quantizes it.
        why: why it stays in float, or what stands where the activation was.
        layer: name of the layer that it belongs to, for the schedule; empty in float.
        levels, bits: number of levels, and its log2; None in float. Codes of several numbers have bits, which may be
            less than 1 for each, and no levels; of levels by channel the bits are their mean, and there is no number.
        coding: ``levels``, ``by channel`` or ``codes``, see ``Method.coding``; empty in float.
        parameters, parameter_share: number of elements of a weight, and their share of all parameters of the model.
        macs, mac_share: multiply-accumulates with a weight in the example's pass, and their share of all of them.
    """

    module: str
    tensor: Literal["weight", "activation", "product"]
    type: str
    quantized: bool
    why: str = ""
    layer: str = ""
    levels: int | None = None
    bits: float | None = None
    parameters: int = 0
    parameter_share: float = 0.0
    macs: int = 0
    mac_share: float = 0.0
    coding: Coding | Literal[""] = ""


@dataclass(frozen=True)
class Inspection(Printed):
    """What a recipe does with a model; printed, it is a table.

    Attributes:
        rows: the weights in the order of the pass, the activations, products of activations.
        parameters: number of all parameters of the model.
        macs: multiply-accumulates of the example's pass.
    """

    rows: tuple[Row, ...]
    parameters: int
    macs: int

    @property
    def quantized_parameters(self) -> float:
        """Share of the parameters that are quantized, in [0, 1]."""
        return sum(row.parameter_share for row in self.rows if row.quantized)

    @property
    def quantized_macs(self) -> float:
        """Share of the multiply-accumulates whose weight is quantized, in [0, 1]."""
        return sum(row.mac_share for row in self.rows if row.quantized)

    @property
    def total(self) -> str:
        """Both shares, in one line."""
        return (
            f"quantized: {self.quantized_parameters:.1%} of {self.parameters:,} parameters, "
            f"{self.quantized_macs:.1%} of {self.macs:,} multiply-accumulates"
        )

    def table(self) -> Table:
        """The rows for a console: ``rich.print(inspection.table())``."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.total, title_justify="left")
        for name in ("module", "tensor", "type", "quantized, or why not"):
            table.add_column(name, overflow="fold")
        for name in ("levels", "parameters", "MACs"):
            table.add_column(name, justify="right", overflow="fold")
        for cells in self.cells():
            table.add_row(*(Text(printable(cell)) for cell in cells))
        return table

    def cells(self) -> list[list[str]]:
        """The rows as texts: module, tensor, type, whether quantized or why not, levels, shares of parameters, MACs."""
        return [_cells(row) for row in self.rows]

    def dataframe(self) -> pandas.DataFrame:
        """The rows, one column for each attribute.

        Raises:
            MetaschedError: pandas is not installed.
        """
        with from_extra("dataframe"):
            import pandas  # pyright: ignore[reportMissingImports]: an extra
        return pandas.DataFrame([asdict(row) for row in self.rows])

    def json(self) -> str:
        """Rows and totals as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """Rows and totals in the types of JSON."""
        shares = {"quantized_parameters": self.quantized_parameters, "quantized_macs": self.quantized_macs}
        totals = {"parameters": self.parameters, "macs": self.macs, **shares}
        return {**totals, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        from rich.console import Console

        width = get_terminal_size((_WIDTH, 0)).columns
        console = Console(width=width, color_system=None, force_jupyter=False)  # a notebook would show it by itself
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()


def inspect(
    model: nn.Module, recipe: Recipe | Method | MethodConfig | str, *args: Any, strict: bool = False, **kwargs: Any
) -> Inspection:
    """What a recipe quantizes of a model, what stays in float and why.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = inspect(model, "ste", torch.zeros(1, 4))
    >>> [(row.module, row.quantized, row.why) for row in found.rows if row.tensor == "weight"][:2]
    [('0', True, ''), ('2', False, 'is the last layer')]
    >>> found.quantized_macs
    0.6666666666666666

    Args:
        model: any module; it stays as it is.
        recipe: a recipe, or a method with its parameters, or its name.
        args, kwargs: of the model's forward: an example, [N, ...] usually. A single function of the module runs it.
        strict: whether to refuse layers and activations that stay in float though neither a rule nor ``first`` and
            ``last`` say so.

    Raises:
        MetaschedError: as ``quantize``; and with ``strict``, for what stays in float.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe(recipe)
    return inspection(model, recipe, _example(args, kwargs), strict=strict)


def inspection(model: nn.Module, recipe: Recipe, example: Example, *, strict: bool = False) -> Inspection:
    """``inspect`` with an example as for ``quantize``."""
    found = choose(model, recipe, example)
    plain = copied(model).eval()
    counts = operations(plain, lambda module: run_example(module, example))
    if strict:
        _refuse_floats(found, counts)
    sizes = {name: p.numel() for name, p in plain.named_parameters()}
    parameters, macs = sum(sizes.values()), sum(counts.values())
    methods = found.methods or (recipe.build(),) * len(found.layers)
    rows: list[Row] = []
    known: set[str] = set()
    for tensor in found.tensors:
        first = bool(tensor.parameter) and tensor.parameter not in known
        known |= {tensor.parameter}
        size, count = (sizes.get(tensor.parameter, 0), counts[tensor.parameter]) if first else (0, 0)
        shares = size / max(parameters, 1), count / max(macs, 1)
        rows.append(_row(tensor, found, methods, size, count, shares))
    rest = sum(size for name, size in sizes.items() if name not in known)
    left = sum(count for name, count in counts.items() if name not in known and name != PRODUCTS)
    if rest:
        why = "biases, normalization and other parameters that no layer multiplies with"
        shares = rest / parameters, left / max(macs, 1)
        rows.append(Row("(others)", "weight", "", False, why, "", None, None, rest, shares[0], left, shares[1]))
    if products := counts[PRODUCTS]:
        why = "multiplies activations with activations"
        share = products / macs
        rows.append(Row("(products)", "product", "", False, why, macs=products, mac_share=share))
    return Inspection(tuple(rows), parameters, macs)


def _example(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Example:
    if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], torch.Tensor):
        return args[0]
    if not args and not kwargs:
        raise MetaschedError("inspect: example", "is missing", "give an input of the model: inspect(model, recipe, x)")
    return lambda module: module(*args, **kwargs)


def _row(
    tensor: Tensor,
    found: Chosen,
    methods: tuple[Method, ...],
    size: int,
    count: int,
    shares: tuple[float, float],
) -> Row:
    numbers = {"parameters": size, "parameter_share": shares[0], "macs": count, "mac_share": shares[1]}
    if tensor.layer is None:
        return Row(tensor.name, tensor.what, tensor.type, False, tensor.why, **numbers)
    layer, method = found.layers[tensor.layer], methods[tensor.layer]
    bits: float | None = layer.bits
    coding, why = method.coding, ""
    if tensor.what == "activation":
        levels = getattr(getattr(method, "quantizer", None), "activation_levels", None)
        bits, coding = None if levels is None else levels.bits, "levels"
        why = "the function is kept" if tensor.keeps else "the quantizer stands for the function"
    number = round(2**bits) if bits is not None and coding == "levels" else None
    return Row(tensor.name, tensor.what, tensor.type, True, why, layer.name, number, bits, coding=coding, **numbers)


def _cells(row: Row) -> list[str]:
    state = "in float: " * (not row.quantized) + (row.why or "yes")
    state = f"yes, of {row.layer}; {row.why}" if row.quantized and row.tensor == "activation" else state
    levels = "" if row.bits is None else f"{row.levels or row.coding} ({row.bits:.3g} bits)"
    sizes = (f"{share:.1%}" if number else "" for number, share in _sizes(row))
    return [row.module, row.tensor, row.type, state, levels, *sizes]


def _sizes(row: Row) -> tuple[tuple[int, float], tuple[int, float]]:
    return (row.parameters, row.parameter_share), (row.macs, row.mac_share)


def _refuse_floats(found: Chosen, counts: Mapping[str, int]) -> None:
    floats = [
        t
        for t in found.tensors
        if t.layer is None and t.excuse in ("", "default") and (t.why != OWN or counts.get(t.parameter))
    ]
    if floats:
        named = "; ".join(str(t) for t in floats[:_NAMED])
        more = f" and {len(floats) - _NAMED} more" if len(floats) > _NAMED else ""
        problem = f"{len(floats)} tensors stay in float though no rule says so: {named}{more}"
        raise MetaschedError("inspect", problem, f"add Rule({floats[0].name!r}, quantize=False), or quantize=True")
