"""Mapped inner runs against the loop: the same numbers for every method, and what falls back to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from learning import runs_of
from stacked_runs import METHODS, OPTIMIZERS, SEEDS, STEPS, controls_of, distance, own, problem
from torch import nn

from metasched.config.schema import Experiment
from metasched.engines.base import Objective, OuterLoss
from metasched.meta.config import MetaConfig
from metasched.network.flat import Tensors
from metasched.runs import local as questions
from metasched.runs.cells import cell_score, cell_scores
from metasched.runs.config import RunConfig
from metasched.runs.local import LocalRuns, Run, Segment, reach, reach_mapped
from metasched.runs.pool import Pool
from metasched.runs.pooled import local_runs
from metasched.tasks.config import TaskConfig
from metasched.training import stacked as mapped
from metasched.training.loop import train
from metasched.training.stacked import mapping_pays, of_run, stacked, train_each, train_mapped
from metasched.training.stacked_norm import with_mapped_norms
from metasched.training.state import InnerProblem
from metasched.training.step import inner_step

# The bound of what is the same bits where a CPU maps; elsewhere it is what rounding differently makes of few steps.
OFF = 0.0 if mapped.products_keep_bits() else 1e-12


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which a CPU maps."""
    monkeypatch.setattr(mapped, "products_keep_bits", lambda: True)


def worst(inner: InnerProblem) -> float:
    controls = controls_of(inner)
    end = train_mapped(inner, controls, SEEDS)
    return max(
        distance(train(inner.with_seed(seed), own(controls, i)).state, of_run(end, i)) for i, seed in enumerate(SEEDS)
    )


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_as_in_the_loop(method: str, model: str) -> None:
    assert worst(problem(METHODS[method], model)) <= 1e-10


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains_as_in_the_loop(optimizer: str, model: str) -> None:
    assert worst(problem(METHODS["joint"], model, optimizer)) <= 1e-10


def test_residual_networks_train_as_in_the_loop() -> None:
    assert worst(replace(problem(METHODS["ana_mode"], "resnet20", "sgd", width=4), steps=2)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["ana_mode", "joint"])
