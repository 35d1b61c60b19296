"""Learned scales (LSQ): the paper's formulas, three libraries, torch's own loop, and exact hypergradients."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metasched import MetaschedError, QuantizedModule, build_method, build_problem, quantize, train
from metasched.commands import check as gate
from metasched.config.schema import Experiment
from metasched.core.randomness import Draw, derive_seed
from metasched.meta.config import MetaConfig
from metasched.methods.config import MethodConfig
from metasched.methods.tensors import LayerQuantizer
from metasched.network.flat import Tensors
from metasched.quantizers.levels import LevelSet, integers, powers_of_two, ternary
from metasched.quantizers.scales import gradient_factor, scale_of
from metasched.quantizers.straight import straight_through
from metasched.runs.config import RunConfig
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.training.optimizers.config import GroupConfig, OptimizerConfig
from metasched.training.stacked import of_run, train_mapped
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

INT4 = integers(4, signed=True, balanced=False)
LEVELS = {"ternary": ternary(), "int4": INT4, "uint2": integers(2, signed=False, balanced=False)}
STEPS = 5


def experiment(method: str = "ste", granularity: str = "channel", **sections: Any) -> Experiment:
    own: dict[str, Any] = {"name": method, "scale": "learned", "granularity": granularity}
    return Experiment(
        task=TaskConfig(model="mlp", width=6, steps=STEPS, batch=16, train=64, validation=16, test=16),
        method=MethodConfig(**own, activation_scale="learned", **sections.pop("parameters", {})),
        run=RunConfig(dtype="float64"),
        **sections,
    )


def problem_of(of: Experiment, seed: int = 3) -> InnerProblem:
    return build_problem(of.problem).with_seed(seed)


def off_the_ties(x: torch.Tensor, levels: LevelSet) -> torch.Tensor:
    """Points that are neither near a threshold nor within half a step of the outermost levels.

    There libraries mask by the rounded value, with or without the outermost level; the paper masks by x / s.
    """
    low, high = levels.levels[0], levels.levels[-1]
    band = ((x - high).abs() < 0.6) | ((x - low).abs() < 0.6)
    near = torch.stack([(x - t).abs() < 1e-3 for t in levels.thresholds]).any(0)
    return x[~band & ~near]


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_derivatives_are_those_of_the_paper(levels: LevelSet) -> None:
    """Equation 3 of the paper: -v/s + round(v/s) inside, the outermost levels outside; and v's straight-through one."""
    v = 4 * torch.randn(300)
    s = torch.tensor(0.7, requires_grad=True)
    v.requires_grad_()
    out = straight_through(v / s, levels, 0.5) * s
    of_v, of_s = torch.autograd.grad(out, [v, s], torch.ones_like(out))
    of_s = of_s * gradient_factor(300, levels)
    q, (low, high) = (v / s).detach(), (levels.levels[0], levels.levels[-1])
    inside = (q > low) & (q < high)
    rounded = torch.floor(q + 0.5).clamp(low, high)
    assert torch.allclose(out, rounded * 0.7, rtol=0, atol=1e-12)
    assert torch.equal(of_v, inside.to(of_v))
    expected = torch.where(inside, rounded - q, rounded).sum() / math.sqrt(300 * max(high, -low))
    assert torch.allclose(of_s, expected, rtol=1e-12)


