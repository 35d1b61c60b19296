"""ES, PES and NRES on a quadratic whose outer loss is quadratic in the schedule: no smoothing bias for any sigma.

w_{t+1} = w_t - lr_t a (w_t + c_t - b),   l = 1/2 sum a (w - b)^2,   c_t = theta . features(u_t)

The runs are computed in closed form, many at once; one test holds them against training itself.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from learning import runs_of
from torch import nn

from metasched.config.schema import Experiment
from metasched.core.layer import Quantizes
from metasched.core.randomness import Draw, derive_seed
from metasched.engines import find_unroll
from metasched.engines.base import ControlGradient, OuterLoss
from metasched.estimators import build_estimator
from metasched.estimators.base import Estimate, Estimator, State
from metasched.estimators.es import EvolutionStrategies
from metasched.estimators.nres import NoiseReuseES
from metasched.estimators.perturbation import direction
from metasched.estimators.pes import PersistentES
from metasched.estimators.reverse import Reverse
from metasched.meta.config import MetaConfig
from metasched.methods import build_method
from metasched.methods.base import Control, Method, Values
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.runs.config import RunConfig
from metasched.runs.local import Judged, LocalRuns, Reached, Run, Segment
from metasched.runs.pool import Pool
from metasched.schedules.base import progress_of_steps
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks.config import TaskConfig
from metasched.tasks.quadratic import quadratic_task
from metasched.training.optimizers import OPTIMIZERS
from metasched.training.state import InnerProblem, TrainingState

CURVATURE = torch.tensor([1.0, 0.6, 0.35, 0.2])
TARGET = torch.tensor([0.8, -0.4, 0.1, -1.2])
START = torch.tensor([0.3, -0.7, 1.1, 0.2])
STEPS, WINDOW, SIGMA = 6, 2, 0.3
NUM_WINDOWS = STEPS // WINDOW
RATES = torch.tensor([0.9, 0.5, 0.7, 0.4, 0.8, 0.6])
PARTICLES = (PersistentES, NoiseReuseES)


@dataclass(frozen=True)
class Shift(Method):
    """A method that adds its one control to its weight, which starts at START, while training."""

    controls: tuple[Control, ...] = (Control("shift", -9.0, 9.0, "weight", "free", end=None),)
    quantizes: Quantizes = "weight"
    bits: float = 1.0

    def initialize(self, w: torch.Tensor, controls: Values, draw: Draw) -> tuple[torch.Tensor, State, State]:
        return START[None].to(w), {}, {}

    def weight(self, w: torch.Tensor, state: Any, controls: Values, draw: Draw) -> torch.Tensor:
        return w + controls["shift"]

    def activation(self, x: torch.Tensor, state: Any, controls: Values, draw: Draw) -> torch.Tensor:
        return x

    def harden(self, w: torch.Tensor, state: Any, surrogate: float) -> torch.Tensor:
        return w

    def harden_activation(self, x: torch.Tensor, state: State, surrogate: float) -> torch.Tensor:
        return x


class Waves(nn.Module):
    """c(u) = level + slope . (u, cos(pi u)), with parameters on two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([0.2]))
        self.slope = nn.Parameter(torch.tensor([-1.5, 1.4]))

    def scales(self) -> dict[str, float]:
        return {"level": 0.8, "slope": 1.25}

    def forward(self, progress: torch.Tensor, layers: Sequence[Any]) -> dict[str, torch.Tensor]:
        features = torch.stack([progress, torch.cos(math.pi * progress)], -1)
        return {"shift": (self.level + features @ self.slope)[:, None]}


@cache
def problem() -> InnerProblem:
    task = quadratic_task(CURVATURE, TARGET)
    network = quantize(task.build(), Shift(), task.train.x[:2], last=True)
    hyper = {"lr": tuple(RATES.tolist()), "momentum": 0.0, "weight_decay": 0.0}
    return InnerProblem(network, task, OPTIMIZERS["sgd"].rule(), hyper, STEPS, seed=0)


