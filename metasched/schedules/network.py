"""The schedule network: a small MLP that learns a correction to a hand-coded schedule.

It is evaluated at K knots in progress and linear between them, so that the exported table equals the schedule. With a
base schedule b, d_k = |b_{k+1} - b_k| / sum_j |b_{j+1} - b_j|, and network outputs c (0 before learning):

    monotone control    v_0 = range(logit(b_0) + c_0)
                        v_k = v_0 + (end - v_0) sum_{j<k} softmax_j(log((1 - eps) d_j + eps / (K - 1)) + c_j)
    with a free end     end = v_0 + (bound - v_0) sigmoid(logit((b_K - b_0) / (bound - b_0)) + c_K), bound low or high
    free control        v_k = range(logit(b_k) + c_k),  v_k = end at u_k = 1 and during the dwell

``range(z) = low + (high - low) sigmoid(z)``. Where the base is at a bound of the range, its logit is infinite; v then
leaves the bound in a straight line, by a quarter of the range per unit of c. Controls on a log scale are learned as
their logarithms; a network-wide control has one value for all layers and does not depend on the features of a layer
(space.py). Range, direction, end value and dwell hold for all network weights. exp(c) multiplies the rates of change of
the base; eps spreads a share of the total change evenly, so that the schedule can change where its base is constant.
Layers enter only through their features: one network serves any number of layers and steps.

With ``most`` given, not all weights are learned, but the numbers a of smooth directions (directions.py):

    output weights = sum_n a_n J^+ phi_n

J is the Jacobian of the corrections at the knots and layers in the output weights, J^+ its regularized inverse. So each
number moves the schedule itself by about one, where it moves one of hundreds of weights otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from metasched.core.layer import Layer
from metasched.core.randomness import generator
from metasched.methods.base import Control
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.directions import directions, fields
from metasched.schedules.interpolation import interpolate
from metasched.schedules.space import into, into_range, out_of, straight

EVEN_SHARE = 0.02  # eps
_WAVES = 4  # number of cosines of progress among the inputs
_LAYER_FEATURES = 6
_RIDGE = 1e-6  # of the mean square of a hidden unit


class ScheduleNetwork(nn.Module):
    """A learnable schedule, equal to ``base`` up to eps before learning; see the module's docstring.

    Args:
        controls: all controls of the method; those not in ``learn`` keep the base's values at the knots.
        base: the schedule that it corrects.
        learn: names of the learned controls.
        knots: K, at least 2.
        hidden: units of each of the two hidden layers.
        seed: seed of the initial weights; those of the output layer are 0.
        layers: at which its directions are smooth (see there).
        most: learn at most so many directions; None: all weights.

    Attributes:
        directions: what each of the numbers that are learned stands for; empty where all weights are learned.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        base: Schedule,
        learn: Sequence[str],
        *,
        knots: int,
        hidden: int,
        seed: int,
        layers: Sequence[Layer] = (),
        most: int | None = None,
    ) -> None:
        super().__init__()
        assert knots >= 2 and set(learn) <= {c.name for c in controls}
        self.controls = tuple(controls)
        self.learned = tuple(c for c in controls if c.name in learn)
        self.base = base
        self.knots = progress_of_steps(knots)
        num_inputs = 1 + _WAVES + _LAYER_FEATURES
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws initial weights from the global generator
            self.body = nn.Sequential(
                nn.Linear(num_inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
            ).double()
            self.heads = nn.Linear(hidden, 2 * len(self.learned)).double()  # per control: rate or value, and start
        draws = generator(seed, "schedule network")
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features), generator=draws)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        self.directions = [] if most is None else directions(self.learned, len(layers), most)
        if self.directions:
            self.register_buffer("pulled_back", self._pulled_back(layers))
            for module in (*self.body, self.heads):
                for name, p in list(module.named_parameters()):
                    delattr(module, name)
                    module.register_buffer(name, p.detach())
            self.numbers = nn.Parameter(torch.zeros(len(self.directions), dtype=torch.float64))

    def _pulled_back(self, layers: Sequence[Layer]) -> torch.Tensor:
        """The change of the output weights and bias that each direction is, [D, 2C, hidden + 1].

        By ridge regression of the direction's field at the knots and layers on the hidden units: the Jacobian of the
        corrections in the output weights does not depend on them.
        """
        found = torch.zeros(len(self.directions), self.heads.out_features, self.heads.in_features + 1).double()
        middles = (self.knots[:-1] + self.knots[1:]) / 2
        for i, control in enumerate(self.learned):
            network_wide = control.granularity == "network"
            features = [[0.0] * _LAYER_FEATURES] if network_wide else [_features(layer) for layer in layers]
            for output in ("value", "start", "end"):
                own = [(n, d) for n, d in enumerate(self.directions) if (d.control, d.output) == (control.name, output)]
                if not own:
                    continue
                free = control.direction == "free"
                at = {"value": self.knots if free else middles, "start": self.knots[:1], "end": self.knots[-1:]}[output]
                hidden = self._hidden(at, features)
                inputs = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1).flatten(0, 1) / hidden.shape[-1]
                wanted = fields([d for _, d in own], at, layers[:1] if network_wide else layers).flatten(1)
                gram = inputs.T @ inputs
                ridge = _RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
                row = 2 * i + (output == "start" or (output == "end"))
                found[[n for n, _ in own], row] = torch.linalg.solve(gram + ridge, inputs.T @ wanted.T).T.detach()
        return found

    def forward(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T], float64."""
        return {n: interpolate(progress, self.knots, v, "linear") for n, v in self.at_knots(layers).items()}

    def at_knots(self, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [K, L]} of all controls at the knots, float64; the base's if a control is not learned."""
        base = self.base(self.knots, layers)
        middles = (self.knots[:-1] + self.knots[1:]) / 2
        features = {"layer": [_features(layer) for layer in layers], "network": [[0.0] * _LAYER_FEATURES]}
        wanted = {_columns(control) for control in self.learned}
        rates = {of: self._correction(middles, features[of]) for of in wanted}  # [K - 1, L or 1, 2C]
        points = {of: self._correction(self.knots, features[of]) for of in wanted}  # [K, L or 1, 2C]
        declared = {control.name for control in self.controls}
        values = {name: v for name, v in base.items() if name in declared}
        for i, control in enumerate(self.learned):
            line, b = straight(control), into(control, base[control.name])
            rate, point = rates[_columns(control)], points[_columns(control)]
            if control.direction == "free":
                found = _free(line, b, point[..., 2 * i], self.knots)
            else:
                start, stop = point[0, :, 2 * i + 1], point[-1, :, 2 * i + 1]
                found = _monotone(line, b, rate[..., 2 * i], start, stop, self.knots)
            values[control.name] = out_of(control, found, len(layers))
        return values

    def blocks(self) -> dict[str, list[int]]:
        """{control, output and moment: indices of the numbers that move it}; empty where all weights are learned."""
        found: dict[str, list[int]] = {}
        for i, d in enumerate(self.directions):
            found.setdefault(f"{d.control} {d.output} at {d.moment:.2f}", []).append(i)
        return found

    def scales(self) -> dict[str, float]:
        """{parameter: change that moves the correction by about one}, for estimators that perturb parameters.

        The correction is a mean over the hidden units, and random changes of the output weights add up like a random
        walk over them. The scale of a weight of the body is the standard deviation of its initial value.
        """
        if self.directions:
            return {}
        hidden = self.heads.in_features
        own = {"heads.weight": math.sqrt(hidden), "heads.bias": float(hidden)}
        for name, p in self.body.named_parameters():
            own[f"body.{name}"] = 1 / math.sqrt(p.shape[1]) if p.dim() == 2 else 1.0
        return own

    def _correction(self, u: torch.Tensor, features: Sequence[Sequence[float]]) -> torch.Tensor:
        """The outputs [K, L, 2C] at progress [K]."""
        hidden = self._hidden(u, features)
        # a mean over hidden units, not a sum: an Adam step of size lr then moves a correction by at most about lr
        if not self.directions:
            return self.heads(hidden) / hidden.shape[-1]
        change = torch.tensordot(self.numbers, self.pulled_back, 1)
        return nn.functional.linear(hidden, change[:, :-1], change[:, -1]) / hidden.shape[-1]

    def _hidden(self, u: torch.Tensor, features: Sequence[Sequence[float]]) -> torch.Tensor:
        waves = [u, *(torch.cos(k * math.pi * u) for k in range(1, _WAVES + 1))]
        of_time = torch.stack(waves, -1)[:, None, :].expand(-1, len(features), -1)
        of_layer = torch.tensor(features, dtype=u.dtype).expand(len(u), -1, -1)
        return self.body(torch.cat([of_time, of_layer], -1))


