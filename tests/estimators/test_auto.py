"""The estimator that chooses: its rules, and its choices over planted inner runs that are calm, wrong or exploding."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from learning import learn

from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed, generator
from metasched.estimators.auto import CHECK, MODES, Auto, summary
from metasched.estimators.base import Estimate
from metasched.estimators.diagnosis import Growth
from metasched.estimators.es import EvolutionStrategies, antithetic_pairs
from metasched.estimators.guided import orthonormal, stretched
from metasched.estimators.mixed import Mixed
from metasched.estimators.verdict import CLEAR, EXPLODING, ONE_SIDED, Measured, verdict
from metasched.meta.config import MetaConfig
from metasched.meta.outer import OuterStep
from metasched.methods import build_method
from metasched.methods.config import MethodConfig
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tracking.metrics import unknown_metrics

STEPS, RUNS, SIGMA = 12, 4, 0.5
TRUTH = torch.linspace(-1, 1, STEPS)
GOOD = Measured(Growth(0.1, 1.0, 1.0), 0.0, 10.0, 0.99, 0.8, 0.2)


@pytest.mark.parametrize(
    ("changed", "mode", "word"),
    [
        ({}, "exact", "grows by only 10^1.0"),
        ({"growth": Growth(0.5, EXPLODING + 1, 3.0)}, "es", "the adjoint grows by 10^7.0 over the run, 0.5 a step"),
        ({"growth": Growth(math.inf, math.inf, math.inf)}, "es", "grows by 10^inf"),
        ({"broken": 0.5}, "es", "50% of the exact runs are not finite"),
        ({"broken": 0.25}, "exact", ""),
        ({"agreement": -0.5}, "es", "point the other way, agreement with the pairs -0.50 +- 0.20"),
        ({"weight": 0.99 * (1 - ONE_SIDED)}, "es", "too noisy"),
        ({"weight": 0.5}, "mixed", "not settled"),
        ({"agreement": 0.1}, "exact", ""),  # unconfirmed, but the signal is clear
        ({"agreement": 0.1, "signal": 0.9 * CLEAR}, "mixed", "not settled"),
        ({"agreement": 0.3, "signal": 0.9 * CLEAR}, "exact", ""),  # noisy, but confirmed
        ({"agreement": -0.3}, "mixed", "not settled"),  # clear, but in doubt
        ({"signal": math.nan, "agreement": 0.0}, "mixed", "not settled"),
    ],
)
def test_verdict(changed: dict[str, Any], mode: str, word: str) -> None:
    found = verdict(GOOD._replace(**changed))
    assert found.mode == mode and word in found.why


def noise(seed: int, size: float) -> torch.Tensor:
    return size * torch.randn(STEPS, generator=generator(seed, "planted"))


def linear(values: torch.Tensor, seed: int) -> float:
    return float(TRUTH @ values)


def calm(seed: int) -> torch.Tensor:
    return TRUTH + noise(seed, 0.1)


def wrong(seed: int) -> torch.Tensor:
    return -calm(seed)


def loud(seed: int) -> torch.Tensor:
    return calm(seed) + noise(seed, 1e3)


def exploding(seed: int) -> torch.Tensor:
    return noise(seed, 1.0).sign() * torch.logspace(9, 0, STEPS)


def broken(seed: int) -> torch.Tensor:
    return calm(seed) * math.nan


def auto() -> Auto:
    return Auto(noise_floor=0.0, sigma=SIGMA)


def seeds_of(step: int) -> list[int]:
    return [derive_seed(0, "test", step, i) for i in range(RUNS)]


def course(
    planted: Any,
    schedule: torch.nn.Module,
    slope: Callable[[int], Callable[[int], torch.Tensor]],
    steps: int,
    loss: Callable[[torch.Tensor, int], float] = linear,
) -> list[tuple[Estimate, int, int]]:
    """Each step's estimate, with the exact and plain runs that it asked for; ``slope(step)`` says what runs give."""
    state, found = auto().begin(schedule, planted(calm, loss)), []
    for step in range(steps):
        runs = planted(slope(step), loss)
        estimate = auto().estimate(schedule, runs, seeds_of(step), state)
        state = estimate.state
        assert estimate.inner_steps == (runs.exact + runs.plain) * STEPS
        found.append((estimate, runs.exact, runs.plain))
    return found


