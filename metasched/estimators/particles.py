"""Particles: antithetic pairs of inner runs that go on by one window of steps an estimate; what PES and NRES share.

The outer loss is a sum of shares of W = ceil(T / window) windows, and one estimate sees one window of each pair:

    share = l(end of window) - l(start of window),   l = 0 at the start of a run
    g = W mean over pairs of r a / s^2,   r = (share(theta + sigma delta) - share(theta - sigma delta)) / 2 sigma

l is the outer loss so far (runs.Reached). Where an objective judges the end alone, it is that of the state, were it the
end: the shares telescope to the outer loss, and every window has a signal. a is the perturbation that the share answers
to, s the scales (perturbation.py); delta and a are what the two estimators differ in. The two runs of a pair share
their seed: initial weights, batches and draws. L is what is played: no relaxed mask, no noise floor.

The pairs are spread evenly over the windows, from a random one on, so that every estimate is one of the whole run. To
get there, a pair plays the windows before its first one in the first estimate; they are perturbed like all others, and
their shares are not used. So the first episode answers for all of its steps, as the later ones do.

A pair of which a loss or a state is not finite is left out, and begins anew with a fresh seed. The early windows are
then seen more often than the late ones.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn

from metasched.core.randomness import generator
from metasched.estimators.base import PLACE, Estimate, State, check_like, check_range
from metasched.estimators.es import finite_pairs, population_mean, spread, with_faults
from metasched.estimators.perturbation import controls_at, score_function
from metasched.network.flat import Tensors, rows
from metasched.runs.local import Judged, Reached, Runs, Segment
from metasched.training.state import TrainingState


@dataclass(frozen=True)
class Particle:
    """An antithetic pair somewhere in its episode, which is one whole inner run.

    Attributes:
        seed: of the episode; at step 0 the particle takes a new one.
        step: steps done.
        up, down: where the runs at theta + sigma delta and at theta - sigma delta stand; None at step 0.
        perturbation: a, of the window that was played last; empty at step 0.
        ends: mean loss and score of the last episode that was played to its end; NaN before the first one.
    """

    seed: int = 0
    step: int = 0
    up: Reached | None = None
    down: Reached | None = None
    perturbation: Tensors = field(default_factory=dict)
    ends: tuple[float, float] = (math.nan, math.nan)


class Perturbed(NamedTuple):
    """How a window is perturbed.

    Attributes:
        delta: {parameter: its change in this window, over sigma}.
        perturbation: a, {parameter: the sum of the changes that the outer loss in this window answers to}.
    """

    delta: Tensors
    perturbation: Tensors


@dataclass(frozen=True)
class ParticleES(ABC):
    """An estimator by particles: one hypergradient from a window of each pair, one pair for each seed.

    Attributes:
        sigma: standard deviation of the smoothing, in units of the parameters' scales; positive.
        window: steps between two estimates; None: a tenth of the run, at least 1.
    """

    sigma: float
    window: int | None = None

    @abstractmethod
    def perturbed(self, schedule: nn.Module, particle: Particle, seed: int) -> Perturbed:
        """The perturbation of a particle's next window; ``seed`` is that of the estimate."""

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Empty: the first estimate has the seeds that the particles begin with."""
        return {}

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_particles(schedule, runs, num_runs, state)

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator; always with the same number of seeds."""
        return estimate_by_particles(self, schedule, runs, seeds, state)


class WindowPlayed(NamedTuple):
    """One window of a particle.

    Attributes:
        particle: after the window.
        shares: what the outer losses of the runs at + and - gained in it; NaN where a number was not finite.
        perturbation: a, {parameter: a tensor of its shape} that the shares answer to.
        judged: outer loss and score of both runs at the end of the window.
        inner_steps: training steps done by both.
    """

    particle: Particle
    shares: tuple[float, float]
    perturbation: Tensors
    judged: tuple[Judged, Judged]
    inner_steps: int

    @property
    def broken(self) -> bool:
        """Whether a loss or a state was not finite."""
        return not all(math.isfinite(share) for share in self.shares)


