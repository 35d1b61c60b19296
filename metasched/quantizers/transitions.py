"""Sampled transitions between the evenly spaced states of a discrete weight, which has no float value behind it.

A weight is a state k in {0, ..., n} (a whole number, in floats); a step x is what an optimizer proposes, in quanta (the
distance between two states). With kappa = floor(|x|) and the remainder nu = |x| - kappa:

    discrete state transition    k <- clip(k + sign(x) (kappa + b)),           b ~ Bernoulli(tanh(m nu))
    Metropolis                   d = z sign(x) (kappa + b),                    z = -1 with probability r, else 1
                                 k <- k + d with probability min(1, exp(-dE / T)), else k; beyond the ends never

The Metropolis proposal is symmetric for r = 1/2, and for steps of constant size: then it is in detailed balance with
the Boltzmann distribution exp(-E / T) of the energy that dE is the change of. To first order dE = -d x, since a step of
gradient descent is minus the gradient. **With r = 0 it is the discrete state transition**, at every T, wherever that
does not have to clip: all proposals then go along the step, downhill to first order. As T -> 0 it is that transition
with a share 1 - r of its moves.

What is drawn has no derivative; both transitions have that of their expectation, as the stair's random forward has.

Source: Deng et al., GXNOR-Net, Neural Networks 100:49-58, 2018, arXiv 1705.09283 (the transition; m = 3 in
AcrossV/Gated-XNOR); Metropolis et al., J. Chem. Phys. 21, 1953. The Metropolis scheme over this space is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Proposal(NamedTuple):
    """What a step proposes, in quanta.

    Attributes:
        whole: kappa.
        chance: of one quantum more, tanh(m nu); differentiable in the step.
        way: sign of the step.
    """

    whole: torch.Tensor
    chance: torch.Tensor
    way: torch.Tensor


def proposal(step: torch.Tensor, steepness: float) -> Proposal:
    """The integer part of a step and the chance of one quantum more, for steepness m.

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
        k: states, whole numbers in [0, top].
        step: in quanta, of the shape of k.
        top: n, the highest state.
        steepness: m.
        uniform: numbers in [0, 1) of the shape of k.

    Returns:
        the next states, with the derivative of their expectation in k and in the step.
    """
    whole, chance, way = proposal(step, steepness)
    here = k.detach()
    near = (here + way * whole).clamp(0, top)
    far = (here + way * (whole + 1)).clamp(0, top)
    return sampled(torch.where(uniform < chance, far, near), k + (near - here) + chance * (far - near))


def acceptance(energy_change: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """min(1, exp(-dE / T)); at T = 0 nothing that goes uphill is accepted."""
    return torch.exp(-energy_change.clamp_min(0) / temperature.clamp_min(torch.finfo(temperature.dtype).eps))


def first_order(jump: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Change of energy by a jump d in quanta, in units of the mean |dE| of one quantum over the tensor: -d x / mean|x|.

    So a temperature means the same for all learning rates and layers. The unit is measured, not differentiated.
    """
    unit = step.detach().abs().mean().clamp_min(torch.finfo(step.dtype).eps)
    return -jump * step / unit


def propose(
    step: torch.Tensor, steepness: float, uphill: float, uniform: torch.Tensor, turned: torch.Tensor
) -> torch.Tensor:
    """The jump that Metropolis proposes, in quanta: along the step, or against it with probability r (``uphill``)."""
    whole, chance, way = proposal(step.detach(), steepness)
    size = torch.where(uniform < chance, whole + 1, whole)
    return torch.where(turned < uphill, -way, way) * size


def within(k: torch.Tensor, jump: torch.Tensor, top: int) -> torch.Tensor:
    """The jump, or 0 where it would leave [0, top]: rejected whatever its energy, so that proposals stay symmetric."""
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
    """The states after the Metropolis rule; without a derivative.

    Args:
        k: states, whole numbers in [0, top].
        jump: proposed, in quanta.
        energy_change: dE of the jump.
        temperature: T, 0-d or broadcastable, in the unit of the energy.
        top: n; jumps out of [0, n] are rejected, so that proposals stay symmetric.
        uniform: numbers in [0, 1) of the shape of k.
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
    """Metropolis with first-order dE.

    Args:
        k, step, top, steepness: as for ``discrete_transition``.
        temperature: T, 0-d, in the unit of ``first_order``.
        uphill: r, the share of proposals against the step.
        uniforms: three times numbers in [0, 1) of the shape of k: for the size, the direction and the acceptance.

    Returns:
        the next states, with the derivative of their expectation in k, in the step and in T.
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
    """The value, with the derivative of the expectation."""
    return value + (expected - expected.detach())
