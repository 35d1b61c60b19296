"""Hand-coded schedules of freezing: those of INQ as published, and no freezing until the last step."""

from __future__ import annotations

from functools import partial

from metasched.schedules.curves import HandCoded, steps
from metasched.schedules.published import inq as published_inq

NO_FREEZING = (
    "nothing is frozen before the last step, not from a paper: with method.live hard the straight-through estimator, "
    "with float a float network that is rounded at the end"
)


def inq() -> list[HandCoded]:
    """INQ's schedules: the published ones, the ramps, and none."""
    none = {"freeze_fraction": partial(steps, times=(1.0,), values=(0.0, 1.0))}
    return [*published_inq(), HandCoded("inq_none", "inq", NO_FREEZING, none, "previous", (1.0,))]