def estimate_by_particles(
    estimator: ParticleES, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State
) -> Estimate:
    """One window of each particle, one particle for each seed; ``state`` is {name: [...]}; see Estimator.

    Loss and score are those of the last whole run of each particle; before any has ended, those of the runs so far.
    """
    start = time.perf_counter()
    num_windows = -(-runs.problem.steps // _window(estimator, runs))
    particles = load(state)
    warm_up: list[WindowPlayed] = []
    if not particles:
        particles = [Particle() for _ in seeds]
        ahead = first_windows(len(seeds), num_windows, seeds[0])
        for done in range(max(ahead)):
            chosen = [i for i, first in enumerate(ahead) if first > done]
            windows = play_window(estimator, schedule, runs, [particles[i] for i in chosen], [seeds[i] for i in chosen])
            for i, played in zip(chosen, windows, strict=True):
                particles[i] = played.particle
            warm_up += windows
    windows = play_window(estimator, schedule, runs, particles, seeds)
    kept = [windows[i] for i in finite_pairs([share for played in windows for share in played.shares])]
    rises = [num_windows * (played.shares[0] - played.shares[1]) / (2 * estimator.sigma) for played in kept]
    terms = [
        [rise * e for e in score_function(schedule, played.perturbation)]
        for rise, played in zip(rises, kept, strict=True)
    ]
    everything = warm_up + windows
    found = population_mean(terms, _judged(windows, kept), time.perf_counter() - start)
    found = with_faults(found, [run.fault for played in everything for run in played.judged])
    notes = {
        "pairs": float(len(seeds)),
        "spread": spread(rises),
        "resets": float(sum(played.broken for played in everything)),
    }
    inner_steps = sum(played.inner_steps for played in everything)
    return Estimate([found], save([played.particle for played in windows]), inner_steps, notes)


def first_windows(num_particles: int, num_windows: int, seed: int) -> list[int]:
    """The window that each particle starts at: evenly spread, from a random one on, so that each is equally likely.

    >>> sorted(first_windows(4, 4, seed=0)), len(set(first_windows(10, 5, seed=0)))
    ([0, 1, 2, 3], 5)
    """
    first = int(torch.randint(num_windows, (), generator=generator(seed, "first window")))
    return [(first + i * num_windows // num_particles) % num_windows for i in range(num_particles)]


def play_window(
    estimator: ParticleES, schedule: nn.Module, runs: Runs, particles: Sequence[Particle], seeds: Sequence[int]
) -> list[WindowPlayed]:
    """Each particle after its next window."""
    steps, window = runs.problem.steps, _window(estimator, runs)
    particles = [p if p.step else replace(p, seed=seed) for p, seed in zip(particles, seeds, strict=True)]
    perturbed = [estimator.perturbed(schedule, p, seed) for p, seed in zip(particles, seeds, strict=True)]
    segments = [
        Segment(controls_at(schedule, runs.problem, delta, size), p.seed, since, min(p.step + window, steps))
        for p, (delta, _) in zip(particles, perturbed, strict=True)
        for size, since in ((estimator.sigma, p.up), (-estimator.sigma, p.down))
    ]
    reached = runs.segments(segments)
    return [
        _played(p, perturbation, up, down, steps)
        for p, (_, perturbation), up, down in zip(particles, perturbed, reached[::2], reached[1::2], strict=True)
    ]


def _played(p: Particle, perturbation: Tensors, up: Reached, down: Reached, steps: int) -> WindowPlayed:
    played = WindowPlayed(
        particle=replace(p, step=up.step, up=up, down=down, perturbation=perturbation),
        shares=(_share(up, p.up), _share(down, p.down)),
        perturbation=perturbation,
        judged=(Judged(up.loss, up.score, up.fault), Judged(down.loss, down.score, down.fault)),
        inner_steps=2 * (up.step - p.step),
    )
    if played.broken:
        return played._replace(particle=Particle(ends=p.ends))
    if up.step == steps:
        return played._replace(particle=Particle(ends=((up.loss + down.loss) / 2, (up.score + down.score) / 2)))
    return played


def _share(reached: Reached, since: Reached | None) -> float:
    """What the outer loss gained; NaN where the state is not finite."""
    if not all(bool(torch.isfinite(t).all()) for part in reached.state for t in part.values()):
        return math.nan
    return reached.loss - (since.loss if since else 0.0)


def _judged(windows: Sequence[WindowPlayed], kept: Sequence[WindowPlayed]) -> list[Judged]:
    ended = [Judged(*played.particle.ends) for played in windows if math.isfinite(played.particle.ends[0])]
    return ended or [run for played in kept for run in played.judged]


def _window(estimator: ParticleES, runs: Runs) -> int:
    return estimator.window or max(1, runs.problem.steps // 10)


# --- as a flat dict of tensors: particle3/step, particle3/+/params/conv1.weight, ... ---


def save(particles: Sequence[Particle]) -> State:
    """The particles as tensors."""
    state: Tensors = {}
    for i, p in enumerate(particles):
        own = f"particle{i}"
        state |= {f"{own}/seed": torch.tensor(p.seed), f"{own}/step": torch.tensor(p.step)}
        state[f"{own}/ends"] = torch.tensor(p.ends, dtype=torch.float64)
        state |= {f"{own}/answered/{name}": v for name, v in p.perturbation.items()}
        for sign, run in (("+", p.up), ("-", p.down)):
            if run is not None:
                state[f"{own}/{sign}/stands"] = torch.tensor([run.loss, run.score], dtype=torch.float64)
                for part, tensors in run.state._asdict().items():
                    state |= {f"{own}/{sign}/{part}/{name}": v for name, v in tensors.items()}
    return state


def load(state: State) -> list[Particle]:
    """The particles that were saved, in their order, from {name: [...]}."""
    saved = _branches(state)
    return [_load_particle(_branches(saved[f"particle{i}"])) for i in range(len(saved))]


def check_particles(schedule: nn.Module, runs: Runs, num_particles: int, state: State) -> None:
    """Refuse a state that ``save`` does not make of ``num_particles`` particles of this problem.

    Names, shapes [...] and dtypes must be the same, and seeds and steps (int64, 0-d) in their ranges.

    Raises:
        MetaschedError: they are not; with the place of what is wrong.
    """
    zeros = {name: torch.zeros_like(p) for name, p in schedule.named_parameters()}
    start = runs.problem.initial(rows(controls_at(schedule, runs.problem, zeros, 0.0), 0))
    like = []
    for i in range(num_particles):
        seed, step = f"particle{i}/seed", f"particle{i}/step"
        numbers = {name: torch.tensor(0) for name in (seed, step)}
        check_like(PLACE, {name: t for name, t in state.items() if name in numbers}, numbers)
        check_range(seed, state[seed], 0, 2**63 - 1)
        check_range(step, state[step], 0, runs.problem.steps - 1)
        somewhere = Reached(int(state[step]), start, 0.0, 0.0) if state[step] else None
        like.append(Particle(0, int(state[step]), somewhere, somewhere, zeros if somewhere else {}))
    check_like(PLACE, state, save(like))


def _load_particle(own: dict[str, Tensors]) -> Particle:
    step = int(own["step"][""])
    up, down = (_load_run(_branches(own[sign]), step) if step else None for sign in "+-")
    loss, score = own["ends"][""].tolist()
    return Particle(int(own["seed"][""]), step, up, down, own.get("answered", {}), (loss, score))


def _load_run(own: dict[str, Tensors], step: int) -> Reached:
    loss, score = own["stands"][""].tolist()
    return Reached(step, TrainingState(*(own.get(part, {}) for part in TrainingState._fields)), loss, score)


def _branches(state: State) -> dict[str, Tensors]:
    """{first part of the key: {the rest of it: tensor}}."""
    branches: dict[str, Tensors] = {}
    for key, tensor in state.items():
        branch, _, rest = key.partition("/")
        branches.setdefault(branch, {})[rest] = tensor
    return branches
