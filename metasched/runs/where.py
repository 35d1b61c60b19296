"""Where inner runs are done: here on worker processes, on the ranks of torchrun, or on a Ray cluster."""

from __future__ import annotations

from metasched.core.errors import MetaschedError
from metasched.runs.cluster import Cluster
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.runs.ranks import Ranks, launched


def open_pool(run: RunConfig) -> Pool | Ranks | Cluster:
    """A context manager and a Mapper, as ``run.where`` says; the numbers are the same on all of them.

    Args:
        run: the section of the experiment; ``workers`` counts where the runs are done here.

    Raises:
        MetaschedError: torchrun has started this command and another place is asked for, or the other way round.
    """
    where = run.where or ("torchrun" if launched() else "local")
    if launched() != (where == "torchrun"):
        problem = f"is {where}, and torchrun has {'' if launched() else 'not '}started this command"
        raise MetaschedError("run.where", problem, "leave it out, or start the command the other way")
    if where == "torchrun":
        return Ranks()
    return Cluster(run.device) if where == "ray" else Pool(run.workers)
