"""The example of BitNet-style fine-tuning: the blend is the schedule's, also across a resume, and ends in ternary."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from loading import loaded
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.exchange.player import SchedulePlayer
from metasched.schedules.table import hand_coded

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return loaded(ROOT / "examples" / "bitnet_blend.py")


def quantized(example: ModuleType, model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {
        f"{name}.{weight}": getattr(module, weight).detach()
        for name, module in model.named_modules()
        for weight in getattr(module, "parametrizations", ())
    }


def test_between_float_and_ternary_the_weights_are_on_the_line(example: ModuleType) -> None:
    w = torch.randn(8, 8, requires_grad=True)
    blend = example.Blend()
    for value in (0.0, 0.25, 1.0):
        blend.blend = value
        seen = blend(w)
        assert torch.allclose(seen, (1 - value) * w + value * example.ternary(w), rtol=0, atol=1e-15)
        assert torch.equal(torch.autograd.grad(seen.sum(), w)[0], torch.ones_like(w))
    gamma = w.detach().abs().mean()
    assert set((seen / gamma).unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert ((seen / gamma - w / gamma).abs() <= 0.5)[(w / gamma).abs() < 1].all()


def test_the_blend_of_each_layer_is_the_schedules_across_a_resume(example: ModuleType) -> None:
    float_model = example.pretrained(2, seed=0)

    def build() -> tuple[nn.Module, torch.optim.Optimizer, SchedulePlayer]:
        model = copy.deepcopy(float_model)
        layers = example.blend_weights(model)
        assert [layer.name.rpartition(".")[2] for layer in layers] == ["self_attn", "linear1", "linear2"] * 2
        player = SchedulePlayer(hand_coded("inq")["inq_input_first"], STEPS, layers)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3), player

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, player: SchedulePlayer, steps: range) -> list[float]:
        seen = []
        for step in steps:
            example.train(model, optimizer, range(step, step + 1), 0, player.at)
            for name, values in player.at(step).items():
                blends = [m.blend for m in model.get_submodule(name).modules() if isinstance(m, example.Blend)]
                assert blends == [values["freeze_fraction"]] * (2 if name.endswith("self_attn") else 1)
                seen += blends
        return seen

    whole = build()
    blends = run(*whole, range(STEPS))
    assert len(set(blends)) > 4
    parts = build()
    run(*parts, range(3))
    resumed = build()
    for ours, theirs in zip(resumed[:2], parts[:2], strict=True):
        ours.load_state_dict(theirs.state_dict())
    run(*resumed, range(3, STEPS))
    for one, other in zip(whole[0].state_dict().values(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    weights = quantized(example, resumed[0])  # the last step has lambda 1
    assert len(weights) == 8
    assert all(len(w.unique()) <= 3 for w in weights.values())
    assert all(len(w.unique()) > 3 for w in quantized(example, parts[0]).values())


@pytest.mark.slow
def test_the_example_runs(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)
    results = example.main(["--schedule", "inq_linear", "--pretrain", "40", "--steps", "5", "--seeds", "1"])
    assert list(results) == ["float", "at once", "inq_linear"]
    assert results["float"][0] > 2 / 8  # twice chance
    assert results["inq_linear"][0] != results["at once"][0]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(results)


def test_an_unknown_schedule_is_one_line(example: ModuleType) -> None:
    with pytest.raises(MetaschedError, match=r"^--schedule: unknown name 'inq_liner'; did you mean 'inq_linear'\?"):
        example.fine_tune(example.Reverser(), "inq_liner", 2, 0)
