"""Pretrained starts: the weights are those of float training, the same everywhere, and all runs begin at them."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.methods.config import MethodConfig
from metasched.network.config import QuantizeConfig
from metasched.tasks.base import start
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.pretraining import PretrainedTask, float_weights
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.loop import hardened_score
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

CONFIG = TaskConfig(name="digits", model="convnet", width=4, steps=2, batch=32, pretrained=40)
FLOAT = MethodConfig(name="float")


def problem(task: TaskConfig, method: MethodConfig = FLOAT, lr: float = 0.01) -> InnerProblem:
    return build_problem(ProblemConfig(task, OptimizerConfig(lr=lr), method, QuantizeConfig()))


def made(config: TaskConfig) -> PretrainedTask:
    task = build_task(config)
    assert isinstance(task, PretrainedTask)
    return task


def test_the_weights_are_those_of_adam_with_a_cosine_decay() -> None:
    task = made(CONFIG)
    torch.manual_seed(derive_seed(0, "pretrained"))
    model = build_task(replace(CONFIG, pretrained=0)).build().to(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / 40)))
    for step in range(40):
        x, y = task.batch(derive_seed(0, "pretrained batches"), step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        decay.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(task.weights[name], tensor, rtol=1e-5, atol=1e-6)


def test_every_run_starts_at_the_trained_float_network_with_its_statistics() -> None:
    p = problem(CONFIG)
    assert isinstance(p.task, PretrainedTask)
    for seed in (0, 1):
        state = p.with_seed(seed).initial({})
        assert all(torch.equal(state.params[name], p.task.weights[name]) for name in state.params)
        assert all(torch.equal(state.buffers[name], p.task.weights[name]) for name in state.buffers)
    assert state.buffers["norm1.num_batches_tracked"] == 40
    fresh = problem(replace(CONFIG, pretrained=0))
    scores = [hardened_score(q, q.initial({}), "test") for q in (p, fresh)]
    assert scores[0] > 0.8 > 0.4 > scores[1]
    net = start(p.task).to(torch.float32).train()
    with torch.no_grad():
        net(p.task.train.x)  # what hardening estimates: the statistics of the training set
        p.task.calibrate(net)
    assert scores[0] == pytest.approx(_accuracy(p.task, net), abs=0.02)


def _accuracy(task: PretrainedTask, net: torch.nn.Module) -> float:
    return float((net.eval()(task.test.x).argmax(1) == task.test.y).double().mean())


def test_the_training_part_alone_is_read() -> None:
    task = build_task(replace(CONFIG, pretrained=0))
    assert isinstance(task, SupervisedTask)
    nothing = Split(torch.full((1, 1, 8, 8), math.nan), torch.zeros(1, dtype=torch.int64))
    spoiled = float_weights(replace(task, validation=nothing, test=nothing), 40, 0)
    assert all(torch.equal(tensor, spoiled[name]) for name, tensor in made(CONFIG).weights.items())


DIGEST = """
import hashlib, torch
torch.set_num_threads({threads})
from metasched.tasks.build import build_task
from metasched.tasks.config import TaskConfig
task = build_task(TaskConfig(name="digits", width=4, steps=2, batch=32, pretrained=40))
bits = b"".join(t.numpy().tobytes() for t in task.initial().values())
print(hashlib.sha256(bits).hexdigest(), task.fingerprint(), torch.get_num_threads())
"""


@pytest.mark.slow
def test_another_process_with_other_threads_computes_the_same_bits() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", DIGEST.format(threads=threads)], capture_output=True, text=True, check=True
        ).stdout.split()
        for threads in (1, 2)
    ]
    assert found[0][:2] == found[1][:2] and [f[2] for f in found] == ["1", "2"]
    assert len(found[0][0]) == len(hashlib.sha256().hexdigest())


def test_the_fingerprint_knows_steps_data_and_model_and_not_the_bits() -> None:
    changes = ({}, {"pretrained": 0}, {"pretrained": 41}, {"data_seed": 1}, {"width": 5})
    prints = [build_task(replace(CONFIG, **change)).fingerprint() for change in changes]
    assert len({*prints}) == len(prints)
    task = made(CONFIG)
    assert task.fingerprint() == prints[0] == replace(task, weights={}).fingerprint()


def test_the_start_does_not_follow_the_optimizer_of_the_experiment() -> None:
    assert problem(CONFIG, lr=0.01).task.initial() is problem(CONFIG, lr=0.02).task.initial()


def test_drawn_weights_are_refused_and_fixed_scales_keep_the_start() -> None:
    with pytest.raises(MetaschedError, match=r"^method\.scale: unit draws the weights anew, .*pretrained ones; set it"):
        problem(CONFIG, MethodConfig(name="ste", scale="unit"))
    p = problem(CONFIG, MethodConfig(name="ste", scale="least_squares"))
    assert isinstance(p.task, PretrainedTask)
    assert torch.equal(p.initial({}).params["conv2.weight"], p.task.weights["conv2.weight"])


def test_a_text_can_start_pretrained_too() -> None:
    task = made(TaskConfig(name="text", width=16, batch=16, pretrained=2))
    assert task.initial()["embedding.weight"].shape[1] == 16


def test_a_start_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metasched.tasks.pretraining.LR", math.inf)
    with pytest.raises(MetaschedError, match=r"^task\.pretrained: training in float diverged"):
        build_task(CONFIG)