def test_where_mapping_pays_on_the_cpu_the_bits_are_those_of_the_loop(method: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    inner = problem(METHODS[method])
    if not mapped.products_keep_bits():
        assert not mapping_pays(inner, len(SEEDS))
        pytest.skip("a CPU does not map on this processor")
    assert mapping_pays(inner, len(SEEDS)) and worst(inner) == 0


def test_runs_differ_by_seed_and_by_controls() -> None:
    inner = problem(METHODS["ana_random"])
    end = train_mapped(inner, controls_of(inner), [1, 1, 2, 3])
    weights = end.params["linear1.weight"]
    assert len({tuple(w.flatten().tolist()) for w in weights}) == 4
    same = {name: v[:1].expand(4, *v.shape[1:]) for name, v in controls_of(inner).items()}
    first, twin, other, _ = train_mapped(inner, same, [1, 1, 2, 3]).params["linear1.weight"]
    assert torch.equal(first, twin) and not torch.equal(first, other)


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    inner = problem(METHODS["ana_expectation"])
    controls = controls_of(inner)
    end = train_mapped(inner, controls, SEEDS)
    controls["noise_mean"][1] = torch.nan
    broken = train_mapped(inner, controls, SEEDS)
    assert of_run(broken, 1).params["linear1.weight"].isnan().any()
    assert all(distance(of_run(end, i), of_run(broken, i)) == 0 for i in (0, 2, 3))


def test_states_are_stacked_and_taken_apart() -> None:
    inner = problem(METHODS["joint"])
    controls = controls_of(inner)
    each = [train(inner.with_seed(seed), own(controls, i)).state for i, seed in enumerate(SEEDS)]
    together = stacked(inner, each)
    assert together.params["linear1.weight"].shape == (4, 8, 64) and together.optimizer["step"].shape == ()
    for i, state in enumerate(each):
        assert distance(state, of_run(together, i)) == 0
    alone = of_run(together, 0).params["linear1.weight"]
    assert alone.untyped_storage().nbytes() == 8 * alone.numel()  # so that saving one run does not save all


# --- judging ---


@pytest.mark.parametrize("objective", ["hardened", "relaxed", "trajectory"])
@pytest.mark.parametrize("method", ["ste", "joint"])
def test_judged_as_in_the_loop(method: str, objective: Objective) -> None:
    inner, outer = replace(problem(METHODS[method]), steps=10), OuterLoss(objective)
    controls = controls_of(inner)
    segments = [Segment(own(controls, i), seed, None, inner.steps) for i, seed in enumerate(SEEDS)]
    for s, end in zip(segments, reach_mapped(inner, segments, outer), strict=True):
        expected = reach(inner.with_seed(s.seed), s, outer)
        assert (end.step, end.score) == (expected.step, expected.score)
        assert abs(end.loss - expected.loss) <= OFF and distance(expected.state, end.state) <= OFF


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize("objective", ["hardened", "trajectory"])
def test_segments_that_start_and_stop_alike_are_mapped(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = replace(problem(METHODS["joint"]), steps=10)
    local = LocalRuns(inner, inner, OuterLoss(objective), lambda *_: pytest.fail("no derivative is asked for"))
    controls = controls_of(inner, 9)
    sizes: list[int] = []

    def counting(problem: InnerProblem, segments: Sequence[Segment], outer: OuterLoss) -> list[Any]:
        sizes.append(len(segments))
        return reach_mapped(problem, segments, outer)

    monkeypatch.setattr(questions, "reach_mapped", counting)
    stops = [4, 9, 4, 9, 4, 4, 9, 9, 2]
    first = [Segment(own(controls, i), i, None, stop) for i, stop in enumerate(stops)]
    reached = local.segments(first)
    second = [s._replace(since=r, stop=10) for s, r in zip(first, reached, strict=True)]
    ends = local.segments(second)
    assert sizes == [4, 4, 4, 4]  # and the one that stopped at 2 alone
    for s, r, end in zip(first, reached, ends, strict=True):
        here = inner.with_seed(s.seed)
        alone = reach(here, s, local.outer)
        assert (alone.step, alone.score) == (r.step, r.score) and abs(alone.loss - r.loss) <= OFF
        on = reach(here, s._replace(since=alone, stop=10), local.outer)
        assert on.score == end.score and abs(on.loss - end.loss) <= OFF and distance(on.state, end.state) <= OFF


# --- where it is used ---


@pytest.mark.usefixtures("maps")
@pytest.mark.parametrize(
    ("model", "width", "runs", "pays"),
    [
        ("mlp", 8, 4, True),
        ("mlp", 8, 3, False),
        ("mlp", 12, 64, False),
        ("mlp", 256, 64, False),
        ("convnet", 8, 64, False),
    ],
)
def test_on_the_cpu_mapping_pays_for_several_small_networks_without_convolutions(
    model: str, width: int, runs: int, pays: bool
) -> None:
    inner = problem(METHODS["ste"], model, width=width)
    assert mapping_pays(inner, runs) == pays
    assert not mapping_pays(replace(inner, autocast=True), runs)


def test_on_a_processor_whose_products_round_differently_a_cpu_does_not_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "products_keep_bits", lambda: False)
    assert not mapping_pays(problem(METHODS["ste"]), 64)


@pytest.mark.usefixtures("maps")
def test_a_model_that_draws_from_the_global_generator_is_trained_in_the_loop() -> None:
    inner = problem(METHODS["ste"], dropout=True)
    with pytest.raises(RuntimeError):
        train_mapped(inner, {}, SEEDS)
    assert mapping_pays(inner, len(SEEDS))
    for seed, state in zip(SEEDS, train_each(inner, {}, SEEDS), strict=True):
        assert distance(train(inner.with_seed(seed), {}).state, state) == 0
    segments = [Segment({}, seed, None, STEPS) for seed in SEEDS]
    local = LocalRuns(inner, inner, OuterLoss(), lambda *_: pytest.fail("no derivative is asked for"))
    for s, end in zip(segments, local.segments(segments), strict=True):
        assert end.loss == reach(inner.with_seed(s.seed), s, OuterLoss()).loss


EXPERIMENT = Experiment(
    task=TaskConfig(model="mlp", width=8, train=64, validation=32, test=32, batch=16, steps=4),
    meta=MetaConfig(estimator="es"),
    run=RunConfig(dtype="float64"),
)


class Recording(Pool):
    """Computes in this process, as two workers would, and notes how many runs each is given."""

    def __init__(self) -> None:
        super().__init__(2)
        self.sizes: list[int] = []

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        results = [function(*a) for a in arguments]
        self.sizes += [len(r) for r in results if isinstance(r, list)]
        return iter(results)


@pytest.mark.usefixtures("maps")
def test_processes_are_given_their_share_and_answer_as_one_run_after_the_other() -> None:
    local, pool = local_runs(EXPERIMENT.problem, EXPERIMENT.meta), Recording()
    controls = controls_of(local.played, 10)
    runs = [Run(own(controls, i), i) for i in range(10)]
    alone = [local.judged([run])[0] for run in runs]
    assert runs_of(EXPERIMENT, pool).judged(runs) == alone
    assert runs_of(EXPERIMENT, pool).judged(runs[:6]) == alone[:6]
    assert pool.sizes == [5, 5] + [1] * 6  # three runs are too few to be mapped
    segments = [Segment(run.controls, run.seed, None, 4) for run in runs]
    assert [r.loss for r in runs_of(EXPERIMENT, pool).segments(segments)] == [j.loss for j in alone]


def test_cells_of_a_comparison_are_the_same_one_by_one_and_at_once() -> None:
    values = own(controls_of(local_runs(EXPERIMENT.problem, EXPERIMENT.meta).played), 0)
    at_once = cell_scores(EXPERIMENT.problem, values, SEEDS, 4, "test")
    assert at_once == [cell_score(EXPERIMENT.problem, values, seed, 4, "test") for seed in SEEDS]
    assert len(set(at_once)) > 1


# --- batch normalization ---


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3}])
@pytest.mark.parametrize("shared", [False, True])
def test_a_mapped_normalization_is_that_of_each_run(options: dict[str, Any], shared: bool) -> None:
    """Outputs, derivatives and running statistics; ``shared``: all runs see the same input."""
    norm = nn.BatchNorm2d(3, **options)
    x = torch.randn(5, 3, 2, 2) if shared else torch.randn(4, 5, 3, 2, 2)
    params = {name: torch.randn(4, *p.shape) for name, p in norm.named_parameters()}
    buffers = {name: torch.stack([b + i for i in range(4)]) for name, b in norm.named_buffers()}
    before = {name: b.clone() for name, b in buffers.items()}
    mapped = with_mapped_norms(nn.Sequential(norm))
    leaves = [x.requires_grad_(), *(p.requires_grad_() for p in params.values())]

    def run(module: nn.Module, params: Tensors, buffers: Tensors, x: torch.Tensor) -> torch.Tensor:
        named = {f"0.{name}": t for name, t in {**params, **buffers}.items()}
        return torch.func.functional_call(module, named, (x,))

    dims = (0, 0, None if shared else 0)
    found = torch.vmap(partial(run, mapped), in_dims=dims)(params, buffers, x)
    expected = []
    for i in range(4):
        mine = {name: b[i].clone() for name, b in before.items()}
        one = {name: p[i] for name, p in params.items()}
        expected.append(run(nn.Sequential(norm), one, mine, x if shared else x[i]))
        for name, b in mine.items():
            torch.testing.assert_close(buffers[name][i], b, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-13, atol=1e-13)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, leaves, cotangent),
        torch.autograd.grad(torch.stack(expected), leaves, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_mapping_leaves_the_problem_as_it_was() -> None:
    inner = problem(METHODS["joint"])
    controls = own(controls_of(inner), 1)
    rows = {name: v[0] for name, v in controls.items()}
    state = inner.initial(rows)
    before = {name: b.clone() for name, b in inner.network.module.state_dict().items()}
    expected, _, _ = inner_step(inner, state, rows, 0, differentiable=False)
    train_each(inner, controls, SEEDS)
    assert all(torch.equal(b, before[name]) for name, b in inner.network.module.state_dict().items())
    assert distance(expected, inner_step(inner, state, rows, 0, differentiable=False)[0]) == 0
