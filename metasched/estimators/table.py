"""The table of estimators: one row, an ``EstimatorSpec``, per way to compute the direction of an outer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row

if TYPE_CHECKING:
    from metasched.estimators.base import Estimator
    from metasched.meta.config import MetaConfig

REVERSE = ("relaxation", "surrogate", "noise_floor")  # fields that every derivative through an inner run reads


@dataclass(frozen=True)
class EstimatorSpec:
    """One row of the table of estimators.

    Attributes:
        name: ``meta.estimator``.
        summary: description in a few words.
        builder: MetaConfig -> Estimator.
        reads: the fields of MetaConfig that it reads and not every estimator does; ``memory`` is for those that
            differentiate by the engine ``sweep``, which can keep to a memory budget.
        many: whether it can learn over many tasks: it carries on nothing about one task, and gives slopes of ``pairs``
            or ``exact`` gradients; "": it cannot.
        feedback: whether it can learn closed-loop schedules: it plays whole runs and differentiates none.
    """

    name: str
    summary: str
    builder: Callable[[MetaConfig], Estimator]
    reads: tuple[str, ...] = ()
    many: Literal["pairs", "exact", ""] = ""
    feedback: bool = False

    @property
    def origin(self) -> str:
        """Where its builder is defined."""
        return origin(self.builder)


ESTIMATORS: dict[str, EstimatorSpec] = {}


def register_estimator(spec: EstimatorSpec) -> EstimatorSpec:
    """Add an estimator to the table of this process; ``meta.estimator`` can then be its name.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(ESTIMATORS, "meta.estimator", spec)
    ESTIMATORS[spec.name] = spec
    return spec


_EXACT = Lazy("metasched.estimators.reverse:build")

for _row in (
    EstimatorSpec("sweep", "exact, in the least memory", _EXACT, ("memory", *REVERSE), "exact"),
    EstimatorSpec("higher", "exact, by the library higher", _EXACT, REVERSE, "exact"),
    EstimatorSpec("unroll", "exact, the graph of the whole run kept", _EXACT, REVERSE, "exact"),
    EstimatorSpec(
        "forward",
        "exact, a run for each parameter of a family",
        Lazy("metasched.estimators.forward:build"),
        REVERSE,
        "exact",
    ),
    EstimatorSpec(
        "es",
        "evolution strategies, of whole runs",
        Lazy("metasched.estimators.es:build"),
        ("sigma",),
        "pairs",
        feedback=True,
    ),
    EstimatorSpec(
        "weighted",
        "sweep, each moment weighed by how far runs agree",
        Lazy("metasched.estimators.weighted:build"),
        ("memory", *REVERSE),
        "exact",
    ),
    EstimatorSpec(
        "guided",
        "es, perturbed mostly along exact hypergradients",
        Lazy("metasched.estimators.guided:build"),
        ("memory", "sigma", *REVERSE),
        "pairs",
    ),
    EstimatorSpec(
        "pes", "evolution strategies, of windows", Lazy("metasched.estimators.pes:build"), ("sigma", "window")
    ),
    EstimatorSpec("nres", "as pes, with noise reused", Lazy("metasched.estimators.nres:build"), ("sigma", "window")),
    EstimatorSpec(
        "mixed",
        "sweep and es, weighed by their variances",
        Lazy("metasched.estimators.mixed:build"),
        ("memory", "sigma", *REVERSE),
    ),
    EstimatorSpec(
        "auto",
        "chooses among sweep, mixed and es as it goes",
        Lazy("metasched.estimators.auto:build"),
        ("memory", "sigma", *REVERSE),
    ),
):
    register_estimator(_row)
