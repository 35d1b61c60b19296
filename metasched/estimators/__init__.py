"""The table of estimators: where an outer step gets its direction from.

To add one, write its file, add its row here, and in the contract test.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from metasched.config.schema import MetaConfig
from metasched.core.errors import unknown_name

if TYPE_CHECKING:
    from metasched.estimators.base import Estimator

ESTIMATORS: dict[str, str] = {  # name -> module
    "sweep": "metasched.estimators.reverse",
    "higher": "metasched.estimators.reverse",
    "unroll": "metasched.estimators.reverse",
    "forward": "metasched.estimators.forward",
    "es": "metasched.estimators.es",
    "mixed": "metasched.estimators.mixed",
    "auto": "metasched.estimators.auto",
    "pes": "metasched.estimators.pes",
    "nres": "metasched.estimators.nres",
}


def build_estimator(meta: MetaConfig) -> Estimator:
    """The estimator that is configured.

    Raises:
        MetaschedError: no such estimator.
    """
    if meta.estimator not in ESTIMATORS:
        raise unknown_name("meta.estimator", meta.estimator, ESTIMATORS)
    return import_module(ESTIMATORS[meta.estimator]).build(meta)


__all__ = ["ESTIMATORS", "build_estimator"]
