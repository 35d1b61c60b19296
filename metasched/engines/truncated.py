"""Truncated unrolling: the run is cut into windows, and what a window's controls do is seen to its end only.

    sum over windows w of  d l_w / d (controls of w),    with the state at the start of w held constant

l_w is the outer loss after the judged steps of window w, their mean; where it has none, after its last step. Windows
have the same length, but for the first one, whose length is random, and the last one: so the cuts fall on other steps
in each inner run. One window's graph is kept at a time: memory does not grow with T. The value of the loss is that of
the run, as all other engines have it.
Biased towards short horizons: what a control costs now is seen, and what it brings after the window is not, so that
step sizes decay and noise falls too early (Wu et al., ICLR 2018, arXiv 1803.02021). The bias vanishes with the window
only where training forgets its past (Shaban et al., AISTATS 2019, arXiv 1810.10667).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from metasched.core.randomness import derive_seed
from metasched.engines.base import Controls, OuterLoss, Unrolled, dead_layers, judge, judged_steps
from metasched.network.quantize import rows
from metasched.training.step import InnerProblem, TrainingState, inner_step


def unroll(
    problem: InnerProblem, controls: Controls, outer: OuterLoss, window: int | None = None, offset: int | None = None
) -> Unrolled:
    """Train under the controls ({control: [T, L]}), with the derivative within windows.

    Args:
        problem: what is trained; tensors in its hyper-parameters that require gradients get one.
        controls: those that require gradients get one.
        outer: what is judged.
        window: steps in a window; None: a tenth of the run, at least 1. From T on nothing is cut: that is ``unroll``.
        offset: steps in the first window, 1 to ``window``; None: a random number, a function of the problem's seed.
    """
    window = window or max(1, problem.steps // 10)
    hyper = {name: v for name, v in problem.hyper.items() if isinstance(v, torch.Tensor)}
    inputs = [*controls.values(), *hyper.values()]
    leaves = [v.detach().requires_grad_(v.requires_grad) for v in inputs]
    own = dict(zip(controls, leaves, strict=False))
    problem = replace(problem, hyper={**problem.hyper, **dict(zip(hyper, leaves[len(own) :], strict=True))})
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    totals = [torch.zeros_like(leaf) for leaf in wanted]
    state = problem.initial(rows(own, 0))
    losses, scores, dead = [], [], 0
    for steps in windows(problem, window, offset):
        judged = [step for step in steps if step in judged_steps(problem, outer)]
        seen = []
        state = _with_leaves(state)
        for step in steps:
            now = rows(own, step)
            state, _, gradients = inner_step(problem, state, now, step, differentiable=True)
            dead += dead_layers(problem, gradients)
            if step in (judged or steps[-1:]):
                loss, score = judge(problem, outer, state, now, problem.network.call(problem.network.buffers()))
                seen.append(loss)
                if judged:
                    losses.append(loss.detach())
                    scores.append(score)
        _add_slopes(totals, torch.stack(seen).mean(), wanted)
        state = TrainingState(*({name: v.detach() for name, v in part.items()} for part in state))
    pairs = problem.steps * len(problem.network.layers)
    loss = _Slopes.apply(torch.stack(losses).mean(), totals, *(v for v in inputs if v.requires_grad))
    return Unrolled(loss, torch.stack(scores).mean(), dead / pairs)


def windows(problem: InnerProblem, window: int, offset: int | None) -> Iterator[range]:
    """The steps of each window, in order."""
    if offset is None:
        offset = 1 + derive_seed(problem.seed, "window") % window if window < problem.steps else window
    assert 1 <= offset <= window, (offset, window)
    for start in range(offset - window, problem.steps, window):
        yield range(max(start, 0), min(start + window, problem.steps))


def _with_leaves(state: TrainingState) -> TrainingState:
    """Parameters that require gradients, which the step takes; those of the very start may depend on the controls."""
    return state._replace(params={k: p if p.requires_grad else p.requires_grad_() for k, p in state.params.items()})


def _add_slopes(totals: Sequence[torch.Tensor], loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
    """Add the derivative of a window's loss, and free its graph."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else []
    for total, slope in zip(totals, found, strict=True):
        if slope is not None:
            total += slope


class _Slopes(torch.autograd.Function):
    """A loss whose derivatives in its inputs are known already."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, slopes: list[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.slopes = slopes
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        return None, None, *(seed * slope for slope in ctx.slopes)
