"""The planner of the adjoint sweep against a simulation of it, its measurements, and the budget of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metasched.config.load import load_experiment
from metasched.config.writing import config_hash, dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.engines import find_unroll
from metasched.engines.memory import (
    Plan,
    bytes_of,
    graph_bytes,
    plan,
    predicted_bytes,
    recomputed_steps,
    stored_states,
)

MIB = 2**20
STEPS = st.integers(1, 60)
BYTES = st.integers(1, 1000)
PLANS = st.builds(
    Plan,
    st.one_of(
        st.just((1,)),
        st.tuples(st.integers(2, 40), st.just(1)),
        st.tuples(st.integers(2, 40), st.integers(2, 10), st.just(1)),
    ),
    st.integers(1, 60),
)


class Simulation:
    """Follows the states by their numbers: which are stored, and which steps are run again."""

    def __init__(self, steps: int, plan: Plan) -> None:
        self.stored: set[int] = set()
        self.most = self.reruns = 0
        self.back: list[int] = []
        unkept = max(steps - plan.kept, 0)
        self.walk(range(unkept), plan.strides, first=True)

    def walk(self, segment: range, strides: tuple[int, ...], first: bool) -> None:
        if not strides:
            (step,) = segment
            self.back.append(step)
            self.reruns += 1
            return
        marks = list(segment[:: strides[0]])
        self.stored |= set(marks)
        self.most = max(self.most, len(self.stored))
        if marks and not first:
            self.reruns += marks[-1] - marks[0]
        end = segment.stop
        for mark in reversed(marks):
            self.walk(range(mark, end), strides[1:], first=False)
            self.stored.discard(mark)
            end = mark


@given(STEPS, PLANS)
def test_counts_are_those_of_a_simulation(steps, plan):
    plan = plan._replace(kept=min(plan.kept, steps))
    simulated = Simulation(steps, plan)
    assert simulated.back == list(range(steps - plan.kept))[::-1]
    assert recomputed_steps(plan, steps) == simulated.reruns
    # a rest that is shorter than its segment may need fewer states than counted, never more
    assert simulated.most <= stored_states(plan, steps) <= simulated.most + max(plan.strides)
    if len(plan.strides) == 1:
        assert stored_states(plan, steps) == simulated.most == steps - plan.kept


@given(STEPS, BYTES, BYTES, st.integers(1, 100_000))
def test_a_plan_keeps_to_its_budget_and_is_refused_only_where_none_does(steps, state, graph, budget):
    try:
        found = plan(steps, state, graph, budget)
    except MetaschedError as error:
        assert error.path == "meta.memory"
        simplest = [Plan((1,), 1), *(Plan((k, 1), 1) for k in range(2, steps))]
        assert all(predicted_bytes(p, steps, state, graph) > budget for p in simplest)
    else:
        assert predicted_bytes(found, steps, state, graph) <= budget
        assert found.strides[-1] == 1 and 1 <= found.kept <= steps


@given(STEPS, BYTES, BYTES, st.integers(1, 100_000), st.integers(1, 10_000))
def test_more_memory_never_recomputes_more(steps, state, graph, budget, more):
    try:
        less = plan(steps, state, graph, budget)
    except MetaschedError:
        return
    assert recomputed_steps(plan(steps, state, graph, budget + more), steps) <= recomputed_steps(less, steps)


@given(STEPS, BYTES, BYTES)
def test_a_large_budget_keeps_everything_and_none_is_economical(steps, state, graph):
    everything = plan(steps, state, graph, steps * (graph + state) + 2 * state + graph + 3 * state)
    assert everything.kept == steps and recomputed_steps(everything, steps) == 0
    economical = plan(steps, state, graph, None)
    assert economical.kept == 1
    assert stored_states(economical, steps) * state <= max(graph, 2 * steps**0.5 * state)
    if steps * state <= graph:
        assert economical.strides == (1,)


def test_the_budget_decides_what_is_stored():
    """T = 400, states of 1, graphs of 10: everything, every state, every k-th, two levels, nothing."""
    found = [plan(400, 1, 10, budget) for budget in (5000, 1000, 420, 100, 40)]
    assert [len(p.strides) for p in found] == [1, 1, 1, 2, 3]
    assert found[0].kept == 400 and 400 > found[1].kept > found[2].kept >= 1
    assert [recomputed_steps(p, 400) for p in found] == sorted(recomputed_steps(p, 400) for p in found)
    with pytest.raises(MetaschedError, match=r"meta\.memory: is less than the 1 MiB that one step .*; raise it"):
        plan(400, 1, 10, 20)


def test_storages_are_counted_once():
    x = torch.zeros(100)
    assert bytes_of([x, x[3:], x.detach(), torch.zeros(5)]) == 8 * 105


def test_the_bytes_of_a_graph():
    x, w = torch.ones(50, requires_grad=True), torch.full((50,), 2.0)

    def twice_saved() -> torch.Tensor:
        y = (w * x).exp()  # saves w and the result of exp
        return y * y.detach()  # saves the detached result: the same storage

    assert graph_bytes(twice_saved, [x, w]) == 8 * 50
    assert graph_bytes(twice_saved, []) == 8 * 100
    assert graph_bytes(lambda: x + w, []) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 GiB", 2 * 2**30),
        ("500MiB", 500 * MIB),
        ("1.5 KiB", 1536),
        ("700 B", 700),
        ("123456", 123456),
        ("1e9", 10**9),
        ("null", None),
    ],
)
def test_a_budget_in_a_configuration(tmp_path: Path, text, expected):
    file = tmp_path / "a.yaml"
    file.write_text("name: a\n")
    experiment = load_experiment(file, ["--meta.memory", text])
    assert experiment.meta.memory == expected
    file.write_text(dump_yaml(to_dict(experiment)))
    assert config_hash(load_experiment(file)) == config_hash(experiment)
    file.write_text(f"meta: {{memory: {text}}}\n")
    assert load_experiment(file).meta.memory == expected


@pytest.mark.parametrize(
    "text", ["2 GB", "lots", "-1 MiB", "0", "-5", "0 GiB", "true", "2.5", "[1]", "1e400", "9e30 TiB"]
)
def test_what_is_no_budget_is_refused_in_a_line(tmp_path: Path, text):
    file = tmp_path / "a.yaml"
    file.write_text("name: a\n")
    with pytest.raises(MetaschedError, match=r"^--meta\.memory: must .*bytes") as caught:
        load_experiment(file, ["--meta.memory", text])
    assert "\n" not in str(caught.value)


def test_only_the_sweep_keeps_to_a_budget():
    assert find_unroll("sweep", 10**6) is not find_unroll("sweep")
    assert find_unroll("higher") is find_unroll("higher", None)
    with pytest.raises(MetaschedError, match=r"meta\.memory: has no effect on higher"):
        find_unroll("higher", 10**6)
