"""The tables of estimators, and of the engines that unroll an inner run.

To add one, write its file, add its row here, and in the contract test.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from metasched.config import MetaConfig
from metasched.errors import MetaschedError, unknown_name
from metasched.hypergradients.base import Unroll

if TYPE_CHECKING:
    from metasched.hypergradients.estimator import Estimator

UNROLLS: dict[str, str] = {  # name -> module; imported late, because `higher` need not load where it is not used
    "sweep": "metasched.hypergradients.sweep",
    "higher": "metasched.hypergradients.higher_unroll",
    "unroll": "metasched.hypergradients.unroll",
}

ESTIMATORS: dict[str, str] = {  # name -> module
    "sweep": "metasched.hypergradients.reverse",
    "higher": "metasched.hypergradients.reverse",
    "unroll": "metasched.hypergradients.reverse",
    "es": "metasched.hypergradients.es",
}


def build_estimator(meta: MetaConfig) -> Estimator:
    """The estimator that is configured.

    Raises:
        MetaschedError: no such estimator.
    """
    if meta.estimator not in ESTIMATORS:
        raise unknown_name("meta.estimator", meta.estimator, ESTIMATORS)
    return import_module(ESTIMATORS[meta.estimator]).build(meta)


def find_unroll(name: str, memory: int | None = None) -> Unroll:
    """The ``unroll`` function of an engine's name; ``sweep`` for estimators that have none of their own.

    Args:
        name: a key of ESTIMATORS.
        memory: bytes that a run and its way back may take; for ``sweep`` only.

    Raises:
        MetaschedError: no such estimator, or a budget for one that cannot keep to it.
    """
    if name not in ESTIMATORS:
        raise unknown_name("meta.estimator", name, ESTIMATORS)
    engine = name if name in UNROLLS else "sweep"
    unroll = import_module(UNROLLS[engine]).unroll
    if memory is None:
        return unroll
    if engine != "sweep":
        raise MetaschedError("meta.memory", f"has no effect on {name}, which keeps everything", "it is for sweep")
    return partial(unroll, memory=memory)


__all__ = ["ESTIMATORS", "UNROLLS", "build_estimator", "find_unroll"]
