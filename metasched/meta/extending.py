"""A run of more outer steps than it was begun with: the mean over the last half of the steps starts later.

What is learned is the mean of the parameters over the last half of all steps, and a checkpoint has one sum of them. So
a run can be extended, with the bits of a run that had so many steps from the start, if its sum and the new one have the
same terms, or the new one has none yet: if it is extended to at least twice the steps that are done.
"""

from __future__ import annotations

import torch

from metasched.core.errors import MetaschedError
from metasched.meta.outer import OuterState


def sum_is_kept(done: int, was: int, now: int) -> bool:
    """Whether the sum after ``done`` steps of a run of ``was`` steps is that of a run of ``now``; else that is empty.

    Raises:
        MetaschedError: the sum has terms that the new one lacks, or lacks terms that are gone.
    """
    begun, begins = was // 2, now // 2  # the first step that the mean is over
    if begun == begins or done <= min(begun, begins):
        return True
    if begins >= done:
        return False
    problem = (
        f"is {now}: what is learned is the mean over the last half of the steps, which would begin at step "
        f"{begins + 1}, and after {done} steps of {was} only a sum from step {begun + 1} on is left"
    )
    raise MetaschedError("meta.steps", problem, f"give at least {2 * done}, or start a new run")


def rebased(state: OuterState, was: int, now: int) -> OuterState:
    """The state of a run of ``now`` outer steps, from that of one of ``was`` steps at the same place.

    Args:
        state: after ``state.step`` steps, at most ``now``.
        was, now: outer steps of the run in all.

    Raises:
        MetaschedError: as for ``sum_is_kept``.
    """
    if sum_is_kept(state.step, was, now):
        return state
    totals = {name: torch.zeros_like(t) for name, t in state.totals.items()}
    return state._replace(totals=totals, averaged=0)
