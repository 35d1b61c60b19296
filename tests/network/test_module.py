"""A quantized module in a plain torch.optim loop against the training loop of this package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from metasched import MetaschedError, QuantizedModule, SchedulePlayer, build_problem, train
from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed
from metasched.evaluation.config import CompareConfig
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.training.loop import InnerRun
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.state import InnerProblem

STEPS, SEED = 6, 5
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[OptimizerConfig, MakeOptimizer]] = {
    "sgd": (
        OptimizerConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}
METHODS = [("inq", "inq_linear"), ("ana", "ana_linear"), ("joint", "joint_linear")]


def problem_of(method: str, optimizer: str = "sgd", partition: str = "magnitude") -> InnerProblem:
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=4, steps=STEPS, batch=16, train=64, validation=16, test=16),
        method=MethodConfig(name=method, partition=partition),  # type: ignore[arg-type]
        optimizer=OPTIMIZERS[optimizer][0],
        compare=CompareConfig(),
        run=RunConfig(dtype="float64"),
    )
    return build_problem(experiment.problem).with_seed(SEED)


def module_of(problem: InnerProblem, schedule: str) -> tuple[QuantizedModule, SchedulePlayer]:
    """The network with the initial weights that the problem's own run has, and the player of its schedule."""
    torch.manual_seed(derive_seed(SEED, "weights"))
    model = problem.task.build()
    network = quantize(model, problem.network.method, problem.task.train.x[:2])
    player = SchedulePlayer(hand_coded(schedule.split("_")[0])[schedule], STEPS, network.layers)
    return QuantizedModule(network, player.at(0), SEED), player


def one_step(
    module: QuantizedModule, player: SchedulePlayer, optimizer: torch.optim.Optimizer, problem: InnerProblem, step: int
) -> float:
    x, y = problem.task.batch(SEED, step)
    loss = nn.functional.cross_entropy(module(x, player.at(step), step), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    module.settle()
    return float(loss.detach())


def reference(problem: InnerProblem, schedule: str) -> InnerRun:
    values = hand_coded(schedule.split("_")[0])[schedule](progress_of_steps(STEPS), problem.network.layers)
    return train(problem, values)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("method", "schedule"), METHODS)
