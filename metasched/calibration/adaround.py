"""AdaRound after training: whether each weight is rounded down or up is trained on the outputs of a layer or block.

The inner run is that of the method ``adaround`` (methods/adaround.py) on the unit's reconstruction; its penalty follows
a schedule. By block, all layers of the block are trained together on the block's outputs.

Source: Nagel et al., ICML 2020, arXiv 2004.10568, section 3; by block: Li et al., BRECQ, ICLR 2021, arXiv 2102.05426.
We differ: fewer and larger steps by default (1,000 with a learning rate of 0.03; the paper has 10,000 with 0.001); and
the nearest levels are kept where they give a smaller error on the calibration data, channel by channel for a layer.
"""

from __future__ import annotations

from typing import Any

import torch

from metasched.calibration.nearest import nearest
from metasched.calibration.reconstruction import reconstruction
from metasched.calibration.table import AdaRoundOptions
from metasched.calibration.unit import Rounded, Unit
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.exchange.played import check_open_loop, for_task
from metasched.exchange.player import load
from metasched.methods.adaround import ROUNDING, rectified
from metasched.methods.oriented import Oriented
from metasched.network.flat import Tensors, rows
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.training.faults import broken
from metasched.training.features import features_of_inner
from metasched.training.loop import take_steps
from metasched.training.state import InnerProblem, TrainingState

_RESOLVED = 0.01  # an h nearer to 0 or 1 than this counts as decided


def adaround(unit: Unit, options: AdaRoundOptions) -> list[Rounded]:
    """The layers of the unit as AdaRound leaves them, or on their nearest levels where these are better (``kept``).

    Raises:
        MetaschedError: there is no such schedule, it is of another method, or training went to numbers that are not
            finite.
    """
    problem = reconstruction(unit, steps=options.steps, lr=options.lr, batch=options.batch, seed=options.seed)
    state = trained(problem, load(options.schedule), options.schedule, unit)
    plain, hard, soft = nearest(unit), hard_weights(problem, state), soft_weights(problem, state)
    apart = unit.distance(unit.outputs(soft), unit.outputs(hard))
    rounded = [
        Rounded(
            base.method,
            w,
            base.state,
            {"undecided": undecided(state.params[f"{layer.name}/{ROUNDING}"]), "soft_to_hard": apart},
        )
        for layer, w, base in zip(unit.layers, hard, plain, strict=True)
    ]
    return kept(unit, rounded, plain)


def kept(unit: Unit, rounded: list[Rounded], plain: list[Rounded]) -> list[Rounded]:
    """The rounded layers, or the plain ones where these have smaller errors: by channel if the unit is one layer."""
    errors = [unit.by_channel(unit.outputs(r.weight for r in some)) for some in (rounded, plain)]
    first, method = rounded[0], unit.methods[0]
    turned = method.turned if isinstance(method, Oriented) else lambda w: w
    rows = [turned(some[0].weight) for some in (rounded, plain)]
    if len(rounded) > 1 or len(rows[0]) != unit.channels:
        return rounded if float(errors[0].sum()) <= float(errors[1].sum()) else plain
    better = (errors[0] <= errors[1]).reshape(-1, *[1] * (rows[0].dim() - 1))
    return [first._replace(weight=turned(torch.where(better, *rows)).contiguous())]


def trained(problem: InnerProblem, schedule: Schedule, name: str, unit: Unit) -> TrainingState:
    """The state after training under a schedule.

    Raises:
        MetaschedError: the schedule lacks a control, or numbers are not finite.
    """
    controls = played(problem, schedule, name)
    state = problem.initial(rows(controls, 0))
    for done in take_steps(problem, state, controls, range(problem.steps)):
        state = done.state
        unit.tick((done.step + 1) / problem.steps)
    if broken(state):
        fix = "lower the learning rate, or the penalty of the schedule"
        raise MetaschedError(f"calibrate: {unit.name}", "training went to numbers that are not finite", fix)
    return state


def played(problem: InnerProblem, schedule: Schedule, name: str) -> Tensors:
    """The values {control: [T, L]} of a schedule for the layers of a problem, in the dtype of its weights.

    Raises:
        MetaschedError: the schedule lacks a control, or is closed-loop.
    """
    check_open_loop(schedule, "calibrate: schedule")
    own = for_task(schedule, lambda: features_of_inner(problem))
    with torch.no_grad():
        values: Any = own(progress_of_steps(problem.steps), problem.network.layers)
    for control in problem.network.method.controls:
        if control.name not in values:
            lacks = f"{name!r} lacks {control.name}"
            raise MetaschedError("calibrate: schedule", lacks, "name one of `metasched list --method adaround`")
    like = next(problem.network.module.parameters())
    return {control.name: values[control.name].to(like) for control in problem.network.method.controls}


def hard_weights(problem: InnerProblem, state: TrainingState) -> list[torch.Tensor]:
    """The deployed weight of each layer, as its module has it."""
    with torch.no_grad():
        hard = problem.network.harden(state.params, state.method)
    return [hard[layer.weight_key].detach() for layer in problem.network.layers]


def soft_weights(problem: InnerProblem, state: TrainingState) -> list[torch.Tensor]:
    """The weight of each layer as training saw it last, as its module has it."""
    network, found = problem.network, []
    with torch.no_grad():
        for i, (layer, own) in enumerate(zip(network.layers, network.owns(state.params, state.method), strict=True)):
            w = state.params[layer.weight_key]
            found.append(network.method_of(i).weight(w, own, {}, Draw(problem.seed, problem.steps, i)))
    return found


def undecided(v: torch.Tensor) -> float:
    """Share of the V [...] whose h(V) is neither 0 nor 1, up to 0.01."""
    h = rectified(v.detach())
    return float(((h > _RESOLVED) & (h < 1 - _RESOLVED)).double().mean())
