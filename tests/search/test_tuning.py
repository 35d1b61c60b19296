"""Tuned baselines: searches find what they should, spend what they may, and a population's path is what it trained."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from metasched.commands.tune import tune
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.evaluation.config import CompareConfig
from metasched.exchange.schedule_file import read_schedule
from metasched.io.run_folder import RunFolder
from metasched.methods import build_method
from metasched.methods.base import Control
from metasched.methods.config import MethodConfig
from metasched.runs.local import Reached, Segment
from metasched.schedules.base import progress_of_steps
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.search.config import TuneConfig
from metasched.search.population import evolve, population_search
from metasched.search.searchers import Searcher
from metasched.search.table import SEARCHES
from metasched.search.tuning import Box, best_of, search, trials_within
from metasched.tasks.config import TaskConfig
from metasched.tracking.console import open_console
from metasched.training.faults import Fault
from metasched.training.problem import build_problem
from metasched.training.state import TrainingState

pytest.importorskip("optuna", reason="optional: tuning")
pytest.importorskip("cma", reason="optional: tuning")

SEARCHERS = [spec.name for spec in SEARCHES.values() if spec.builder is not None]


def searcher_of(name: str) -> Callable[[Sequence[float], int], Searcher]:
    builder = SEARCHES[name].builder
    assert builder is not None
    return builder


EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=4, train=100, batch=10, steps=10),
    method=MethodConfig(name="ana"),
    schedule=ScheduleConfig(knots=5),
    tune=TuneConfig(search="random", inner_steps=600, runs=2, finalists=3, final_runs=4),
)
DOWN = Control("weight_noise", 0.0, 1.0, "quantum", "nonincreasing", end=0.0)
UP = Control("freeze_fraction", 0.0, 1.0, "share", "nondecreasing", end=1.0, dwell=0.2)
FREE = Control("noise_mean", -0.5, 0.5, "quantum", "free", end=None)


class Recorder:
    """A Mapper that scores a schedule by a formula and remembers what it was asked."""

    workers = 1

    def __init__(self, score: Callable[[dict[str, torch.Tensor]], float]) -> None:
        self.score = score
        self.seeds: list[int] = []
        self.steps = 0

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[list[float]]:
        for _, controls, seeds, steps, part in arguments:
            assert part == "validation"
            self.seeds += seeds
            self.steps += steps * len(seeds)
            yield [self.score(controls)] * len(seeds)


def family() -> tuple[ScheduleFamily, tuple[Any, ...]]:
    network = build_problem(EXPERIMENT.problem).network
    base = hand_coded("ana")["ana_static"]
    made = ScheduleFamily(network.method.controls, base, ["weight_noise"], knots=5, layers=network.layers)
    return made, network.layers


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_searcher_starts_at_the_point_given_and_repeats_itself(name: str) -> None:
    def points() -> list[list[float]]:
        searcher, asked = searcher_of(name)([0.25, -0.5], 7), []
        for _ in range(15):
            asked.append(searcher.ask())
            searcher.tell(-sum(x * x for x in asked[-1]))
        return asked

    first = points()
    assert first[0] == [0.25, -0.5]
    assert all(-1 <= x <= 1 for point in first for x in point)
    assert len({tuple(point) for point in first}) == 15
    assert points() == first


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_a_searcher_that_learns_comes_nearer_than_random(name: str) -> None:
    def best(name: str, seed: int) -> float:
        searcher, scores = searcher_of(name)([0.9, 0.9, 0.9], seed), []
        for _ in range(60):
            scores.append(-sum((x + 0.3) ** 2 for x in searcher.ask()))
            searcher.tell(scores[-1])
        return max(scores)

    assert sum(best(name, seed) for seed in range(3)) > sum(best("random", seed) for seed in range(3))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MetaschedError, match=r"tune\.search: CMA-ES is not installed"):
        searcher_of("cmaes")([0.0], 0)


@pytest.mark.parametrize("name", SEARCHERS)
def test_the_budget_is_spent_and_not_more(name: str) -> None:
    experiment = replace(EXPERIMENT, tune=replace(EXPERIMENT.tune, search=name))
    pool = Recorder(lambda controls: float(controls["weight_noise"].mean()))
    made, layers = family()
    rows: list[tuple[int, float]] = []
    tried = search(
        experiment.problem,
        experiment.tune,
        experiment.seed,
        Box(made, layers),
        pool,
        lambda trial, score: rows.append((trial, score)),
    )
    best_of(experiment.problem, experiment.tune, experiment.seed, tried[0].schedule, tried, pool)
    assert len(tried) == len(rows) == trials_within(experiment.tune, experiment.task.steps) == (600 // 10 - 3 * 4) // 2
    assert pool.steps == 600
    assert [c.score for c in tried] == [score for _, score in rows]


def test_a_budget_without_a_trial_is_refused() -> None:
    short = replace(EXPERIMENT, tune=replace(EXPERIMENT.tune, inner_steps=139))
    with pytest.raises(MetaschedError, match=r"tune\.inner_steps: .* give at least 140"):
        trials_within(short.tune, short.task.steps)
    assert trials_within(replace(short.tune, inner_steps=140), short.task.steps) == 1


def test_candidates_obey_what_the_controls_declare() -> None:
    made, layers = family()
    pool = Recorder(lambda controls: 0.5)
    for candidate in search(
        EXPERIMENT.problem, EXPERIMENT.tune, EXPERIMENT.seed, Box(made, layers), pool, lambda *_: None
    ):
        noise = candidate.schedule(progress_of_steps(23), layers)["weight_noise"]
        assert bool((noise.diff(dim=0) <= 0).all()) and bool((noise[-1] == 0).all())
        assert 0 <= float(noise.min()) and float(noise.max()) <= 1


def test_the_first_candidate_is_the_start_of_learning() -> None:
    made, layers = family()
    start = made.at_knots(layers)["weight_noise"].detach().clone()
    tried = search(
        EXPERIMENT.problem,
        EXPERIMENT.tune,
        EXPERIMENT.seed,
        Box(made, layers),
        Recorder(lambda controls: 0.5),
        lambda *_: None,
    )
    torch.testing.assert_close(tried[0].schedule.values["weight_noise"], start)


def test_finalists_are_judged_on_seeds_that_no_trial_had() -> None:
    made, layers = family()
    pool = Recorder(lambda controls: float(controls["weight_noise"][0].mean()))
    tried = search(EXPERIMENT.problem, EXPERIMENT.tune, EXPERIMENT.seed, Box(made, layers), pool, lambda *_: None)
    seen, pool.seeds = set(pool.seeds), []
    assert len(seen) == 2 * len(tried)
    best = best_of(EXPERIMENT.problem, EXPERIMENT.tune, EXPERIMENT.seed, tried[0].schedule, tried, pool)
    assert len(pool.seeds) == 3 * 4 and len(set(pool.seeds)) == 4 and not seen & set(pool.seeds)
    assert best.schedule is max(tried, key=lambda c: c.score).schedule


def test_a_good_start_with_bad_luck_is_judged_again() -> None:
    made, layers = family()
    pool = Recorder(lambda controls: float(controls["weight_noise"].mean()))
    tried = search(EXPERIMENT.problem, EXPERIMENT.tune, EXPERIMENT.seed, Box(made, layers), pool, lambda *_: None)
    truth = [float(c.schedule.values["weight_noise"].mean()) for c in tried]
    best = tried[truth.index(max(truth))].schedule
    unlucky = [c._replace(score=-1.0) if c.schedule is best else c for c in tried]
    assert best_of(EXPERIMENT.problem, EXPERIMENT.tune, EXPERIMENT.seed, best, unlucky, pool).schedule is best
    pool.steps = 0
    assert (
        best_of(EXPERIMENT.problem, EXPERIMENT.tune, EXPERIMENT.seed, tried[0].schedule, unlucky, pool).schedule
        is not best
    )
    assert pool.steps == 3 * 4 * 10  # no more than the finalists' share
    alone = replace(EXPERIMENT, tune=replace(EXPERIMENT.tune, finalists=1))
    assert best_of(alone.problem, alone.tune, alone.seed, best, unlucky, pool).schedule is not best


class Trace:
    """Runs whose state is the list of controls that they were trained under; the score favours little noise."""

    problem: Any = None

    def segments(self, segments: Sequence[Segment]) -> list[Reached]:
        found = []
        for s in segments:
            step = s.since.step if s.since else 0
            seen = {name: v[step : s.stop] for name, v in s.controls.items()}
            if s.since:
                seen = {name: torch.cat([s.since.state.method[name], v]) for name, v in seen.items()}
            score = -float(seen["weight_noise"].sum())
            found.append(Reached(s.stop, TrainingState({}, {}, {}, seen, {}), -score, score))
        return found


LAYERS = tuple(Layer(f"fc{i}", i / 2, "linear", "weight+activation", 4, 16, 1.585) for i in range(3))


def population(size: int = 10, interval: int = 2) -> Experiment:
    return replace(EXPERIMENT, tune=replace(EXPERIMENT.tune, search="pbt", population=size, interval=interval))


def box_of(*learned: Control) -> Box:
    """Members of a family that was fitted to noise and freezing along a line."""

    def base(progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        noise = (0.5 * (1 - progress))[:, None].repeat(1, len(layers))
        frozen = progress[:, None].repeat(1, len(layers))
        return {"weight_noise": noise, "freeze_fraction": frozen, "noise_mean": torch.full_like(noise, 0.1)}

    names = [control.name for control in learned]
    return Box(ScheduleFamily([DOWN, UP, FREE], base, names, knots=6, layers=LAYERS), LAYERS)


def evolved(
    *learned: Control, runs: Any = None, experiment: Experiment | None = None
) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    judge: Any = runs or Trace()
    of = experiment or population()
    return evolve(of.tune, of.task.steps, of.seed, box_of(*learned), learned, judge, 0)


def test_a_path_is_what_its_state_was_trained_under() -> None:
    runs = Trace()
    ended: list[Reached] = []
    plain = runs.segments
    runs.segments = lambda segments: ended.extend(plain(segments)) or ended[-len(segments) :]  # type: ignore[method-assign]
    paths, scores = evolved(DOWN, UP, FREE, runs=runs)
    for path, last, score in zip(paths, ended[-10:], scores, strict=True):
        assert all(torch.equal(path[name], last.state.method[name]) for name in path)
        assert score == last.score


def test_the_first_member_begins_at_the_start_of_learning_and_the_others_anywhere() -> None:
    paths, _ = evolved(DOWN, UP, experiment=population(interval=10))  # no exchange: each keeps what it began with
    box = box_of(DOWN, UP)
    start = box.member(box.first)(progress_of_steps(10), LAYERS)
    assert all(torch.equal(paths[0][name], start[name]) for name in start)
    noise = torch.stack([path["weight_noise"][0, 0] for path in paths[1:]])
    assert float(noise.min()) < 0.3 and float(noise.max()) > 0.7


def test_a_member_that_is_copied_plays_its_own_past_and_a_point_near_by() -> None:
    experiment = population(interval=5)  # one exchange: the worst two take over from the best two
    before, _ = evolved(DOWN, experiment=population(interval=10))
    after, _ = evolved(DOWN, experiment=experiment)
    first_half = [float(path["weight_noise"][:5].sum()) for path in before]
    order = sorted(range(10), key=lambda i: -first_half[i])
    for i in range(10):
        changed = not torch.equal(after[i]["weight_noise"], before[i]["weight_noise"])
        assert changed == (i in order[:2]), i
    for worst, best in zip(order[:2], reversed(order), strict=False):
        assert torch.equal(after[worst]["weight_noise"][:5], before[best]["weight_noise"][:5])
        assert not torch.equal(after[worst]["weight_noise"][5:], before[best]["weight_noise"][5:])


def test_a_copied_point_moves_by_a_fifth_of_half_the_box_in_each_coordinate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []
    member = Box.member

    def noted(box: Box, point: Sequence[float]) -> Any:
        asked.append(torch.tensor(point, dtype=torch.float64))
        return member(box, point)

    monkeypatch.setattr(Box, "member", noted)
    evolved(DOWN, UP, experiment=population(interval=5))
    assert len(asked) == 12  # ten members, of which two are replaced once
    for point in asked[10:]:
        steps = [(point - origin).abs() for origin in asked[:10]]
        moved = [bool(((step - 0.2).abs().lt(1e-12) | ((point.abs() == 1) & (step < 0.2))).all()) for step in steps]
        assert sum(moved) == 1


def test_a_path_obeys_direction_end_and_dwell() -> None:
    paths, _ = evolved(DOWN, UP, FREE)
    for path in paths:
        noise, frozen, mean = path["weight_noise"], path["freeze_fraction"], path["noise_mean"]
        assert bool((noise.diff(dim=0) <= 0).all()) and bool((noise[-1] == 0).all())
        assert bool((frozen.diff(dim=0) >= 0).all()) and bool((frozen[8:] == 1).all())
        assert float(mean.abs().max()) <= 0.5
    assert len({tuple(path["weight_noise"].flatten().tolist()) for path in paths}) > 1


def test_a_population_moves_towards_what_scores() -> None:
    _, alone = evolved(DOWN, experiment=population(20, interval=10))
    _, together = evolved(DOWN, experiment=population(20, interval=1))
    assert sum(together) > 0.5 * sum(alone)  # less noise in all: scores are below 0
    assert max(together) >= max(alone)


def test_what_is_not_learned_keeps_its_values() -> None:
    paths, _ = evolved(DOWN)
    for path in paths:
        torch.testing.assert_close(path["noise_mean"], torch.full((10, 3), 0.1))
        torch.testing.assert_close(path["freeze_fraction"], progress_of_steps(10)[:, None].repeat(1, 3))


def test_a_run_with_a_bad_number_is_the_worst() -> None:
    class Bad(Trace):
        def segments(self, segments: Sequence[Segment]) -> list[Reached]:
            found = super().segments(segments)
            return [found[0]._replace(fault=Fault("loss")), *found[1:]]

    _, scores = evolved(DOWN, runs=Bad())
    assert scores[0] == float("-inf") and min(scores[1:]) > float("-inf")


def test_populations_fill_the_budget() -> None:
    experiment = population(size=8)
    rows: list[int] = []
    tried = population_search(
        experiment.tune,
        experiment.task.steps,
        experiment.seed,
        box_of(DOWN),
        [DOWN],
        Trace(),
        lambda n, _: rows.append(n),
    )  # type: ignore[arg-type]
    assert rows == list(range(len(tried))) == list(range((600 // 10 - 3 * 4) // 8))
    assert all(c.schedule.kind == "previous" and len(c.schedule.knots) == 10 for c in tried)


def test_the_numbers_of_directions_are_a_box_of_log_corrections() -> None:
    """Point 0 is the start; half of the box is a log-correction of 1 in all numbers, as the network itself says."""
    method = build_method(MethodConfig(name="rates"))
    network = ScheduleNetwork(
        method.controls,
        hand_coded("rates")["rates_constant"],
        ["lr_scale"],
        knots=5,
        hidden=8,
        seed=0,
        layers=LAYERS,
        most=10,
    )
    box = Box(network, LAYERS)
    size = len(network.directions)
    assert 1 < size <= 10 and box.first == [0.0] * size
    assert torch.allclose(box.member([0.0] * size).values["lr_scale"], torch.ones(5, len(LAYERS)))
    found = box.member([0.5] * size).values
    with torch.no_grad():
        network.numbers.fill_(1.0)
        wanted = network.at_knots(LAYERS)
    assert all(torch.equal(found[name], v) for name, v in wanted.items())


def test_tune_searches_directions_and_refuses_a_network_without(tmp_path: Any) -> None:
    experiment = replace(
        EXPERIMENT,
        method=MethodConfig(name="rates"),
        schedule=ScheduleConfig(knots=5, hidden=8, start="floor", directions=6),
        tune=replace(EXPERIMENT.tune, space="directions", inner_steps=300, finalists=2, final_runs=2),
        compare=CompareConfig(seeds=2, baselines=()),
    )
    result = tune(experiment, RunFolder.create(tmp_path, "run"), open_console(io.StringIO()))
    file = read_schedule(result["schedule"])
    assert file.method.name == "rates" and file.form is not None
    assert (file.form.kind, file.form.base) == ("network", "floor")
    without = replace(experiment, schedule=replace(experiment.schedule, directions=None))
    with pytest.raises(MetaschedError, match=r"^tune\.space: is directions, and schedule\.directions is null"):
        tune(without, RunFolder.create(tmp_path, "other"), open_console(io.StringIO()))
