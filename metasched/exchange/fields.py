"""The types of the fields of a schedule file, and its limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, FailFast, Field

from metasched.core.errors import MetaschedError
from metasched.io.strict_json import MAX_MEMBERS

MAX_CONTROLS, MAX_KNOTS, MAX_LAYERS, MAX_RUNS = 64, 4096, 1024, 1024
MAX_FEATURES, MAX_NUMBERS, MAX_HIDDEN, MAX_FORM_KNOTS = 64, 16384, 128, 512  # of a form
MAX_RULES = 256
MAX_GAINS = 3 * MAX_CONTROLS

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
CLOSED_MAP = Field(max_length=MAX_MEMBERS, json_schema_extra={"additionalProperties": False})

Name = Annotated[str, Field(strict=True, pattern=r"^[a-z][a-z0-9_]{0,63}$")]
LayerName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.]{1,128}$")]
Package = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Digest = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{8,64}$")]
Text = Annotated[str, Field(strict=True, max_length=4096)]
LongText = Annotated[str, Field(strict=True, max_length=2**16)]
Boolean = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Integer = Annotated[int, Field(strict=True, gt=-(2**63), lt=2**63)]
Natural = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Curve = Annotated[tuple[Number, ...], Field(min_length=2, max_length=MAX_KNOTS), FailFast()]
Curves = Annotated[tuple[Curve, ...], Field(min_length=1, max_length=MAX_LAYERS), FailFast()]


def check_unique(path: str, names: list[str], of: str = ".name") -> None:
    """Raises for a name that occurs twice among those of an array; ``of``: where the name of an entry is.

    Raises:
        MetaschedError: see above.
    """
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise MetaschedError(f"{path}[{i}]{of}", f"{name!r} occurs twice", "use unique names")
        seen.add(name)


def check_length(path: str, got: int, what: str, needed: int) -> None:
    """Raises for an array that has not one entry for each of what it is of.

    Raises:
        MetaschedError: see above.
    """
    if got != needed:
        raise MetaschedError(path, f"has {got} entries for {needed} {what}s", f"give one for each {what}")
