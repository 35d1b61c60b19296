"""The types of configuration fields, with their validation and conversion from YAML values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from metasched.core.errors import unknown_name
from metasched.core.rows import Row

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


class RowOf:
    """Marks a field, as ``Annotated[Word, RowOf(TABLE)]``, whose value is the name of a row of a table.

    The table is read when a value is validated, so rows from outside the package are accepted.
    """

    def __init__(self, table: Mapping[str, Row]) -> None:
        self.table = table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        if name not in self.table:
            error = unknown_name("", name, self.table)
            raise PydanticCustomError(REFUSED, "{problem}; {fix}", {"problem": error.problem, "fix": error.fix})
        return name


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
