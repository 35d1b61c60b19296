"""Persistent evolution strategies (PES): full-run gradients from windows, each with a perturbation of its own.

    g_k = r_k a_k / s^2,   a_k = delta_1 + ... + delta_k,   delta_j = s e_j fresh in each window

in the words of particles.py, for window k of a run. A share answers to the perturbations of all windows up to its own,
so the sum over the windows of a run is unbiased for the gradient of the outer loss, smoothed over the perturbations of
all windows: the state that crosses from window to window is not held constant, as truncation holds it. The variance
grows with the number of windows. With one window it is full ES. Between two estimates the schedule moves while runs go
on, so that a_k answers for slightly older parameters: the bias is of the order of the outer step size.
Source: Vicol, Metz and Sohl-Dickstein, ICML 2021, arXiv 2112.13835.
We differ: parameters have scales, particles are spread over the run from the start, and shares telescope where the
objective judges the end alone (particles.py).
"""

from __future__ import annotations

from torch import nn

from metasched.estimators.particles import Particle, ParticleES, Perturbed
from metasched.estimators.perturbation import direction
from metasched.meta.config import MetaConfig


class PersistentES(ParticleES):
    """Each window has a perturbation of its own."""

    def perturbed(self, schedule: nn.Module, particle: Particle, seed: int) -> Perturbed:
        """A fresh perturbation, which answers together with those before it."""
        delta = direction(schedule, seed, particle.step)
        return Perturbed(delta, {name: particle.perturbation.get(name, 0) + d for name, d in delta.items()})


def build(meta: MetaConfig) -> PersistentES:
    """As configured."""
    return PersistentES(meta.sigma, meta.window)
