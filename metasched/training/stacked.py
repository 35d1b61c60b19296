"""Many inner runs of one problem at once: torch.vmap over a stacked state.

    s_{t+1}[i] = f(s_t[i], c_t[i], seed[i]),   i = 1 ... N,   by the operations of one step on tensors [N, ...]

The forward pass is mapped; the gradients are those of the sum of the losses, in which each run has a term of its own.
The runs share the optimizer's hyper-parameters. A rule that is elementwise works on the stacked tensors; others, such
as clipping by the norm of a run's gradients, are mapped too. Batches and draws are those of each run's seed. So the
numbers are those of the loop up to rounding, and on the CPU, where ``mapping_pays``, the same bits for the models of
this package (logistic noise: with batches of multiples of 16). On a GPU a step is recorded and replayed (replayed.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from metasched.io.environment import cpu_model
from metasched.methods.base import Evaluating
from metasched.schedules.feedback import is_closed_loop
from metasched.training.loop import train
from metasched.training.replayed import stacked_steps
from metasched.training.stacked_norm import with_mapped_norms
from metasched.training.state import InnerProblem, TrainingState

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LANES = 8  # channels that the CPU normalizes together; it rounds the rest in another way
_SMALL = 100_000  # parameters
_FEW = 4  # runs


def mapping_pays(problem: InnerProblem, runs: int) -> bool:
    """Whether so many runs are faster mapped than one after the other, with the same numbers.

    On a GPU always. On the CPU from 4 runs of networks of at most 100,000 parameters, which spend their time between
    the operations (measured: docs/hypergradients.md), without convolutions, and with batch normalizations of multiples
    of 8 channels: the last bits of others, and of products under autocast, depend on how many runs are mapped; and so
    they do on other processors than Intel's. Nowhere if the method evaluates the loss, or if the task cannot be
    mapped (examples on disk, users' tasks).
    """
    module = problem.network.module
    if isinstance(problem.network.method, Evaluating) or not problem.task.maps:
        return False
    if next(module.parameters()).device.type != "cpu":
        return runs > 1
    small = sum(p.numel() for p in module.parameters()) <= _SMALL
    exact = products_keep_bits() and all(_same_bits_mapped(m) for m in module.modules())
    return runs >= _FEW and small and not problem.autocast and exact


def gradient_mapping_pays(problem: InnerProblem, runs: int) -> bool:
    """Whether so many hypergradients are done by one mapped sweep: on a GPU, where ``mapping_pays``.

    Not on a CPU: the last bits of sums over runs would depend on how many runs a process is given.
    """
    device = next(problem.network.module.parameters()).device
    return device.type != "cpu" and mapping_pays(problem, runs)


@cache
def products_keep_bits() -> bool:
    """Whether the CPU's products of many matrices have the bits of the products one by one.

    Seen on Intel's processors, and not on an AMD EPYC, where products go other ways through the same library.
    """
    return "Intel" in cpu_model()


def _same_bits_mapped(m: nn.Module) -> bool:
    if isinstance(m, nn.modules.batchnorm._BatchNorm):
        return m.num_features % _LANES == 0
    return not isinstance(m, _CONVOLUTIONS)


def train_each(
    problem: InnerProblem, controls: Mapping[str, torch.Tensor], seeds: Sequence[int]
) -> list[TrainingState]:
    """The states after T steps from each seed under the same controls ({control: [T, L]}), mapped where that pays.

    Runs under a closed-loop schedule are not mapped.
    """
    if mapping_pays(problem, len(seeds)) and not is_closed_loop(controls):
        try:
            end = train_mapped(problem, {n: v.expand(len(seeds), *v.shape) for n, v in controls.items()}, seeds)
            return [of_run(end, i) for i in range(len(seeds))]
        except RuntimeError:  # what torch.vmap refuses; any other reason comes up again below
            pass
    return [train(problem.with_seed(seed), controls).state for seed in seeds]


def train_mapped(problem: InnerProblem, controls: Mapping[str, torch.Tensor], seeds: Sequence[int]) -> TrainingState:
    """Train for T steps from each seed, all at once.

    Args:
        problem: what all runs train; its own seed plays no part.
        controls: {control: [N, T, L]}.
        seeds: N of them.

    Returns:
        the stacked state (see ``stacked``); ``of_run`` takes one out of it.

    Raises:
        RuntimeError: torch.vmap refuses the model or the method: one that looks at values, or draws random numbers
            from torch's global generator (dropout).
    """
    problem, each = mappable(problem), torch.tensor(seeds, dtype=torch.int64)
    first = [{name: v[i, 0] for name, v in controls.items()} for i in range(len(seeds))]
    state = stacked(problem, [problem.with_seed(s).initial(f) for s, f in zip(seeds, first, strict=True)])
    by_step = {name: v.transpose(0, 1) for name, v in controls.items()}
    for done in stacked_steps(problem, state, by_step, range(problem.steps), each):
        state = done.state
    return state


def mappable(problem: InnerProblem) -> InnerProblem:
    """The problem for stacked runs: its batch normalizations are rounded under torch.vmap as they are without it."""
    return replace(problem, network=replace(problem.network, module=with_mapped_norms(problem.network.module)))


def stacked(problem: InnerProblem, states: Sequence[TrainingState]) -> TrainingState:
    """One state of all runs, [N, ...] each tensor, from theirs after the same number of steps.

    What the optimizer has once for all parameters, such as the number of steps, stays as it is.
    """
    params, buffers, own, method, health, measured = (
        {name: torch.stack([part[name] for part in parts]) for name in parts[0]} for parts in zip(*states, strict=True)
    )
    optimizer = {
        name: own[name] if t.dim() else states[0].optimizer[name] for name, t in problem.optimizer.init(params).items()
    }
    return TrainingState(params, buffers, optimizer, method, health, measured)


def of_run(state: TrainingState, run: int) -> TrainingState:
    """The state of one run out of a stacked one."""
    return TrainingState(*({name: t[run].clone() if t.dim() else t for name, t in part.items()} for part in state))
