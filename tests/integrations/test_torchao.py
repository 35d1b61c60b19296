"""torchao's fake quantizers and PARQ follow a schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.exchange.integrations.function import step_function
from metasched.exchange.integrations.torchao import scheduled_parq, scheduled_parq_by_layer, switch_fake_quant
from metasched.exchange.player import SchedulePlayer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, whose warnings differ from release to release

STEPS = 9


@pytest.fixture(scope="module", autouse=True)
def torchao() -> Any:
    return pytest.importorskip("torchao", reason="optional: torchao")


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(), nn.Linear(8, 8))


def test_each_layers_fake_quantizer_is_switched_by_its_own_values(schedule: Path) -> None:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    plain, prepared = model(), model()
    weights = IntxFakeQuantizeConfig(torch.int4, group_size=4)
    quantize_(prepared, QATConfig(weight_config=weights, step="prepare"))
    apply = switch_fake_quant(prepared, "freeze_fraction", lambda fraction: fraction >= 0.5)
    player, x, states = SchedulePlayer(schedule, STEPS), torch.randn(3, 4), []
    for step in range(STEPS):
        values = player.at(step)
        apply(values, step)
        states.append([values[layer]["freeze_fraction"] >= 0.5 for layer in ("0", "2")])
        inner = prepared[1](prepared[0](x))
        assert torch.equal(prepared[0](x), plain[0](x)) != states[-1][0]
        assert torch.equal(prepared[2](inner), plain[2](inner)) != states[-1][1]
    assert [False, False] in states and [True, False] in states and [True, True] in states


def test_a_layer_without_a_fake_quantizer_is_one_line(schedule: Path) -> None:
    values = SchedulePlayer(schedule, STEPS).at(0)
    with pytest.raises(MetaschedError, match=r"^layers\.0: has no FakeQuantizerBase; quantize it"):
        switch_fake_quant(model(), "freeze_fraction", bool)(values, 0)
    with pytest.raises(MetaschedError, match=r"^layers: unknown name '2'"):
        switch_fake_quant(nn.Sequential(nn.Identity()), "freeze_fraction", bool)({"2": {"freeze_fraction": 0.0}}, 0)


@pytest.mark.parametrize("wanted", [1.5, 1.0, 0.999, 0.5, 0.1, 1e-3, 0.0, -1.0])
def test_the_map_has_the_slope_that_was_asked_for(wanted: float) -> None:
    levels, p = torch.tensor([-1.0, 0.0, 1.0]), torch.linspace(-2, 2, 41)
    mapped = p.clone()
    slope = scheduled_parq(lambda step: wanted).apply_(mapped, None, levels, 7)
    assert slope == pytest.approx(min(max(wanted, 0.0), 1.0), rel=1e-9, abs=1e-9)
    if wanted >= 1:
        assert torch.equal(mapped, p)
    elif wanted <= 0:
        assert torch.equal(mapped, levels[torch.bucketize(p, torch.tensor([-0.5, 0.5]))])
    else:  # between two levels a line through the middle, of slope 1 / wanted, cut off at the levels
        low = p.floor().clamp(-1, 0)
        expected = (low + 0.5 + (p - low - 0.5) / wanted).clamp(low, low + 1)
        on_a_level = (p - p.round()).abs() < 1e-6
        assert torch.allclose(mapped[~on_a_level], expected[~on_a_level], atol=1e-6 / wanted)


def quantized_training(inverse_slope: Callable[[int], float]) -> Any:
    from torchao.prototype.parq import QuantOptimizer, UnifQuantizer

    network = model()
    groups = [{"params": [network[0].weight, network[2].weight], "quant_bits": 2}]
    optimizer = QuantOptimizer(
        torch.optim.SGD(groups, lr=0.05, momentum=0.9), UnifQuantizer(), scheduled_parq(inverse_slope), quant_period=1
    )
    return network, optimizer


def advance(network: nn.Module, optimizer: Any, steps: range) -> list[float]:
    slopes = []
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
        slopes.append(optimizer.param_groups[0].get("inv_slope", 0.0))
    return slopes


def test_training_follows_the_schedule_across_a_resume(schedule: Path) -> None:
    noise = step_function(SchedulePlayer(schedule, STEPS), "weight_noise")
    wanted = [2 * noise(step) for step in range(STEPS)]

    def build() -> Any:
        return quantized_training(lambda step: 2 * noise(step))

    network, optimizer = build()
    slopes = advance(network, optimizer, range(STEPS))
    assert slopes[:-1] == pytest.approx(wanted[:-1])  # it keeps the last one that is not 0
    assert wanted[-1] == 0 and all(len(p.unique()) <= 4 for p in (network[0].weight, network[2].weight))

    stopped, halfway = build()
    advance(stopped, halfway, range(4))
    weights, state = stopped.state_dict(), halfway.state_dict()
    resumed, other = build()
    advance(resumed, other, range(1))  # QuantOptimizer takes a state once it has one
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    assert other.num_steps == 4
    assert advance(resumed, other, range(4, STEPS))[:-1] == pytest.approx(wanted[4:-1])
    assert torch.equal(network[2].weight, resumed[2].weight)


def test_each_layer_has_a_slope_of_its_own(schedule: Path) -> None:
    from torchao.prototype.parq import QuantOptimizer, UnifQuantizer

    def optimizer_of(network: nn.Module, slopes: Callable[[int], dict[str, float]]) -> Any:
        groups = [{"params": [network[0].weight, network[2].weight], "quant_bits": 2}]
        map_ = scheduled_parq_by_layer(network, slopes)
        return QuantOptimizer(torch.optim.SGD(groups, lr=0.05), UnifQuantizer(), map_, quant_period=1)

    player = SchedulePlayer(schedule, STEPS)
    network = model()
    optimizer = optimizer_of(
        network, lambda step: {name: 2 * values["weight_noise"] for name, values in player.at(step).items()}
    )
    rounded = []
    for step in range(STEPS):
        advance(network, optimizer, range(step, step + 1))
        wanted = [player.at(step)[name]["weight_noise"] == 0 for name in ("0", "2")]
        rounded.append([len(network[i].weight.unique()) <= 4 for i in (0, 2)])
        assert rounded[-1] == wanted
    assert [False, False] in rounded and [True, False] in rounded and [True, True] in rounded

    one, all_of_one = model(), model()  # equal slopes are the slope of all
    advance(one, optimizer_of(one, lambda step: {"0": 0.5, "2": 0.5}), range(3))
    groups = [{"params": [all_of_one[0].weight, all_of_one[2].weight], "quant_bits": 2}]
    sgd = torch.optim.SGD(groups, lr=0.05)
    advance(
        all_of_one, QuantOptimizer(sgd, UnifQuantizer(), scheduled_parq(lambda step: 0.5), quant_period=1), range(3)
    )
    assert torch.equal(one[2].weight, all_of_one[2].weight)

    with pytest.raises(
        MetaschedError, match=r"^model\.2\.weight: is quantized by the optimizer, and the schedule has no"
    ):
        advance(network, optimizer_of(network, lambda step: {"0": 0.5}), range(1))
