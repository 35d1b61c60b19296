"""A run that is extended has the mean of a run that had so many steps from the start, or is refused."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from metasched.core.errors import MetaschedError
from metasched.meta.extending import rebased
from metasched.meta.outer import OuterState, averages


def played(total: int, until: int) -> OuterState:
    """A state whose parameter after step k is k + 1, as the outer loop averages it over the last half of ``total``."""
    late = [float(k + 1) for k in range(until) if k >= total // 2]
    return OuterState(
        until,
        {"p": torch.tensor([float(until)])},
        {},
        {"p": torch.tensor([sum(late)])},
        len(late),
        {},
        0,
        (),
    )


CASES = [
    (was, now, until) for was, now, until in product(range(1, 9), range(1, 17), range(9)) if until <= min(was, now)
]


@pytest.mark.parametrize(("was", "now", "until"), CASES)
def test_it_is_the_state_of_a_run_of_so_many_steps_or_refused(was: int, now: int, until: int) -> None:
    expected = played(now, until)
    try:
        found = rebased(played(was, until), was, now)
    except MetaschedError as error:
        assert error.path == "meta.steps" and now < 2 * until
        assert played(was, until).totals["p"] != expected.totals["p"]  # no refusal without a reason
        assert rebased(played(was, until), was, 2 * until).averaged == 0  # what it says to give works
        return
    assert found.averaged == expected.averaged and torch.equal(found.totals["p"], expected.totals["p"])
    assert torch.equal(averages(found)["p"], averages(expected)["p"])