def loss_of(w: torch.Tensor) -> torch.Tensor:
    return 0.5 * (CURVATURE * (w - TARGET).square()).sum(-1)


def after(w: torch.Tensor, shift: torch.Tensor, step: int) -> torch.Tensor:
    return w - RATES[step] * CURVATURE * (w + shift - TARGET)


class ClosedForm:
    """Runs by the recursion, all segments at once; keeps what it was asked for."""

    def __init__(self, objective: str = "hardened") -> None:
        self.problem = problem()
        self.judged_steps = {4, 5} if objective == "trajectory" else set[int]()
        self.asked: list[Segment] = []

    def gradients(self, runs: Sequence[Run]) -> list[ControlGradient]:
        raise AssertionError("evolution strategies need no derivative")

    def judged(self, runs: Sequence[Run]) -> list[Judged]:
        ends = self.segments([Segment(run.controls, run.seed, None, STEPS) for run in runs])
        return [Judged(end.loss, end.score) for end in ends]

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        self.asked += segments
        shift = torch.stack([s.controls["shift"] for s in segments])  # [N, T, 1]
        since = torch.tensor([s.since.step if s.since else 0 for s in segments])
        stop = torch.tensor([s.stop for s in segments])
        w = torch.stack([s.since.state.params["w"] if s.since else START for s in segments])
        loss = torch.tensor([s.since.loss if s.since and self.judged_steps else 0.0 for s in segments])
        for step in range(STEPS):
            active = (since <= step) & (step < stop)
            w = torch.where(active[:, None], after(w, shift[:, step], step), w)
            if step in self.judged_steps:
                loss += torch.where(active, loss_of(w) / len(self.judged_steps), 0)
        if not self.judged_steps:
            loss = loss_of(w)
        found = zip(stop.tolist(), w, loss.tolist(), strict=True)
        return [Reached(s, TrainingState({"w": own}, {}, {}, {}, {}), value, -value) for s, own, value in found]


def closed_form_gradient(objective: str = "hardened", detach_every: int | None = None) -> torch.Tensor:
    """The exact gradient in (level, slope); truncated: of the shares of windows, from states held constant."""
    schedule = Waves()
    shift = schedule(progress_of_steps(STEPS), [])["shift"]
    w, total = START, torch.zeros(())
    for step in range(STEPS):
        w = after(w, shift[step], step)
        ends = detach_every is not None and (step + 1) % detach_every == 0
        if objective == "trajectory":
            total = total + (loss_of(w) / 2 if step >= 4 else 0)
        elif ends or step == STEPS - 1:
            total = total + loss_of(w)
        w = w.detach() if ends else w
    return torch.cat(torch.autograd.grad(total, list(schedule.parameters())))


def flat(estimate: Estimate) -> torch.Tensor:
    (found,) = estimate.found
    return torch.cat([g.flatten() for g in found.gradient])


def seeds_of(population: int, call: int, pairs: int) -> list[int]:
    return [derive_seed(population, "test", call, pair) for pair in range(pairs)]


def estimates(estimator: Estimator, pairs: int, populations: int, calls: int = 1, **runs: Any) -> torch.Tensor:
    """[populations, P]: independent populations of pairs; each the mean over consecutive calls at a fixed schedule."""
    schedule, answers, found = Waves(), ClosedForm(**runs), []
    for population in range(populations):
        state = estimator.begin(schedule, answers)
        total = torch.zeros(3)
        for call in range(calls):
            estimate = estimator.estimate(schedule, answers, seeds_of(population, call, pairs), state)
            state, total = estimate.state, total + flat(estimate)
        found.append(total / calls)
    return torch.stack(found)