@pytest.mark.parametrize("channels", [False, True])
def test_torchs_learnable_fake_quantization(channels: bool) -> None:
    levels = INT4
    raw = 6 * torch.randn(4, 500, dtype=torch.float32)
    rows = [off_the_ties(row, levels)[:300] for row in raw]
    scale = torch.tensor([0.5, 1.0, 2.0, 0.25] if channels else [0.5], dtype=torch.float32)
    x = torch.stack(rows) * (scale[:, None] if channels else scale)
    n = x.numel() // len(scale)
    ours_s, theirs_s = (scale.clone().requires_grad_() for _ in range(2))
    ours_x, theirs_x = (x.clone().requires_grad_() for _ in range(2))
    used = ours_s[:, None]
    ours = straight_through(ours_x / used, levels, 0.5) * used
    factor, zero = gradient_factor(n, levels), torch.zeros_like(scale)
    if channels:
        theirs = torch._fake_quantize_learnable_per_channel_affine(theirs_x, theirs_s, zero, 0, -8, 7, factor)
    else:
        theirs = torch._fake_quantize_learnable_per_tensor_affine(theirs_x, theirs_s, zero, -8, 7, factor)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    weights = torch.randn_like(x)
    ours.backward(weights)
    theirs.backward(weights)
    assert torch.allclose(ours_x.grad, theirs_x.grad)  # pyright: ignore
    assert torch.allclose(ours_s.grad * factor, theirs_s.grad, rtol=1e-3, atol=1e-4)  # pyright: ignore


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["torchao", "brevitas"])
def test_the_fake_quantizers_of_libraries(library: str) -> None:
    pytest.importorskip(library, reason=f"optional: {library}")
    levels = integers(4, signed=True, balanced=True)  # -7 .. 7
    s = torch.tensor(0.5, dtype=torch.float32)
    x = off_the_ties(6 * torch.randn(400, dtype=torch.float32), levels) * s
    ours_s, theirs_s = (s.clone().requires_grad_() for _ in range(2))
    ours_x, theirs_x = (x.clone().requires_grad_() for _ in range(2))
    ours = straight_through(ours_x / ours_s, levels, 0.5) * ours_s
    if library == "torchao":
        from torchao.quantization.quant_primitives import _fake_quantize_affine  # pyright: ignore

        theirs = _fake_quantize_affine(theirs_x, (len(x),), theirs_s, torch.tensor(0), torch.int8, -7, 7)
    else:
        from brevitas.core.quant import IntQuant  # pyright: ignore

        quantizer = IntQuant(narrow_range=True, signed=True, input_view_impl=nn.Identity())
        theirs = quantizer(theirs_s, torch.tensor(0.0), torch.tensor(4.0), theirs_x)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    weights = torch.randn_like(x)
    ours.backward(weights)
    theirs.backward(weights)
    assert torch.allclose(ours_x.grad, theirs_x.grad)  # pyright: ignore
    assert torch.allclose(ours_s.grad, theirs_s.grad, rtol=1e-4, atol=1e-4)  # pyright: ignore


class Quantized(nn.Module):
    """LSQ in plain torch, after the paper: a linear layer with a scale for each output, then a quantized activation."""

    def __init__(self, linear: nn.Linear, activates: bool) -> None:
        super().__init__()
        self.linear = linear
        self.s = nn.Parameter(scale_of(linear.weight, ternary(), "least_squares", "channel"))
        self.a = nn.Parameter(torch.ones(())) if activates else None

    @staticmethod
    def lsq(v: torch.Tensor, s: torch.Tensor, elements: int) -> torch.Tensor:
        g = 1 / math.sqrt(elements)
        s = s.detach() + (s * g - (s * g).detach())  # the value of s, to the last bit: the largest |v| may equal it
        q = v / s
        edge = (q + q.detach()) / 2  # the mean of both sides
        q = torch.where(q.abs() < 1, q, torch.where(q.abs() == 1, edge, q.detach().sign()))
        rounded = torch.floor(q.detach() + 0.5).clamp(-1, 1)
        return (q + (rounded - q).detach()) * s

    def forward(self, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        w = self.lsq(self.linear.weight, self.s, self.linear.weight[0].numel())
        y = nn.functional.linear(x, w, self.linear.bias)
        y = y if norm is None else norm(y)
        if self.a is None:
            return y
        if not bool(self.fitted):
            self.a.data = scale_of(y.reshape(1, -1), ternary(), "least_squares", "tensor").reshape(())
            self.fitted = torch.tensor(True)
        return self.lsq(y, self.a, y[0].numel())

    fitted = torch.tensor(False)


@pytest.mark.parametrize("seed", [4, 6])
def test_an_inner_run_is_lsq_in_plain_torch(seed: int) -> None:
    """Another implementation, with torch.optim.Adam: the losses of five steps, the weights and all scales.

    From some seeds (3 and 5) a sum of few ternary products is 0 but for rounding. There the stair's derivative, a sum
    of two windows that meet at 0, may be 1.5 or 0.5 in place of 1, and the two part.
    """
    problem = problem_of(experiment(optimizer=OptimizerConfig(name="adam", lr=0.02, eps=1e-3)), seed)
    ours = train(problem, {})
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "weights"))
        model = problem.task.build()
    names = [layer.name for layer in problem.network.layers]
    parts = list(model.named_children())
    layers = {n: Quantized(m, n in names) for n, m in parts if isinstance(m, nn.Linear)}  # pyright: ignore
    norms = {n: m for n, m in parts if not isinstance(m, nn.Linear)}
    trained = [p for n, q in layers.items() for p in (q.parameters() if n in names else q.linear.parameters())]
    trained += [p for m in norms.values() for p in m.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.02, eps=1e-3)
    for step in range(STEPS):
        x, y = problem.task.batch(seed, step)
        x = x.flatten(1)
        norm = [m for m in norms.values() if isinstance(m, nn.BatchNorm1d)]
        for i, (name, layer) in enumerate(layers.items()):
            if name in names:
                x = layer(x, norm[i] if norm else None)
            else:
                x = layer.linear(x)
        loss = nn.functional.cross_entropy(x, y)
        assert torch.allclose(loss, ours.losses[step], rtol=0, atol=1e-12), step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name in names:
        found = ours.state.params
        assert torch.allclose(found[f"{name}.weight"], layers[name].linear.weight, rtol=0, atol=1e-10)
        assert torch.allclose(found[f"{name}/scale"], layers[name].s, rtol=0, atol=1e-10)
        assert torch.allclose(found[f"{name}/activation_scale"], layers[name].a, rtol=0, atol=1e-10)  # pyright: ignore


