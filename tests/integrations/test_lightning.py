"""The callback of Lightning's Trainer gives what the plain player gives, across a resume in the middle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.exchange.integrations.driven import DrivenModule
from metasched.exchange.integrations.lightning import callback
from metasched.exchange.player import SchedulePlayer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, whose warnings differ from release to release

STEPS, STOP = 6, 3


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("pytorch_lightning", reason="optional: lightning")


class Killed(Exception):
    pass


def trainer_of(lightning: Any, played: Any, max_epochs: int = 2, **options: Any) -> Any:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet = {**silent, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(callbacks=[played], max_epochs=max_epochs, **quiet, **options)


def train(
    lightning: Any,
    model: nn.Module,
    folder: Path,
    played: Any,
    *,
    killed: bool = False,
    resume: bool = False,
    accumulated: int = 1,
    epochs: int = 2,
) -> None:
    """Two epochs of three steps; ``killed`` after the first of them, which leaves a checkpoint for ``resume``."""

    class Fit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.model(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), lr=0.05)

        def on_train_epoch_end(self) -> None:
            if killed:
                self.trainer.save_checkpoint(folder / "stopped.ckpt")
                raise Killed

    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    trainer = trainer_of(lightning, played, max_epochs=epochs, accumulate_grad_batches=accumulated)
    loader = torch.utils.data.DataLoader(data, batch_size=8 // accumulated)
    trainer.fit(Fit(), loader, ckpt_path=folder / "stopped.ckpt" if resume else None)


@pytest.mark.parametrize(("learned", "accumulated"), [(None, 1), (None, 2), ("digits_ana", 1), ("fashion_joint", 1)])
def test_the_same_values_as_the_plain_player_across_a_resume(
    lightning: Any, schedule: Path, tmp_path: Path, learned: str | None, accumulated: int
) -> None:
    torch.set_default_dtype(torch.float32)
    source = learned or schedule
    seen: list[tuple[int, Any]] = []
    settled: list[int] = []

    def run(**options: Any) -> None:
        played = callback(
            source, lambda values, step: seen.append((step, values)), settle=lambda: settled.append(len(seen))
        )
        train(lightning, nn.Linear(4, 1), tmp_path, played, accumulated=accumulated, **options)

    with pytest.raises(Killed):
        run(killed=True)
    assert len(seen) == STOP * accumulated
    run(resume=True)
    player = SchedulePlayer(source, STEPS)
    wanted = [(step, player.step()) for step in range(STEPS)]
    assert seen == [pair for pair in wanted for _ in range(accumulated)]
    assert settled == [accumulated * step for step in range(1, STEPS + 1)]


def test_a_quantized_network_resumes_with_the_same_bits(
    lightning: Any, schedule: Path, tmp_path: Path, driven: DrivenModule
) -> None:
    def run(**options: Any) -> DrivenModule:
        model = copy.deepcopy(driven)
        played = callback(schedule, model.apply_controls, settle=model.settle, layers=model.layers)
        train(lightning, model, tmp_path, played, **options)
        return model

    whole = run()
    with pytest.raises(Killed):
        run(killed=True)
    resumed = run(resume=True)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert not torch.equal(whole.hardened()["2.weight"], driven.hardened()["2.weight"])


def test_a_run_without_end_is_refused(lightning: Any, schedule: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    played = callback(schedule, lambda values, step: None)
    with pytest.raises(MetaschedError, match=r"^total_steps: the trainer has no end"):
        train(lightning, nn.Linear(4, 1), tmp_path, played, epochs=-1)


@pytest.mark.parametrize("killed", [False, True])
def test_with_two_optimizers_and_skipped_batches_the_schedule_lasts_to_the_end(
    lightning: Any, schedule: Path, tmp_path: Path, driven: DrivenModule, killed: bool
) -> None:
    """Two steps of optimizers a batch, and none of either in the batches that are skipped."""
    seen: list[tuple[int, Any]] = []

    class Two(lightning.LightningModule):
        def __init__(self, model: nn.Module, stop: bool) -> None:
            super().__init__()
            self.model, self.other, self.automatic_optimization, self.stop = model, nn.Linear(4, 1), False, stop

        def training_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                return
            for part, optimizer in zip((self.model, self.other), self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(part(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.model, self.other)]

        def on_train_epoch_end(self) -> None:
            if self.stop:
                self.trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                raise Killed

    def run(stop: bool, path: Path | None) -> None:
        def apply(values: Any, step: int) -> None:
            seen.append((step, values))
            driven.apply_controls(values, step)

        trainer = trainer_of(lightning, callback(schedule, apply, settle=driven.settle, layers=driven.layers))
        data = torch.utils.data.TensorDataset(torch.randn(24, 4))
        trainer.fit(Two(driven, stop), torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=path)

    if killed:
        with pytest.raises(Killed):
            run(True, None)
        run(False, tmp_path / "stopped.ckpt")
    else:
        run(False, None)
    player = SchedulePlayer(schedule, STEPS, driven.layers)
    assert seen == [(step, player.step()) for step in range(STEPS)]


def test_a_batch_that_is_skipped_is_a_step(
    lightning: Any, schedule: Path, tmp_path: Path, driven: DrivenModule
) -> None:
    seen: list[int] = []

    def apply(values: Any, step: int) -> None:
        seen.append(step)
        driven.apply_controls(values, step)

    class Fit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = driven

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            return None if batch_idx == 2 else self.model(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), lr=0.05)

    trainer = trainer_of(lightning, callback(schedule, apply, settle=driven.settle, layers=driven.layers))
    data = torch.utils.data.TensorDataset(torch.randn(24, 4))
    trainer.fit(Fit(), torch.utils.data.DataLoader(data, batch_size=8))
    assert seen == list(range(STEPS))
