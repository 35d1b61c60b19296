"""The table of searches: one row, a ``SearchSpec``, per ``tune.search``. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metasched.core.lazy import Lazy, origin
from metasched.core.rows import check_row

if TYPE_CHECKING:
    from metasched.search.searchers import Searcher


@dataclass(frozen=True)
class SearchSpec:
    """One row of the table of searches.

    Attributes:
        name: ``tune.search``.
        summary: description in a few words.
        builder: (first point, in [-1, 1]^n, and a seed) -> Searcher; None: population-based training, which trains
            many schedules at once (population.py).
        reads: the fields of TuneConfig that it reads and not every search does.
    """

    name: str
    summary: str
    builder: Callable[[Sequence[float], int], Searcher] | None
    reads: tuple[str, ...] = ("runs", "warm_start")

    @property
    def origin(self) -> str:
        """Where its builder is defined."""
        return origin(self.builder) if self.builder else "metasched.search.population"


SEARCHES: dict[str, SearchSpec] = {}


def register_search(spec: SearchSpec) -> SearchSpec:
    """Add a search to the table of this process; ``tune.search`` can then be its name.

    Raises:
        MetaschedError: an invalid name, or a name that is in use.
    """
    check_row(SEARCHES, "tune.search", spec)
    SEARCHES[spec.name] = spec
    return spec


for _row in (
    SearchSpec("tpe", "tree-structured Parzen estimator", Lazy("metasched.search.searchers:tpe")),
    SearchSpec("cmaes", "CMA-ES", Lazy("metasched.search.searchers:cmaes")),
    SearchSpec("random", "random search", Lazy("metasched.search.searchers:random")),
    SearchSpec("pbt", "population-based training", None, ("population", "interval")),
):
    register_search(_row)