@pytest.mark.parametrize("estimator", ["higher", "sweep"])
def test_hypergradients_pass_the_gate(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    """Central differences through five steps in float64, first scales from the first batch included."""
    monkeypatch.setattr(gate, "POINTS", 3)
    parameters = {"forward": "expectation", "noise": "normal"}
    of = experiment(
        "ana",
        parameters=parameters,
        optimizer=OptimizerConfig(name="adam", lr=0.05, eps=1e-3),
        meta=MetaConfig(estimator=estimator, objective="relaxed"),
    )
    result = gate.check(of, open_console(io.StringIO()))
    assert {c["gate"] for c in result["controls"].values()} == {"finite differences"} and result["passed"]


def test_first_scales_do_not_depend_on_the_controls() -> None:
    problem = problem_of(experiment("ana"))
    size = len(problem.network.layers)

    def first(noise: float, mean: float) -> Tensors:
        noises = dict.fromkeys(("weight_noise", "activation_noise"), torch.full((size,), noise))
        row = {**noises, "noise_mean": torch.full((size,), mean)}
        return {n: p for n, p in problem.initial(row).params.items() if n.endswith("activation_scale")}

    one, other = first(0.5, 0.0), first(1.0, 0.3)
    assert one.keys() == {f"{layer.name}/activation_scale" for layer in problem.network.layers} and one
    assert all(torch.equal(p, other[n]) and float(p) > 0 for n, p in one.items())
    elsewhere = problem.with_seed(4).initial(problem.network.neutral()).params
    assert any(not torch.equal(p, elsewhere[n]) for n, p in one.items())


@pytest.mark.parametrize("method", ["ste", "ana"])
def test_a_plain_loop_is_the_inner_run(method: str) -> None:
    problem = problem_of(experiment(method, optimizer=OptimizerConfig(name="sgd", lr=0.05)))
    schedule = hand_coded(method)[method if method == "ste" else "ana_linear"]
    controls = schedule(progress_of_steps(STEPS), problem.network.layers)
    expected = train(problem, controls)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(3, "weights"))
        model = problem.task.build()
    network = quantize(model, problem.network.method, problem.task.train.x[:2])
    rows = [
        {x.name: {c: float(v[t, i]) for c, v in controls.items()} for i, x in enumerate(network.layers)}
        for t in range(STEPS)
    ]
    with pytest.raises(MetaschedError, match="example: is missing"):
        QuantizedModule(network, rows[0], 3)
    module = QuantizedModule(network, rows[0], 3, problem.task.batch(3, 0)[0])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        x, y = problem.task.batch(3, step)
        loss = nn.functional.cross_entropy(module(x, rows[step], step), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.settle()
        assert torch.allclose(loss, expected.losses[step], rtol=0, atol=1e-12)
    for name, p in module.parameters_by_name().items():
        assert torch.allclose(p, expected.state.params[name], rtol=0, atol=1e-10), name
    x = problem.task.test.x
    call = problem.network.call({n: b.clone() for n, b in module.module.named_buffers()})
    hard = problem.network.hardened_model(call, expected.state.params, expected.state.method)
    assert torch.allclose(module.deployed(x), hard(x), rtol=0, atol=1e-9)


def test_stacked_runs_are_single_ones() -> None:
    problem = problem_of(experiment(optimizer=OptimizerConfig(name="adam", lr=0.02, eps=1e-3)))
    states = train_mapped(problem, {}, [3, 8])
    for i, seed in enumerate((3, 8)):
        alone, one = train(problem.with_seed(seed), {}).state, of_run(states, i)
        for name, p in alone.params.items():
            assert torch.allclose(one.params[name], p, rtol=0, atol=1e-9), name


def test_the_optimizers_rules_reach_the_scales() -> None:
    still = OptimizerConfig(name="sgd", lr=0.1, groups=(GroupConfig(match="scale", lr_factor=0.0, weight_decay=0.0),))
    problem = problem_of(experiment(optimizer=still))
    before, after = problem.initial(problem.network.neutral()).params, train(problem, {}).state.params
    scales = [name for name in before if name.endswith("scale")]
    assert len(scales) == 2 * len(problem.network.layers)
    assert all(torch.equal(before[n], after[n]) == (n in scales) for n in before if "/" in n or n.endswith("weight"))


class Forked(nn.Module):
    """Its second layer runs for batches of more than one example only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.drop = nn.Linear(4, 4), nn.ReLU(), nn.Dropout()
        self.b, self.act2, self.c = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.act(self.a(x)))
        return self.c(self.act2(self.b(x)) if len(x) > 1 else x)


def test_a_first_batch_that_misses_a_layer_is_one_line_and_moves_no_generator() -> None:
    network = quantize(Forked(), build_method(experiment().method), torch.randn(3, 4))
    rows: dict[str, dict[str, float]] = {layer.name: {} for layer in network.layers}
    before = torch.get_rng_state()
    QuantizedModule(network, rows, example=torch.ones(3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(MetaschedError, match=r"model\.b: is not reached by the first batch"):
        QuantizedModule(network, rows, example=torch.ones(1, 4))


@pytest.mark.parametrize("energy", ["first_order", "batch"])
def test_discrete_weights_beside_a_learned_scale_of_activations(energy: str) -> None:
    """Both kinds of update give the optimizer's proposal for the scale, and keep it out of the state."""
    of = experiment(optimizer=OptimizerConfig(name="sgd", lr=0.05, momentum=0.0))
    own: dict[str, Any] = {"name": "metropolis", "energy": energy, "activation_scale": "learned"}
    problem = problem_of(replace(of, method=MethodConfig(**own)))
    row = problem.network.neutral()
    before = problem.initial(row)
    after, _, gradients = inner_step(problem, before, row, 0, differentiable=False)
    scales = [name for name in before.params if name.endswith("activation_scale")]
    assert len(scales) == len(problem.network.layers) and not set(scales) & set(after.method)
    for name in scales:
        assert gradients[name] != 0
        assert torch.allclose(after.params[name], before.params[name] - 0.05 * gradients[name], rtol=0, atol=1e-15)


def test_a_scale_stays_above_zero() -> None:
    problem = problem_of(experiment(optimizer=OptimizerConfig(name="sgd", lr=50.0, momentum=0.0)))
    end = train(problem, {}).state.params
    assert all(bool((p >= 1e-6).all()) for n, p in end.items() if n.endswith("scale"))


def test_hardened_weights_and_activations_are_levels_times_the_learned_scales() -> None:
    method = build_method(experiment().method)
    w = torch.randn(4, 7)
    w, trainable, state = method.initialize(w, {}, Draw(0, 0, 0))
    assert state == {"scale_factor": 1 / math.sqrt(7)} and trainable["scale"].shape == (4, 1)
    own = {"scale": trainable["scale"] * 1.5, "activation_scale": torch.tensor(0.3)}
    assert set((method.harden(w, own, 0.5) / own["scale"]).round(decimals=9).abs().flatten().tolist()) <= {0.0, 1.0}
    x = method.harden_activation(torch.randn(50), own, 0.5)
    assert set(x.abs().round(decimals=9).tolist()) == {0.0, 0.3}
    assert torch.equal(method.levels_of(own).flatten(1)[:, 2], own["scale"].flatten())


def test_any_level_set_starts_at_the_least_squares() -> None:
    quantizer = LayerQuantizer(powers_of_two(4), ternary(), "learned", "tensor", "learned")
    w, trainable, _ = quantizer.initialize(torch.randn(5, 9), Draw(0, 0, 0))
    assert torch.equal(trainable["scale"], scale_of(w, powers_of_two(4), "least_squares", "tensor"))


@pytest.mark.parametrize("method", ["gxnor", "metropolis"])
def test_methods_whose_weights_stand_still_do_not_learn_their_scale(method: str) -> None:
    with pytest.raises(
        MetaschedError, match=rf"method\.scale: cannot be learned by {method}; use it with ste, widths, rates, ana"
    ):
        build_method(MethodConfig(name=method, scale="learned"))
    assert build_method(MethodConfig(name=method, activation_scale="learned")).fits_activations
