"""The engines, which compute exact unrolled hypergradients of an inner run: a literal table, imported late."""

from __future__ import annotations

from functools import partial
from importlib import import_module

from metasched.core.errors import MetaschedError
from metasched.engines.base import Unroll
from metasched.estimators.table import ESTIMATORS

# the exact engines: name -> module, imported late, because `higher` need not load where it is not used
UNROLLS: dict[str, str] = {
    "sweep": "metasched.engines.sweep",
    "higher": "metasched.engines.higher_unroll",
    "unroll": "metasched.engines.unroll",
}


def engine(name: str) -> str:
    """What an estimator differentiates inner runs with; ``sweep`` for those that have no engine of their own.

    >>> engine("higher"), engine("auto")
    ('higher', 'sweep')
    """
    return name if name in UNROLLS else "sweep"


def find_unroll(name: str, memory: int | None = None) -> Unroll:
    """The ``unroll`` function of an engine's name; ``sweep`` for estimators that have none of their own.

    Args:
        name: a key of ESTIMATORS.
        memory: bytes that a run and its way back may take; for the estimators that read ``meta.memory``.

    Raises:
        MetaschedError: no such estimator, or a budget for one that cannot keep to it.
    """
    swept = [spec.name for spec in ESTIMATORS.values() if "memory" in spec.reads]
    if memory is not None and name not in swept:
        raise MetaschedError("meta.memory", f"has no effect on {name}", f"leave it out: it is for {', '.join(swept)}")
    unroll = import_module(UNROLLS[engine(name)]).unroll
    return unroll if memory is None else partial(unroll, memory=memory)


__all__ = ["UNROLLS", "engine", "find_unroll"]
