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

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from metasched.config import MetaConfig
from metasched.hypergradients.estimator import Estimate, State
from metasched.hypergradients.particles import Particle, Perturbed, check_particles, estimate_by_particles
from metasched.hypergradients.perturbation import direction
from metasched.hypergradients.runs import Runs


@dataclass(frozen=True)
class NoiseReuseES:
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
        """The perturbation of the episode, from its seed."""
        delta = particle.answered or direction(schedule, particle.seed)
        return Perturbed(delta, delta)


def build(meta: MetaConfig) -> NoiseReuseES:
    """As configured."""
    return NoiseReuseES(meta.sigma, meta.window)
