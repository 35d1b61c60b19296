"""PARQ: torchao's map and slopes, STE at 0 to the last bit, derivatives in the inverse slope."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from metasched import build_method, build_problem, find_unroll, hand_coded, progress_of_steps, train
from metasched.config.schema import Experiment
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.engines import UNROLLS
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.finite_differences import TOLERANCE, error_against_differences, outer_loss
from metasched.engines.tangent import slope_along
from metasched.methods.config import MethodConfig
from metasched.methods.parq import prox
from metasched.quantizers.hard import hard
from metasched.quantizers.levels import level_set
from metasched.quantizers.straight import straight_through
from metasched.runs.config import RunConfig
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem

DRAW = Draw(0, 0, 0)
LEARNED = {"scale": "learned", "activation_scale": "learned", "granularity": "channel"}
SCALES = {"fixed": {"scale": "max"}, "learned": LEARNED}
scales = pytest.mark.parametrize("own", SCALES.values(), ids=SCALES)
LAYERS = [Layer(f"l{i}", i / 2, "conv", "weight+activation", 9, 81, 1.585) for i in range(3)]


def problem_of(name: str, steps: int = 5, optimizer: str = "adam", **method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=steps, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name=optimizer, lr=0.05, eps=1e-3),
        method=MethodConfig(name=name, **method),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(3)


def torchao_parq() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.prototype.parq.optim.parq")


@pytest.mark.parametrize("levels", ["ternary", "binary", "int3", "pow2_4"])
@pytest.mark.parametrize("steepness", [1, 10, 20])
def test_it_is_the_map_of_torchao_at_each_step(levels: str, steepness: int) -> None:
    theirs = torchao_parq().ProxPARQ(anneal_start=0, anneal_end=50, steepness=steepness)
    grid = level_set(levels)
    schedule = hand_coded("parq")[f"parq_sigmoid_{steepness}"](progress_of_steps(51), LAYERS)["inverse_slope"]
    z = 2.5 * torch.randn(400)
    for step in range(51):
        p = z.float()  # theirs works in float32
        slope = theirs.apply_(p, None, torch.tensor(grid.levels, dtype=torch.float32), step)
        assert slope == pytest.approx(float(schedule[step, 0]), abs=1e-12)
        mine = prox(z, grid, schedule[step, 1])
        assert torch.allclose(mine, p.double(), rtol=0, atol=1e-6 / max(float(schedule[step, 0]), 1e-2))
    assert torch.equal(mine, hard(z, grid))


def test_the_map_and_its_derivatives_by_hand() -> None:
    """Ternary, between 0 and 1: clip(1/2 + (z - 1/2) / rho, 0, 1)."""
    method = build_method(MethodConfig(name="parq", scale="max"))
    w = torch.tensor([[0.1, 0.4, 0.55, 0.9, -0.4, 1.7]], requires_grad=True)
    rho, state = torch.tensor(0.5, requires_grad=True), {"scale": torch.ones(1, 1)}
    seen = method.weight(w, state, {"inverse_slope": rho}, DRAW)
    assert torch.allclose(seen, torch.tensor([[0.0, 0.3, 0.6, 1.0, -0.3, 1.0]]))
    weights = torch.tensor([[2.0, 3.0, 5.0, 7.0, 11.0, 13.0]])
    of_w, of_rho = torch.autograd.grad((seen * weights).sum(), [w, rho])
    assert torch.equal(of_w, weights * torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]))
    assert float(of_rho) == pytest.approx(-(3 * -0.1 + 5 * 0.05 + 11 * 0.1) / 0.25)
    assert torch.autograd.gradcheck(lambda rho: prox(w.detach(), level_set("ternary"), rho), rho)


@pytest.mark.parametrize("levels", ["ternary", "int3", "pow2_3"])
def test_it_goes_from_the_identity_to_hard(levels: str) -> None:
    grid, z = level_set(levels), 3 * torch.randn(300)
    assert torch.allclose(prox(z, grid, torch.tensor(1.0)), z.clamp(grid.levels[0], grid.levels[-1]))
    assert torch.equal(prox(z, grid, torch.tensor(0.0)), hard(z, grid))
    apart = [float((prox(z, grid, torch.tensor(rho)) - hard(z, grid)).abs().mean()) for rho in (1.0, 0.5, 0.1, 1e-6)]
    assert apart == sorted(apart, reverse=True) and apart[-1] < 1e-5
    mapped = torch.vmap(lambda rho: prox(z, grid, rho))(torch.tensor([0.0, 0.3]))
    assert torch.equal(mapped[0], hard(z, grid)) and torch.equal(mapped[1], prox(z, grid, torch.tensor(0.3)))


@scales
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_at_0_it_is_ste_to_the_last_bit(optimizer: str, own: dict[str, Any]) -> None:
    ours, floor = (problem_of(name, optimizer=optimizer, **own) for name in ("parq", "ste"))
    (control,) = ours.network.method.controls
    schedule = hand_coded("parq")["parq_none"](progress_of_steps(5), ours.network.layers)
    assert bool((schedule[control.name] == control.none_value).all())
    mine, theirs = train(ours, schedule), train(floor, {})
    assert torch.equal(mine.losses, theirs.losses)
    assert all(torch.equal(p, mine.state.params[n]) for n, p in theirs.state.params.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", UNROLLS)
def test_the_slope_of_the_first_step_is_that_of_central_differences(engine: str, optimizer: str) -> None:
    """At rho = 1 the derivative in w is the true one: what follows the first step is smooth."""
    problem = problem_of("parq", 3, optimizer, scale="max", activation_levels=None)
    size = len(problem.network.layers)
    controls, outer = {"inverse_slope": torch.ones(3, size)}, OuterLoss("relaxed")
    controls["inverse_slope"][0] = torch.linspace(0.4, 0.8, size)
    slope = control_gradient(find_unroll(engine), problem, controls, outer).wrt["inverse_slope"][0]
    for i in range(size):
        direction = torch.zeros(3, size)
        direction[0, i] = 1.0

        def along(h: float, direction: torch.Tensor = direction) -> float:
            return outer_loss(problem, {"inverse_slope": controls["inverse_slope"] + h * direction}, outer)

        error = error_against_differences(along, float(slope[i]))
        assert slope[i] != 0 and error is not None and error <= TOLERANCE


@scales
def test_forward_mode_and_stacked_runs_agree(own: dict[str, Any]) -> None:
    problem = problem_of("parq", **own)
    controls = {"inverse_slope": 0.3 + 0.5 * torch.rand(5, len(problem.network.layers))}
    direction = {"inverse_slope": torch.rand_like(controls["inverse_slope"])}
    reverse = control_gradient(find_unroll("sweep"), problem, controls, OuterLoss("hardened")).wrt
    expected = float((reverse["inverse_slope"] * direction["inverse_slope"]).sum())
    assert slope_along(problem, controls, direction, OuterLoss("hardened")).slope == pytest.approx(expected, rel=1e-9)
    states = train_mapped(problem, {name: torch.stack([v, v]) for name, v in controls.items()}, [3, 8])
    for i, seed in enumerate((3, 8)):
        alone, one = train(problem.with_seed(seed), controls).state, of_run(states, i)
        assert all(torch.allclose(one.params[n], p, rtol=0, atol=1e-9) for n, p in alone.params.items())


def test_activations_are_those_of_ste() -> None:
    method, x = build_method(MethodConfig(name="parq")), torch.randn(30)
    assert torch.equal(method.activation(x, {}, {}, DRAW), straight_through(x, level_set("ternary"), 0.5))
