"""Adaptive cooling: a factor on the temperature that follows what is accepted.

    T = f c,     log f <- log f + gamma (c / (1 + c) - a),     gamma = 1/2

c is the temperature that the schedule gives, and a the mean probability with which the uphill proposals of a step are
accepted. c / (1 + c) is what that is for exponentially distributed changes of energy with mean 1, so that c keeps its
meaning: at c = 0.79, 44 % of them are accepted, whatever the energies are; at c = 0 none is. Where more are accepted
than that, it cools faster than the schedule, and where fewer are, slower. Without uphill proposals f stays.

Source: a target for the acceptance, 0.44: Lam and Delosme, An Efficient Simulated Annealing Schedule, Yale 8816, 1988;
the rule, for the size of proposals: Andrieu and Thoms, Statistics and Computing 18:343-373, 2008, section 4. We differ:
the target is the schedule's, counts uphill proposals only, and gamma does not fall, since the target moves.
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
    """The next log f, without a derivative.

    Args:
        log_factor: 0-d.
        control: c, 0-d, at least 0.
        energy_change: dE of the proposals; at most 0 for what is no proposal.
        temperature: T, at which they were judged, 0-d.

    >>> half = adapted(torch.tensor(0.0), torch.tensor(1.0), torch.tensor([-1.0, 1e9]), torch.tensor(1.0))
    >>> float(half)  # 1/2 should have been accepted, and none was
    0.25
    """
    uphill = energy_change > 0
    chances = torch.where(uphill, acceptance(energy_change, temperature), 0.0)
    count = uphill.sum()
    missing = control / (1 + control) - chances.sum() / count.clamp_min(1)
    return (log_factor + GAIN * torch.where(count > 0, missing, 0.0)).detach()
