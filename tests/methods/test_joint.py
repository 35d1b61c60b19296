"""Joint: its default is ANA and INQ, its parts are what they are alone, and what does not fit is refused."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from metasched import MetaschedError, build_method, build_problem, progress_of_steps, train
from metasched.config.schema import Experiment
from metasched.core.randomness import Draw
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.schedules.table import schedules_of
from metasched.tasks.config import TaskConfig
from metasched.training.loop import InnerRun


def run_of(schedule: str, **method: str) -> InnerRun:
    config = MethodConfig(**{"scale": "max", **method})  # type: ignore[arg-type]
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=6, batch=16, train=64, validation=16, test=16),
        method=config,
        run=RunConfig(dtype="float64"),
    )
    problem = build_problem(experiment.problem).with_seed(6)  # at 5 an input is within rounding of a window's border
    return train(problem, schedules_of(config)[schedule](progress_of_steps(6), problem.network.layers))


@pytest.mark.parametrize(
    ("alone", "of", "schedule"),
    [
        ("widths", "widths+rates", "widths_narrowing"),
        ("widths", "rates+widths", "widths_narrowing"),
        ("blend", "blend+rates", "blend_onset"),
        ("inq", "blend+inq", "inq_linear"),
        ("ana", "ana+rates", "ana_linear"),
        ("rates", "rates+widths", "rates_late"),
    ],
)
def test_parts_without_a_schedule_change_nothing(alone: str, of: str, schedule: str) -> None:
    """Of two parts, one plays a schedule and the other its value without one: the method of the first."""
    both = run_of(schedule, name="joint", of=of, **({"window": "uniform"} if "rates" in schedule else {}))
    single = run_of(schedule, name=alone)
    if alone == "inq":  # whose live weights are in float alone, and hard beside a blend of 1
        assert not torch.equal(both.losses, single.losses)
        return
    assert torch.equal(both.losses, single.losses)
    assert all(torch.equal(p, single.state.params[name]) for name, p in both.state.params.items())


def test_parts_add_up_in_their_order() -> None:
    """Half of a blend, then half of the weights frozen: the frozen ones are on their levels, the others halfway."""
    method = build_method(MethodConfig(name="joint", of="blend+inq", scale="max", partition="random"))
    draw = Draw(1, 0, 0)
    row = {name: torch.tensor(0.5) for name in ("weight_blend", "activation_blend", "freeze_fraction")}
    w, trainable, state = method.initialize(torch.randn(8, 5), row, draw)
    state = method.prepare(w, state | trainable, row, draw)
    level = method.harden(w, state, 0.5)
    frozen = state["frozen"].bool()
    assert int(frozen.sum()) == 20
    assert torch.allclose(method.weight(w, state, row, draw), torch.where(frozen, level, (w + level) / 2))
    swapped = build_method(MethodConfig(name="joint", of="inq+blend", scale="max", partition="random"))
    assert torch.allclose(
        swapped.weight(w, state, row, draw), (w + level) / 2
    )  # live weights are straight-through hard before they are blended


def test_the_default_is_noise_and_freezing() -> None:
    assert [c.name for c in build_method(MethodConfig(name="joint")).controls][-1] == "freeze_fraction"
    assert build_method(MethodConfig(name="joint")) == build_method(MethodConfig(name="joint", of="ana + inq"))


@pytest.mark.parametrize("of", ["widths+inq+rates", "ana+rates+inq", "oscillation+rates"])
def test_frozen_weights_keep_their_levels_whatever_the_other_parts_do(of: str) -> None:
    """With learned scales and weight decay: deployed values follow the scale, the weights stand still."""
    config = MethodConfig(name="joint", of=of, scale="learned", granularity="channel")
    method = build_method(config)
    draw = Draw(1, 0, 0)
    row = {c.name: torch.tensor(0.5 * (c.low + c.high)) for c in method.controls}
    row |= {"weight_decay": torch.tensor(0.1), "lr_scale": torch.tensor(3.0)}
    w, trainable, state = method.initialize(torch.randn(8, 5), row, draw)
    if of.startswith("oscillation"):
        state["frozen"] = (torch.rand(8, 5) < 0.5).to(w.dtype)
    state = method.prepare(w, state | trainable, row, draw)
    frozen = state["frozen"].bool()
    assert 0 < int(frozen.sum()) < 40
    before = method.harden(w, state, 0.5)
    moved, state = method.update(w, w + 0.3, state, row, draw)
    assert torch.equal(moved[frozen], w[frozen]) and not bool((moved == w)[~frozen].any())
    state = method.prepare(moved, {**state, "scale": 2.5 * state["scale"]}, row, draw)
    kept = frozen & state["frozen"].bool()
    assert torch.allclose(method.harden(moved, state, 0.5)[kept], 2.5 * before[kept])
    assert torch.allclose(method.weight(moved, state, row, draw)[kept], 2.5 * before[kept])


def test_scales_are_learned_where_every_part_can() -> None:
    for of in ("widths+rates", "widths+inq", "ana+inq"):
        build_method(MethodConfig(name="joint", of=of, scale="learned"))


def test_hand_coded_schedules_are_those_that_fit() -> None:
    assert "joint_linear" in schedules_of(MethodConfig(name="joint"))
    assert "joint_linear" in schedules_of(MethodConfig(name="joint", of="ana+inq+rates"))
    found = schedules_of(MethodConfig(name="joint", of="inq+widths"))
    assert {"inq_linear", "widths_narrowing"} <= found.keys() and "joint_linear" not in found
    u = torch.linspace(0, 1, 5)
    layers = build_problem(Experiment(task=TaskConfig(model="mlp", width=6)).problem).network.layers
    completed = found["widths_narrowing"](u, layers)["freeze_fraction"]
    assert completed[:, 0].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]  # no freezing but at its end
    assert 1.0 in found["widths_narrowing"].knots(5)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"of": "ana+noise"}, "'noise' is no method that can be a part"),
        ({"of": "ana+gxnor"}, "'gxnor' is no method that can be a part"),
        ({"of": "rates+rates"}, "'rates' is named twice"),
        ({"of": "float+rates"}, "'float' is no method that can be a part"),
        ({"of": "rates", "window": "normal"}, "has no effect, because method.of is rates; leave it out"),
    ],
)
def test_parts_that_are_none_are_refused(parameters: dict[str, str], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        MethodConfig(name="joint", **parameters)


def test_two_bases_are_refused() -> None:
    with pytest.raises(MetaschedError, match="has ana and widths, which both say what the forward pass sees"):
        build_method(MethodConfig(name="joint", of="ana+widths"))


def test_two_parts_that_freeze_are_refused() -> None:
    with pytest.raises(MetaschedError, match="of which two freeze weights"):
        build_method(MethodConfig(name="joint", of="oscillation+inq"))
