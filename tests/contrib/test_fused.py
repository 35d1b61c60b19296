"""Training with the fused operator: the run that its pieces make, in the bytes that the account says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from metasched.contrib.fused import fused_step, train_fused
from metasched.contrib.kernels.gated_xnor import bit_planes, gated_off, gated_product, ternary_linear
from metasched.contrib.kernels.philox import uniform
from metasched.contrib.packed import bytes_kept, pack_state
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.models import build_model
from metasched.network.flat import rows
from metasched.network.quantize import quantize
from metasched.quantizers.transitions import discrete_transition
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.finite import FINITE
from metasched.training.loop import InnerRun
from metasched.training.loss import training_loss
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

OPTIMIZERS = [
    OptimizerConfig(lr=0.05),
    OptimizerConfig(name="adamw", lr=0.05, weight_decay=0.1),
    OptimizerConfig(name="sgd", lr=2.0, momentum=0.9),
    OptimizerConfig(name="sgd", lr=5.0, momentum=0.0),
]
METHODS = [
    MethodConfig(name="gxnor"),
    MethodConfig(name="gxnor", levels="states2", scale="max", granularity="channel", steepness=2.0),
]


def problem(method: MethodConfig, optimizer: OptimizerConfig, steps: int = 4) -> InnerProblem:
    torch.set_default_dtype(torch.float32)
    draws = torch.Generator().manual_seed(5)
    part = Split(torch.randn(20, 1, 8, 8, generator=draws), torch.arange(20) % 10)

    def build() -> torch.nn.Module:
        return build_model("convnet", (1, 8, 8), 10, 8)

    task = SupervisedTask("random", part, part, part, build, F.cross_entropy, F.cross_entropy, batch_size=10)
    rule, hyper = recipe(optimizer)
    return InnerProblem(quantize(build(), build_method(method), part.x[:2]), task, rule, hyper, steps, seed=1)


def temperatures(inner: InnerProblem) -> dict[str, torch.Tensor]:
    return {"temperature": 0.5 + torch.rand(inner.steps, len(inner.network.layers))}


def from_pieces(inner: InnerProblem, controls: dict[str, torch.Tensor]) -> InnerRun:
    """The same run from the optimizer and the transition of the package, in float64 where the operator works."""
    levels = inner.network.method.quantizer.levels  # pyright: ignore[reportAttributeAccessIssue]
    m = inner.network.method.steepness  # pyright: ignore[reportAttributeAccessIssue]
    first, quantum, top = levels.levels[0], levels.jumps[0], len(levels.levels) - 1
    state = inner.initial(rows(controls, 0))
    keys = {f"{layer.name}.weight": f"{layer.name}/scale" for layer in inner.network.layers}
    exact = inner.optimizer.init({key: state.params[key].double() for key in keys})
    losses = []
    for step in range(inner.steps):
        params = {name: p.detach().requires_grad_() for name, p in state.params.items()}
        loss, _ = training_loss(inner, state._replace(params=params), rows(controls, step), step)
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        with torch.no_grad():
            settled, optimizer = inner.optimizer.update(params, grads, state.optimizer, inner.hyper_at(step))
            weights = {key: params[key].double() for key in keys}
            own = {key: grads[key].double() for key in keys}
            proposed, exact = inner.optimizer.update(weights, own, exact, inner.hyper_at(step))
            for i, (key, scale) in enumerate(keys.items()):
                w, unit = weights[key], state.method[scale].double()
                k = ((w / unit - first) / quantum).round()
                x = float(controls["temperature"][step, i]) * (proposed[key] - w) / (unit * quantum)
                draw = uniform(derive_seed(inner.seed, "jump", i), step, w.numel()).double().reshape(w.shape)
                k = discrete_transition(k, x, top, m, draw)
                settled[key] = (first + quantum * k).float() * state.method[scale]
        state = state._replace(params=settled, optimizer=optimizer)
        losses.append(loss.detach())
    return InnerRun(state, torch.stack(losses))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}_{o.momentum}")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.levels)
def test_it_is_the_run_that_its_pieces_make(method: MethodConfig, optimizer: OptimizerConfig) -> None:
    inner = problem(method, optimizer)
    controls = temperatures(inner)
    expected, found = from_pieces(inner, controls), train_fused(inner, controls)
    assert torch.equal(found.losses, expected.losses)
    assert list(found.state.params) == list(expected.state.params)
    for name, p in found.state.params.items():
        assert torch.equal(p, expected.state.params[name]), name
    assert bool(found.state.health[FINITE])
    first = inner.initial(rows(controls, 0)).params
    for layer in inner.network.layers:
        assert not torch.equal(found.state.params[f"{layer.name}.weight"], first[f"{layer.name}.weight"])


def test_numbers_that_are_not_finite_are_seen() -> None:
    inner = problem(METHODS[0], OPTIMIZERS[0], steps=1)
    controls = temperatures(inner)
    packed = pack_state(inner.network, inner.initial(rows(controls, 0)))
    packed.rest.params["linear.weight"][0, 0] = torch.nan
    after, _ = fused_step(inner, packed, rows(controls, 0), 0)
    assert not bool(after.rest.health[FINITE])


def test_weights_in_training_take_a_sixteenth_and_moments_what_they_take() -> None:
    inner = problem(METHODS[0], OPTIMIZERS[0], steps=1)
    shadow = problem(MethodConfig(name="ste"), OPTIMIZERS[0])
    controls = temperatures(inner)
    packed = pack_state(inner.network, inner.initial(rows(controls, 0)))
    kept = bytes_kept(inner.network, fused_step(inner, packed, rows(controls, 0), 0)[0])
    floats = bytes_kept(shadow.network, shadow.initial({}))
    n = sum(layer.num_weights for layer in inner.network.layers)
    assert floats["weights"] == 4 * n and kept["weights"] == n // 4 <= floats["weights"] / 3
    assert kept["moments"] == floats["moments"] == 8 * n


def test_a_trained_layer_runs_on_bit_planes() -> None:
    inner = replace(problem(METHODS[0], OPTIMIZERS[0]), steps=2)
    weight = train_fused(inner, temperatures(inner)).state.params["conv2.weight"].flatten(1)
    x = torch.randint(-1, 2, (6, weight.shape[1])).float()
    planes = bit_planes(weight)
    assert torch.equal(ternary_linear(x, planes), F.linear(x, weight))
    assert 0 < gated_off(gated_product(bit_planes(x), planes), planes.columns) < 6 * weight.numel()


def test_other_methods_are_refused() -> None:
    inner = problem(MethodConfig(name="metropolis"), OPTIMIZERS[0])
    with pytest.raises(AssertionError, match="GXNOR"):
        train_fused(inner, temperatures(inner))


@pytest.mark.parametrize("setting", [{"clip_norm": 1.0}, {"name": "sgd", "nesterov": True}], ids=str)
def test_optimizers_that_the_operator_does_not_have_are_refused(setting: dict) -> None:
    inner = problem(METHODS[0], OptimizerConfig(**setting))
    with pytest.raises(MetaschedError, match="optimizer: is not supported by the fused operator"):
        train_fused(inner, temperatures(inner))
