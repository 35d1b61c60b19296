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

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from metasched.config import MetaConfig
from metasched.hypergradients.estimator import Estimate, State
from metasched.hypergradients.particles import Particle, Perturbed, check_particles, estimate_by_particles
from metasched.hypergradients.perturbation import direction
from metasched.hypergradients.runs import Runs


@dataclass(frozen=True)
class PersistentES:
    """One hypergradient from a window of each pair, one pair for each seed.

    Attributes:
        sigma: standard deviation of the smoothing, in units of the parameters' scales; positive.
        window: steps between two estimates; None: a tenth of the run, at least 1.
    """

    sigma: float
    window: int | None = None

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Empty: the first estimate has the seeds that the particles begin with."""
        return {}

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_particles(schedule, runs, num_runs, state)

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator; always with the same number of seeds."""
        return estimate_by_particles(self, schedule, runs, seeds, state)

    def perturbed(self, schedule: nn.Module, particle: Particle, seed: int) -> Perturbed:
        """A fresh perturbation, which answers together with those before it."""
        delta = direction(schedule, seed, particle.step)
        return Perturbed(delta, {name: particle.answered.get(name, 0) + d for name, d in delta.items()})


def build(meta: MetaConfig) -> PersistentES:
    """As configured."""
    return PersistentES(meta.sigma, meta.window)
