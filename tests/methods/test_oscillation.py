"""Oscillation freezing: against a plain loop over single weights, STE bit for bit, the authors' thresholds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metasched import build_method, build_problem, hand_coded, progress_of_steps, train
from metasched.config.schema import Experiment
from metasched.core.layer import Layer
from metasched.core.randomness import Draw
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors, rows
from metasched.runs.config import RunConfig
from metasched.schedules.curves import cosine_after
from metasched.tasks.config import TaskConfig
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

DRAW = Draw(0, 0, 0)
LEARNED = {"scale": "learned", "activation_scale": "learned", "granularity": "channel"}
LAYERS = [Layer(f"l{i}", i / 2, "conv", "weight+activation", 9, 81, 1.585) for i in range(3)]


def problem_of(name: str, steps: int, **method: Any) -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=6, steps=steps, batch=16, train=64, validation=16, test=16),
        optimizer=OptimizerConfig(name="sgd", lr=0.3),
        method=MethodConfig(name=name, **method),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(3)


def by_hand(path: list[float], thresholds: list[float], grid: list[float], m: float) -> list[tuple[float, bool]]:
    """The level and whether it is frozen at each step, for one weight that would follow this path, in plain Python."""

    def nearest(x: float) -> int:
        return max(range(len(grid)), key=lambda k: (-abs(x - grid[k]), k))

    frozen_at: int | None = None
    previous = nearest(path[0])
    mean, frequency, direction = float(previous), 0.0, 0
    found = []
    for x, threshold in zip(path, thresholds, strict=True):
        k = nearest(x) if frozen_at is None else frozen_at
        change = (k > previous) - (k < previous)
        oscillates = change != 0 and change == -direction
        frequency = m * oscillates + (1 - m) * frequency
        direction = change or direction
        if frozen_at is None and frequency > threshold:
            frozen_at = k = round(mean)
        mean = m * k + (1 - m) * mean
        previous = k
        found.append((grid[k], frozen_at is not None))
    return found


@pytest.mark.parametrize("levels", ["ternary", "pow2_3", "int2"])
@pytest.mark.parametrize("m", [0.01, 0.2])
def test_it_is_the_plain_loop_weight_by_weight(levels: str, m: float) -> None:
    method = build_method(MethodConfig(name="oscillation", levels=levels, momentum=m, scale="max"))
    grid = list(method.quantizer.levels.levels)
    draws = torch.Generator().manual_seed(4)
    steps, weights = 60, 30
    speed = torch.logspace(-1.5, 0.3, weights)  # some hardly move, some oscillate in most steps
    path = (0.9 * torch.randn(weights, generator=draws)) + speed * torch.randn(steps, weights, generator=draws)
    thresholds = [1.0 if step < 10 else 3 * m * math.exp(-(step - 10) / 20) for step in range(steps)]
    _, _, state = method.initialize(path[0][None], {}, DRAW)
    state["scale"] = torch.ones(1, 1)
    state["level"] = method.harden(path[0][None], state, 0.5)
    state["mean"] = torch.tensor([[float(grid.index(q)) for q in state["level"][0].tolist()]])
    expected = [by_hand(path[:, i].tolist(), thresholds, grid, m) for i in range(weights)]
    ever = set()
    for step in range(steps):
        values = {"freeze_threshold": torch.tensor(thresholds[step])}
        state = method.prepare(path[step][None], state, values, DRAW)
        seen = method.weight(path[step][None], state, values, DRAW)[0]
        assert seen.tolist() == [expected[i][step][0] for i in range(weights)]
        assert (state["frozen"][0] == 1).tolist() == [expected[i][step][1] for i in range(weights)]
        ever |= {expected[i][step] for i in range(weights) if expected[i][step][1]}
    assert 0 < int(state["frozen"].sum()) < weights and len({level for level, _ in ever}) > 1


def test_a_turn_counts_and_a_passage_does_not() -> None:
    """0, 1, 0, 1 turns twice; -1, 0, 1 in one direction never. The frozen level is the rounded mean before the step."""
    method = build_method(MethodConfig(name="oscillation", momentum=0.5, scale="max"))
    turns, passes = [0.0, 1.0, 0.0, 1.0], [-1.0, 0.0, 1.0, 1.0]
    w, _, state = method.initialize(torch.tensor([[turns[0], passes[0]]]), {}, DRAW)
    never = {"freeze_threshold": torch.tensor(1.0)}
    for step in range(4):
        state = method.prepare(torch.tensor([[turns[step], passes[step]]]), state, never, DRAW)
    assert state["frequency"].tolist() == [[0.5 * 0.5 + 0.5, 0.0]]
    # indices 1, 2, 1, 2 from the mean 1: 1, 1.5, 1.25, 1.625; then 1.6 turns again
    state = method.prepare(torch.tensor([[0.1, 1.0]]), state, {"freeze_threshold": torch.tensor(0.8)}, DRAW)
    assert state["frozen"].tolist() == [[1.0, 0.0]]
    assert method.weight(torch.tensor([[0.1, 1.0]]), state, never, DRAW).tolist() == [[1.0, 1.0]]
    moved, _ = method.update(w, w + 1, state, never, DRAW)
    assert moved.tolist() == [[turns[0], passes[0] + 1]]


@pytest.mark.parametrize("own", [{}, LEARNED], ids=["fixed", "learned"])
def test_at_the_threshold_1_it_is_ste_to_the_last_bit(own: dict[str, Any]) -> None:
    ours, floor = problem_of("oscillation", 12, momentum=0.9, **own), problem_of("ste", 12, **own)
    controls = hand_coded("oscillation")["oscillation_none"](progress_of_steps(12), ours.network.layers)
    assert [c.none_value for c in ours.network.method.controls] == [1.0]
    mine, theirs = train(ours, controls), train(floor, {})
    assert torch.equal(mine.losses, theirs.losses)
    assert all(torch.equal(p, mine.state.params[n]) for n, p in theirs.state.params.items())


def test_frozen_weights_keep_their_level_while_the_scale_is_learned() -> None:
    problem = problem_of("oscillation", 40, momentum=0.2, levels="int3", **LEARNED)
    network = problem.network
    controls = {"freeze_threshold": torch.full((40, len(network.layers)), 0.05)}
    state = problem.initial(rows(controls, 0))
    kept: Tensors = {}
    for step in range(40):
        state, _, _ = inner_step(problem, state, rows(controls, step), step, differentiable=False)
        hardened = network.harden(state.params, state.method)
        for layer in network.layers:
            levels = (hardened[layer.weight_key] / state.params[f"{layer.name}/scale"]).round()
            frozen = state.method[f"{layer.name}/frozen"] == 1
            before = kept.get(layer.name, torch.full_like(levels, torch.nan))
            assert torch.equal(levels[before.isfinite()], before[before.isfinite()])
            kept[layer.name] = torch.where(frozen, levels, torch.nan)
    shares = [float(t.isfinite().double().mean()) for t in kept.values()]
    assert all(0 < share < 1 for share in shares), shares


def test_stacked_runs_are_single_ones() -> None:
    problem = problem_of("oscillation", 15, momentum=0.2, levels="int3")
    controls = {"freeze_threshold": torch.full((15, len(problem.network.layers)), 0.05)}
    states = train_mapped(problem, {name: torch.stack([v, v]) for name, v in controls.items()}, [3, 8])
    for i, seed in enumerate((3, 8)):
        alone, one = train(problem.with_seed(seed), controls).state, of_run(states, i)
        assert any(bool(t.any()) for name, t in alone.method.items() if name.endswith("/frozen"))
        for name, t in alone.method.items():
            assert torch.allclose(one.method[name], t, rtol=0, atol=1e-9), name


def test_the_threshold_is_off_for_a_quarter_and_then_falls_along_a_cosine() -> None:
    schedules = hand_coded("oscillation")
    assert list(schedules) == ["oscillation_mobilenetv2_3bit", "oscillation_mobilenetv2_4bit", "oscillation_none"]
    u = torch.tensor([0.0, 0.2499, 0.25, 0.625, 1.0])
    for name, end in (("oscillation_mobilenetv2_3bit", 0.011), ("oscillation_mobilenetv2_4bit", 0.01)):
        values = schedules[name](u, LAYERS)["freeze_threshold"]
        assert torch.equal(values, values[:, :1].expand(-1, 3))
        assert torch.allclose(values[:, 0], torch.tensor([1.0, 1.0, 0.1, (0.1 + end) / 2, end]))
        assert schedules[name].jumps == (0.25,)
    quarter = cosine_after(torch.tensor([0.5]), LAYERS, onset=0.0, before=9.0, start=1.0, end=0.0)
    assert torch.allclose(quarter, torch.full((1, 3), 0.5))


def test_its_control_has_no_derivative() -> None:
    (control,) = build_method(MethodConfig(name="oscillation")).controls
    assert (control.gradient, control.scale, control.end) == ("none", "log", None)