def modes(found: list[tuple[Estimate, int, int]]) -> list[str]:
    return [MODES[int(estimate.notes["mode"])] for estimate, _, _ in found]


def same(a: Estimate, b: Estimate) -> bool:
    pairs = zip(a.found, b.found, strict=True)
    return all(torch.equal(x, y) for f, g in pairs for x, y in zip(f.gradient, g.gradient, strict=True))


def test_calm_runs_that_agree_are_left_alone_but_for_checks(planted, schedule):
    found = course(planted, schedule, lambda step: calm, 2 * CHECK + 1)
    assert set(modes(found)) == {"exact"}
    assert [(exact, plain) for _, exact, plain in found] == [
        (RUNS, 2 * RUNS if step % CHECK == 0 else 0) for step in range(2 * CHECK + 1)
    ]
    assert [step for step, (estimate, _, _) in enumerate(found) if estimate.line] == [0]
    assert all(len(estimate.found) == RUNS for estimate, _, _ in found)
    torch.testing.assert_close(torch.cat(found[3][0].found[1].gradient), calm(seeds_of(3)[1]))
    notes = found[-1][0].notes
    assert notes["agreement"] > 0.99 and notes["signal"] > 100 and notes["growth"] < 1


@pytest.mark.parametrize(("slope", "why"), [(exploding, "grows by 10^"), (broken, "100% of the exact runs")])
def test_an_explosion_leads_to_evolution_strategies_and_is_looked_at_again(planted, schedule, slope, why):
    found = course(planted, schedule, lambda step: slope, CHECK + 2)
    assert set(modes(found)) == {"es"}
    assert [exact for _, exact, _ in found] == [RUNS if step % CHECK == 0 else 0 for step in range(CHECK + 2)]
    for step, (estimate, _, plain) in enumerate(found):
        es = EvolutionStrategies(SIGMA).estimate(schedule, planted(slope, linear), seeds_of(step), {})
        if step % CHECK and slope is exploding:  # learned from, not measured: along what the last check found
            basis = orthonormal(found[step - step % CHECK][0].state["guides"])
            deltas = [stretched(schedule, basis, seed) for seed in seeds_of(step)]
            pairs = antithetic_pairs(schedule, planted(slope, linear), seeds_of(step), SIGMA, deltas)
            es = es._replace(found=[pairs.mean])
            assert basis.shape[1] == RUNS
        assert same(estimate, es) and plain == 2 * RUNS
    lines = [estimate.line for estimate, _, _ in found if estimate.line]
    assert len(lines) == 1 and lines[0].startswith("outer step 1: estimator es: ") and why in lines[0]


def test_an_explosion_is_seen_at_once_between_checks_and_its_end_at_a_check_and_the_step_after(planted, schedule):
    found = course(planted, schedule, lambda step: exploding if 4 <= step < 15 else calm, 25)
    assert modes(found) == ["exact"] * 4 + ["es"] * 17 + ["exact"] * 4
    lines = {step + 1: estimate.line for step, (estimate, _, _) in enumerate(found) if estimate.line}
    assert list(lines) == [1, 5, 22]
    assert lines[5] is not None and lines[5].startswith(
        "outer step 5: estimator es instead of exact: the adjoint grows"
    )
    assert [step for step, (_, exact, _) in enumerate(found) if exact == 0] == [*range(5, 10), *range(11, 20)]
    assert all(bool(torch.cat(f.gradient).isfinite().all()) for e, _, _ in found for f in e.found)


def test_gradients_against_the_pairs_or_too_noisy_are_not_used(planted, schedule):
    assert modes(course(planted, schedule, lambda step: wrong, 1)) == ["es"]
    assert modes(course(planted, schedule, lambda step: loud, 1)) == ["es"]


