"""From a configuration to the inner problem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.methods.inq import INQ
from metasched.methods.joint import Joint
from metasched.network.config import QuantizeConfig
from metasched.runs.config import RunConfig
from metasched.tasks.config import TaskConfig
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem

EXPERIMENT = Experiment(
    task=TaskConfig(name="digits", model="mlp", width=4, steps=5, batch=16),
    optimizer=OptimizerConfig(name="sgd", lr=0.2, decay="linear", momentum=0.5, weight_decay=0.01),
    method=MethodConfig(name="joint"),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_has_the_configured_dtype(dtype: str) -> None:
    problem = build_problem(replace(EXPERIMENT, run=RunConfig(dtype=dtype)).problem)  # pyright: ignore
    expected = getattr(torch, dtype)
    values = {"weight_noise": 0.3, "activation_noise": 0.3, "noise_mean": 0.0, "freeze_fraction": 0.5}
    controls = {key: torch.full((5, 3), v, dtype=torch.float64) for key, v in values.items()}
    run = train(problem, controls)
    tensors = [*run.state.params.values(), *run.state.buffers.values(), *run.state.optimizer.values(), run.losses]
    tensors += run.state.method.values()
    assert {t.dtype for t in tensors if t.is_floating_point()} == {expected}
    assert {t.dtype for t in problem.task.train if t.is_floating_point()} == {expected}


def test_the_optimizer_and_its_decay() -> None:
    problem = build_problem(EXPERIMENT.problem)
    assert problem.steps == 5 and problem.seed == 0
    assert problem.hyper["lr"] == pytest.approx((0.2, 0.15, 0.1, 0.05, 0.0))
    assert (problem.hyper["momentum"], problem.hyper["weight_decay"]) == (0.5, 0.01)
    longer = build_problem(EXPERIMENT.problem, steps=9)
    assert longer.steps == 9 and len(longer.hyper["lr"]) == 9  # pyright: ignore


def test_the_relaxed_mask_is_for_learning_alone() -> None:
    method = build_problem(EXPERIMENT.problem).network.method
    assert isinstance(method, Joint) and method.modifiers[0].relaxation == 0
    inq = build_problem(replace(EXPERIMENT, method=MethodConfig(name="inq")).problem, relaxation=0.25).network.method
    assert isinstance(inq, INQ) and inq.relaxation == 0.25


def test_first_and_last_layers_as_configured() -> None:
    def names(**options: bool) -> list[str]:
        problem = build_problem(replace(EXPERIMENT, quantize=QuantizeConfig(**options)).problem)
        return [layer.name for layer in problem.network.layers]

    assert names() == ["linear1", "linear2", "linear3"]
    assert names(first=False, last=True) == ["linear2", "linear3", "linear4"]


def test_building_touches_no_global_generator_and_is_done_once() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    fresh = replace(EXPERIMENT, seed=17)
    assert build_problem(fresh.problem) is build_problem(replace(EXPERIMENT, seed=17).problem)
    assert torch.equal(torch.get_rng_state(), before)


def test_problems_of_one_task_share_its_data_in_any_dtype() -> None:
    experiment = replace(EXPERIMENT, run=RunConfig(dtype="float64"))
    one = build_problem(experiment.problem)
    other = build_problem(replace(experiment, method=MethodConfig(name="ste")).problem)
    ours, theirs = one.task.outer_batch().x, other.task.outer_batch().x
    assert one.network.method is not other.network.method and ours.dtype == torch.float64
    assert ours is theirs


def test_a_mistake_names_its_field() -> None:
    with pytest.raises(MetaschedError, match=r"^method\.levels: unknown level set"):
        build_problem(replace(EXPERIMENT, method=MethodConfig(levels="trinary")).problem)
    with pytest.raises(MetaschedError, match=r"^method\.activation_levels: unknown level set"):
        build_problem(replace(EXPERIMENT, method=MethodConfig(activation_levels="int0")).problem)
