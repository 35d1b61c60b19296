"""The deployed activation as a plain torch module, which is saved, loaded and exported without this package."""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from metasched.quantizers.levels import LevelSet


def staircase(
    levels: LevelSet, scale: torch.Tensor | float, *, rewrites: bool, function: nn.Module | None = None
) -> nn.Module:
    """The module x -> scale Q(f(x) / scale), elementwise, with the bits of ``quantizers.hard.hard``.

    >>> from metasched.quantizers.levels import ternary
    >>> staircase(ternary(), 1.0, rewrites=False)(torch.tensor([-0.6, -0.5, 0.4, 0.5])).tolist()
    [-1.0, 0.0, 0.0, 1.0]

    Its attribute ``quantization`` has the levels, the scale, and the bounds of f, for ``metasched.deploy``.

    Args:
        levels: the level set of Q.
        scale: value of level 1, a number or 0-d.
        rewrites: whether the result is written into the input.
        function: f, a module of torch; None: the identity.
    """
    made = fx.symbolic_trace(Staircase(levels, scale, rewrites=rewrites, function=function))
    made.__dict__["quantization"] = {"levels": levels.levels, "scale": scale, "clip": _clip(function)}
    return made.eval()


def _clip(function: nn.Module | None) -> tuple[float, float] | None:
    """The bounds of f, if it does nothing but bound its input; else None."""
    if isinstance(function, nn.Hardtanh):  # ReLU6, too
        return float(function.min_val), float(function.max_val)
    if function is None or isinstance(function, nn.ReLU):
        return (-math.inf if function is None else 0.0), math.inf
    return None


class Staircase(nn.Module):  # a name that shows in prints of the network
    """What is traced: only torch's functions, and no branch on a value."""

    def __init__(
        self, levels: LevelSet, scale: torch.Tensor | float, *, rewrites: bool, function: nn.Module | None
    ) -> None:
        super().__init__()
        self.function = function
        self.levels, self.rewrites = levels, rewrites
        self.unit = scale if isinstance(scale, float) else None
        if isinstance(scale, torch.Tensor):
            self.register_buffer("scale", scale.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The value of the stair for each element of x [...]."""
        given, whole = x, self.unit == 1
        x = x if self.function is None else self.function(x)
        unit = self.scale if self.unit is None else self.unit
        y = self._hard(x if whole else x / unit)  # pyright: ignore[reportOperatorIssue]
        y = y if whole else y * unit  # pyright: ignore[reportOperatorIssue]
        return given.copy_(y) if self.rewrites else y

    def _hard(self, x: torch.Tensor) -> torch.Tensor:
        levels, jump = self.levels.levels, self.levels.jumps[0]
        if self.levels.rounds:
            z = x if jump == 1 else x / jump
            nearest = torch.round(z)  # halves to even
            y = nearest + (z - nearest == 0.5)
            return torch.clamp(y if jump == 1 else y * jump, levels[0], levels[-1])
        y = torch.zeros_like(x) + levels[0]
        for threshold, level in zip(self.levels.thresholds, levels[1:], strict=True):
            y = torch.where(x >= threshold, level, y)
        return torch.where(torch.isnan(x), x, y)
