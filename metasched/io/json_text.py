"""JSON text of plain values, with strings for non-finite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON text; a non-finite number becomes the string ``nan``, ``inf`` or ``-inf``.

    >>> json_text({"loss": float("nan"), "scores": (1, 0.5)})
    '{"loss": "nan", "scores": [1, 0.5]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value
