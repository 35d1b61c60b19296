"""A learnable family of hand-coded schedules: in each layer, a control decays with a power within one window.

With m = 2 d - 1 for a layer at relative depth d, S the logistic function and r the last progress at which it may
change:

    start of the window     s = r (eps + (1 - 2 eps) S(start + start_over_depth m))
    end of the window       e = s + (r - s) (eps + (1 - eps) S(length + length_over_depth m))
    remaining share         left = ((e - u) / (e - s))^p, u clipped to the window,   p = 16^tanh(power)
    value                   v = end + (first - end) left,   first = low + (high - low) S(first)

Where the base starts at a bound of the range, S^-1 is infinite. The first value then stays there, if the window can
still move away from it. If it cannot, because the end is the same bound, or a free control has no end (a weight decay
that starts at 0), the first value leaves the bound in a straight line, as in the network, and learning starts at the
bound:

    value at a bound        first = bound + (high - low) clip(first / 4, 0, 1), or minus it at the upper bound

A monotone control with a free end ends at first + (bound - first) S(last), where bound is its low or its high. Controls
on a log scale are learned as their logarithms; network-wide controls do not depend on depth (space.py). Range,
direction, end value and dwell hold for all parameter values. The family generalizes ``bws`` of quantlib's ANA
controller (curves.bounded_window). It has five to seven parameters per control, the schedule network hundreds, so that
forward mode is practical.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from metasched.core.layer import Layer
from metasched.methods.base import Control
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.interpolation import interpolate
from metasched.schedules.space import into, out_of, straight

_EPS = 0.01  # the shortest window, as a share of the rest of the run
_MOST = 16.0  # largest power; the smallest is its inverse
_RIDGE = 1e-4  # keeps the fit away from values at which the logistic function is flat and gradients vanish
_ITERATIONS = 100


class ScheduleFamily(nn.Module):
    """A learnable window per control, fitted to ``base`` by least squares at the knots; see the module's docstring.

    A control whose base starts at a bound of its range has no parameter ``first``, unless nothing else could move it
    from there; see the module's docstring. A control with a free end has an additional parameter ``last``. Values are
    linear between the knots, as in ScheduleNetwork, so that the exported table equals the schedule.

    Args:
        controls: all controls of the method; those not in ``learn`` keep the base's values at the knots.
        base: the schedule to fit.
        learn: names of the learned controls.
        knots: K, at least 2.
        layers: layers at which it is fitted; it can be played on others.
        edges: of each learned control, as the attribute has them; where they are given nothing is fitted, and all
            numbers wait to be set.

    Attributes:
        edges: for each learned control, the bound at which it starts, in the space of ``straight``; None: inside.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        base: Schedule,
        learn: Sequence[str],
        *,
        knots: int,
        layers: Sequence[Layer] = (),
        edges: Sequence[float | None] | None = None,
    ) -> None:
        super().__init__()
        assert knots >= 2 and set(learn) <= {c.name for c in controls}
        self.controls = tuple(controls)
        self.learned = tuple(c for c in controls if c.name in learn)
        self.base = base
        self.knots = progress_of_steps(knots)
        if edges is None:
            values = base(self.knots, layers)
            windows = [_fitted(c, self.knots, values[c.name], layers) for c in self.learned]
        else:
            windows = [_Window(c, self.knots, edge) for c, edge in zip(self.learned, edges, strict=True)]
        self.windows = nn.ModuleList(windows)
        self.edges = tuple(window.edge for window in windows)

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T], float64."""
        return {n: interpolate(progress, self.knots, v, "linear") for n, v in self.at_knots(layers).items()}

    def at_knots(self, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [K, L]} of all controls at the knots, float64; the base's if a control is not learned."""
        declared = {control.name for control in self.controls}
        values = {name: v for name, v in self.base(self.knots, layers).items() if name in declared}
        return values | {c.name: w(self.knots, layers) for c, w in zip(self.learned, self.windows, strict=True)}


