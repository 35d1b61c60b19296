"""Traces of the Hessian of a loss, one for each tensor, by Hutchinson's estimator.

With random signs v (Rademacher) for all tensors at once, and the Hessian H of the loss in all of them,

    Tr H_l ~ mean over probes of v_l . (H v)_l

A probe is one Hessian-vector product for all tensors, the derivative of v . grad. The estimate is without bias, exact
where H is diagonal, and its variance is that of the off-diagonal elements of the rows of l:

    Var = (2 sum_{i != j, both in l} H_ij^2 + sum_{i in l, j not in l} H_ij^2) / probes

Source: Hutchinson, Communications in Statistics 19(2), 1990; for layers of networks HAWQ-V2, Dong et al., NeurIPS 2020,
arXiv 1911.03852.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call

from metasched.core.randomness import derive_seed, generator
from metasched.network.flat import Tensors
from metasched.tasks.base import start
from metasched.training.state import InnerProblem, own_draws

PROBES, BATCHES = 20, 5  # of initial_traces: new probes on each batch


def hessian_traces(
    loss: Callable[[Tensors], torch.Tensor], tensors: Tensors, *, probes: int, seed: int
) -> dict[str, float]:
    """The estimated trace of each tensor's block of the Hessian of a loss.

    Args:
        loss: from tensors of these names and shapes to the loss, 0-d, twice differentiable by torch.
        tensors: where the Hessian is taken, [...] each, floating.
        probes: number of random vectors, at least 1.
        seed: of these.

    Returns:
        {name: trace}, in the unit of the loss over the square of the tensor's.

    >>> curvature = torch.tensor([1.0, 2.0, 3.0])
    >>> hessian_traces(lambda t: (curvature * t["w"] ** 2).sum() / 2, {"w": torch.zeros(3)}, probes=1, seed=0)
    {'w': 6.0}
    """
    assert probes >= 1, probes
    at = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    slopes = torch.autograd.grad(loss(at), list(at.values()), create_graph=True, allow_unused=True)
    linear = [g is None or not g.requires_grad for g in slopes]  # a tensor in which the loss is linear or constant
    totals = dict.fromkeys(at, 0.0)
    for probe in range(probes):
        draws = generator(seed, "hutchinson", probe)
        signs = [(2 * torch.randint(2, t.shape, generator=draws) - 1).to(t) for t in at.values()]
        along = [(g * v).sum() for g, v, flat in zip(slopes, signs, linear, strict=True) if g is not None and not flat]
        if not along:
            break
        products = torch.autograd.grad(
            torch.stack(along).sum(), list(at.values()), retain_graph=True, allow_unused=True
        )
        for name, v, product in zip(at, signs, products, strict=True):
            totals[name] += 0.0 if product is None else float((v * product).sum()) / probes
    return totals


def initial_traces(problem: InnerProblem, probes: int = PROBES, batches: int = BATCHES) -> dict[str, float]:
    """The trace of the weight of each quantized layer, in the float network before training: {layer: trace}.

    The mean over the first training batches of the problem's seed, with new probes on each. The network is the task's
    own: its initial weights, drawn or pretrained, and nothing quantized.

    Args:
        problem: task, layers and seed.
        probes: Hessian-vector products on each batch.
        batches: training batches.
    """
    like = next(problem.network.module.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(problem.seed, "weights"))
        module = start(problem.task).to(like)
    keys = {layer.name: layer.weight_key for layer in problem.network.layers}
    params = {name: p.detach() for name, p in module.named_parameters()}
    found = dict.fromkeys(keys, 0.0)
    for step in range(batches):
        batch = problem.task.placed(problem.task.batch(problem.seed, step))
        buffers = {name: b.clone() for name, b in module.named_buffers()}

        def loss(weights: Tensors, batch: object = batch, buffers: Tensors = buffers) -> torch.Tensor:
            whole = {**params, **weights, **buffers}
            return problem.task.loss(lambda *args, **kwargs: functional_call(module, whole, args, kwargs), batch)

        with own_draws(problem, step):
            seed = derive_seed(problem.seed, "traces", step)
            traces = hessian_traces(loss, {key: params[key] for key in keys.values()}, probes=probes, seed=seed)
        for name, key in keys.items():
            found[name] += traces[key] / batches
    return found
