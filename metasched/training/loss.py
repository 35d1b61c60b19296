"""The training loss of one step: its batch, its draws, its precision and the method's penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from metasched.core.errors import MetaschedError
from metasched.network.flat import Call, ControlRow, Tensors
from metasched.schedules.feedback import is_closed_loop
from metasched.training.state import InnerProblem, TrainingState, own_draws


def precise(problem: InnerProblem, call: Call) -> Call:
    """``call(params, ...)`` in the problem's precision; inputs, parameters and outputs have the problem's dtype.

    Under autocast products are computed in bfloat16, which has 8 bits: quantized values -1, 0 and 1 are exact in it,
    and so are powers of two as scales; other scales are rounded, by up to 2^-8 of their size.
    """
    if not problem.autocast:
        return call

    def cast(params: Tensors, *args: Any, **kwargs: Any) -> Any:
        like = next(iter(params.values()))
        # each weight is used once a pass: a cache of casts would save nothing
        with torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False):
            outputs = call(params, *args, **kwargs)
            return tree_map(lambda y: y.to(like.dtype) if _floating(y) else y, outputs)

    return cast


def _floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def training_loss(
    problem: InnerProblem,
    state: TrainingState,
    controls: ControlRow,
    step: int,
    call: Call | None = None,
) -> tuple[torch.Tensor, Tensors]:
    """The loss, 0-d, that the optimizer sees at this step (penalty included), and the method state prepared for it.

    ``controls`` are those of the step, {control: [L]}.

    ``call(params, ...)`` runs the module; default: torch.func.functional_call with the state's buffers, which batch
    normalization updates in place.

    Raises:
        MetaschedError: there are gains among the controls, of a closed-loop schedule, which ``take_steps`` turns into
            values.
    """
    if is_closed_loop(controls):
        wrong = "is closed-loop, and this loop does not measure it"
        raise MetaschedError("schedule", wrong, "train with metasched.train, or under an open-loop schedule")
    network = problem.network
    method = network.prepare(state.params, state.method, controls, problem.seed, step)
    run = precise(problem, call or network.call(state.buffers))
    with own_draws(problem, step):
        batch = problem.task.placed(problem.task.batch(problem.seed, step))
        model, penalty = network.model(run, state.params, method, controls, problem.seed, step)
        loss = problem.task.loss(model, batch)
    return (loss if penalty is None else loss + penalty), method