class _Window(nn.Module):
    """The window of one control; before the fit, the value is linear over most of the run."""

    def __init__(self, control: Control, knots: torch.Tensor, edge: float | None, first: float = 0.0) -> None:
        super().__init__()
        self.declared, control = control, straight(control)
        self.control = control
        self.reach = float(knots[1:][(knots[1:] <= 1 - control.dwell) | (knots[:-1] == 0)][-1])
        self.edge = edge
        alone = control.direction == "free" if control.end is None else control.end == self.edge
        self.leaves = self.edge is not None and alone  # the bound at which it starts
        if self.edge is None or self.leaves:
            self.first = _number(first)
        if control.end is None:
            self.last = _number(0.0)
        self.per_layer = control.granularity != "network"
        self.start = _number(-2.0)
        if self.per_layer:
            self.start_over_depth = _number(0.0)
        self.length = _number(2.0)
        if self.per_layer:
            self.length_over_depth = _number(0.0)
        self.power = _number(0.0)

    def forward(self, knots: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
        """Values [K, L] at the knots."""
        return out_of(self.declared, self.line(knots, layers), len(layers))

    def line(self, knots: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
        """Values [K, L], or [K, 1] if network-wide, in the space of ``straight``: logarithms on a log scale."""
        start_at, length_at = self.start[None], self.length[None]
        if self.per_layer:
            m = 2 * knots.new_tensor([layer.depth for layer in layers]) - 1
            start_at, length_at = self.start + self.start_over_depth * m, self.length + self.length_over_depth * m
        start = self.reach * (_EPS + (1 - 2 * _EPS) * torch.sigmoid(start_at))
        share = _EPS + (1 - _EPS) * torch.sigmoid(length_at)
        length = (self.reach - start) * share
        left = ((start + length - knots[:, None]) / length).clamp_max(1)
        moving = (left > 0) & (knots < self.reach)[:, None]
        # two where: neither the power nor its derivative may be evaluated at 0
        left = torch.where(moving, torch.where(moving, left, 1.0) ** (_MOST ** torch.tanh(self.power)), 0.0)
        first = self._in_range(self.first) if self.edge is None else self._from_the_edge(self.edge)
        last = self._free_end(first) if self.control.end is None else left.new_tensor(self.control.end)
        return torch.lerp(last, first, left)

    def _from_the_edge(self, edge: float) -> torch.Tensor:
        """The bound, or a value that leaves it by a quarter of the range per unit of ``first``."""
        at = self.start.new_tensor(edge)
        if not self.leaves:
            return at
        inwards = (self.first if edge <= self.control.low else -self.first) / 4
        # where, not clamp, whose derivative at its own bounds, where learning starts, differs between versions of torch
        way = (self.control.high - self.control.low) * torch.where(inwards < 0, 0.0, inwards).clamp_max(1)
        return at + way if edge <= self.control.low else at - way

    def _free_end(self, first: torch.Tensor) -> torch.Tensor:
        """A value in the range; for a monotone control, between its first value and the bound that it moves towards."""
        if self.control.direction == "free":
            return self._in_range(self.last)
        bound = self.control.low if self.control.direction == "nonincreasing" else self.control.high
        return first + (bound - first) * torch.sigmoid(self.last)

    def _in_range(self, value: torch.Tensor) -> torch.Tensor:
        return self.control.low + (self.control.high - self.control.low) * torch.sigmoid(value)


def _number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def _fitted(control: Control, knots: torch.Tensor, base: torch.Tensor, layers: Sequence[Layer]) -> _Window:
    """The window with the least squared distance to the base at the knots, in units of the control's range."""
    base = into(control, base)
    line, at = straight(control), base[0].mean()
    low, high = line.low, line.high
    share = (at - low) / (high - low)
    inside = bool(0 < share < 1)
    window = _Window(control, knots, None if inside else float(at), float(torch.logit(share)) if inside else 0.0)
    parameters = [p for name, p in window.named_parameters() if not (window.leaves and name == "first")]  # at the bound
    optimizer = torch.optim.LBFGS(parameters, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def distance() -> float:
        optimizer.zero_grad()
        error = (window.line(knots, layers) - base) / (high - low)
        loss = error.square().mean() + _RIDGE * torch.stack([*parameters]).square().mean()
        loss.backward()
        return float(loss.detach())

    optimizer.step(distance)
    optimizer.zero_grad()
    return window
