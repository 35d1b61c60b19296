"""Oscillation freezing: STE whose weights freeze when they oscillate between levels more often than a threshold.

At the start of a step, weight i has the level with the index k_i. It oscillates in this step, o_i = 1, if the index
changes and the change before it had the other direction. With the momentum m (``method.momentum``),

    f_i <- m o_i + (1 - m) f_i          frequency of oscillations
    a_i <- m k_i + (1 - m) a_i          mean index

and the weight freezes on level round(a_i), the mean before this step, as soon as f_i > ``freeze_threshold``. It is
never released. At the threshold 1 nothing freezes, and the method is STE bit for bit. A frozen weight keeps its level,
and its value follows a learned scale (held.py).

The threshold is compared with, not computed with: it has no derivative, and is learned by evolution strategies and
searches only.

Source: Nagel, Fournarakis, Bondarenko, Blankevoort, ICML 2022, arXiv 2203.11086, iterative weight freezing; code
Qualcomm-AI-research/oscillations-qat. We differ: levels are counted by index, so that they may be unevenly spaced, and
"off" is the threshold 1, where the code has 0. As in the paper a weight freezes before the forward pass of the step; in
the code after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metasched.core.randomness import Draw
from metasched.methods import held
from metasched.methods.base import Control, Method, State, Values
from metasched.methods.parameters import OscillationConfig
from metasched.methods.tensors import LayerQuantizer, layer_quantizer
from metasched.quantizers.constants import row
from metasched.quantizers.levels import LevelSet

FREEZE_THRESHOLD = Control(
    "freeze_threshold",
    1e-4,
    1.0,
    "oscillations per step",
    "free",
    end=None,
    gradient="none",
    scale="log",
    none_value=1.0,
)
_HALF_QUANTUM = 0.5


@dataclass(frozen=True)
class Oscillation(Method):
    """Oscillation freezing; see the module's docstring.

    Attributes:
        quantizer: level sets and scales.
        momentum: m in (0, 1), the weight of the present step in both means.
    """

    freezes: ClassVar = True

    quantizer: LayerQuantizer
    momentum: float = 0.01

    @property
    def controls(self) -> tuple[Control, ...]:
        return (FREEZE_THRESHOLD,)

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        w, trainable, state = self.quantizer.initialize(w, draw)
        none = torch.zeros_like(w)
        state |= {"frozen": none, "direction": none.clone(), "frequency": none.clone(), "level": none.clone()}
        state["level"] = held.levels_now(w, state | trainable, self.quantizer)
        state["mean"] = _index(state["level"], self.quantizer.levels)
        return w, trainable, state

    def prepare(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> State:
        """Counts the oscillations and freezes; each tensor of the new state but the scale has the shape of w."""
        levels, m = self.quantizer.levels, self.momentum
        index = _index(held.levels_now(w, state, self.quantizer), levels)
        change = (index - _index(state["level"], levels)).sign()
        frequency = torch.lerp(state["frequency"], (change * state["direction"] < 0).to(w.dtype), m)
        fresh = (frequency > controls["freeze_threshold"].detach()) & (state["frozen"] == 0)
        index = torch.where(fresh, state["mean"].round(), index)
        return {
            **state,
            "level": row(levels.levels, w)[index.long()],
            "frozen": torch.where(fresh, 1.0, state["frozen"]),
            "direction": torch.where(change != 0, change, state["direction"]),
            "frequency": frequency,
            "mean": torch.lerp(state["mean"], index, m),
        }

    def weight(self, w: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return held.seen(w, state, self.quantizer)

    def activation(self, x: torch.Tensor, state: State, controls: Values, draw: Draw) -> torch.Tensor:
        return self.quantizer.harden_activation(x, state, _HALF_QUANTUM)

    def update(
        self, w: torch.Tensor, proposed: torch.Tensor, state: State, controls: Values, draw: Draw
    ) -> tuple[torch.Tensor, State]:
        return torch.lerp(proposed, w, state["frozen"]), state  # lerp is exact at 0 and at 1

    def harden(self, w: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return held.deployed(self.quantizer.harden(w, state, surrogate), w, state, self.quantizer, surrogate)


def build(config: OscillationConfig) -> Oscillation:
    """The method of a configuration."""
    return Oscillation(layer_quantizer(config), config.momentum)


def _index(level: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """The indices of levels [...], in the dtype of ``level``."""
    thresholds = row(levels.thresholds, level)
    return torch.bucketize(level, thresholds, right=True).to(level.dtype)
