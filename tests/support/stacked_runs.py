"""Stacked runs of small problems, and how far their states are apart."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from metasched.commands.check import random_controls
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.flat import Tensors
from metasched.network.quantize import quantize
from metasched.tasks.classification import accuracy
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem, TrainingState

SEEDS = [3, 2**63 - 1, 8, 9]
STEPS = 5
METHODS = {
    "ste": MethodConfig(name="ste"),
    "ste_channel": MethodConfig(name="ste", levels="pow2_4", scale="pow2", granularity="channel"),
    "ana_expectation": MethodConfig(name="ana", forward="expectation", noise="uniform"),
    "ana_mode": MethodConfig(name="ana", forward="mode", noise="triangular", activation_levels="uint2"),
    "ana_random": MethodConfig(name="ana", forward="random", noise="normal", scale="max", granularity="channel"),
    "ana_fixed": MethodConfig(name="ana", forward="mode", noise="logistic", backward="fixed", activation_scale=0.25),
    "inq": MethodConfig(name="inq", levels="pow2_5", scale="pow2", activation_levels=None),
    "inq_random": MethodConfig(name="inq", partition="random", scale="least_squares"),
    "inq_relaxation": MethodConfig(name="inq", partition="relaxation"),
    "inq_hard": MethodConfig(name="inq", live="hard", scale="learned", granularity="channel"),
    "joint": MethodConfig(name="joint", forward="random", partition="relaxation"),
    "gxnor": MethodConfig(name="gxnor"),
    "metropolis": MethodConfig(name="metropolis", levels="states3", scale="max", granularity="channel"),
    "metropolis_adaptive": MethodConfig(name="metropolis", cooling="adaptive"),
}
# eps: gradients that are rounding noise would become steps of Adam
OPTIMIZERS = {
    "sgd": OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-2),
    "adam": OptimizerConfig(name="adam", lr=0.02, weight_decay=1e-2, eps=1e-3),
    "adamw": OptimizerConfig(name="adamw", lr=0.02, weight_decay=0.1, eps=1e-3),
}


def problem(
    method: MethodConfig, model: str = "mlp", optimizer: str = "adam", width: int = 8, dropout: bool = False
) -> InnerProblem:
    draws = torch.Generator().manual_seed(5)
    shape = (1, 8, 8)
    x, y = torch.randn(48, *shape, generator=draws), torch.randint(10, (48,), generator=draws)

    def build() -> nn.Module:
        made = build_model(model, shape, 10, width).to(x.dtype)  # type: ignore[arg-type]
        return nn.Sequential(made, nn.Dropout(0.3)) if dropout else made

    train_part, held_out = Split(x[:32], y[:32]), Split(x[32:], y[32:])
    task = SupervisedTask("random", train_part, held_out, held_out, build, F.cross_entropy, accuracy, batch_size=16)
    rule, hyper = recipe(OPTIMIZERS[optimizer])
    torch.manual_seed(0)
    return InnerProblem(quantize(build(), build_method(method), x[:2]), task, rule, hyper, STEPS, seed=0)


def controls_of(inner: InnerProblem, runs: int = len(SEEDS)) -> Tensors:
    """{control: [N, T, L]}, without noise in one layer of the first run."""
    declared, layers = inner.network.method.controls, len(inner.network.layers)
    each = [random_controls(declared, inner.steps, layers, 0, i) for i in range(runs)]
    like = next(inner.network.module.parameters())
    controls = {name: torch.stack([c[name] for c in each]).to(like) for name in each[0]}
    if "weight_noise" in controls:
        controls["weight_noise"][0, :, 1] = 0
    return controls


def own(controls: Tensors, run: int) -> Tensors:
    return {name: v[run] for name, v in controls.items()}


def distance(one: TrainingState, other: TrainingState) -> float:
    """Largest difference; shapes, names and dtypes must be the same."""
    found = []
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, t in a.items():
            assert t.shape == b[name].shape and t.dtype == b[name].dtype and not b[name].requires_grad, name
            found.append((t.double() - b[name].double()).abs().max().item())
    return max(found)
