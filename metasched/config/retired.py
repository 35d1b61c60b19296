"""What older versions wrote: values of settings that are gone, and experiment files that list every field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETIRED = {  # "field: value" -> what to write in its place
    "meta.estimator: truncated": "write sweep, which is exact and keeps the graph of one step at a time",
}

_FIRST_META = """
    steps runs lr estimator sigma relaxation objective surrogate clip noise_floor select_runs
""".split()  # the fields of the section meta in the first version


def is_record(document: Mapping[str, Any]) -> bool:
    """Whether an experiment file is one that a run has left, which lists every field, those that it ignored too.

    >>> is_record({"meta": {"steps": 3}})
    False
    """
    meta = document.get("meta")
    return isinstance(meta, Mapping) and set(_FIRST_META) <= meta.keys()
