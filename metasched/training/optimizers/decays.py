"""Learning-rate curves: the factor on the learning rate at step t of T, after a linear warm-up.

A curve is a pure function of the step and the number of steps. Each equals a scheduler of torch.optim.lr_scheduler,
named in its docstring; u = t / (T - 1) is progress, and a run of one step is at its end (u = 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from metasched.core.lazy import origin

if TYPE_CHECKING:
    from metasched.training.optimizers.config import OptimizerConfig


def constant(step: int, steps: int) -> float:
    """1."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """(1 + cos(pi u)) / 2, as CosineAnnealingLR with T_max = T - 1.

    >>> [round(cosine(t, 5), 4) for t in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    return (1 + math.cos(math.pi * _progress(step, steps))) / 2


def linear(step: int, steps: int) -> float:
    """1 - u, as LinearLR from 1 to 0 in total_iters = T - 1.

    >>> [linear(t, 5) for t in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return 1 - _progress(step, steps)


def step(step: int, steps: int, *, step_every: float, step_gamma: float) -> float:
    """step_gamma^floor(t / k) with k = round(step_every T) steps, at least one; as StepLR with step_size k.

    >>> [step(t, 6, step_every=1 / 3, step_gamma=0.5) for t in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    return step_gamma ** (step // max(1, round(step_every * steps)))


def one_cycle(step: int, steps: int, *, pct_start: float, div_factor: float, final_div_factor: float) -> float:
    """As OneCycleLR with cosine annealing, of which the learning rate is max_lr; momentum is not cycled.

    From 1 / div_factor up to 1 at step pct_start T - 1, and down to 1 / (div_factor final_div_factor) at the last step
    (Smith and Topin, 2017, arXiv 1708.07120, with two phases and cosines for lines).

    >>> [round(one_cycle(t, 5, pct_start=0.6, div_factor=25, final_div_factor=1e4), 4) for t in range(5)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    low, top, end = 1 / div_factor, pct_start * steps - 1, steps - 1
    if step <= top:
        return _along_cosine(low, 1.0, step / top if top else 1.0)
    return _along_cosine(1.0, low / final_div_factor, (step - top) / (end - top))


class Decay(NamedTuple):
    """One row of the table of learning-rate curves.

    Attributes:
        name: ``optimizer.decay``.
        summary: the formula, or torch's scheduler.
        curve: (step, steps, fields as keywords) -> factor.
        reads: the fields of OptimizerConfig that the curve takes.
    """

    name: str
    summary: str
    curve: Callable[..., float]
    reads: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Where the curve is defined."""
        return origin(self.curve)


DECAYS: dict[str, Decay] = {
    row.name: row
    for row in (
        Decay("constant", "1", constant),
        Decay("cosine", "(1 + cos(pi u)) / 2", cosine),
        Decay("linear", "1 - u", linear),
        Decay("step", "StepLR of torch", step, ("step_every", "step_gamma")),
        Decay("one_cycle", "OneCycleLR of torch", one_cycle, ("pct_start", "div_factor", "final_div_factor")),
    )
}


def warmup_steps(warmup: float, steps: int) -> int:
    """W = round(warmup T), and at most T - 1: the steps of the warm-up.

    >>> warmup_steps(0.1, 100), warmup_steps(0.9, 1)
    (10, 0)
    """
    return min(round(warmup * steps), steps - 1)


def lr_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """The factor on the learning rate at step t = 0, ..., T - 1 of T.

        (t + 1) / (W + 1) in the warm-up of W steps, then the curve of ``config.decay`` at step t - W of T - W

    As SequentialLR of LinearLR (start_factor 1 / (W + 1), total_iters W) and the curve's scheduler, at milestone W.

    >>> from metasched.training.optimizers.config import OptimizerConfig
    >>> [round(lr_factor(OptimizerConfig(warmup=0.4, decay="linear"), t, 5), 4) for t in range(5)]
    [0.3333, 0.6667, 1.0, 0.5, 0.0]
    """
    rise, decay = warmup_steps(config.warmup, steps), DECAYS[config.decay]
    if step < rise:
        return (step + 1) / (rise + 1)
    return decay.curve(step - rise, steps - rise, **{name: getattr(config, name) for name in decay.reads})


def _progress(step: int, steps: int) -> float:
    return step / (steps - 1) if steps > 1 else 1.0


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
