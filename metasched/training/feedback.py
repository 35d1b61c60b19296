"""What a run measures of itself, for closed-loop schedules (schedules/feedback.py), and the controls that follow.

After each step, with its loss x, the weights w before and after it, and T steps in the run:

    F <- F + r (x - F),   r = min(1, 20 / T)             the fast average, over a twentieth of the run; at first x
    S <- S + s (x - S),   s = min(1, 5 / T)              the slow one, over a fifth; at first x
    D  = mean min(|w - harden(w)|, q / 2) / (q / 2)      q: mean distance between neighbouring levels of the layer
    P <- P + r (p - P),   p = share of weights whose hardened value is another one after the step; at first p
    features (F - S) / (|F| + |S|),   2 D - 1,   (T P - 1) / (T P + 1)

so that they have no unit, and mean the same in runs of any length. Both hardenings are under the state after the step:
a scale that moves alone flips nothing. Nothing is differentiated. What is measured is a part of the state of a run, so
that a run that is stopped goes on with the same bits. A loss that is not finite changes no average: scalers leave such
steps out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from metasched.network.closed_loop import LAST
from metasched.network.flat import ControlRow, Tensors
from metasched.network.quantized import QuantizedNetwork
from metasched.schedules.feedback import corrected, gains_of, is_closed_loop, open_loop

FAST, SLOW = 1 / 20, 1 / 5  # spans of the averages, as shares of the run
_SURROGATE = 0.5  # of harden, whose derivative is not asked for


@dataclass(frozen=True)
class Controller:
    """How the controls of a run follow what it measures.

    Attributes:
        network: what is trained.
        steps: T.
    """

    network: QuantizedNetwork
    steps: int

    def row(self, row: ControlRow, measured: Tensors) -> Tensors:
        """The controls of a step, {control: [L]}.

        Args:
            row: open-loop values and gains, {control or control:feature: [L]}.
            measured: after the step before; {} before the first step, which plays the open-loop values.
        """
        values = open_loop(row)
        if not measured:
            return values
        features, gains = features_of(measured, self.steps), gains_of(row)
        for control in self.network.method.controls:
            if control.name in gains:
                last = measured[LAST + control.name]
                values[control.name] = corrected(control, values[control.name], gains[control.name], features, last)
        return values

    @torch.no_grad()
    def after(
        self,
        measured: Tensors,
        row: ControlRow,
        loss: torch.Tensor,
        before: Tensors,
        params: Tensors,
        state: Tensors,
    ) -> Tensors:
        """What is measured after a step: 0-d ``loss_fast``, ``loss_slow``; ``distance``, ``flips``, ``last/...`` [L].

        Args:
            measured: after the step before; {} at the first.
            row: the controls of the step, {control: [L]}.
            loss: of the step, 0-d.
            before: {weight: [...]}, of the quantized layers, before the step.
            params, state: parameters [...] and the method's state after it.
        """
        like = next(iter(row.values()))
        owns, distances, shares = self.network.owns(params, state), [], []
        for i, layer in enumerate(self.network.layers):
            method, own, w = self.network.method_of(i), owns[i], params[layer.weight_key].detach()
            # NaN: zeros in a channel whose scale is 0 as well
            hard, was = (method.harden(x, own, _SURROGATE).nan_to_num(0.0) for x in (w, before[layer.weight_key]))
            levels = method.levels_of(own)
            half = (levels[..., -1] - levels[..., 0]).mean() / (2 * max(1, levels.shape[-1] - 1))
            away = torch.minimum((w - hard).abs(), half).to(like).mean() / half.to(like)
            distances.append(torch.where(half > 0, away, 0.0))
            shares.append((hard != was).to(like).mean())
        flips, loss = torch.stack(shares), loss.detach().to(like)
        return {
            "loss_fast": _moved(measured.get("loss_fast", loss), loss, FAST, self.steps),
            "loss_slow": _moved(measured.get("loss_slow", loss), loss, SLOW, self.steps),
            "distance": torch.stack(distances),
            "flips": _moved(measured.get("flips", flips), flips, FAST, self.steps),
            **{LAST + name: v.detach() for name, v in row.items()},
        }


def controller_of(network: QuantizedNetwork, names: Collection[str], steps: int) -> Controller | None:
    """The controller of a run of so many steps under controls of these names; None where there are no gains."""
    return Controller(network, steps) if is_closed_loop(dict.fromkeys(names)) else None


def features_of(measured: Mapping[str, torch.Tensor], steps: int) -> torch.Tensor:
    """The features [features, L] of what was measured, in [-1, 1]; see the module's docstring."""
    fast, slow, codes = measured["loss_fast"], measured["loss_slow"], steps * measured["flips"]
    total = fast.abs() + slow.abs()
    trend = torch.where((total > 0) & total.isfinite(), (fast - slow) / total, 0.0)
    return torch.stack([trend.expand_as(codes), 2 * measured["distance"] - 1, (codes - 1) / (codes + 1)])


def _moved(average: torch.Tensor, x: torch.Tensor, span: float, steps: int) -> torch.Tensor:
    """An exponential average after another number, [...]; numbers that are not finite do not count."""
    average = torch.where(average.isfinite(), average, x)
    return torch.where(x.isfinite(), average + min(1.0, 1 / (span * steps)) * (x - average), average)