def test_a_single_odd_measurement_changes_nothing(planted, schedule):
    once = course(planted, schedule, lambda step: loud if step == CHECK else calm, 2 * CHECK)
    assert set(modes(once)) == {"exact"}
    looked = [plain > 0 for _, _, plain in once[CHECK:]]
    assert looked[:2] == [True, True] and looked[-1] is False  # at the next step again, until it is settled
    lasting = course(planted, schedule, lambda step: loud if step >= CHECK else calm, CHECK + 3)
    assert modes(lasting) == ["exact"] * (CHECK + 1) + ["es"] * 2


def test_where_nothing_is_settled_it_mixes(planted, schedule):
    def mumble(values: torch.Tensor, seed: int) -> float:
        return 10 * math.sin(1e6 * float(values.sum()))  # slopes without relation to the exact ones

    def faint(seed: int) -> torch.Tensor:
        return noise(seed, 1.0)

    found = course(planted, schedule, lambda step: faint, 4, mumble)
    assert modes(found)[0] == "mixed"
    state = Mixed(0.0, SIGMA).begin(schedule, planted(faint, mumble))
    for step, (estimate, exact, plain) in enumerate(found):
        if MODES[int(estimate.notes["mode"])] != "mixed":
            break
        mix = Mixed(0.0, SIGMA).estimate(schedule, planted(faint, mumble), seeds_of(step), state)
        assert same(estimate, mix) and (exact, plain) == (RUNS, 2 * RUNS)
        state = mix.state


def test_its_state_is_saved_and_resumed_exactly(planted, schedule):
    runs = planted(calm, linear)
    state = auto().begin(schedule, runs)
    for step in range(3):
        state = auto().estimate(schedule, runs, seeds_of(step), state).state
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    resumed = torch.load(buffer, weights_only=True)
    assert resumed["mode"].dtype == torch.int64 and int(resumed["step"]) == 3
    for step in range(3, CHECK + 2):
        runs = planted(exploding if step == 6 else calm, linear)
        one, other = (auto().estimate(schedule, runs, seeds_of(step), s) for s in (state, resumed))
        assert same(one, other) and one.notes == other.notes and one.line == other.line
        state, resumed = one.state, other.state


def test_the_summary_counts_steps_and_shows_the_last_measures():
    notes = [{"mode": 1.0, "signal": 1.0, "growth": 2.0}, {"mode": 0.0, "agreement": 0.5, "signal": 3.14159}]
    notes += [{"mode": 0.0, "growth": 1.0}]
    assert summary(notes) == (
        "exact in 2 steps, mixed in 1 step; last measured: growth of the adjoint 10^1.0, signal 3.1, agreement 0.50"
    )


@pytest.mark.parametrize("estimator", ["mixed", "auto"])
def test_in_the_outer_loop(estimator):
    experiment = Experiment(
        task=TaskConfig(model="mlp", width=4, train=32, validation=16, batch=8, steps=4),
        method=MethodConfig(name="ana"),
        meta=MetaConfig(estimator=estimator, steps=2, runs=2),
        run=RunConfig(dtype="float64"),
    )
    controls = build_method(experiment.method).controls

    def learned(workers: int) -> tuple[torch.Tensor, list[OuterStep]]:
        network = ScheduleNetwork(
            controls, hand_coded("ana")["ana_linear"], ["weight_noise"], knots=4, hidden=4, seed=0
        )
        log: list[OuterStep] = []
        with Pool(workers) as pool:
            learn(experiment, network, pool, log.append)
        return torch.cat([p.detach().flatten() for p in network.parameters()]), log

    parameters, log = learned(1)
    assert bool(parameters.isfinite().all()) and all(record.skipped == 0 for record in log)
    assert unknown_metrics(f"estimator/{name}" for record in log for name in record.notes) == []
    assert log[0].inner_steps == 2 * 3 * 4
    assert (log[0].line is not None) == (estimator == "auto")
