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

# the exact engines: name -> module, imported late, because `higher` need not load where it is not used
UNROLLS: dict[str, str] = {
    "sweep": "metasched.hypergradients.sweep",
    "higher": "metasched.hypergradients.higher_unroll",
    "unroll": "metasched.hypergradients.unroll",
}

TRUNCATED: dict[str, str] = {"truncated": "metasched.hypergradients.truncated"}  # exact within windows only

ESTIMATORS: dict[str, str] = {  # name -> module
    "sweep": "metasched.hypergradients.reverse",
    "higher": "metasched.hypergradients.reverse",
    "unroll": "metasched.hypergradients.reverse",
    "truncated": "metasched.hypergradients.reverse",
    "forward": "metasched.hypergradients.forward",
    "es": "metasched.hypergradients.es",
    "mixed": "metasched.hypergradients.mixed",
    "auto": "metasched.hypergradients.auto",
    "pes": "metasched.hypergradients.pes",
    "nres": "metasched.hypergradients.nres",
}

SWEPT = ("sweep", "mixed", "auto")  # differentiate by the sweep, so they can keep to a memory budget


def build_estimator(meta: MetaConfig) -> Estimator:
    """The estimator that is configured.

    Raises:
        MetaschedError: no such estimator.
    """
    if meta.estimator not in ESTIMATORS:
        raise unknown_name("meta.estimator", meta.estimator, ESTIMATORS)
    return import_module(ESTIMATORS[meta.estimator]).build(meta)


def engine(name: str) -> str:
    """What an estimator differentiates inner runs with; ``sweep`` for those that have no engine of their own.

    >>> engine("higher"), engine("auto")
    ('higher', 'sweep')
    """
    return name if name in UNROLLS or name in TRUNCATED else "sweep"


def find_unroll(name: str, memory: int | None = None, window: int | None = None) -> Unroll:
    """The ``unroll`` function of an engine's name; ``sweep`` for estimators that have none of their own.

    Args:
        name: a key of ESTIMATORS.
        memory: bytes that a run and its way back may take; for the estimators of SWEPT only.
        window: steps of a window, for those of TRUNCATED; None is a tenth of the run.

    Raises:
        MetaschedError: no such estimator, or a budget for one that cannot keep to it.
    """
    if name not in ESTIMATORS:
        raise unknown_name("meta.estimator", name, ESTIMATORS)
    if memory is not None and name not in SWEPT:
        raise MetaschedError("meta.memory", f"has no effect on {name}", f"leave it out: it is for {', '.join(SWEPT)}")
    if name in TRUNCATED:
        return partial(import_module(TRUNCATED[name]).unroll, window=window)
    unroll = import_module(UNROLLS[engine(name)]).unroll
    return unroll if memory is None else partial(unroll, memory=memory)


__all__ = ["ESTIMATORS", "SWEPT", "TRUNCATED", "UNROLLS", "build_estimator", "engine", "find_unroll"]
