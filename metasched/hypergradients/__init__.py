"""The table of ways to unroll an inner run: to add one, write its file, add its row here and in the contract test."""

from __future__ import annotations

from importlib import import_module

from metasched.errors import unknown_name
from metasched.hypergradients.base import Unroll

ESTIMATORS: dict[str, str] = {  # name -> module; imported late, because `higher` need not load where it is not used
    "higher": "metasched.hypergradients.higher_unroll",
    "unroll": "metasched.hypergradients.unroll",
}


def find_unroll(name: str) -> Unroll:
    """The ``unroll`` function of an estimator's name.

    Raises:
        MetaschedError: no such estimator.
    """
    if name not in ESTIMATORS:
        raise unknown_name("meta.estimator", name, ESTIMATORS)
    return import_module(ESTIMATORS[name]).unroll


__all__ = ["ESTIMATORS", "find_unroll"]