def test_a_plain_loop_is_the_inner_run(method: str, schedule: str, optimizer: str) -> None:
    problem = problem_of(method, optimizer)
    expected = reference(problem, schedule)
    module, player = module_of(problem, schedule)
    plain = OPTIMIZERS[optimizer][1](module.parameters())
    losses = [one_step(module, player, plain, problem, step) for step in range(STEPS)]
    torch.testing.assert_close(torch.tensor(losses), expected.losses, rtol=0, atol=1e-12)
    for name, p in module.module.named_parameters():
        torch.testing.assert_close(p.detach(), expected.state.params[name], rtol=0, atol=1e-10)
    for name, b in module.module.named_buffers():
        torch.testing.assert_close(b, expected.state.buffers[name], rtol=0, atol=1e-10)
    hardened = problem.network.harden(expected.state.params, expected.state.method)
    for name, p in module.hardened().items():
        torch.testing.assert_close(p, hardened[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["inq", "joint"])
def test_frozen_weights_do_not_move_at_all(method: str, optimizer: str) -> None:
    problem = problem_of(method, optimizer)
    module, player = module_of(problem, f"{method}_linear")
    plain = OPTIMIZERS[optimizer][1](module.parameters())
    frozen: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        held = {k: p.detach().clone() for k, p in module.module.named_parameters()}
        one_step(module, player, plain, problem, step)
        for layer in module.network.layers:
            own = module.module.get_parameter(f"{layer.name}.weight")
            mask = module.method_state()[f"{layer.name}/frozen"] == 1
            assert torch.equal(own[mask], held[f"{layer.name}.weight"][mask])
            assert bool((own[~mask] != held[f"{layer.name}.weight"][~mask]).any()) or bool(mask.all())
            assert int(mask.sum()) >= int(frozen.get(layer.name, torch.zeros(1)).sum())
            frozen[layer.name] = mask
    assert all(bool(mask.all()) for mask in frozen.values())


@pytest.mark.parametrize("partition", ["magnitude", "relaxation"])
@pytest.mark.parametrize("method", ["inq", "joint"])
def test_resumes_from_its_state_dict(method: str, partition: str) -> None:
    problem = problem_of(method, "adamw", partition)
    whole, player = module_of(problem, f"{method}_linear")
    plain = OPTIMIZERS["adamw"][1](whole.parameters())
    for step in range(3):
        one_step(whole, player, plain, problem, step)
    saved = {k: v.clone() for k, v in whole.state_dict().items()}, copy.deepcopy(plain.state_dict())
    torch.manual_seed(99)
    network = quantize(problem.task.build(), problem.network.method, problem.task.train.x[:2])
    resumed = QuantizedModule(network, player.at(0), SEED)
    resumed.load_state_dict(saved[0])
    other = OPTIMIZERS["adamw"][1](resumed.parameters())
    other.load_state_dict(saved[1])
    for step in range(3, STEPS):
        assert one_step(whole, player, plain, problem, step) == one_step(resumed, player, other, problem, step)
    assert list(whole.state_dict()) == list(resumed.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("method", "schedule"), METHODS)
def test_what_is_deployed_is_exactly_on_the_levels(method: str, schedule: str) -> None:
    problem = problem_of(method)
    module, player = module_of(problem, schedule)
    optimizer = OPTIMIZERS["sgd"][1](module.parameters())
    for step in range(STEPS):
        one_step(module, player, optimizer, problem, step)
    hardened = module.hardened()
    for layer in module.network.layers:
        assert set(hardened[f"{layer.name}.weight"].flatten().tolist()) <= {-1.0, 0.0, 1.0}
    module.eval()
    x = problem.task.test.x
    seen: list[torch.Tensor] = []
    module.module.get_submodule("linear4").register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    outputs = module.deployed(x)
    assert set(seen[0].flatten().tolist()) <= {-1.0, 0.0, 1.0}
    expected = module.network.hardened_model(
        problem.network.call(dict(module.module.named_buffers())), module.parameters_by_name(), module.method_state()
    )(x)
    problem.network.module.train()
    assert outputs.shape == expected.shape == (16, 10) and not outputs.requires_grad
    by_hand = nn.functional.linear(seen[0], hardened["linear4.weight"], hardened["linear4.bias"])
    torch.testing.assert_close(outputs, by_hand, rtol=0, atol=1e-12)


def test_all_of_it_moves_to_another_dtype() -> None:
    problem = problem_of("joint")
    module, player = module_of(problem, "joint_linear")
    module.to(torch.float32)
    assert {v.dtype for v in module.state_dict().values() if v.is_floating_point()} == {torch.float32}
    assert any(k.startswith("method_state_") for k in module.state_dict())
    optimizer = OPTIMIZERS["sgd"][1](module.parameters())
    x, y = problem.task.batch(SEED, 0)
    nn.functional.cross_entropy(module(x.float(), player.at(2), 2), y).backward()
    optimizer.step()
    module.settle()
    assert module.deployed(x.float()).dtype == torch.float32


def test_the_network_that_it_is_made_of_stays_as_it_is() -> None:
    problem = problem_of("inq")
    before = {k: v.clone() for k, v in problem.network.module.state_dict().items()}
    player = SchedulePlayer(hand_coded("inq")["inq_linear"], STEPS, problem.network.layers)
    module = QuantizedModule(problem.network, player.at(0), SEED)
    module(problem.task.train.x[:8], player.at(0), 0)
    assert all(torch.equal(v, before[k]) for k, v in problem.network.module.state_dict().items())


def test_controls_that_lack_something_are_named() -> None:
    problem = problem_of("joint")
    module, player = module_of(problem, "joint_linear")
    controls = player.at(0)
    del controls["linear2"]["noise_mean"]
    with pytest.raises(MetaschedError, match=r"controls\.linear2: has no value for noise_mean; "):
        module(problem.task.train.x[:2], controls, 0)
    with pytest.raises(
        MetaschedError, match=r"controls\.linear1: has no value for activation_noise, freeze_fraction, "
    ):
        module(problem.task.train.x[:2], {}, 0)
