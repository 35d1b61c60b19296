"""Noise families: distribution F(z) and density f(z) of additive noise with mean 0, at z = u / s.

s is the family's own scale (half-width for uniform and triangular, standard deviation for normal, scale for logistic),
as in quantlib's ``algorithms/ana/lib``. All four are scale families: F(u / s) has the derivatives f(z) / s in u and
-z f(z) / s in s.

Both functions are written in differentiable torch operations. The uniform density jumps at the edges of its window:
its own derivative leaves out the elements that enter the window as s grows, in every library that differentiates it.
Triangular, normal and logistic do not have that gap: prefer them where s is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from metasched.quantizers.constants import constants


class NoiseFamily(NamedTuple):
    """A noise family.

    Attributes:
        cdf: F(z) at z = u / s.
        pdf: f(z) = dF/dz.
        unit: the family's scale s whose central 95 % (all of it, for bounded noise) lies within +-1: s / half-width.
    """

    cdf: Callable[[torch.Tensor], torch.Tensor]
    pdf: Callable[[torch.Tensor], torch.Tensor]
    unit: float


def _uniform(z: torch.Tensor) -> torch.Tensor:
    one, half = constants((1.0, 0.5), z)
    return ((z + one) * half).clamp(0, 1)


def _uniform_density(z: torch.Tensor) -> torch.Tensor:
    # half of it on the edges: where two windows meet, as at 0 for ternary levels and s = 1/2, the sum is the derivative
    one, quarter = constants((1.0, 0.25), z)
    return ((one - z.detach().abs()).sign() + one) * quarter


def _triangular(z: torch.Tensor) -> torch.Tensor:
    z, (one, two, half) = z.clamp(-1, 1), constants((1.0, 2.0, 0.5), z)
    return (z * (two - z.abs()) + one) * half


def _triangular_density(z: torch.Tensor) -> torch.Tensor:
    (one,) = constants((1.0,), z)
    return (one - z.abs()).clamp_min(0)


def _normal_density(z: torch.Tensor) -> torch.Tensor:
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _logistic_density(z: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(z)
    return p * (1 - p)


# 1 / z_0.975 and 1 / ln(1.95 / 0.05): ANA's start values 0.25511 and 0.136479 are half of these (anacifar10vgg8.py)
NOISE_FAMILIES: dict[str, NoiseFamily] = {
    "uniform": NoiseFamily(_uniform, _uniform_density, 1.0),
    "triangular": NoiseFamily(_triangular, _triangular_density, 1.0),
    "normal": NoiseFamily(torch.special.ndtr, _normal_density, 0.5102134569246539),
    "logistic": NoiseFamily(torch.sigmoid, _logistic_density, 0.2729584204093974),
}
