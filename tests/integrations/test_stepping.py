"""Steps of a prepared module are those of its optimizer, in any trainer; and each trainer is a training function."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metasched
from metasched import MetaschedError, MethodConfig, Study
from metasched.exchange.integrations import huggingface, lightning
from metasched.exchange.integrations.stepping import follow
from metasched.network.playing import Player

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, whose warnings differ from release to release

STEPS = 6
INQ = MethodConfig(name="inq", activation_levels=None)
X = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
Y = X.sum(1, keepdim=True)


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def prepared(total_steps: int = STEPS) -> tuple[nn.Module, Player]:
    return metasched.prepare(model(), INQ, X[:2], "inq_linear", total_steps)


def plain(module: nn.Module, player: Player, seed: int, steps: int) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for step in range(steps):
        x, y = X[step % 3 :: 3], Y[step % 3 :: 3]
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
        player.step()


def quiet(pl: Any, **options: Any) -> Any:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **silent, **options)


def loader(batch: int) -> DataLoader[Any]:
    order = torch.cat([torch.arange(24)[i::3] for i in range(3)])  # the batches of the plain loop
    return DataLoader(TensorDataset(X[order], Y[order]), batch_size=batch)


def lightning_fit(module: nn.Module, player: Player, seed: int, steps: int, of: Any = None, **options: Any) -> Any:
    pl = pytest.importorskip("pytorch_lightning", reason="optional: lightning")

    class Fit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self.model(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), lr=0.05)

    accumulated = options.get("accumulate_grad_batches", 1)
    trainer = quiet(pl, max_steps=steps, callbacks=[lightning.player_callback(player, of or module)], **options)
    trainer.fit(Fit(), loader(8 // accumulated))


class WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(x)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


def huggingface_fit(module: nn.Module, player: Player, seed: int, steps: int, **options: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="optional: transformers")
    pytest.importorskip("accelerate", reason="optional: transformers")
    folder, resume, stop = (options.pop(name, None) for name in ("folder", "resume", "stop"))

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step == stop
            control.should_save |= state.global_step == stop

    arguments = transformers.TrainingArguments(
        output_dir=str(folder or "unused"), max_steps=steps, learning_rate=0.05, use_cpu=True, report_to=[], seed=0,
        disable_tqdm=True, logging_strategy="no", save_strategy="no", lr_scheduler_type="constant",
        per_device_train_batch_size=8 // options.get("gradient_accumulation_steps", 1), **options,
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    callbacks = [huggingface.player_callback(player, module), Stop()]
    trainer = transformers.Trainer(WithLoss(module), arguments, train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)


FITS: list[Callable[..., Any]] = [plain, lightning_fit, huggingface_fit]


@pytest.mark.parametrize("fit", FITS)
def test_every_trainer_plays_the_whole_schedule(fit: Callable[..., Any]) -> None:
    module, player = prepared()
    fit(module, player, 0, STEPS)
    assert player.position == STEPS
    assert player.value("freeze_fraction", "2") == 1.0
    frozen = [b for name, b in module.state_dict().items() if name.endswith("frozen")]
    assert frozen and all(bool((b > 0).all()) for b in frozen)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightning_gives_the_bits_of_the_plain_loop(accumulated: int) -> None:
    (one, player), (other, its) = prepared(), prepared()
    plain(one, player, 0, STEPS)
    lightning_fit(other, its, 0, STEPS, accumulate_grad_batches=accumulated)
    for (name, p), q in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(p, q) if accumulated == 1 else torch.allclose(p, q, atol=1e-5), name


def test_two_optimizers_and_skipped_batches_in_lightning_across_a_resume(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning", reason="optional: lightning")

    class Two(pl.LightningModule):
        def __init__(self, module: nn.Module, seen: list[int], player: Player) -> None:
            super().__init__()
            self.model, self.other, self.automatic_optimization = module, nn.Linear(4, 1), False
            self.seen, self.player = seen, player

        def training_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                return  # a bad batch
            for part, optimizer in zip((self.other, self.model), self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward((part(batch[0]) - batch[1]).square().mean())
                optimizer.step()
            self.seen.append(self.player.position)

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(part.parameters(), lr=0.05) for part in (self.other, self.model)]

    def run(epochs: int, path: Path | None = None) -> tuple[list[int], nn.Module, Any]:
        (module, player), seen = prepared(total_steps=6), list[int]()
        trainer = quiet(pl, max_epochs=epochs, callbacks=[lightning.player_callback(player, module)])
        trainer.fit(Two(module, seen, player), loader(8), ckpt_path=path)
        return seen, module, trainer

    torch.manual_seed(0)
    whole, module, _ = run(3)
    assert whole == [1, 2, 3, 4, 5, 6]  # three batches an epoch, of which one is skipped
    torch.manual_seed(0)
    first, _, trainer = run(1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    rest, resumed, _ = run(3, tmp_path / "stopped.ckpt")
    assert first + rest == whole
    for (name, p), q in zip(module.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("accumulated", [1, 2])
def test_huggingface_goes_on_in_the_middle_with_the_same_bits(tmp_path: Path, accumulated: int) -> None:
    options = {"gradient_accumulation_steps": accumulated}
    module, player = prepared()
    huggingface_fit(module, player, 0, STEPS, folder=tmp_path / "whole", **options)
    stopped, its = prepared()
    huggingface_fit(stopped, its, 0, STEPS, folder=tmp_path / "parts", stop=3, **options)
    assert its.position == 3
    resumed, player = prepared()
    huggingface_fit(resumed, player, 0, STEPS, folder=tmp_path / "parts", resume=True, **options)
    assert player.position == STEPS
    for (name, p), q in zip(module.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def test_accelerate_counts_steps_and_not_batches() -> None:
    accelerate = pytest.importorskip("accelerate", reason="optional: transformers")
    (one, player), (module, its) = prepared(3), prepared(3)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    wrapped, stepping, batches = accelerator.prepare(module, optimizer, loader(4))
    follow(its, module, [stepping])
    for x, y in batches:
        with accelerator.accumulate(wrapped):
            accelerator.backward((wrapped(x) - y).square().mean())
            stepping.step()
            stepping.zero_grad()
    assert its.position == 3  # six batches
    sgd = torch.optim.SGD(one.parameters(), lr=0.05)
    for x, y in loader(8):
        sgd.zero_grad()
        (one(x) - y).square().mean().backward()
        sgd.step()
        player.step()
    for (name, p), q in zip(one.state_dict().items(), module.state_dict().values(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), name


def test_a_step_that_a_scaler_leaves_out_is_none() -> None:
    module, player = prepared()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    follow(player, module, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * module(X).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert player.position == 2


def test_closures_of_lbfgs_are_one_step() -> None:
    module, player = prepared()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)
    follow(player, module, optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (module(X) - Y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    assert player.position == 1


def test_an_optimizer_that_is_not_the_modules_is_refused() -> None:
    (module, player), other = prepared(), nn.Linear(2, 2)
    optimizers = [torch.optim.SGD(other.parameters(), lr=0.1), torch.optim.SGD(module.parameters(), lr=0.1)]
    follow(player, module, optimizers).remove()
    with pytest.raises(MetaschedError, match=r"^optimizers: none of 1 train the quantized layers; let one optimizer"):
        follow(player, module, optimizers[:1])
    halves = [torch.optim.SGD([p], lr=0.1) for p in module.parameters()]
    with pytest.raises(MetaschedError, match=r"^optimizers: 2 of 6 train the quantized layers; "):
        follow(player, module, halves)
    with pytest.raises(MetaschedError, match=r"^optimizers: has a int; give optimizers of torch$"):
        follow(player, module, [3])


def test_lightning_says_what_does_not_fit() -> None:
    pytest.importorskip("pytorch_lightning", reason="optional: lightning")
    module, player = prepared(total_steps=50)
    with pytest.warns(
        UserWarning, match=r"^total_steps: training ended 44 steps before the schedule of 50: give prepare"
    ):
        lightning_fit(module, player, 0, STEPS)
    with pytest.raises(MetaschedError, match=r"^module: is not in the LightningModule; put what prepare returned into"):
        lightning_fit(copy.deepcopy(module), player, 0, STEPS, of=module)


@pytest.mark.parametrize("fit", FITS)
def test_every_trainer_is_the_training_function_of_a_study(fit: Callable[..., Any], tmp_path: Path) -> None:
    def evaluate(network: nn.Module) -> torch.Tensor:
        return -(network(X) - Y).square().mean()

    study = Study(
        model, INQ, fit, example=X[:2], steps=3, evaluate=evaluate, judged=2, quiet=True, storage=tmp_path / "s"
    )
    found = study.optimize("random", runs=10, repeats=1)
    rows = [json.loads(line) for line in (tmp_path / "s" / "evaluations.jsonl").read_text().splitlines()]
    assert found.runs == 10 and len(rows) <= 10 and all(row["score"] < 0 for row in rows)
