"""The table of ways to unroll an inner run: to add one, write its file, add its row here and in the contract test."""

from __future__ import annotations

from functools import partial
from importlib import import_module

from metasched.errors import MetaschedError, unknown_name
from metasched.hypergradients.base import Unroll

ESTIMATORS: dict[str, str] = {  # name -> module; imported late, because `higher` need not load where it is not used
    "sweep": "metasched.hypergradients.sweep",
    "higher": "metasched.hypergradients.higher_unroll",
    "unroll": "metasched.hypergradients.unroll",
}


def find_unroll(name: str, memory: int | None = None) -> Unroll:
    """The ``unroll`` function of an estimator's name.

    Args:
        name: a key of ESTIMATORS.
        memory: bytes that a run and its way back may take; for ``sweep`` only.

    Raises:
        MetaschedError: no such estimator, or a budget for one that cannot keep to it.
    """
    if name not in ESTIMATORS:
        raise unknown_name("meta.estimator", name, ESTIMATORS)
    unroll = import_module(ESTIMATORS[name]).unroll
    if memory is None:
        return unroll
    if name != "sweep":
        raise MetaschedError("meta.memory", f"has no effect on {name}, which keeps everything", "it is for sweep")
    return partial(unroll, memory=memory)


__all__ = ["ESTIMATORS", "find_unroll"]
