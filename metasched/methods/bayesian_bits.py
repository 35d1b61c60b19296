"""Bayesian Bits: gates choose 2, 4, 8 or 16 bits for each weight tensor, and prune its output channels.

With the learned range beta, x = w clipped to +- beta, and steps that divide each other,

    s_2 = 2 beta / 3,  s_4 = s_2 / 5,  s_8 = s_4 / 17,  s_16 = s_8 / 257,     so that  s_b = 2 beta / (2^b - 1)
    x_2 = s_2 round(x / s_2),    e_b = s_b round((x - x_(b/2)) / s_b),        x_b = x_(b/2) + e_b
    w_seen = z_2 (x_2 + z_4 (e_4 + z_8 (e_8 + z_16 e_16)))

With all gates up to b open this is s_b round(x / s_b): b bits with 2^b - 1 levels, 3 for 2 bits and 15 for 4. z_2 is
one gate for each output channel, the others are for the tensor. Each is drawn anew in every step (hard concrete),

    z = clip(1.2 sigmoid((log u - log(1 - u) + phi) / tau) - 0.1, 0, 1),   u uniform,   P(z > 0) = q
    q = sigmoid(phi - tau log(0.1 / 1.1)),    open where it is fixed or deployed: 1 - q < 0.34

The penalty is mu (M / M_max) q_2 (2 + q_4 (4 + q_8 (8 + 16 q_16))), with q_2 averaged over channels, and the
multiply-accumulates M of the layer, M_max of the layer that has most of them. Where a pass of the example multiplies
nothing with a weight (an embedding), its number of elements stands for M.

From ``gates_fixed`` of 1/2 on the gates are fixed as they are then, the penalty is 0, and weights and range go on
training. Rounding is straight through. Gates that are fixed or deployed keep the derivative of q, a surrogate, so that
a hypergradient sees what mu and tau do.

Activations have the level set of the configuration, hard from the first step, as in ``ste``.

Source: van Baalen, Louizos, Nagel, Amjad, Wang, Blankevoort, Welling: Bayesian Bits: Unifying Quantization and Pruning.
NeurIPS 2020, arXiv 2005.07093; Qualcomm-AI-research/BayesianBits. We differ: activations have no gates; there are no 32
bits; weights are signed; the gradient of the range is multiplied by 1 / sqrt(N) for N weights, as that of LSQ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from metasched.core.randomness import Draw
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import BayesianBitsConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.scales import SMALLEST

WIDTHS = (2, 4, 8, 16)
_DIVISORS = (5.0, 17.0, 257.0)  # 2^(b/2) + 1: the step of b bits fits as often into that of b/2
_GAMMA, _ZETA = -0.1, 1.1  # the concrete distribution is stretched from [0, 1] to these
_CUT = 0.34  # a gate is open where the probability that it is 0 is lower
_OPEN = 6.0  # phi at the start
_INSIDE = 1 - 1e-7  # of the range, so that the outermost value rounds down
_LEAST = 1e-6  # of u, whose logarithm is taken

MU = Control(
    "mu", 0.0, 1.0, "loss by one bit of the costliest layer", "free", end=None, gradient="surrogate", none_value=0.01
)
GATE_TEMPERATURE = Control(
    "gate_temperature",
    0.1,
    2.0,
    "scale of the logistic noise on gates",
    "nonincreasing",
    end=None,
    gradient="surrogate",
    scale="log",
    none_value=2 / 3,
)
GATES_FIXED = Control(
    "gates_fixed", 0.0, 1.0, "at 1/2 gates are fixed", "nondecreasing", end=1.0, gradient="none", none_value=0.0
)


@dataclass(frozen=True)
class BayesianBits(Method):
    """Gates for bits and channels; see the module's docstring.

    Attributes:
        quantizer: level set and scale of the activation.
        cost: M / M_max of the layer, in [0, 1].
    """

    trained_size: ClassVar[bool] = True
    quantizer: LayerQuantizer
    cost: float = 1.0

    @property
    def controls(self) -> tuple[Control, ...]:
        return (MU, GATE_TEMPERATURE, GATES_FIXED)

    @property
    def bits(self) -> float:
        return math.log2(2 ** WIDTHS[-1] - 1)

    def keeping(self) -> Self:
        return self

    def of_cost(self, share: float) -> Self:
        return replace(self, cost=share)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        largest = w.detach().abs().amax().reshape([1] * w.dim())
        trainable = {
            "range": torch.where(largest > 0, largest, torch.ones_like(largest)),
            "gates": w.new_full((len(WIDTHS) - 1,), _OPEN),
            "channel_gates": w.new_full((len(w), *[1] * (w.dim() - 1)), _OPEN),
        }
        state = {
            "fixed": w.new_zeros(()),
            "open": torch.ones_like(trainable["gates"]),
            "kept": torch.ones_like(trainable["channel_gates"]),
            "range_factor": w.new_tensor(1 / math.sqrt(w.numel())),
        }
        return w, trainable, state

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """The gates as they would be deployed, until they are fixed."""
        temperature, fixed = controls["gate_temperature"].to(w.dtype), state["fixed"]
        found = dict(state)
        for name, logits in (("open", "gates"), ("kept", "channel_gates")):
            found[name] = torch.where(fixed > 0, state[name], _deployed(state[logits], temperature))
        found["fixed"] = torch.maximum(fixed, (controls["gates_fixed"] >= 0.5).to(w.dtype))
        return found

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        temperature = controls["gate_temperature"].to(w.dtype)
        gates, channels = (
            torch.where(state["fixed"] > 0, state[name], _drawn(state[logits], temperature, draw, logits))
            for name, logits in (("open", "gates"), ("kept", "channel_gates"))
        )
        seen = self._telescoped(w, state["range"], gates, channels)
        return torch.where(state["fixed"] > 0, self._on_its_grid(seen, w, state), seen)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, state, 0.5)

    def penalty(self, w: torch.Tensor, state: State, controls: Values) -> torch.Tensor | None:
        temperature = controls["gate_temperature"].to(w.dtype)
        q_4, q_8, q_16 = _probability(state["gates"], temperature).unbind()
        q_2 = _probability(state["channel_gates"], temperature).mean()
        expected = q_2 * (2 + q_4 * (4 + q_8 * (8 + 16 * q_16)))
        return controls["mu"].to(w.dtype) * self.cost * expected * (1 - state["fixed"])

    def gradient_factors(self, state: State) -> State:
        return {**self.quantizer.gradient_factors(state), "range": state["range_factor"]}

    def update_trainable(self, state: State, proposed: State, controls: Values) -> State:
        found = self.quantizer.in_bounds(proposed)
        still = {name: torch.where(state["fixed"] > 0, state[name], found[name]) for name in ("gates", "channel_gates")}
        return {**found, **still, "range": found["range"].clamp_min(SMALLEST)}

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        """The weight on the grid of its bits; rounding is straight through within the range, whatever ``surrogate``."""
        return self._on_its_grid(self._telescoped(w, state["range"], state["open"], state["kept"]), w, state)

    def bits_in(self, state: State, shape: Sequence[int]) -> float:
        """Bits of the deployed weight, averaged over its channels, of which pruned ones have 0."""
        return _width(state) * float(state["kept"].detach().mean())

    def storage(self, w: torch.Tensor, state: State) -> dict[str, tuple[int, int]]:
        """Indices of the channels that are kept, a bit a channel that says which, and the range; of a trained state."""
        kept = int((state["kept"] > 0.5).sum())
        return {"levels": (kept * w[0].numel(), _width(state)), "channels": (len(w), 1), "range": (1, 32)}

    def levels_of(self, state: State) -> torch.Tensor:
        """The values of the deployed weight, [1, 1, ..., 2^b - 1] for its b bits."""
        largest = 2 ** (_width(state) - 1) - 1
        step = self._step(state)
        return step[..., None] * torch.arange(-largest, largest + 1, dtype=step.dtype, device=step.device)

    def level_set_of(self, state: State) -> tuple[tuple[float, ...], torch.Tensor] | None:
        if _width(state) == WIDTHS[-1]:
            return None
        largest = 2 ** (_width(state) - 1) - 1
        return tuple(float(q) for q in range(-largest, largest + 1)), self._step(state).detach().clone()

    def _telescoped(
        self, w: torch.Tensor, reach: torch.Tensor, gates: torch.Tensor, channels: torch.Tensor
    ) -> torch.Tensor:
        x, step = _clipped(w, reach), 2 * reach / 3
        whole = step * _rounded(x / step)
        parts = [whole]
        for divisor in _DIVISORS:
            step = step / divisor
            part = step * _rounded((x - whole) / step)
            whole = whole + part
            parts.append(part)
        seen = parts[-1] * gates[-1]
        for gate, part in zip(gates[:-1].flip(0), reversed(parts[1:-1]), strict=True):
            seen = (seen + part) * gate
        return channels * (seen + parts[0])

    def _step(self, state: State) -> torch.Tensor:
        """s_b of the open gates, [1, 1, ...]."""
        step = 2 * state["range"] / 3
        through = torch.ones_like(state["open"][0])
        for gate, divisor in zip(state["open"].detach().unbind(), _DIVISORS, strict=True):
            through = through * gate  # a gate counts where those before it are open
            step = torch.where(through > 0.5, step / divisor, step)
        return step

    def _on_its_grid(self, seen: torch.Tensor, w: torch.Tensor, state: State) -> torch.Tensor:
        """s_b round(x / s_b), exactly, with the derivatives of ``seen``, which equals it up to rounding."""
        step = self._step(state)
        exact = state["kept"] * (step * torch.round(_clipped(w, state["range"]) / step))
        return exact.detach() + (seen - seen.detach())


def _clipped(w: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    top = reach * _INSIDE
    return torch.maximum(torch.minimum(w, top), -top)


def _rounded(u: torch.Tensor) -> torch.Tensor:
    """The nearest whole number, exactly, with derivative 1."""
    return torch.round(u).detach() + (u - u.detach())


def _probability(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """q, the probability that a gate is not 0."""
    return torch.sigmoid(logits - temperature * math.log(-_GAMMA / _ZETA))


def _deployed(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """1 for open gates, else 0, with the derivative of q."""
    q = _probability(logits, temperature)
    return (1 - q < _CUT).to(q.dtype) + (q - q.detach())


def _drawn(logits: torch.Tensor, temperature: torch.Tensor, draw: Draw, purpose: str) -> torch.Tensor:
    u = draw.uniform(purpose, logits).clamp(_LEAST, 1 - _LEAST)
    s = torch.sigmoid((u.log() - (1 - u).log() + logits) / temperature)
    return (s * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def _width(state: State) -> int:
    """Bits of the open gates."""
    bits = WIDTHS[0]
    for gate, width in zip(state["open"].tolist(), WIDTHS[1:], strict=True):
        if gate < 0.5:
            break
        bits = width
    return bits


def build(config: BayesianBitsConfig) -> BayesianBits:
    """The method of a configuration."""
    return BayesianBits(replace(layer_quantizer(config), scale="max"))
