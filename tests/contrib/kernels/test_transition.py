"""The transition operator: against the formula, against the eager pieces in float64, and its packed storage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from metasched.contrib.kernels.coefficients import COEFFICIENTS, Coefficients, sgd
from metasched.contrib.kernels.philox import uniform
from metasched.contrib.kernels.transition import bytes_per_weight, rise, transition_step
from metasched.contrib.packing import bits_of, pack
from metasched.quantizers.levels import LevelSet, level_set, ternary
from metasched.quantizers.transitions import discrete_transition, proposal
from metasched.training.optimizers import OPTIMIZERS

DRAWS = 1_000_000
ADAM = {"lr": 0.3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}
RULES = [
    ("adam", ADAM),
    ("adamw", ADAM | {"eps": 1e-3, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}),
    ("sgd", {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}),
]
PLAIN = sgd({"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}, 1)  # its step is minus the gradient


def single(values: torch.Tensor | Sequence[float]) -> torch.Tensor:
    return torch.as_tensor(values).to(torch.float32)


def stepped(k: torch.Tensor, x: torch.Tensor, levels: LevelSet, m: float = 3.0, **where: int) -> torch.Tensor:
    """States after steps x in quanta, one a byte."""
    states, quantum = k.to(torch.uint8), levels.jumps[0]
    settings = {"levels": levels, "scale": single([quantum]), "temperature": quantum**2, "steepness": m}
    transition_step(states, single(-x), [], PLAIN, **settings, **({"seed": 11, "offset": 0} | where))
    return states


@pytest.mark.parametrize(("k", "x", "name", "m"), [(1, 0.05, "ternary", 3.0), (3, -1.2, "states2", 1.0)])
def test_frequencies_are_those_of_the_formula(k: int, x: float, name: str, m: float) -> None:
    levels = level_set(name)
    found = stepped(torch.full((DRAWS,), k), torch.full((DRAWS,), x), levels, m)
    kappa = math.floor(abs(x))
    p = math.tanh(m * (abs(float(np.float32(x))) - kappa))
    near, far = (k + int(math.copysign(size, x)) for size in (kappa, kappa + 1))
    counts = torch.bincount(found.long(), minlength=len(levels.levels))
    assert int(counts[near] + counts[far]) == DRAWS
    assert stats.chisquare(counts[[near, far]].numpy(), [DRAWS * (1 - p), DRAWS * p]).pvalue > 1e-3


def test_the_frequency_test_can_fail() -> None:
    found = stepped(torch.ones(DRAWS), torch.full((DRAWS,), 0.05), ternary(), 3.1)
    p = math.tanh(3.0 * 0.05)
    counts = torch.bincount(found.long(), minlength=3)[1:]
    assert stats.chisquare(counts.numpy(), [DRAWS * (1 - p), DRAWS * p]).pvalue < 1e-3


def test_the_chance_is_tanh() -> None:
    x = torch.cat([torch.logspace(-30, 1.5, 20_001), torch.linspace(0, 3, 30_001)]).to(torch.float32)
    q = rise(x).double().numpy()
    tanh = np.tanh(x.double().numpy())
    ulp = 2.0**-23
    assert bool((np.abs(q / (2 - q) - tanh) <= 1.5 * ulp * tanh).all())
    assert rise(single([0.0, math.inf])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["binary", "ternary", "states2", "states3", "int5"])
def test_it_is_the_discrete_state_transition_of_the_same_uniforms(name: str) -> None:
    levels, n = level_set(name), 20_000
    top = len(levels.levels) - 1
    k = torch.randint(top + 1, (n,)).double()
    x = single(torch.randn(n) * torch.tensor([0.01, 0.5, 3.0])[torch.randint(3, (n,))])
    found = stepped(k, x, levels, seed=2**61 + 1, offset=2**40)
    draw = uniform(2**61 + 1, 2**40, n).double()
    expected = discrete_transition(k, x.double(), top, 3.0, draw)
    clear = (draw - proposal(x.double(), 3.0).chance).abs() > 1e-6
    assert torch.equal(found[clear].double(), expected[clear]) and int((~clear).sum()) < 5
    assert not torch.equal(found.double(), k)


@pytest.mark.parametrize(("rule", "hyper"), RULES)
@pytest.mark.parametrize(("name", "rows"), [("ternary", 1), ("states2", 10)])
def test_it_is_the_optimizer_and_the_transition(rule: str, hyper: dict[str, float], name: str, rows: int) -> None:
    """Four steps against training/optimizers.py and quantizers/transitions.py in float64."""
    levels, n = level_set(name), 2000
    quantum, top = levels.jumps[0], len(levels.levels) - 1
    scale = single(0.5 + torch.rand(rows, 1))
    values = torch.tensor(levels.levels)
    index = torch.randint(top + 1, (rows, n // rows))
    states = pack(values[index] * scale, scale, levels)
    optimizer = OPTIMIZERS[rule].rule()
    state = optimizer.init({"w": index.double()})
    moments = [torch.zeros(n, dtype=torch.float32) for _ in range(COEFFICIENTS[rule](hyper, 1).moments)]
    for t in (1, 2, 3, 4):
        grad = single(torch.randn(rows, n // rows) * 0.3)
        w = values[index] * scale.double()
        proposed, state = optimizer.update({"w": w}, {"w": grad.double()}, state, hyper)
        x = 0.6 * (proposed["w"] - w) / (scale.double() * quantum)
        draw = uniform(9, t, n).double().reshape(rows, -1)
        expected = discrete_transition(index.double(), x, top, 2.0, draw)
        coefficients = COEFFICIENTS[rule](hyper, t)
        settings = {"levels": levels, "scale": scale, "temperature": torch.tensor(0.6), "steepness": 2.0}
        transition_step(states, grad, moments, coefficients, **settings, seed=9, offset=t)
        clear = (draw - proposal(x, 2.0).chance).abs() > 1e-5
        found = torch.stack([states >> shift & 2 ** bits_of(levels) - 1 for shift in range(0, 8, bits_of(levels))], 1)
        found = found.flatten()[:n].reshape(rows, -1).long()
        assert torch.equal(found[clear], expected.long()[clear]) and int((~clear).sum()) < 5
        assert not torch.equal(found, index)
        index = found
        kept = [value for key, value in state.items() if key != "step"]
        for moment, exact in zip(moments, kept, strict=False):
            torch.testing.assert_close(moment.double(), exact.flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n", [1, 4, 7, 1001])
@pytest.mark.parametrize("name", ["binary", "ternary", "int2", "states3", "states5"])
def test_packed_states_move_as_those_of_a_byte_each(name: str, n: int) -> None:
    levels = level_set(name)
    values = torch.tensor(levels.levels)
    k = torch.randint(len(levels.levels), (n,))
    one = torch.ones(1)
    packed, bytes_ = pack(values[k], one, levels), k.to(torch.uint8)
    grad, settings = single(torch.randn(n)), {"levels": levels, "scale": single(one), "temperature": 1.0}
    for states in (packed, bytes_):
        transition_step(states, grad, [], PLAIN, **settings, steepness=3.0, seed=3, offset=5)
    assert torch.equal(packed, pack(values[bytes_.long()], one, levels))  # the bits that fill the last byte, too


def test_steps_that_are_not_finite() -> None:
    x = single([math.nan, math.inf, -math.inf, 0.0, 1e30])
    assert stepped(torch.ones(5), x, ternary()).tolist() == [1, 2, 0, 1, 2]


def test_a_step_of_nothing_moves_nothing() -> None:
    k = torch.randint(3, (DRAWS // 10,))
    assert torch.equal(stepped(k, torch.zeros(len(k)), ternary()), k.to(torch.uint8))


def test_another_seed_or_offset_is_another_draw() -> None:
    k, x = torch.ones(1000), torch.full((1000,), 0.2)
    first = stepped(k, x, ternary())
    assert torch.equal(first, stepped(k, x, ternary()))
    assert not torch.equal(first, stepped(k, x, ternary(), seed=12))
    assert not torch.equal(first, stepped(k, x, ternary(), offset=1))


def test_bytes_of_a_weight() -> None:
    assert bytes_per_weight(2, 2) == 4 + 4 * 4 + 2 / 4
    assert bytes_per_weight(8, 1) == 4 + 2 * 4 + 2


def test_what_does_not_fit_is_refused() -> None:
    states, grad, one = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.float32), single([1.0])
    settings = {"levels": ternary(), "temperature": 1.0, "steepness": 3.0, "seed": 0, "offset": 0}

    def step(states=states, grad=grad, moments=(), rule: Coefficients = PLAIN, scale=one) -> None:
        transition_step(states, grad, moments, rule, scale=scale, **settings)

    step()
    with pytest.raises(AssertionError, match="float32"):
        step(grad=grad.double())
    with pytest.raises(AssertionError):
        step(states=states[:3])
    with pytest.raises(AssertionError):
        step(rule=PLAIN._replace(moments=1))
    with pytest.raises(AssertionError):
        step(scale=single([1.0, 1.0, 1.0]))


def test_the_operator_says_what_it_changes() -> None:
    schema = torch.ops.metasched.discrete_transition.default._schema
    changed = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    assert changed == ["states", "moments"]


@pytest.mark.slow
def test_torchs_own_checks_of_operators() -> None:
    numbers = [*PLAIN[1:], -1.0, 1.0, 3.0]
    states, grad, one = torch.zeros(2, dtype=torch.uint8), torch.ones(8, dtype=torch.float32), single([1.0])
    arguments = (states, [grad.clone()], grad, one, one, numbers, 2, 2, 0, 0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.metasched.discrete_transition.default, arguments, test_utils=checks)