def standard_errors_off(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    return (found.mean(0) - exact).abs() / (found.std(0) / math.sqrt(len(found)))


ESTIMATORS = [EvolutionStrategies(SIGMA), PersistentES(SIGMA, WINDOW), NoiseReuseES(SIGMA, WINDOW)]


# --- the oracle ---


@pytest.mark.parametrize("objective", ["hardened", "trajectory"])
def test_the_closed_form_is_what_training_gives(objective):
    local = LocalRuns(problem(), problem(), OuterLoss(objective), find_unroll("unroll"))
    schedule, closed = Waves(), ClosedForm(objective)
    controls = {name: v.detach() for name, v in schedule(progress_of_steps(STEPS), []).items()}
    trained: Reached | None = None
    recursion: Reached | None = None
    for stop in (1, 3, 5, 6):
        (trained,) = local.segments([Segment(controls, 0, trained, stop)])
        (recursion,) = closed.segments([Segment(controls, 0, recursion, stop)])
        assert trained.step == stop
        assert trained.loss == pytest.approx(recursion.loss, abs=1e-14)
        assert trained.score == pytest.approx(-trained.loss, abs=1e-14)
        w = trained.state.params["linear.weight"][0]
        torch.testing.assert_close(w, recursion.state.params["w"], rtol=0, atol=1e-14)
    (whole,) = local.judged([Run(controls, 0)])
    assert whole.loss == pytest.approx(trained.loss, abs=1e-14)  # type: ignore[union-attr]
    (found,) = Reverse(0.0).estimate(schedule, local, [0], {}).found
    torch.testing.assert_close(torch.cat(found.gradient), closed_form_gradient(objective), rtol=1e-12, atol=0)


# --- statistics ---


@pytest.mark.parametrize(
    "estimator", [*ESTIMATORS[:2], pytest.param(ESTIMATORS[2], marks=pytest.mark.slow)], ids=["es", "pes", "nres"]
)
def test_unbiased_and_the_variance_falls_as_one_over_n(estimator):
    few, many = estimates(estimator, pairs=3, populations=600), estimates(estimator, pairs=12, populations=342)
    exact = closed_form_gradient()
    assert bool((standard_errors_off(many, exact) < 3).all())  # 4,104 pairs
    assert bool((many.std(0) / math.sqrt(len(many)) < 0.1 * exact.norm()).all())
    ratio = few.var(0).sum() / many.var(0).sum()
    assert float(ratio) == pytest.approx(4, rel=0.2)


def test_pes_and_nres_are_unbiased_where_truncation_is_not():
    exact, truncated = closed_form_gradient(), closed_form_gradient(detach_every=WINDOW)
    assert float((truncated - exact).norm()) > 0.4 * float(exact.norm())
    for kind in PARTICLES:  # over whole episodes and across their ends
        found = estimates(kind(SIGMA, WINDOW), pairs=3, populations=200, calls=NUM_WINDOWS + 1)
        assert bool((standard_errors_off(found, exact) < 3).all())
        assert float(standard_errors_off(found, truncated).max()) > 6


@pytest.mark.parametrize("kind", PARTICLES)
@pytest.mark.parametrize(("objective", "window"), [("trajectory", WINDOW), ("hardened", 4), ("trajectory", 4)])
def test_unbiased_for_a_mean_over_the_end_and_for_a_last_window_that_is_shorter(objective, window, kind):
    found = estimates(kind(SIGMA, window), pairs=6, populations=100, calls=2, objective=objective)
    exact = closed_form_gradient(objective)
    assert bool((standard_errors_off(found, exact) < 3).all())
    assert bool((found.std(0) / math.sqrt(len(found)) < 0.2 * exact.norm()).all())


# --- exact identities ---


@pytest.mark.parametrize("kind", PARTICLES)
@pytest.mark.parametrize("window", [STEPS, 100])
def test_with_one_window_it_is_full_es(kind, window):
    schedule, runs = Waves(), ClosedForm()
    windowed, full, state = kind(SIGMA, window), EvolutionStrategies(SIGMA), {}
    for call in range(2):
        seeds = seeds_of(0, call, 5)
        found, expected = windowed.estimate(schedule, runs, seeds, state), full.estimate(schedule, runs, seeds, {})
        assert torch.equal(flat(found), flat(expected))
        assert found.found[0].loss == pytest.approx(expected.found[0].loss, rel=1e-14)
        assert found.found[0].diagnostics.score == pytest.approx(expected.found[0].diagnostics.score, rel=1e-14)
        assert found.inner_steps == expected.inner_steps == 10 * STEPS
        assert found.notes == {"pairs": 5.0, "spread": expected.notes["spread"], "resets": 0.0}
        state = found.state


def one_episode(estimator: PersistentES | NoiseReuseES) -> tuple[list[torch.Tensor], list[int]]:
    """The estimates of one particle from the start of an episode to its end, and the seeds that it got."""
    schedule, runs, state, call = Waves(), ClosedForm(), {}, 0
    while not state or int(state["particle0/step"]):
        state = estimator.estimate(schedule, runs, [call], state).state
        call += 1
    found = []
    for seed in range(call, call + NUM_WINDOWS):
        estimate = estimator.estimate(schedule, runs, [seed], state)
        found.append(flat(estimate))
        state = estimate.state
    assert int(state["particle0/step"]) == 0
    return found, list(range(call, call + NUM_WINDOWS))


def test_the_windows_of_a_nres_episode_add_up_to_full_es():
    found, seeds = one_episode(NoiseReuseES(SIGMA, WINDOW))
    expected = EvolutionStrategies(SIGMA).estimate(Waves(), ClosedForm(), seeds[:1], {})
    torch.testing.assert_close(torch.stack(found).mean(0), flat(expected), rtol=1e-12, atol=1e-14)


def test_a_pes_episode_against_a_direct_computation():
    """By hand: the loss after each window, with each window's own perturbation, times the sum of those so far."""
    found, seeds = one_episode(PersistentES(SIGMA, WINDOW))
    scale = np.array([0.8, 1.25, 1.25])
    a, b, rates = CURVATURE.numpy(), TARGET.numpy(), RATES.numpy()
    deltas = [torch.cat(list(direction(Waves(), seed, k * WINDOW).values())).numpy() for k, seed in enumerate(seeds)]
    u = np.arange(STEPS) / (STEPS - 1)
    features = np.stack([np.ones(STEPS), u, np.cos(np.pi * u)], 1)
    rises = np.zeros(NUM_WINDOWS)
    for sign in (1, -1):
        w, before = START.numpy(), 0.0
        for k, delta in enumerate(deltas):
            theta = np.array([0.2, -1.5, 1.4]) + sign * SIGMA * delta
            for t in range(k * WINDOW, (k + 1) * WINDOW):
                w = w - rates[t] * a * (w + features[t] @ theta - b)
            loss = 0.5 * (a * (w - b) ** 2).sum()
            rises[k] += sign * (loss - before) / (2 * SIGMA)
            before = loss
    for k in range(NUM_WINDOWS):
        expected = NUM_WINDOWS * rises[k] * sum(deltas[: k + 1]) / scale**2
        np.testing.assert_allclose(found[k].numpy(), expected, rtol=1e-11, atol=1e-13)


# --- particles ---


@pytest.mark.parametrize("kind", PARTICLES)
def test_particles_are_spread_over_the_run_and_play_what_is_before_their_start(kind):
    schedule, runs = Waves(), ClosedForm()
    first = kind(SIGMA, WINDOW).estimate(schedule, runs, seeds_of(0, 0, 6), {})
    steps = [int(first.state[f"particle{i}/step"]) for i in range(6)]
    assert sorted(steps) == [0, 0, 2, 2, 4, 4]  # after windows 2, 0 and 1
    assert first.inner_steps == sum(s.stop - (s.since.step if s.since else 0) for s in runs.asked) == 2 * 24
    assert first.inner_steps == 2 * sum(step or STEPS for step in steps)
    second = kind(SIGMA, WINDOW).estimate(schedule, runs, seeds_of(0, 1, 6), first.state)
    assert second.inner_steps == 2 * 6 * WINDOW
    for up, down in zip(runs.asked[::2], runs.asked[1::2], strict=True):
        assert up.seed == down.seed and up.stop == down.stop
        middle = (up.controls["shift"] + down.controls["shift"]) / 2
        torch.testing.assert_close(middle, schedule(progress_of_steps(STEPS), [])["shift"].detach())
    assert {s.seed for s in runs.asked if s.since is None} <= {*seeds_of(0, 0, 6), *seeds_of(0, 1, 6)}
    # a new episode takes a new seed; one that goes on keeps its own
    for i, step in enumerate(steps):
        assert int(second.state[f"particle{i}/seed"]) == (0 if step == 4 else seeds_of(0, 0 if step else 1, 6)[i])


@pytest.mark.parametrize(("steps", "window", "expected"), [(25, None, 2), (7, None, 1), (7, 3, 3), (7, 50, 7)])
def test_the_length_of_a_window(steps, window, expected):
    class Lasting(ClosedForm):
        def segments(self, segments: Sequence[Segment]) -> list[Reached]:
            self.asked += segments
            return [Reached(s.stop, TrainingState({}, {}, {}, {}, {}), 1.0, 0.0) for s in segments]

    runs = Lasting()
    runs.problem = replace(problem(), steps=steps)
    estimator, state = build_estimator(MetaConfig(estimator="pes", window=window)), {}
    for call in range(20):
        state = estimator.estimate(Waves(), runs, [call], state).state
    lengths = [s.stop - (s.since.step if s.since else 0) for s in runs.asked]
    last = steps - (-(-steps // expected) - 1) * expected  # the last window has what is left
    assert set(lengths) == {expected, last}


class Breaking(ClosedForm):
    """One run of the second call is broken."""

    def __init__(self, loss: float, weight: float, which: int) -> None:
        super().__init__()
        self.broken, self.which, self.call = (loss, weight), which, 0

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        found = super().segments(segments)
        self.call += len(segments) == 6  # not the way to the first windows, in which fewer move
        if self.call == 2:
            loss, weight = self.broken
            state = found[self.which].state._replace(params={"w": START * weight})
            found[self.which] = found[self.which]._replace(loss=loss, state=state)
        return found


@pytest.mark.parametrize("kind", PARTICLES)
@pytest.mark.parametrize(("loss", "weight"), [(math.nan, 1.0), (math.inf, math.nan), (0.0, math.inf)])
def test_a_pair_with_a_run_that_breaks_is_left_out_and_begins_anew(loss, weight, kind):
    schedule, estimator = Waves(), kind(SIGMA, WINDOW)
    state: State = {}
    for which in range(6):
        runs, sound = Breaking(loss, weight, which), ClosedForm()
        state = estimator.estimate(schedule, runs, seeds_of(3, 0, 3), {}).state
        broken = estimator.estimate(schedule, runs, seeds_of(3, 1, 3), state)
        expected = estimator.estimate(schedule, sound, seeds_of(3, 1, 3), state)
        assert broken.notes["resets"] == 1.0 and expected.notes["resets"] == 0.0
        assert bool(torch.isfinite(flat(broken)).all()) and math.isfinite(broken.found[0].loss)
        pair = which // 2
        assert int(broken.state[f"particle{pair}/step"]) == 0
        assert not any(key.startswith((f"particle{pair}/+", f"particle{pair}/a")) for key in broken.state)
        others = {k: v for k, v in expected.state.items() if not k.startswith(f"particle{pair}/")}
        assert all(torch.equal(broken.state[k], v) or bool(v.isnan().any()) for k, v in others.items())

        asked = sound.asked[:6]
        reached = zip(sound.segments(asked), asked, strict=True)
        shares = torch.tensor([r.loss - (s.since.loss if s.since else 0) for r, s in reached])
        rises = NUM_WINDOWS * (shares[::2] - shares[1::2]) / (2 * SIGMA)
        rises = torch.cat([rises[:pair], rises[pair + 1 :]])
        assert broken.notes["spread"] == pytest.approx(float(rises.std()), rel=1e-12)


def test_where_every_run_breaks_the_estimate_says_so():
    class Broken(ClosedForm):
        def segments(self, segments: Sequence[Segment]) -> list[Reached]:
            return [reached._replace(loss=math.nan) for reached in super().segments(segments)]

    estimate = PersistentES(SIGMA, WINDOW).estimate(Waves(), Broken(), seeds_of(0, 0, 3), {})
    assert estimate.found[0].diagnostics.nonfinite == 4  # the loss and three parameters
    again = PersistentES(SIGMA, WINDOW).estimate(Waves(), ClosedForm(), seeds_of(0, 1, 3), estimate.state)
    assert again.found[0].diagnostics.nonfinite == 0 and again.notes["resets"] == 0.0


def test_loss_and_score_are_those_of_whole_runs_once_there_are_any():
    schedule, runs, state = Waves(), ClosedForm(), {}
    ends: dict[int, list[float]] = {}
    for call in range(5):
        before = len(runs.asked)
        estimate = NoiseReuseES(SIGMA, WINDOW).estimate(schedule, runs, seeds_of(0, call, 2), state)
        state = estimate.state
        last = runs.asked[before:][-4:]
        reached = ClosedForm().segments(last)
        for i in range(2):
            if last[2 * i].stop == STEPS:
                ends[i] = [r.loss for r in reached[2 * i : 2 * i + 2]]
        losses = [loss for pair in ends.values() for loss in pair] or [r.loss for r in reached]
        assert estimate.found[0].loss == pytest.approx(sum(losses) / len(losses))
        assert estimate.found[0].diagnostics.score == pytest.approx(-sum(losses) / len(losses))
    assert len(ends) == 2


# --- real training ---


def tiny(estimator: str, **sections: Any) -> Experiment:
    task = TaskConfig(model="mlp", width=4, train=32, validation=16, batch=8, steps=5)
    meta = MetaConfig(estimator=estimator, runs=2, window=2)  # type: ignore[arg-type]
    method = MethodConfig(name="joint")
    return Experiment(task=task, method=method, meta=meta, run=RunConfig(dtype="float64"), **sections)


def schedule_network(hidden: int = 4) -> ScheduleNetwork:
    controls = build_method(MethodConfig(name="joint")).controls
    learn = ["weight_noise", "activation_noise", "freeze_fraction"]
    return ScheduleNetwork(controls, hand_coded("joint")["joint_linear"], learn, knots=4, hidden=hidden, seed=0)


@pytest.mark.parametrize("name", ["pes", "nres"])
def test_state_saved_in_mid_episode_goes_on_with_the_same_bits(name):
    own = tiny(name)
    schedule, runs = schedule_network(), runs_of(own, Pool(1))
    estimator = build_estimator(runs.meta)
    state = estimator.begin(schedule, runs)
    assert state == {}
    for call in range(2):
        state = estimator.estimate(schedule, runs, seeds_of(0, call, 2), state).state
    assert any(int(v) for k, v in state.items() if k.endswith("/step"))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed: State = torch.load(file, weights_only=True)
    for call in range(2, 5):
        straight = estimator.estimate(schedule, runs, seeds_of(0, call, 2), state)
        again = estimator.estimate(schedule, runs, seeds_of(0, call, 2), resumed)
        assert torch.equal(flat(straight), flat(again)) and bool(flat(straight).any())
        state, resumed = straight.state, again.state
        assert state.keys() == resumed.keys()
        assert all(torch.equal(resumed[k], v) or k.endswith("/ends") for k, v in state.items())
        assert not any(v.requires_grad for v in state.values())
