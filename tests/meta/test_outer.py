"""The outer loop: which outer steps the parameters of the returned schedule are averaged over."""

from __future__ import annotations

import pytest
import torch
from learning import learn

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterState, averages, check_estimator
from metasched.methods.config import MethodConfig
from metasched.runs.pool import Pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.problem import build_problem


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_the_schedule_has_the_mean_of_the_parameters_after_the_steps_of_the_last_half(steps: int) -> None:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=2, steps=2, batch=4, train=16, validation=8, test=8),
        method=MethodConfig(name="joint"),
        schedule=ScheduleConfig(knots=3, hidden=2, directions=None),
        meta=MetaConfig(steps=steps, runs=2, estimator="es"),
    )
    network = build_problem(experiment.problem).network
    declared = network.method.controls
    base = hand_coded("joint")["joint_linear"]
    schedule = build_learnable(experiment.schedule, declared, base, [c.name for c in declared], network.layers, 0)
    states: list[OuterState] = []
    with Pool(1) as pool:
        learn(
            experiment,
            schedule,
            pool,
            log=lambda row: None,
            save=states.append,
        )
    assert [state.step for state in states] == list(range(steps + 1))
    after = [state.parameters for state in states[1:]]  # after[k]: after outer step k
    moved = [name for name in after[0] if not torch.equal(after[0][name], after[-1][name])]
    assert moved or steps == 1  # else any mean would be the same
    for name, p in schedule.named_parameters():
        expected = torch.stack([parameters[name] for parameters in after[steps // 2 :]]).mean(0)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)
    for state in states[: steps // 2 + 1]:  # before the last half: the parameters as they are
        assert averages(state) is state.parameters


def test_a_memory_budget_is_tried_out_before_anything_is_written() -> None:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=2, steps=9, batch=4, train=16, validation=8, test=8),
        method=MethodConfig(name="joint"),
    )
    check_estimator(experiment.problem, MetaConfig(memory=10**9), "network")
    with pytest.raises(MetaschedError, match=r"meta\.memory"):
        check_estimator(experiment.problem, MetaConfig(memory=1), "network")
