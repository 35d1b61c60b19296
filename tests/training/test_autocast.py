"""bfloat16 autocast in the forward pass: what stays in float32, what the numbers owe to it, and where it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metasched.commands.check import small
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors, rows
from metasched.runs.cells import cell_score, played
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training import loop
from metasched.training.loss import training_loss
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem, TrainingState
from metasched.training.step import inner_step

STEPS = 4
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)


def experiment(method: str = "joint", device: str = "cpu", **run: Any) -> Experiment:
    return Experiment(
        task=TaskConfig(width=4, steps=STEPS, batch=32, train=128, validation=64, test=64),
        optimizer=OptimizerConfig(lr=0.01),
        method=MethodConfig(name=method, forward="expectation", noise="normal")  # type: ignore[arg-type]
        if method != "inq"
        else MethodConfig(name="inq"),
        run=RunConfig(device=device, **{"autocast": True, **run}),
    )


def controls_of(problem: InnerProblem, schedule: str = "joint_linear") -> Tensors:
    method = schedule.partition("_")[0]
    values = hand_coded(method)[schedule](progress_of_steps(problem.steps), problem.network.layers)
    like = next(problem.network.module.parameters())
    return {name: v.to(like) for name, v in values.items()}


def begin(problem: InnerProblem, controls: Tensors) -> TrainingState:
    return problem.initial(rows(controls, 0))


def flat(state: TrainingState) -> dict[str, torch.Tensor]:
    return {f"{i}/{key}": t for i, part in enumerate(state) for key, t in part.items()}


def test_the_products_are_those_of_bfloat16_and_all_else_stays_in_float32(device: str) -> None:
    problem = build_problem(experiment(device=device).problem)
    controls, seen = controls_of(problem), []
    hooks = [
        problem.network.module.get_submodule(layer.name).register_forward_hook(
            lambda m, args, out: seen.append(out.dtype)
        )
        for layer in problem.network.layers
    ]
    state = begin(problem, controls)
    state, loss, gradients = inner_step(problem, state, rows(controls, 0), 0, differentiable=False)
    for hook in hooks:
        hook.remove()
    assert seen == [torch.bfloat16] * len(problem.network.layers)
    floats = [loss, *gradients.values(), *(t for t in flat(state).values() if t.is_floating_point())]
    assert {t.dtype for t in floats} == {torch.float32}


def test_quantizers_compute_in_float32(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise narrower than 0.0078, the eps of bfloat16, would count as none in it."""
    problem = build_problem(experiment("ana", device=device).problem)
    controls, dtypes = controls_of(problem, "ana_linear"), []
    own = type(problem.network.method).activation

    def activation(self: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        dtypes.append(x.dtype)
        return own(self, x, *rest)

    monkeypatch.setattr(type(problem.network.method), "activation", activation)
    training_loss(problem, begin(problem, controls), rows(controls, 0), 0)
    assert dtypes == [torch.float32] * len(problem.network.layers)


def test_the_loss_is_close_to_that_of_float32(device: str) -> None:
    cast = build_problem(experiment(device=device).problem)
    plain = replace(cast, autocast=False)
    controls = controls_of(cast)
    state = begin(cast, controls)
    with_cast, _ = training_loss(cast, state, rows(controls, 0), 0)
    without, _ = training_loss(plain, state, rows(controls, 0), 0)
    assert with_cast.item() != without.item()
    assert with_cast.item() == pytest.approx(without.item(), rel=0.02)


@pytest.mark.parametrize("method", ["joint_linear", "ana_linear", "inq_linear"])
def test_the_sweep_is_the_unroll_bit_for_bit(method: str) -> None:
    problem = build_problem(experiment(method.partition("_")[0]).problem, relaxation=0.3)
    controls, outer = controls_of(problem, method), OuterLoss()
    first, second = (control_gradient(find_unroll(e), problem, controls, outer) for e in ("sweep", "unroll"))
    assert first.loss == second.loss and first.nonfinite == 0
    assert all(torch.equal(g, second.wrt[name]) for name, g in first.wrt.items())
    assert any(bool(g.any()) for g in first.wrt.values())
    without = control_gradient(find_unroll("unroll"), replace(problem, autocast=False), controls, outer)
    assert without.loss != first.loss and without.loss == pytest.approx(first.loss, rel=0.05)


def test_higher_runs_under_autocast_too() -> None:
    problem = build_problem(experiment().problem, relaxation=0.3)
    controls, outer = controls_of(problem), OuterLoss()
    ours, theirs = (control_gradient(find_unroll(e), problem, controls, outer) for e in ("unroll", "higher"))
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-3)
    for name, g in ours.wrt.items():
        assert float((theirs.wrt[name] - g).norm()) <= 0.05 * float(g.norm()) + 1e-6


@pytest.mark.parametrize("autocast", [False, True])
def test_the_contract_of_a_device(device: str, autocast: bool) -> None:
    """The engines agree, gradients are finite, and a step repeats: on the CPU to the bit, on CUDA to rounding."""
    problem = build_problem(experiment(device=device, autocast=autocast).problem, relaxation=0.3)
    controls, outer = controls_of(problem), OuterLoss()
    found = [control_gradient(find_unroll(e), problem, controls, outer) for e in ("sweep", "unroll")]
    assert all(f.nonfinite == 0 for f in found)
    assert {t.device.type for t in found[0].wrt.values()} == {device}
    exact = device == "cpu"
    tolerance = 0.0 if exact else 0.05 if autocast else 1e-3
    assert found[0].loss == pytest.approx(found[1].loss, rel=tolerance, abs=0)
    for name, g in found[0].wrt.items():
        assert float((found[1].wrt[name] - g).norm()) <= tolerance * float(g.norm())
    once, again = (
        inner_step(problem, begin(problem, controls), rows(controls, 1), 1, differentiable=False)[1] for _ in range(2)
    )
    torch.testing.assert_close(once, again, rtol=tolerance, atol=0)


def test_a_comparison_trains_under_autocast_and_scores_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment("inq")
    controls = played(config.problem, hand_coded("inq")["inq_linear"], STEPS)
    problem = build_problem(config.problem, steps=STEPS).with_seed(3)
    state = loop.train(problem, {name: v.float() for name, v in controls.items()}).state
    expected = loop.hardened_score(replace(problem, autocast=False), state, "test")
    assert cell_score(config.problem, controls, 3, STEPS, "test") == expected
    without = loop.train(replace(problem, autocast=False), {name: v.float() for name, v in controls.items()}).state
    assert any(not torch.equal(t, without.params[name]) for name, t in state.params.items())


def test_float64_is_refused() -> None:
    with pytest.raises(MetaschedError, match=r"run\.autocast: casts float32 only, and run\.dtype is float64; set"):
        build_problem(experiment(dtype="float64").problem)


def test_the_gate_checks_in_float64_without_it() -> None:
    assert build_problem(small(experiment().problem)).autocast is False
