"""Noise families: distribution F(z) and density f(z) of additive noise with mean 0, at z = u / s.

The meaning of the scale s depends on the family: half-width for uniform and triangular, standard deviation for normal,
scale for logistic, as in quantlib's ``algorithms/ana/lib``. The derivatives of F(u / s) are f(z) / s in u and
-z f(z) / s in s.

Both functions are differentiable torch operations. The uniform density jumps at the edges of its window, so automatic
differentiation of it ignores the elements that enter the window as s grows. The triangular, normal and logistic
densities are continuous: prefer them where s is learned.
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
        cdf: F(z) for z = u / s of shape [...]; returns the shape and dtype of z.
        pdf: f(z) = dF/dz, shape [...].
        unit: scale s at which the central 95 % of the noise (all of it, for bounded noise) lies within [-1, 1]; so the
            scale for a given half-width is half-width * unit.
        reach: the largest |u| / s with a positive density; infinite for noise without bounds.
    """

    cdf: Callable[[torch.Tensor], torch.Tensor]
    pdf: Callable[[torch.Tensor], torch.Tensor]
    unit: float
    reach: float


def _uniform(z: torch.Tensor) -> torch.Tensor:
    (half,) = constants((0.5,), z)
    return torch.add(half, z, alpha=0.5).clamp(0, 1)


def _uniform_density(z: torch.Tensor) -> torch.Tensor:
    # 1/4 on the edges: where two windows meet (at 0 for ternary levels and s = 1/2), their sum is then the derivative
    (quarter,) = constants((0.25,), z)
    return torch.add(quarter, z.detach().abs().sub_(1).sign_(), alpha=-0.25)


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


# 1 / z_0.975 and 1 / ln(1.95 / 0.05): ANA's initial scales 0.25511 and 0.136479 are half of these (anacifar10vgg8.py)
NOISE_FAMILIES: dict[str, NoiseFamily] = {
    "uniform": NoiseFamily(_uniform, _uniform_density, 1.0, 1.0),
    "triangular": NoiseFamily(_triangular, _triangular_density, 1.0, 1.0),
    "normal": NoiseFamily(torch.special.ndtr, _normal_density, 0.5102134569246539, math.inf),
    "logistic": NoiseFamily(torch.sigmoid, _logistic_density, 0.2729584204093974, math.inf),
}
