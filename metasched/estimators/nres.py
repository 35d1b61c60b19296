"""Noise-reuse evolution strategies (NRES): full-run gradients from windows, with one perturbation for a whole run.

    g_k = r_k delta / s^2,   delta = s e drawn once an episode

in the words of particles.py, for window k of a run. The sum over the windows of a run is that of full ES: unbiased for
the gradient of the same smoothed outer loss, at a window's cost. Where the shares of a run pull in similar directions
its variance is below that of PES, which has one more perturbation in each window. What it costs: the estimates of a run
are not independent, until the run has ended. With one window it is full ES. Between two estimates the schedule moves
while runs go on, and early windows answer for slightly older parameters: the bias is of the order of the outer step.
Source: Li et al., NeurIPS 2023, arXiv 2304.12180; ES-Single (Vicol et al., ICML 2023, arXiv 2304.11153) is the same.
We differ: as in PES (pes.py).
"""

from __future__ import annotations

from torch import nn

from metasched.estimators.particles import Particle, ParticleES, Perturbed
from metasched.estimators.perturbation import direction
from metasched.meta.config import MetaConfig


class NoiseReuseES(ParticleES):
    """Each episode has one perturbation."""

    def perturbed(self, schedule: nn.Module, particle: Particle, seed: int) -> Perturbed:
        """The perturbation of the episode, from its seed."""
        delta = particle.perturbation or direction(schedule, particle.seed)
        return Perturbed(delta, delta)


def build(meta: MetaConfig) -> NoiseReuseES:
    """As configured."""
    return NoiseReuseES(meta.sigma, meta.window)
