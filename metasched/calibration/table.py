"""The table of procedures after training: one row, a ``ProcedureSpec``, each. It does not import torch.

To add one: its file, its options here, and its row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.field_types import REFUSED, STRICT, Float, Int, PathText, Positive, Repeats
from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row, find_row

if TYPE_CHECKING:
    from metasched.calibration.unit import Rounded


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """The options of a procedure: none of its own."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdaRoundOptions(Options):
    """The training of the rounding of each unit."""

    steps: Positive = 1000
    """T, training steps of a unit"""
    lr: Annotated[Float, Field(gt=0)] = 3e-2
    """learning rate of Adam"""
    batch: Positive = 32
    """examples of a step"""
    schedule: PathText = "adaround_cosine"
    """schedule of the penalty, by its name or file"""
    seed: Annotated[Int, Field(ge=0)] = 0
    """of the order of the examples"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BitSplitOptions(Options):
    """The sweeps over the digits."""

    sweeps: Repeats = 100
    """most sweeps over all digits of a layer; it ends earlier where nothing changes any more"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MultipointOptions(Options):
    """How many points each channel gets."""

    budget: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """largest relative squared error of the output of a channel; it gets as few points as that takes"""
    most: Annotated[Int, Field(ge=1, le=32)] = 8
    """points of a channel at most"""
    points: Annotated[Int, Field(ge=1, le=32)] | None = None
    """the same number of points for all channels, in place of the budget"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProductOptions(Options):
    """The codebooks, and the training of their centroids."""

    codes: Annotated[Int, Field(ge=2, le=2**16)] = 256
    """centroids of a layer at most, a power of two; small layers have fewer"""
    conv_block: Positive = 9
    """numbers of a block in convolutions"""
    pointwise_block: Positive = 4
    """numbers of a block in convolutions with kernels of 1x1"""
    linear_block: Positive = 4
    """numbers of a block in linear layers"""
    iterations: Positive = 100
    """steps of expectation and maximization of a layer at most"""
    onsets: Literal["in_order", "at_once"] | dict[str, Annotated[Float, Field(ge=0, le=1)]] = "in_order"
    """share of the training after which each layer is quantized: `in_order`, `at_once`, or {layer: share}"""
    steps: Annotated[Int, Field(ge=0)] = 1000
    """of the training of the centroids, in all"""
    lr: Annotated[Float, Field(gt=0)] = 0.05
    """learning rate of SGD"""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """of SGD"""
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """of the start of the codebooks"""


@plain_dataclass(frozen=True)
class ProcedureSpec:
    """One row of the table of procedures.

    Attributes:
        name: what ``metasched.calibrate`` takes as ``method``.
        summary: description in a few words.
        options: class of its options.
        builder: (unit, options) -> what becomes of each layer of the unit; or with ``whole``, (walk, options, tick) ->
            what becomes of each layer of the network, where ``tick`` takes the share that is done.
        blocks: whether a unit may have several layers.
        channels: whether each output channel must have a scale of its own, whatever the recipe says.
        balanced: whether the levels must be ``ternary`` or ``balancedB``.
        whole: whether it works on the network as a whole, before the walk.
        deploys: whether each layer of its result has one set of levels, as integer networks need.
    """

    name: str
    summary: str
    options: type[Options]
    builder: Callable[..., list[Rounded]]
    blocks: bool = False
    channels: bool = False
    balanced: bool = False
    whole: bool = False
    deploys: bool = True

    @property
    def origin(self) -> str:
        """Where its code is."""
        return origin(self.builder)


PROCEDURES: dict[str, ProcedureSpec] = {}


def register_procedure(spec: ProcedureSpec) -> ProcedureSpec:
    """Add a procedure to the table of this process.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(PROCEDURES, "calibrate: method", spec)
    PROCEDURES[spec.name] = spec
    return spec


def find_procedure(name: object) -> ProcedureSpec:
    """The row of a procedure.

    Raises:
        MetaschedError: no such procedure.
    """
    return find_row(PROCEDURES, "calibrate: method", name)


def options_of(spec: ProcedureSpec, given: dict[str, Any]) -> Options:
    """The options of a procedure.

    Raises:
        MetaschedError: one that it does not have, or a value that it cannot have.
    """
    known = spec.options.__dataclass_fields__
    for name in given:
        if name not in known:
            if not known:
                raise MetaschedError(f"calibrate: {name}", f"is no option of {spec.name}", "leave it out; it has none")
            raise unknown_name(f"calibrate: option of {spec.name}", name, known)
    try:
        return spec.options(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fix = "" if first["type"] == REFUSED else "correct it"
        raise MetaschedError(f"calibrate: {'.'.join(map(str, first['loc']))}", first["msg"], fix) from None


for _row in (
    ProcedureSpec(
        "nearest",
        "round to nearest, at the scale of the smallest squared error: the baseline",
        Options,
        Lazy("metasched.calibration.nearest:nearest"),
        blocks=True,
    ),
    ProcedureSpec(
        "adaround",
        "train whether each weight is rounded down or up, on the outputs of a layer or block",
        AdaRoundOptions,
        Lazy("metasched.calibration.adaround:adaround"),
        blocks=True,
    ),
    ProcedureSpec(
        "bit_split",
        "split weights into ternary digits, chosen one by one for the smallest error of the outputs",
        BitSplitOptions,
        Lazy("metasched.calibration.bit_split:output_form"),
        channels=True,
        balanced=True,
    ),
    ProcedureSpec(
        "bit_split_weights",
        "the same for the smallest error of the weights",
        BitSplitOptions,
        Lazy("metasched.calibration.bit_split:weight_form"),
        channels=True,
        balanced=True,
    ),
    ProcedureSpec(
        "multipoint",
        "sums of quantized vectors, as many for each channel as its outputs need",
        MultipointOptions,
        Lazy("metasched.calibration.multipoint:multipoint"),
        channels=True,
        balanced=True,
    ),
    ProcedureSpec(
        "product",
        "codes of blocks of weights in place of levels, with centroids trained on the outputs of the network",
        ProductOptions,
        Lazy("metasched.calibration.coded:product"),
        whole=True,
        deploys=False,
    ),
):
    register_procedure(_row)
