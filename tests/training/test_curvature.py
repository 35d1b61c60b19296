"""Hutchinson's traces: exact for diagonal Hessians, within their standard error for others, and of whole networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from metasched import MethodConfig, build_problem, hessian_traces
from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed, generator
from metasched.network.flat import Tensors
from metasched.runs.config import RunConfig
from metasched.tasks.base import start
from metasched.tasks.config import TaskConfig
from metasched.training.curvature import initial_traces
from metasched.training.state import InnerProblem

SIZES = {"a": (2, 3), "b": (4,)}


def quadratic(hessian: torch.Tensor, at: Tensors) -> torch.Tensor:
    x = torch.cat([at[name].flatten() for name in SIZES])
    return x @ hessian @ x / 2


def points() -> Tensors:
    return {name: torch.randn(shape) for name, shape in SIZES.items()}


def symmetric(n: int) -> torch.Tensor:
    half = torch.randn(n, n)
    return half + half.T


@pytest.mark.parametrize("probes", [1, 3])
def test_a_diagonal_hessian_has_its_exact_traces(probes: int) -> None:
    curvature = torch.randn(10)
    found = hessian_traces(lambda at: quadratic(curvature.diag(), at), points(), probes=probes, seed=5)
    assert found["a"] == pytest.approx(float(curvature[:6].sum()), abs=1e-12)
    assert found["b"] == pytest.approx(float(curvature[6:].sum()), abs=1e-12)


def test_a_full_hessian_is_estimated_with_the_variance_that_the_docstring_has() -> None:
    hessian, probes, seeds = symmetric(10), 2, range(400)
    off = (hessian - hessian.diag().diag()).square()
    blocks = {"a": slice(0, 6), "b": slice(6, 10)}
    found = [hessian_traces(lambda at: quadratic(hessian, at), points(), probes=probes, seed=s) for s in seeds]
    for name, own in blocks.items():
        inside = float(off[own, own].sum())
        variance = (2 * inside + float(off[own].sum()) - inside) / probes
        values = torch.tensor([traces[name] for traces in found])
        true = float(hessian.diag()[own].sum())
        assert abs(float(values.mean()) - true) < 4 * math.sqrt(variance / len(seeds))
        assert 0.8 < float(values.var()) / variance < 1.25


def test_it_depends_on_its_seed_alone_and_keeps_the_tensors() -> None:
    hessian, at = symmetric(10), points()
    first = hessian_traces(lambda t: quadratic(hessian, t), at, probes=2, seed=1)
    torch.rand(7)
    assert hessian_traces(lambda t: quadratic(hessian, t), at, probes=2, seed=1) == first
    assert hessian_traces(lambda t: quadratic(hessian, t), at, probes=2, seed=2) != first
    assert not any(t.requires_grad for t in at.values())


def test_a_tensor_without_curvature_has_trace_0() -> None:
    tensors = {"w": torch.ones(3), "linear": torch.ones(2), "unused": torch.ones(2)}
    found = hessian_traces(lambda t: t["w"].pow(2).sum() + t["linear"].sum(), tensors, probes=2, seed=0)
    assert found == {"w": 6.0, "linear": 0.0, "unused": 0.0}
    assert hessian_traces(lambda t: t["w"].sum(), {"w": torch.ones(2)}, probes=1, seed=0) == {"w": 0.0}


def problem_of(model: str = "mlp") -> InnerProblem:
    of = Experiment(
        task=TaskConfig(model=model, width=6, steps=3, batch=16, train=64, validation=16, test=16),
        method=MethodConfig(name="temperature"),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(of.problem)


def test_the_traces_of_a_network_against_central_differences_of_its_gradients() -> None:
    """One batch and one probe: v . (g(w + h v) - g(w - h v)) / 2 h for the same signs v of all layers."""
    problem, h = problem_of(), 1e-5
    found = initial_traces(problem, probes=1, batches=1)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(problem.seed, "weights"))
        module = start(problem.task).double()
    params = {name: p.detach() for name, p in module.named_parameters()}
    keys = [layer.weight_key for layer in problem.network.layers]
    draws = generator(derive_seed(problem.seed, "traces", 0), "hutchinson", 0)
    signs = {key: 2.0 * torch.randint(2, params[key].shape, generator=draws) - 1 for key in keys}

    def slopes(way: float) -> list[torch.Tensor]:
        weights = {key: (params[key] + way * signs[key]).requires_grad_() for key in keys}
        buffers = {name: b.clone() for name, b in module.named_buffers()}

        def run(x: torch.Tensor) -> torch.Tensor:
            return functional_call(module, {**params, **weights, **buffers}, (x,))

        loss = problem.task.loss(run, problem.task.placed(problem.task.batch(problem.seed, 0)))
        return list(torch.autograd.grad(loss, list(weights.values())))

    assert list(found) == [layer.name for layer in problem.network.layers]
    for key, trace, up, down in zip(keys, found.values(), slopes(h), slopes(-h), strict=True):
        difference = float((signs[key] * (up - down)).sum()) / (2 * h)
        assert trace == pytest.approx(difference, rel=1e-5)
        assert abs(trace) > 1e-4


def test_measuring_changes_nothing() -> None:
    problem = problem_of("convnet")
    before = {name: b.clone() for name, b in problem.network.module.named_buffers()}
    state = torch.get_rng_state()
    first = initial_traces(problem, probes=1, batches=2)
    assert torch.equal(torch.get_rng_state(), state) and initial_traces(problem, probes=1, batches=2) == first
    assert all(torch.equal(b, before[name]) for name, b in problem.network.module.named_buffers())
    assert initial_traces(problem.with_seed(4), probes=1, batches=2) != first
