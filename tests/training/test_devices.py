"""A few steps on a GPU end where they end on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stacked_runs import METHODS, controls_of, own, problem

from metasched.training.loop import hardened_score, train
from metasched.training.stacked import train_each

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("method", ["ana_expectation", "inq", "ste", "joint"])
def test_three_steps_are_those_of_the_cpu(method: str, model: str) -> None:
    ends, scores = [], []
    for device in ("cpu", "cuda"):
        inner = replace(problem(METHODS[method], model), steps=3)
        inner.network.module.to(device)
        inner = replace(inner, task=inner.task.to(device, torch.float32))
        end = train(inner, {name: v.to(device) for name, v in own(controls_of(inner), 0).items()}).state
        ends.append({name: p.cpu() for name, p in end.params.items()})
        scores.append(hardened_score(inner, end, "validation"))
    apart = torch.cat([(p - ends[1][name]).abs().flatten() for name, p in ends[0].items()])
    # a value may be rounded to the other side of a threshold, or to another place in the order of freezing
    assert float((apart > 1e-4).float().mean()) <= (0 if method == "ana_expectation" else 0.02)
    assert abs(scores[0] - scores[1]) <= 0.2


def test_many_runs_are_those_of_the_loop() -> None:
    inner = replace(problem(METHODS["ana_expectation"]), steps=12)
    inner.network.module.to("cuda")
    inner = replace(inner, task=inner.task.to("cuda", torch.float32))
    controls = {name: v.to("cuda") for name, v in own(controls_of(inner), 0).items()}
    for seed, end in enumerate(train_each(inner, controls, range(3))):
        alone = train(inner.with_seed(seed), controls).state
        assert all(float((p - end.params[name]).abs().max()) <= 1e-3 for name, p in alone.params.items())
