"""Reads the files of a deployed network as untrusted input, and checks them for the simulator."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np

from metasched.contrib.deployed_shapes import check_shapes
from metasched.core.errors import MetaschedError, printable, unknown_name
from metasched.deploy.files import FORMAT
from metasched.deploy.packing import unpack_bits
from metasched.deploy.stages import (
    Array,
    IntegerNetwork,
    Stage,
)
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, join, parse, show

MAX_WEIGHTS = 2**28  # size of weights.bin in bytes
_FIX = "give network.json of a folder that `metasched deploy` has written"
_FRACTION = re.compile(r"-?(0|[1-9][0-9]{0,399})(/[1-9][0-9]{0,399})?")
_STAGES: dict[str, type[Stage]] = {kind.__name__.lower(): kind for kind in get_args(Stage)}


def read_network(path: str | os.PathLike[str]) -> IntegerNetwork:
    """The integer network in a file ``network.json``, with the weights in ``weights.bin`` in the same folder.

    Raises:
        MetaschedError: a file cannot be read, is too large, or does not contain a network that the simulator can run;
            the message names the place.
    """
    data = read_regular(path, MAX_BYTES, _FIX)
    with _within(path):
        image, step, records = _whole(parse(data))
    weights = read_regular(Path(path).with_name("weights.bin"), MAX_WEIGHTS, _FIX)
    with _within(path):
        network = IntegerNetwork(image, step, _stages(records, weights))
        check_shapes(network)
    return network


@contextmanager
def _within(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path of the file to errors inside this context."""
    try:
        yield
    except MetaschedError as error:
        place = printable(os.fspath(path)) + (f": {error.path}" if error.path else "")
        raise MetaschedError(place, error.problem, error.fix) from None


def _whole(tree: Any) -> tuple[tuple[int, int, int], Fraction, list[Any]]:
    _keys(tree, ("format", "image", "step", "stages"), "")
    if tree["format"] != FORMAT or type(tree["format"]) is not int:
        raise MetaschedError("format", f"must be {FORMAT}, got {show(tree['format'])}", "use another metasched")
    channels, height, width = _integers(tree["image"], "image", 3)
    records = tree["stages"]
    if not isinstance(records, list):
        raise MetaschedError("stages", f"must be an array, got {show(records)}", _FIX)
    return (channels, height, width), _fraction(tree["step"], "step"), records


def _stages(records: list[Any], data: bytes) -> tuple[Stage, ...]:
    stages, offset = [], 0
    for i, record in enumerate(records):
        place = join("stages", i)
        if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
            raise MetaschedError(place, "must be an object with the name of a stage", _FIX)
        kind = _STAGES.get(record["stage"])
        if kind is None:
            raise unknown_name(f"{place}.stage", record["stage"][:60], _STAGES)
        names = [f.name for f in fields(kind)]
        _keys(record, ("stage", *names), place)
        values = {name: _FIELDS[name](record[name], f"{place}.{name}") for name in names if name != "weight"}
        if "weight" in names:
            values["weight"], offset = _weight(record["weight"], f"{place}.weight", data, offset)
            if isinstance(values["steps"], Fraction):  # the same for all outputs
                values["steps"] = (values["steps"],) * len(values["weight"])
        stages.append(kind(**values))
    if offset != len(data):
        raise MetaschedError("weights.bin", f"holds {len(data)} bytes, but the stages need {offset}", _FIX)
    return tuple(stages)


def _weight(record: Any, place: str, data: bytes, offset: int) -> tuple[Array, int]:
    """The weights of a layer, and the offset of those of the next layer."""
    _keys(record, ("shape", "bits", "offset", "bytes"), place)
    shape, bits = _integers(record["shape"], f"{place}.shape"), record["bits"]
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise MetaschedError(f"{place}.shape", f"must be 2 or 4 counts, got {show(record['shape'])}", _FIX)
    if type(bits) is not int or bits not in (2, 4, 8, 32):
        raise MetaschedError(f"{place}.bits", f"must be 2, 4, 8 or 32, got {show(bits)}", _FIX)
    count = math.prod(shape)
    size = -(-count * bits // 8)
    for key, value in (("offset", offset), ("bytes", size)):
        if record[key] != value or type(record[key]) is not int:
            raise MetaschedError(f"{place}.{key}", f"must be {value}, got {show(record[key])}", _FIX)
    part = data[offset : offset + size]
    if len(part) < size:
        raise MetaschedError(place, f"ends after the end of weights.bin, {len(data)} bytes", "copy the file again")
    flat = np.frombuffer(part, "<i4").astype(np.int64) if bits == 32 else unpack_bits(part, bits, count)
    return flat.reshape(shape), offset + size


def _keys(tree: Any, keys: tuple[str, ...], place: str) -> None:
    if not isinstance(tree, dict):
        raise MetaschedError(place, f"must be an object, got {show(tree)}", _FIX)
    for key in tree:
        if key not in keys:
            raise unknown_name(place, key[:60], keys)
    for key in keys:
        if key not in tree:
            raise MetaschedError(join(place, key), "missing", _FIX)


def _integer(value: Any, place: str) -> int:
    if type(value) is not int:
        raise MetaschedError(place, f"must be an integer, got {show(value)}", _FIX)
    return value


def _integers(value: Any, place: str, count: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or (count is not None and len(value) != count):
        raise MetaschedError(place, f"must be an array of {count or 'some'} integers, got {show(value)}", _FIX)
    return tuple(_integer(v, join(place, i)) for i, v in enumerate(value))


def _vector(value: Any, place: str) -> Array:
    return np.array(_integers(value, place), np.int64)


def _matrix(value: Any, place: str) -> Array:
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        raise MetaschedError(place, f"must be an array of arrays, got {show(value)}", _FIX)
    return np.array([_integers(row, join(place, i), len(value[0])) for i, row in enumerate(value)], np.int64)


def _fraction(value: Any, place: str) -> Fraction:
    found = Fraction(value) if isinstance(value, str) and _FRACTION.fullmatch(value) else Fraction(0)
    if found <= 0:
        raise MetaschedError(place, f"must be a positive fraction, such as '1/32', got {show(value)}", _FIX)
    return found


def _steps(value: Any, place: str) -> Fraction | tuple[Fraction, ...]:
    if isinstance(value, list):
        return tuple(_fraction(v, join(place, i)) for i, v in enumerate(value))
    return _fraction(value, place)


def _name(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 256:
        raise MetaschedError(place, f"must be a printable name, got {show(value)}", _FIX)
    return value


def _truth(value: Any, place: str) -> bool:
    if type(value) is not bool:
        raise MetaschedError(place, f"must be true or false, got {show(value)}", _FIX)
    return value


_FIELDS: Mapping[str, Callable[[Any, str], Any]] = {
    "name": _name,
    "steps": _steps,
    "step": _fraction,
    **dict.fromkeys(("reach", "groups", "source", "before", "after"), _integer),
    **dict.fromkeys(("stride", "padding", "dilation", "kernel"), lambda value, place: _integers(value, place, 2)),
    **dict.fromkeys(("low", "high", "sign", "multiplier", "offset", "ours", "theirs"), _vector),
    **dict.fromkeys(("values", "rows", "columns"), _matrix),
    "levels": _integers,
    "on_levels": _truth,
}
