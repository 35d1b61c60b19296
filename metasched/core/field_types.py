"""The types of configuration fields, with their validation and conversion from YAML values."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _not_boolean(value: object) -> object:
    if isinstance(value, bool):  # pydantic, like Python, would accept true as 1
        raise PydanticCustomError("number_type", "Input should be a number, not true or false")
    return value


_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _bytes(value: object) -> object:
    """Converts a text such as ``2 GiB`` to a number of bytes."""
    if not isinstance(value, str):
        return _not_boolean(value)
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?(?:e\d{1,2})?) *(?:([KMGT]i)?B)?", value.strip())
    if found is None:
        raise PydanticCustomError("bytes_type", "Input should be a number of bytes, or a size in KiB, MiB or GiB")
    return int(float(found[1]) * _UNITS[f"{found[2] or ''}B"])


def _printable(value: str) -> str:
    if not value.isprintable():  # the text is used in lines of a terminal or a file, and in paths
        raise PydanticCustomError("printable_type", "Input should be text that can be shown on one line")
    return value


Int = Annotated[int, BeforeValidator(_not_boolean), Field(le=2**63 - 1)]
Float = Annotated[float, BeforeValidator(_not_boolean)]
Boolean = Annotated[bool, Field(strict=True)]
Word = Annotated[str, Field(max_length=64), AfterValidator(_printable)]
PathText = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_printable)]
Positive = Annotated[Int, Field(ge=1, le=10**9)]
Repeats = Annotated[Int, Field(ge=1, le=10_000)]
Units = Annotated[Int, Field(ge=1, le=2**16)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0, le=2**63 - 1)]
NonNegative = Annotated[Float, Field(ge=0)]

REFUSED = "refused"  # the type of pydantic errors that carry our own message


class Refused(NamedTuple):
    """An invalid field of a section, with our own message."""

    field: str
    value: object
    problem: str
    fix: str


def refusal(section: str, *fields: Refused) -> ValidationError:
    """The error that the validator of a section raises for invalid fields."""
    details: list[InitErrorDetails] = []
    for field, value, problem, fix in fields:
        kind = PydanticCustomError(REFUSED, "{problem}; {fix}", {"problem": problem, "fix": fix})
        details.append(InitErrorDetails(type=kind, loc=(field,), input=value))
    return ValidationError.from_exception_data(section, details)
