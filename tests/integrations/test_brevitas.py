"""brevitas's quantizers follow a schedule: when they begin, and the temperature of learned rounding."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.exchange.integrations.brevitas import drive_delay, drive_temperature, switch_quant
from metasched.exchange.player import SchedulePlayer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, whose warnings differ from release to release

STEPS = 9


@pytest.fixture(scope="module", autouse=True)
def brevitas() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("brevitas", reason="optional: brevitas")
        import brevitas.nn

    return brevitas


def ternary(brevitas: Any) -> nn.Sequential:
    from brevitas.quant import SignedTernaryWeightPerTensorConst

    torch.manual_seed(0)
    layers = [
        brevitas.nn.QuantLinear(a, b, bias=False, weight_quant=SignedTernaryWeightPerTensorConst, scaling_const=0.1)
        for a, b in ((4, 8), (8, 8))
    ]
    return nn.Sequential(layers[0], nn.Hardtanh(), layers[1])


def test_each_layer_is_quantized_from_its_own_step_on(brevitas: Any, schedule: Path) -> None:
    model = ternary(brevitas)
    apply = switch_quant(model, "freeze_fraction", lambda fraction: fraction >= 0.5)
    player, states = SchedulePlayer(schedule, STEPS), []
    for step in range(STEPS):
        values = player.at(step)
        apply(values, step)
        states.append([values[layer]["freeze_fraction"] >= 0.5 for layer in ("0", "2")])
        for i, quantized in zip((0, 2), states[-1], strict=True):
            seen = model[i](torch.eye(model[i].in_features)).T
            assert torch.equal(seen, model[i].weight) != quantized
            assert (len(seen.unique()) <= 3) == quantized
    assert [False, False] in states and [True, False] in states and [True, True] in states


def rounding(brevitas: Any) -> nn.Sequential:
    from brevitas.quant import Int8WeightPerTensorFloat

    class LearnedRound(Int8WeightPerTensorFloat):
        float_to_int_impl_type = "learned_round"
        learned_round_impl_type = "sigmoid"
        learned_round_init = torch.linspace(-1, 1, 64).reshape(8, 8)

    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Identity(), brevitas.nn.QuantLinear(8, 8, weight_quant=LearnedRound))


def test_the_temperature_of_rounding_follows_the_schedule(brevitas: Any, schedule: Path) -> None:
    model = rounding(brevitas)
    apply = drive_temperature(model, "weight_noise", lambda scale: max(scale, 0.01))
    player = SchedulePlayer(schedule, STEPS)
    for step in range(STEPS):
        values = {"2": player.at(step)["2"]}
        apply(values, step)
        quantized = model[2].quant_weight()
        share = quantized.value / quantized.scale - (model[2].weight / quantized.scale).floor()
        wanted = torch.sigmoid(torch.linspace(-1, 1, 64).reshape(8, 8) / max(values["2"]["weight_noise"], 0.01))
        inside = (model[2].weight / quantized.scale).abs() < 126
        assert torch.allclose(share[inside], wanted[inside], atol=1e-6)


def test_each_layers_delay_ends_with_its_control_whatever_was_counted(brevitas: Any, schedule: Path) -> None:
    torch.manual_seed(0)
    delayed = {"weight_bit_width": 2, "weight_quant_delay_steps": 1, "bias": False}
    model = nn.Sequential(*(brevitas.nn.QuantLinear(a, 8, **delayed) for a in (4, 8)))
    names = {"0": "0", "1": "2"}  # the schedule's layers
    apply = drive_delay(model, "freeze_fraction", lambda fraction: fraction >= 0.5)
    player, states = SchedulePlayer(schedule, STEPS), []
    for step in (*range(STEPS), 0):  # at the end as after a resume at the first step
        values = {name: player.at(step)[of] for name, of in names.items()}
        apply(values, step)
        model.train(step % 2 == 0)
        states.append([values[name]["freeze_fraction"] >= 0.5 for name in names])
        for layer, quantized in zip(model, states[-1], strict=True):
            for _ in range(3):  # its own count would be over after one
                seen = layer(torch.eye(layer.in_features)).T
            assert torch.equal(seen, layer.weight) != quantized
            assert (len(seen.unique()) <= 4) == quantized
    assert [False, False] in states and [True, False] in states and [True, True] in states


def test_a_layer_without_a_quantizer_is_one_line(brevitas: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(MetaschedError, match=r"^layers\.0: has no QuantProxyFromInjector; quantize it"):
        switch_quant(model, "freeze_fraction", bool)({"0": {"freeze_fraction": 0.0}}, 0)
    with pytest.raises(MetaschedError, match=r"^layers\.0: has no LearnedRoundSigmoid; quantize it"):
        drive_temperature(model, "weight_noise", abs)({"0": {"weight_noise": 0.5}}, 0)
    with pytest.raises(MetaschedError, match=r"^layers\.0: has no _DelayQuant; quantize it"):
        drive_delay(model, "freeze_fraction", bool)({"0": {"freeze_fraction": 0.0}}, 0)
