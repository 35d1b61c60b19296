"""The callback of the Trainer of transformers gives what the plain player gives, across a resume in the middle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched.core.layer import Layer
from metasched.exchange.integrations.driven import DrivenModule
from metasched.exchange.integrations.huggingface import callback
from metasched.exchange.player import SchedulePlayer

transformers = pytest.importorskip("transformers", reason="optional: transformers")
pytest.importorskip("accelerate", reason="optional: transformers")

STEPS, STOP = 6, 3

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, whose warnings differ from release to release


class WithLoss(nn.Module):
    """What Trainer calls: a model that gives its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(x)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


def stop_at(step: int) -> Any:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step == step

    return Stop()


def train(
    model: nn.Module, folder: Path, played: Any, *, stop: int = STEPS, resume: bool = False, **options: Any
) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, 4, generator=generator)
    data = [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=STEPS,
        save_steps=STOP,
        learning_rate=0.05,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        **options,
    )
    trainer = transformers.Trainer(WithLoss(model), arguments, train_dataset=data, callbacks=[played, stop_at(stop)])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("learned", "accumulated"), [(None, 1), (None, 2), ("digits_ana", 1), ("fashion_joint", 1)])
def test_the_same_values_as_the_plain_player_across_a_resume(
    schedule: Path, tmp_path: Path, learned: str | None, accumulated: int
) -> None:
    torch.set_default_dtype(torch.float32)
    source = learned or schedule
    seen: list[tuple[int, Any]] = []
    settled: list[int] = []

    def record(values: Any, step: int) -> None:
        seen.append((step, values))

    def run(**options: Any) -> None:
        played = callback(source, record, settle=lambda: settled.append(len(seen)))
        train(nn.Linear(4, 1), tmp_path / "run", played, gradient_accumulation_steps=accumulated, **options)

    run(stop=STOP)
    assert [step for step, _ in seen] == [0, 1, 2]
    run(resume=True)
    player = SchedulePlayer(source, STEPS)
    assert seen == [(step, player.step()) for step in range(STEPS)]
    assert settled == [1, 2, 3, 4, 5, 6]  # once after each of them


def test_a_quantized_network_resumes_with_the_same_bits(schedule: Path, tmp_path: Path, driven: DrivenModule) -> None:
    def run(name: str, **options: Any) -> DrivenModule:
        model = copy.deepcopy(driven)
        played = callback(schedule, model.apply_controls, settle=model.settle, layers=model.layers)
        train(model, tmp_path / name, played, **options)
        return model

    whole = run("whole")
    run("parts", stop=STOP)
    resumed = run("parts", resume=True)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert not torch.equal(whole.hardened()["2.weight"], driven.hardened()["2.weight"])


def test_evaluation_is_that_of_the_deployed_network(schedule: Path, driven: DrivenModule) -> None:
    x = torch.randn(3, 4)
    driven.eval()
    assert torch.equal(driven(x), driven.module.deployed(x))
    driven.train()
    assert not torch.equal(driven(x), driven.module.deployed(x))


def test_another_length_can_be_given(schedule: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    seen: list[Any] = []
    played = callback(schedule, lambda values, step: seen.append(values), total_steps=11)
    train(nn.Linear(4, 1), tmp_path / "run", played, stop=2)
    player = SchedulePlayer(schedule, 11)
    assert seen == [player.at(0), player.at(1)]


def test_layers_of_another_kind_are_played_by_their_depth_with_a_warning(schedule: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    conv = Layer("conv", 0.0, "conv", "weight", 9, 9, 1.0)
    seen: list[list[str]] = []
    with pytest.warns(UserWarning, match=r"^layers: the schedule has layers of kind linear only: conv layers \(conv\)"):
        train(
            nn.Linear(4, 1),
            tmp_path / "run",
            callback(schedule, lambda values, step: seen.append(list(values)), layers=[conv]),
        )
    assert seen and all(names == ["conv"] for names in seen)
