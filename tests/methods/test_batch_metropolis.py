"""Metropolis by the loss of the batch: balance with Boltzmann, layer after layer, its cost, and where it cannot be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import Draw
from metasched.engines import find_unroll
from metasched.engines.base import OuterLoss, control_gradient
from metasched.methods import build_method
from metasched.methods.base import Evaluating
from metasched.methods.batch_metropolis import BatchMetropolis
from metasched.methods.config import MethodConfig
from metasched.network.flat import Tensors, rows
from metasched.network.module import QuantizedModule
from metasched.network.quantize import quantize
from metasched.quantizers.transitions import acceptance
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training import step as step_module
from metasched.training.loop import train
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.stacked import mapping_pays
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

STEPS = 6


def method(**settings: Any) -> BatchMetropolis:
    built = build_method(MethodConfig(name="metropolis", energy="batch", **settings))
    assert isinstance(built, BatchMetropolis) and isinstance(built, Evaluating)
    return built


class Given:
    """Draws that were made before."""

    def __init__(self, numbers: Tensors) -> None:
        self.numbers = numbers

    def uniform(self, purpose: str, like: torch.Tensor) -> torch.Tensor:
        return self.numbers[purpose]


@pytest.mark.parametrize("blocks", [1, 2])
def test_joint_proposals_reach_boltzmann_for_any_energy(blocks: int) -> None:
    """Three coupled weights of three states: 27 energies that first order would get wrong."""
    by = method(blocks=blocks)
    energies = torch.tensor(np.random.default_rng(5).normal(size=27))
    places, temperature, chains = torch.tensor([9.0, 3.0, 1.0]), torch.tensor(0.7), 20_000
    step, state = torch.tensor([0.3, -0.3, 0.3]), {"scale": torch.ones(1)}

    def energy(w: torch.Tensor) -> torch.Tensor:
        return energies.gather(0, ((w + 1) @ places).long().reshape(1))[0]

    def move(w: torch.Tensor, numbers: Tensors) -> torch.Tensor:
        draw: Any = Given(numbers)
        return by.update_evaluated(w, w + step, state, {"temperature": temperature}, draw, energy, energy(w))[0]

    draws = torch.Generator().manual_seed(7)
    shapes = {"jump": 3, "direction": 3, "block": 3, "acceptance": blocks}
    w, counts = torch.zeros(chains, 3), np.zeros(27)
    for t in range(90):
        numbers = {purpose: torch.rand(chains, n, generator=draws) for purpose, n in shapes.items()}
        w = torch.vmap(move)(w, numbers)
        if t >= 25:
            counts += np.bincount(((w + 1) @ places).long().numpy(), minlength=27)
    assert list(itertools.product((-1, 0, 1), repeat=3))[5] == (-1, 0, 1)  # place values are those of the table

    def distance(temperature: float) -> float:
        law = np.exp(-energies.numpy() / temperature)
        return 0.5 * float(np.abs(counts / counts.sum() - law / law.sum()).sum())

    assert distance(0.7) < 0.01 < distance(0.8)


def problem(optimizer: OptimizerConfig | None = None, **settings: Any) -> InnerProblem:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    draws = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 3
    part = Split(torch.randn(40, 6, generator=draws) + 2 * F.one_hot(y, 6), y)
    task = SupervisedTask("blobs", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=20)
    rule, hyper = recipe(optimizer or OptimizerConfig(lr=0.02))
    network = quantize(build(), method(**settings), part.x[:2])
    return InnerProblem(network, task, rule, hyper, STEPS, seed=1)


def constant(value: float) -> dict[str, torch.Tensor]:
    return {"temperature": torch.full((STEPS, 2), value)}


def test_layers_move_one_after_the_other_and_blocks_as_a_whole() -> None:
    """Against the rule written out: proposals, blocks and decisions of each layer from its draws."""
    inner = problem(blocks=3)
    controls, step, seed = rows(constant(0.05), 0), 2, 9
    state = inner.initial(controls)
    draws = torch.Generator().manual_seed(1)
    proposed = {n: p + 0.4 * torch.randn(p.shape, generator=draws) for n, p in state.params.items()}
    target = {n: torch.randn(p.shape, generator=draws) for n, p in state.params.items()}

    def loss(params: Tensors) -> torch.Tensor:
        return torch.stack([(params[n] - target[n]).square().mean() for n in ("0.weight", "3.weight")]).prod()

    found, _ = inner.network.update(state.params, proposed, state.method, controls, seed, step, loss)
    now = {n: p.detach() for n, p in state.params.items()}
    decided = []
    for i, key in enumerate(("0.weight", "3.weight")):
        w, draw = now[key], Draw(seed, step, i)
        x = proposed[key] - w
        size = x.abs().floor() + (draw.uniform("jump", w) < torch.tanh(3 * (x.abs() - x.abs().floor())))
        jump = torch.where(draw.uniform("direction", w) < 0.5, -x.sign(), x.sign()) * size
        jump[(w + jump).abs() > 1] = 0
        part_of = (3 * draw.uniform("block", w)).long()
        chances = draw.uniform("acceptance", torch.zeros(3))
        for b in range(3):
            candidate = now[key] + jump * (part_of == b)
            change = float(loss({**now, key: candidate}) - loss(now))
            decided.append(bool(chances[b] < np.exp(-max(change, 0) / 0.05)))
            if decided[-1]:
                now[key] = candidate
        assert torch.equal(found[key], now[key])
    assert len(set(decided)) == 2  # some are accepted and some are not
    assert all(torch.equal(found[n], proposed[n]) for n in found if n not in ("0.weight", "3.weight"))


@pytest.mark.parametrize("blocks", [1, 4])
def test_at_temperature_zero_the_loss_of_the_batch_never_rises_and_a_step_costs_what_it_says(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, controls = problem(blocks=blocks), constant(0.0)
    seen: list[float] = []
    plain = step_module.training_loss

    def counted(*arguments: Any) -> Any:
        loss, own = plain(*arguments)
        seen.append(float(loss.detach()))
        return loss, own

    monkeypatch.setattr(step_module, "training_loss", counted)
    state, moved = inner.initial(rows(controls, 0)), 0
    for step in range(STEPS):
        seen.clear()
        before = state
        state, loss, _ = inner_step(inner, state, rows(controls, step), step, differentiable=False)
        assert len(seen) == 1 + 1 + 2 * blocks and seen[1] == seen[0] == float(loss)
        weights = {f"{layer.name}.weight": state.params[f"{layer.name}.weight"] for layer in inner.network.layers}
        after = before._replace(
            params={**before.params, **weights}, buffers={n: b.clone() for n, b in before.buffers.items()}
        )
        assert float(plain(inner, after, rows(controls, step), step)[0]) <= float(loss)
        moved += sum(int((w != before.params[name]).sum()) for name, w in weights.items())
        assert all(set(w.unique().tolist()) <= {-1.0, 0.0, 1.0} for w in weights.values())
    assert moved > 0


def test_evaluating_leaves_the_running_statistics_alone() -> None:
    controls = constant(0.05)
    ends = [train(replace(problem(blocks=b), steps=1), controls).state.buffers for b in (1, 5)]
    assert all(torch.equal(b, ends[1][name]) for name, b in ends[0].items())
    assert int(ends[0]["1.num_batches_tracked"]) == 1


def test_replay_is_exact_and_the_temperature_matters() -> None:
    states = [train(problem(), constant(t)).state.params["0.weight"] for t in (0.05, 0.05, 4.0)]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_with_adaptive_cooling_the_factor_finds_the_unit_of_the_loss() -> None:
    state = train(problem(cooling="adaptive", blocks=8), constant(1.0)).state
    assert all(float(state.method[f"{name}/log_factor"]) < 0 for name in ("0", "3"))  # changes are far below 1


def test_the_derivative_is_that_of_the_expectation_in_the_temperature() -> None:
    by, temperature = method(), torch.tensor(0.4, requires_grad=True)
    w, state = torch.zeros(3), {"scale": torch.ones(1)}
    change = torch.tensor(0.25)
    after, _, _ = by.update_evaluated(
        w, w + 0.9, state, {"temperature": temperature}, Draw(0, 0, 0), lambda _: change, torch.tensor(0.0)
    )
    (slope,) = torch.autograd.grad(after.sum(), temperature)
    draw = Draw(0, 0, 0)
    jumps = torch.where(draw.uniform("direction", w) < 0.5, -1.0, 1.0) * (draw.uniform("jump", w) < np.tanh(2.7))
    p = float(acceptance(change, temperature.detach()))
    assert float(slope) == pytest.approx(float(jumps.sum()) * p * 0.25 / 0.4**2, rel=1e-9)


def test_sweep_and_unroll_agree_and_other_loops_are_refused() -> None:
    inner = replace(problem(), steps=3)
    controls = {"temperature": torch.tensor([[0.09, 0.07], [0.13, 0.04], [0.05, 0.08]])}
    sweep, unroll = (
        control_gradient(find_unroll(name), inner, controls, OuterLoss()).wrt["temperature"]
        for name in ("sweep", "unroll")
    )
    assert bool(sweep.any()) and (sweep - unroll).norm() <= 1e-10 * sweep.norm()
    with pytest.raises(MetaschedError, match=r"^method\.energy: batch needs the loss .* meta\.estimator to sweep"):
        find_unroll("higher")(inner, controls, OuterLoss())
    values = {layer.name: {"temperature": 1.0} for layer in inner.network.layers}
    module = QuantizedModule(inner.network, values)
    module(torch.randn(4, 6), values, 0)
    with pytest.raises(MetaschedError, match=r"^method\.energy: batch needs the loss"):
        module.settle()
    assert not mapping_pays(inner, 100)


def test_settings_without_effect_are_refused(tmp_path: Any) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("method: {name: metropolis, blocks: 4}\n")
    with pytest.raises(MetaschedError, match=r"method\.blocks: has no effect, because method\.energy is first_order"):
        load_experiment(file)
    file.write_text("method: {name: gxnor, cooling: adaptive, energy: batch}\n")
    with pytest.raises(MetaschedError, match=r"method\.cooling: has no effect(.|\n)*method\.energy: has no effect"):
        load_experiment(file)
    file.write_text("method: {name: metropolis, energy: batch, blocks: 4, cooling: adaptive}\n")
    assert isinstance(load_experiment(file), Experiment)
