"""Adaptive cooling: a factor on the temperature that adapts to the acceptance rate.

    T = f c,     log f <- log f + gamma (c / (1 + c) - a),     gamma = 1/2

c is the temperature of the schedule; a is the mean acceptance probability of the uphill proposals of a step. If the
changes of energy were exponentially distributed with mean 1, a would be c / (1 + c). This is the target rate: at c =
0.79 it is 44 %, at c = 0 it is 0, whatever the unit of the energy is. The layer cools faster than the schedule if more
uphill proposals are accepted, and more slowly if fewer are. If there is no uphill proposal, f does not change.

Source: an acceptance rate of 0.44 as target: Lam and Delosme, An Efficient Simulated Annealing Schedule, Yale 8816,
1988; the update rule, there for the size of proposals: Andrieu and Thoms, Statistics and Computing 18:343-373, 2008,
section 4. We differ: the schedule gives the target, only uphill proposals count, and gamma is constant, because the
target moves.
"""

from __future__ import annotations

import torch

from metasched.quantizers.transitions import acceptance

GAIN = 0.5


def adapted(
    log_factor: torch.Tensor,
    control: torch.Tensor,
    energy_change: torch.Tensor,
    temperature: torch.Tensor,
) -> torch.Tensor:
    """The next log f, detached.

    Args:
        log_factor: log f, 0-d.
        control: c >= 0, 0-d.
        energy_change: dE [...] of the proposals, in the unit of the temperature; <= 0 for elements without a proposal.
        temperature: T >= 0 at which the proposals were accepted or rejected, 0-d.

    Returns:
        0-d, in the dtype of ``log_factor``.

    >>> half = adapted(torch.tensor(0.0), torch.tensor(1.0), torch.tensor([-1.0, 1e9]), torch.tensor(1.0))
    >>> float(half)  # the target rate is 1/2, and the only uphill proposal was rejected
    0.25
    """
    uphill = energy_change > 0
    chances = torch.where(uphill, acceptance(energy_change, temperature), 0.0)
    count = uphill.sum()
    missing = control / (1 + control) - chances.sum() / count.clamp_min(1)
    return (log_factor + GAIN * torch.where(count > 0, missing, 0.0)).detach()
