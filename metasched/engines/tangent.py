"""Forward mode: an inner run that carries the derivative of its state along one direction in its controls.

    s_{t+1} = f(s_t, c_t),    s'_{t+1} = (df/ds) s'_t + (df/dc) c'_t,    l' = (dl/ds) s'_T + (dl/dc) c'_{T-1}

by forward-mode automatic differentiation of the whole inner step, which takes a gradient itself: the tangents pass
through that too, and through the surrogate derivatives of quantizers as reverse mode has them (``_Stair.jvp``).
Exact: the product of reverse mode's derivative with the direction. Memory is that of one step, whatever T is.
Source: Franceschi et al., ICML 2017, arXiv 1703.01785, section 3.2; Micaelli and Storkey, 2021, arXiv 2007.07869.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from metasched.core.errors import MetaschedError
from metasched.engines.base import Controls, OuterLoss, check_open_loop, dead_layers, judge, judged_steps
from metasched.network.flat import Tensors
from metasched.training.faults import Fault
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step


class Slope(NamedTuple):
    """The derivative of one inner run's outer loss along a direction in its controls.

    Attributes:
        loss, score: of the judged network on the meta-validation split.
        slope: d loss / d h of the run under controls + h direction, at h = 0.
        dead_layers: share of (step, layer) pairs in which no gradient reached the layer's weights.
        seconds: wall time.
        fault: where a number first was not finite, if one was.
    """

    loss: float
    score: float
    slope: float
    dead_layers: float
    seconds: float
    fault: Fault | None = None


def slope_along(problem: InnerProblem, controls: Controls, direction: Controls, outer: OuterLoss) -> Slope:
    """Train under the controls ({control: [T, L]}) with a tangent that starts from ``direction``, of the same shapes.

    Raises:
        MetaschedError: the model has an operation that torch cannot differentiate forward, or controls have gains.
    """
    check_open_loop(controls)
    start = time.perf_counter()
    like = next(problem.network.module.parameters())
    duals: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
        name: (v.detach().to(like), direction[name].detach().to(like)) for name, v in controls.items()
    }
    judged: _Judged = []
    dead = 0
    try:
        with tangents():
            state = _parted(problem.initial(_row(duals, 0)))
        for step in range(problem.steps):
            state, found, layers = _take(problem, outer, state, duals, step)
            judged += found
            dead += layers
    except NotImplementedError as error:
        why = str(error).partition("\n")[0]
        fix = "set meta.estimator to sweep"
        raise MetaschedError("model", f"has an operation without a forward derivative ({why})", fix) from error
    loss, score, slope = (float(torch.stack(values).mean()) for values in zip(*judged, strict=True))
    pairs = problem.steps * len(problem.network.layers)
    return Slope(loss, score, slope, dead / pairs, time.perf_counter() - start)


@contextmanager
def tangents() -> Iterator[None]:
    """Within: tensors can carry tangents (``torch.autograd.forward_ad``)."""
    with forward_ad.dual_level():
        with warnings.catch_warnings():  # torch loads its forward formulas at first use, by a function it deprecates
            warnings.simplefilter("ignore", FutureWarning)
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
        yield


_Dual = tuple[torch.Tensor, torch.Tensor | None]  # value and tangent
_Parted = list[dict[str, _Dual]]  # the parts of a state
_Judged = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # loss, score and slope


def _take(
    problem: InnerProblem,
    outer: OuterLoss,
    state: _Parted,
    duals: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    step: int,
) -> tuple[_Parted, _Judged, int]:
    """One step: the state after it, the judgement if there is one, and the number of dead layers."""
    # a level of its own: a tangent and its graph can hold each other until their level ends
    with tangents():
        row = _row(duals, step)
        after, _, gradients = inner_step(problem, _whole(state), row, step, differentiable=True)
        judged: _Judged = []
        if step in judged_steps(problem, outer):
            with torch.no_grad():
                loss, score = judge(problem, outer, after, row, problem.network.call(problem.network.buffers()))
            value, slope = forward_ad.unpack_dual(loss)
            judged.append((value, score, torch.zeros_like(loss) if slope is None else slope))
        return _parted(after), judged, dead_layers(problem, gradients)


def _row(duals: Mapping[str, tuple[torch.Tensor, torch.Tensor]], step: int) -> Tensors:
    return {name: _joined(value[step], tangent[step]) for name, (value, tangent) in duals.items()}


def _joined(value: torch.Tensor, tangent: torch.Tensor | None) -> torch.Tensor:
    return value if tangent is None else forward_ad.make_dual(value, tangent)


def _parted(state: TrainingState) -> _Parted:
    """Values and tangents, without the graph of the step."""

    def parts(value: torch.Tensor) -> _Dual:
        primal, tangent = forward_ad.unpack_dual(value)
        return primal.detach(), None if tangent is None else tangent.detach()

    return [{name: parts(value) for name, value in part.items()} for part in state]


def _whole(parted: _Parted) -> TrainingState:
    """The state with its tangents; parameters require gradients, which the step takes."""
    for value, _ in parted[0].values():
        value.requires_grad_()
    return TrainingState(*({name: _joined(*dual) for name, dual in part.items()} for part in parted))
