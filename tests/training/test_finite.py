"""Whether the numbers of a run are finite, and the name of the first that is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.config.schema import Experiment
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors
from metasched.runs.cells import played
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.faults import Fault, broken, locate
from metasched.training.finite import all_finite, each_finite
from metasched.training.loop import train
from metasched.training.problem import build_problem

NUMBERS = st.lists(st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=4)
EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=2, depth=2, train=16, validation=8, test=8, batch=4, steps=5),
    method=MethodConfig(name="joint"),
)


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_all_finite(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part) for part in parts] + [torch.tensor(3), torch.tensor([True])]
    assert bool(all_finite(tensors)) == all(math.isfinite(x) for part in parts for x in part)


@given(NUMBERS)
def test_each_run_for_itself(numbers: list[float]) -> None:
    n = len(numbers)
    ones = torch.ones(n, 2, 3)
    once = torch.tensor(math.nan)  # not of a run: such as a count of steps
    found = each_finite([torch.tensor(numbers), ones, once, torch.arange(n)])
    assert found.tolist() == [math.isfinite(x) for x in numbers]


def test_infinities_that_cancel_are_seen() -> None:
    assert not all_finite([torch.tensor([math.inf, -math.inf])])


def controls_of() -> Tensors:
    return {n: v.float() for n, v in played(EXPERIMENT.problem, hand_coded("joint")["joint_linear"], 5).items()}


@pytest.mark.pairwise
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("name", ["weight_noise", "noise_mean", "freeze_fraction"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_control_is_named_with_layer_and_step(name: str, step: int, bad: float) -> None:
    """A share of frozen weights that is no number freezes none: the network alone would not tell."""
    torch.set_default_dtype(torch.float32)
    problem, controls = build_problem(EXPERIMENT.problem), controls_of()
    assert locate(problem, controls, None, range(5)) is None and not broken(train(problem, controls).state)
    controls[name][step, 1] = bad
    assert locate(problem, controls, None, range(5)) == Fault("control", name, "linear2", step)
    assert broken(train(problem, controls).state)


def test_a_run_is_broken_from_the_step_on_at_which_it_broke() -> None:
    torch.set_default_dtype(torch.float32)
    problem, controls = build_problem(EXPERIMENT.problem), controls_of()
    controls["noise_mean"][3, 0] = math.nan
    assert locate(problem, controls, None, range(3)) is None
    middle = train(replace(problem, steps=3), controls).state
    assert locate(problem, controls, middle, range(3, 5)) == Fault("control", "noise_mean", "linear1", 3)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("inner loss", step=0), "inner loss at inner step 0"),
        (Fault("hypergradient", "weight_noise", "conv2", 7), "hypergradient weight_noise of conv2 at inner step 7"),
        (Fault("outer loss"), "outer loss"),
    ],
)
def test_faults_as_text(fault: Fault, text: str) -> None:
    assert str(fault) == text
