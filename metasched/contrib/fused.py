"""GXNOR training on packed weights with one fused operator: ``packed.train_packed`` in one pass over memory.

    unpack -> forward and backward pass -> for each quantized layer, kernels/transition.py on its packed states

The optimizer's update, the random numbers and the jump of a layer are never stored as tensors. Float weights exist
during a step, because the forward pass needs them. The uniform numbers are those of Philox for the layer's seed and the
step, on all devices. ``loop.train`` uses torch's generator, so its runs differ in random numbers and rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from metasched.contrib.kernels.coefficients import COEFFICIENTS
from metasched.contrib.kernels.transition import transition_step
from metasched.contrib.packed import PackedState, pack_state, unpack_state
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.methods.gxnor import GXNOR
from metasched.network.flat import ControlRow, rows
from metasched.training.loop import InnerRun
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.adamw import AdamW
from metasched.training.optimizers.base import Optimizer
from metasched.training.optimizers.sgd import SGD
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import evaluate, health_after, with_leaves

# optimizer -> its row in COEFFICIENTS, and the names of its moments
_OPTIMIZERS: dict[Optimizer, tuple[str, tuple[str, ...]]] = {
    SGD(): ("sgd", ("momentum_buffer",)),
    Adam(): ("adam", ("exp_avg", "exp_avg_sq")),
    AdamW(): ("adamw", ("exp_avg", "exp_avg_sq")),
}


def train_fused(problem: InnerProblem, controls: Mapping[str, torch.Tensor]) -> InnerRun:
    """Trains for T steps with the fused operator.

    Args:
        problem: inner problem in float32, with the method GXNOR.
        controls: {"temperature": [T, L]}.

    Returns:
        the final state and the losses [T].

    Raises:
        MetaschedError: the operator does not support the optimizer: clipping, groups or Nesterov's momentum.
    """
    if problem.optimizer not in _OPTIMIZERS:
        why = "is not supported by the fused operator, which has plain SGD, Adam and AdamW"
        raise MetaschedError("optimizer", why, "leave out clipping, groups and nesterov, or use train_packed")
    packed = pack_state(problem.network, problem.initial(rows(controls, 0)))
    losses = []
    for step in range(problem.steps):
        packed, loss = fused_step(problem, packed, rows(controls, step), step)
        losses.append(loss)
    return InnerRun(unpack_state(problem.network, packed), torch.stack(losses))


def fused_step(
    problem: InnerProblem, packed: PackedState, row: ControlRow, step: int
) -> tuple[PackedState, torch.Tensor]:
    """One step; changes the packed weights and their moments in place.

    Args:
        problem: inner problem in float32, with the method GXNOR.
        packed: state before the step.
        row: control -> [L], at this step.
        step: index of the step.

    Returns:
        the new state, which shares those tensors, and the detached loss, 0-d.
    """
    network = problem.network
    assert isinstance(network.method, GXNOR) and not network.methods, "the operator is GXNOR's transition"
    before = with_leaves(unpack_state(network, packed), keep_graph=False)
    loss, grads, buffers, method = evaluate(problem, before, row, step)
    hyper = problem.hyper_at(step)
    with torch.no_grad():
        rest, optimizer = problem.optimizer.update(packed.rest.params, grads, before.optimizer, hyper)
        name, names = _OPTIMIZERS[problem.optimizer]
        values = {key: float(value) for key, value in hyper.items()}
        coefficients = COEFFICIENTS[name](values, int(optimizer.get("step", 0)))
        for i, layer in enumerate(network.layers):
            key = layer.weight_key
            transition_step(
                packed.weights[key],
                grads[key],
                [optimizer[f"{moment}.{key}"] for moment in names][: coefficients.moments],
                coefficients,
                levels=network.method.quantizer.levels,
                scale=method[f"{layer.name}/scale"],
                temperature=row["temperature"][i],
                steepness=network.method.steepness,
                seed=derive_seed(problem.seed, "jump", i),
                offset=step,
            )
    health = health_after(before, [loss, *row.values(), *grads.values(), *rest.values(), *optimizer.values()])
    return PackedState(TrainingState(rest, buffers, optimizer, method, health), packed.weights), loss.detach()
