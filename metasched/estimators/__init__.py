"""Where an outer step gets its direction from: one file an estimator, and one row of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metasched.core.rows import find_row
from metasched.estimators.table import ESTIMATORS, EstimatorSpec, register_estimator

if TYPE_CHECKING:
    from metasched.estimators.base import Estimator
    from metasched.meta.config import MetaConfig


def build_estimator(meta: MetaConfig) -> Estimator:
    """The estimator that is configured.

    Raises:
        MetaschedError: no such estimator.
    """
    return find_row(ESTIMATORS, "meta.estimator", meta.estimator).builder(meta)


__all__ = ["ESTIMATORS", "EstimatorSpec", "build_estimator", "register_estimator"]
