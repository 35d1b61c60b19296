"""Where an outer step gets its direction from: one file an estimator, and one row of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasched.core.errors import unknown_name
from metasched.estimators.table import ESTIMATORS, EstimatorSpec, register_estimator

if TYPE_CHECKING:
    from metasched.estimators.base import Estimator
    from metasched.meta.config import MetaConfig


def build_estimator(meta: MetaConfig) -> Estimator:
    """The estimator that is configured.

    Raises:
        MetaschedError: no such estimator.
    """
    if meta.estimator not in ESTIMATORS:
        raise unknown_name("meta.estimator", meta.estimator, ESTIMATORS)
    return ESTIMATORS[meta.estimator].builder(meta)


__all__ = ["ESTIMATORS", "EstimatorSpec", "build_estimator", "register_estimator"]
