"""The table of the ways a study learns: each tries schedules and gives those that it would have judged again.

None needs a derivative. ``es`` is the outer loop of ``metasched train`` with evolution strategies; the searches are
those of ``metasched tune``. All but ``portfolio`` move the same numbers: smooth directions of a schedule network that
starts at the start (schedules/directions.py).
"""

from __future__ import annotations

from metasched.core.errors import unknown_name
from metasched.search.table import SEARCHES
from metasched.study.evolving import PAIRS, es
from metasched.study.learning import LearnerSpec, setting
from metasched.study.searching import POPULATION, pbt, searched
from metasched.study.trying import portfolio, repeats_of


def find_learner(name: object) -> LearnerSpec:
    """The row of a learner; a search that was registered is one too.

    Raises:
        MetaschedError: none of that name.

    >>> find_learner("tpe").summary
    'tree-structured Parzen estimator'
    """
    searches = {
        row.name: LearnerSpec(row.name, row.summary, searched(row.name), 3, ("repeats",), repeats_of)
        for row in SEARCHES.values()
        if row.builder is not None
    }
    known = {**searches, **LEARNERS}
    if not isinstance(name, str) or name not in known:
        raise unknown_name("by", str(name), known)
    return known[name]


LEARNERS: dict[str, LearnerSpec] = {
    row.name: row
    for row in (
        LearnerSpec(
            "es",
            "evolution strategies",
            es,
            1,
            ("pairs", "lr", "sigma", "clip"),
            lambda settings: 2 * setting(settings, "pairs", PAIRS),
        ),
        LearnerSpec(
            "pbt",
            "population-based training of whole runs",
            pbt,
            3,
            ("repeats", "population"),
            lambda settings: repeats_of(settings) * setting(settings, "population", POPULATION),
        ),
        LearnerSpec("portfolio", "the schedules of the package, in order", portfolio, 3, ("repeats",), repeats_of),
    )
}