def _columns(control: Control) -> str:
    return "network" if control.granularity == "network" else "layer"


def _features(layer: Layer) -> list[float]:
    """The features of a layer, of order 1, [6]; they exist for any network."""
    return [
        2 * layer.depth - 1,
        1.0 if layer.kind == "linear" else -1.0,
        1.0 if layer.quantizes == "weight+activation" else -1.0,
        math.log10(layer.fan_in) - 2,
        math.log10(layer.num_weights) - 4,
        layer.bits - 2,
    ]


def _moving(control: Control, knots: torch.Tensor) -> torch.Tensor:
    """Mask [K - 1] of the intervals between knots that end before the dwell begins; always includes the first one."""
    return (knots[1:] <= 1 - control.dwell) | (knots[:-1] == 0)


def _free(control: Control, base: torch.Tensor, correction: torch.Tensor, knots: torch.Tensor) -> torch.Tensor:
    values = into_range(control.low, control.high, base, correction)
    if control.end is None:
        return values
    before_end = torch.cat([_moving(control, knots), torch.tensor([False])])
    return torch.where(before_end[:, None], values, control.end)


def _free_end(control: Control, base: torch.Tensor, first: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """A value between the first value and the bound that the control moves towards, near the end of the base."""
    bound = control.low if control.direction == "nonincreasing" else control.high
    share = (base[-1] - base[0]) / torch.where(base[0] == bound, 1.0, bound - base[0])
    share = torch.sigmoid(torch.logit(share.clamp(EVEN_SHARE, 1 - EVEN_SHARE)) + correction)
    return first + (bound - first) * share


def _monotone(
    control: Control,
    base: torch.Tensor,
    rates: torch.Tensor,
    start: torch.Tensor,
    stop: torch.Tensor,
    knots: torch.Tensor,
) -> torch.Tensor:
    first = into_range(control.low, control.high, base[0], start)
    last = _free_end(control, base, first, stop) if control.end is None else torch.full_like(first, control.end)
    way = (base[1:] - base[:-1]).abs()
    # for a constant base only the even share, eps, remains
    shares = way / way.sum(0).clamp_min(torch.finfo(way.dtype).tiny)
    logits = torch.log((1 - EVEN_SHARE) * shares + EVEN_SHARE / len(way)) + rates
    moving = _moving(control, knots)
    logits = torch.where(moving[:, None], logits, -torch.inf)
    # at most 1, and exactly 1 from the last moving interval on: the shares add up to 1 only up to rounding
    covered = torch.cumsum(torch.softmax(logits, 0), 0).clamp_max(1)
    covered = torch.where((torch.cumsum(moving.flip(0), 0).flip(0) <= 1)[:, None], 1.0, covered)
    # where covered is 1, the end itself: first + (last - first) may differ from it by rounding
    return torch.cat([first[None], torch.where(covered == 1, last, first + (last - first) * covered)])
