"""Sampled transitions between the evenly spaced states of a discrete weight, which has no float copy.

The state of a weight is an integer k in {0, ..., n}, stored as a float; x is the optimizer's update in quanta. A
quantum is the distance between two states. With kappa = floor(|x|) and the remainder nu = |x| - kappa:

    discrete state transition    k <- clip(k + sign(x) (kappa + b)),           b ~ Bernoulli(tanh(m nu))
    Metropolis                   d = z sign(x) (kappa + b),                    z = -1 with probability r, else 1
                                 k <- k + d with probability min(1, exp(-dE / T)) if 0 <= k + d <= n, else k

The Metropolis proposal is symmetric if r = 1/2 and the size of x is constant; the chain is then in detailed balance
with the Boltzmann distribution exp(-E / T), where dE is the change of the energy E. To first order dE = -d x, since an
update of gradient descent is minus the gradient. **With r = 0 it equals the discrete state transition** at every T,
except where that clips: every proposal then follows the update, which is downhill to first order. As T -> 0 a share 1 -
r of the moves of that transition remains.

A sampled value has no derivative. Both transitions are differentiated as their expectation, like the stair's random
forward.

Source: Deng et al., GXNOR-Net, Neural Networks 100:49-58, 2018, arXiv 1705.09283 (the transition; m = 3 in
AcrossV/Gated-XNOR); Metropolis et al., J. Chem. Phys. 21, 1953. The Metropolis scheme over this space is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Proposal(NamedTuple):
    """The move that an update proposes, in quanta; each tensor has the shape and dtype of the update.

    Attributes:
        whole: kappa, an integer stored as a float.
        chance: probability tanh(m nu) of one more quantum; differentiable in the update.
        way: sign of the update, in {-1, 0, 1}.
    """

    whole: torch.Tensor
    chance: torch.Tensor
    way: torch.Tensor


def proposal(step: torch.Tensor, steepness: float) -> Proposal:
    """Integer part of an update, and the probability of one more quantum.

    Args:
        step: the update x [...] in quanta, any floating dtype.
        steepness: m > 0.

    >>> proposal(torch.tensor([-2.25]), 3.0)
    Proposal(whole=tensor([2.]), chance=tensor([0.6351]), way=tensor([-1.]))
    """
    size = step.abs()
    whole = size.detach().floor()
    return Proposal(whole, torch.tanh(steepness * (size - whole)), step.detach().sign())


def discrete_transition(
    k: torch.Tensor, step: torch.Tensor, top: int, steepness: float, uniform: torch.Tensor
) -> torch.Tensor:
    """The discrete state transition of GXNOR.

    Args:
        k: states [...], integers in [0, top] stored in any floating dtype.
        step: the update x in quanta, with the shape and dtype of k.
        top: n, the highest state.
        steepness: m > 0.
        uniform: uniform numbers in [0, 1), with the shape of k.

    Returns:
        the next states, with the shape of k and the derivative of their expectation in k and ``step``.
    """
    whole, chance, way = proposal(step, steepness)
    here = k.detach()
    near = (here + way * whole).clamp(0, top)
    far = (here + way * (whole + 1)).clamp(0, top)
    return sampled(torch.where(uniform < chance, far, near), k + (near - here) + chance * (far - near))


def acceptance(energy_change: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Probability min(1, exp(-dE / T)) of accepting a move; at T = 0 no uphill move is accepted.

    Args:
        energy_change: dE [...].
        temperature: T >= 0, 0-d or broadcastable to dE, in the unit of the energy.
    """
    return torch.exp(-energy_change.clamp_min(0) / temperature.clamp_min(torch.finfo(temperature.dtype).eps))


def first_order(jump: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """First-order change of energy by a jump: dE = -d x / mean|x|.

    The unit is the mean |dE| of one quantum over the tensor, so that a temperature means the same at all learning
    rates and in all layers. The mean is a constant in the derivative.

    Args:
        jump: d [...] in quanta.
        step: the update x in quanta, with the shape of d.
    """
    unit = step.detach().abs().mean().clamp_min(torch.finfo(step.dtype).eps)
    return -jump * step / unit


def propose(
    step: torch.Tensor, steepness: float, uphill: float, uniform: torch.Tensor, turned: torch.Tensor
) -> torch.Tensor:
    """The jump that Metropolis proposes: along the update, or against it with probability r.

    Args:
        step: the update x [...] in quanta.
        steepness: m > 0.
        uphill: r in [0, 1].
        uniform, turned: uniform numbers in [0, 1), with the shape of x: for the size and for the direction.

    Returns:
        integers in quanta, with the shape and dtype of x, detached.
    """
    whole, chance, way = proposal(step.detach(), steepness)
    size = torch.where(uniform < chance, whole + 1, whole)
    return torch.where(turned < uphill, -way, way) * size


def within(k: torch.Tensor, jump: torch.Tensor, top: int) -> torch.Tensor:
    """The jump d [...], or 0 where k + d is outside [0, top].

    Such a jump is rejected regardless of its energy; clipping it instead would make the proposal asymmetric. k and d
    are integers of one shape, stored in any floating dtype.
    """
    there = k.detach() + jump
    return torch.where((there >= 0) & (there <= top), jump, 0.0)


def metropolis(
    k: torch.Tensor,
    jump: torch.Tensor,
    energy_change: torch.Tensor,
    temperature: torch.Tensor,
    top: int,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Applies the Metropolis rule; the result has no derivative.

    Args:
        k: states [...], integers in [0, top] stored in any floating dtype.
        jump: proposed jump in quanta, with the shape of k.
        energy_change: dE of the jump, with the shape of k.
        temperature: T >= 0, 0-d or broadcastable to k, in the unit of the energy.
        top: n; a jump out of [0, n] is rejected, so that proposals stay symmetric.
        uniform: uniform numbers in [0, 1), with the shape of k.

    Returns:
        the next states, with the shape and dtype of k.
    """
    there = k + jump
    accepted = (uniform < acceptance(energy_change, temperature)) & (there >= 0) & (there <= top)
    return torch.where(accepted, there, k).detach()


def metropolis_transition(
    k: torch.Tensor,
    step: torch.Tensor,
    temperature: torch.Tensor,
    top: int,
    steepness: float,
    uphill: float,
    uniforms: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """The Metropolis transition with first-order dE.

    Args:
        k, step, top, steepness: as in ``discrete_transition``.
        temperature: T >= 0, 0-d, in the unit of ``first_order``.
        uphill: r in [0, 1], probability of a proposal against the update.
        uniforms: three tensors of uniform numbers in [0, 1), with the shape of k: size, direction, acceptance.

    Returns:
        the next states, with the shape of k and the derivative of their expectation in k, ``step`` and T.
    """
    jump = propose(step, steepness, uphill, *uniforms[:2])
    taken = metropolis(k, jump, first_order(jump, step), temperature, top, uniforms[2])
    whole, chance, way = proposal(step, steepness)
    expected, here = k, k.detach()
    for share, direction in ((1 - uphill, way), (uphill, -way)):
        for probability, size in ((1 - chance, whole), (chance, whole + 1)):
            d = direction * size
            inside = ((here + d >= 0) & (here + d <= top)).to(k.dtype)
            expected = expected + share * probability * inside * d * acceptance(first_order(d, step), temperature)
    return sampled(taken, expected)


def sampled(value: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The sampled value [...], with the derivative of ``expected``, which has the same shape and dtype."""
    return value + (expected - expected.detach())
