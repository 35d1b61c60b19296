"""The estimator by forward mode: for each schedule parameter a run that carries its derivative along (tangent.py).

    d (outer loss) / d theta_j = slope of the outer loss along d controls / d theta_j

Exact for the relaxed problem with the noise floor, as reverse mode, and for any horizon in the memory of one step. Its
time is a run for each parameter, whatever the number of steps and layers: it is for families with a few parameters
(schedules/family.py), not for networks. Parameters that no control answers to get 0, without a run.
Source: Franceschi et al., ICML 2017, arXiv 1703.01785.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from metasched.engines.base import Diagnostics, Hypergradient, norm
from metasched.engines.tangent import Slope, tangents
from metasched.estimators.base import Estimate, State, Stateless
from metasched.estimators.reverse import Floored
from metasched.meta.config import MetaConfig
from metasched.network.flat import Tensors
from metasched.runs.local import Along, Runs
from metasched.schedules.base import progress_of_steps
from metasched.training.state import InnerProblem


@dataclass(frozen=True)
class Forward(Stateless):
    """One hypergradient for each seed.

    Attributes:
        noise_floor: see Reverse.
    """

    noise_floor: float | None

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        problem = runs.problem
        floored = Floored(schedule, problem.network.method.controls, self.noise_floor)
        controls, all_directions = directions(floored, problem)
        moving = [j for j, d in enumerate(all_directions) if any(bool(v.any()) for v in d.values())]
        asked = moving or [0]  # the loss is wanted in any case
        work = [Along(controls, all_directions[j], seed) for seed in seeds for j in asked]
        slopes = runs.slopes(work)
        found = []
        for r in range(len(seeds)):
            own = slopes[r * len(asked) : (r + 1) * len(asked)]
            found.append(_hypergradient(schedule, dict(zip(asked, own, strict=True))))
        notes = {"tangents": float(len(asked))}
        return Estimate(found, state, len(work) * problem.steps, notes)


def directions(schedule: nn.Module, problem: InnerProblem) -> tuple[Tensors, list[Tensors]]:
    """The controls {control: [T, L]}, and their derivatives in each element of the schedule's parameters, in order."""
    parameters = {name: p.detach() for name, p in schedule.named_parameters()}
    arguments = (progress_of_steps(problem.steps), problem.network.layers)
    found: list[Tensors] = []
    with torch.no_grad(), tangents():
        controls: Tensors = functional_call(schedule, parameters, arguments)
        for name, p in parameters.items():
            for unit in torch.eye(p.numel(), dtype=p.dtype, device=p.device):
                dual = {**parameters, name: forward_ad.make_dual(p, unit.reshape(p.shape))}
                values: Tensors = functional_call(schedule, dual, arguments)
                found.append({control: _tangent(v) for control, v in values.items()})
    return controls, found


def _tangent(value: torch.Tensor) -> torch.Tensor:
    tangent = forward_ad.unpack_dual(value).tangent
    return torch.zeros_like(value) if tangent is None else tangent


def _hypergradient(schedule: nn.Module, slopes: dict[int, Slope]) -> Hypergradient:
    """From {place of a parameter's element: slope} of one inner run; the others are 0."""
    parameters = list(schedule.parameters())
    flat = parameters[0].new_zeros(sum(p.numel() for p in parameters)).detach()
    for j, slope in slopes.items():
        flat[j] = slope.slope
    sizes = [p.numel() for p in parameters]
    one = next(iter(slopes.values()))
    diagnostics = Diagnostics(
        gradient_norm=norm([flat]),
        nonfinite=int((~torch.isfinite(flat)).sum()) + (not math.isfinite(one.loss)),
        dead_layers=one.dead_layers,
        seconds=sum(slope.seconds for slope in slopes.values()),
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        score=one.score,
        faults=tuple(dict.fromkeys(slope.fault for slope in slopes.values() if slope.fault)),
    )
    gradient = [part.reshape(p.shape) for part, p in zip(flat.split(sizes), parameters, strict=True)]
    return Hypergradient(one.loss, gradient, diagnostics)


def build(meta: MetaConfig) -> Forward:
    """As configured."""
    return Forward(meta.noise_floor)
