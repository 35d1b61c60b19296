from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from metasched.config.load import experiment_of
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash, to_dict
from metasched.core.errors import MetaschedError
from metasched.families.family import TaskFamily, with_values

MLP = {
    "name": "mlp",
    "set": {"task.model": "mlp"},
    "draw": {"task.depth": [2, 3], "task.steps": {"from": 30, "to": 300}},
}
CNN = {"name": "cnn", "weight": 3.0, "set": {"task.model": "convnet", "task.width": 4, "task.steps": 20}}


def experiment(*entries: Any) -> Experiment:
    method = {"name": "joint", "of": "widths+rates", "scale": "least_squares"}
    return experiment_of({"name": "many", "method": method, "tasks": {"entries": list(entries)}})


def test_a_task_is_a_function_of_the_seed_alone() -> None:
    one, other = TaskFamily(experiment(MLP, CNN)), TaskFamily(experiment(MLP, CNN))
    assert [one.sample(i).experiment for i in range(8)] == [other.sample(i).experiment for i in range(8)]
    assert one.sample(3).task.build() is not None


def test_entries_are_drawn_by_weight_and_fields_in_their_ranges() -> None:
    drawn = [TaskFamily(experiment(MLP, CNN)).sample(i) for i in range(400)]
    share = Counter(d.name for d in drawn)["cnn"] / 400
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 400)
    own = [d.experiment.task for d in drawn if d.name == "mlp"]
    assert {t.depth for t in own} == {2, 3}
    assert all(isinstance(t.steps, int) and 30 <= t.steps <= 300 for t in own)
    below = sum(t.steps <= 95 for t in own) / len(own)  # the median of a log-uniform number is sqrt(30 * 300)
    assert abs(below - 0.5) < 4 * 0.5 / math.sqrt(len(own))
    assert {d.experiment.task.steps for d in drawn if d.name == "cnn"} == {20}


def test_a_drawn_task_is_an_experiment_of_its_own() -> None:
    drawn = TaskFamily(experiment(CNN)).sample(0)
    assert drawn.experiment.tasks.entries == () and drawn.weight == 3.0
    assert drawn.experiment.method.name == "joint"
    assert drawn.features["horizon"] == pytest.approx(math.log10(20)) and drawn.features["conv"] == 1.0
    assert drawn.cost > 0


def test_another_method_takes_the_quantizers_along() -> None:
    changed = with_values(experiment(CNN), {"method.name": "ste"}, "here")
    assert changed.method.name == "ste" and changed.method.levels == experiment(CNN).method.levels


def test_what_an_entry_s_task_does_not_read_of_the_shared_section_goes_back_to_its_default() -> None:
    shared = {"name": "digits", "root": "data", "model": "mlp", "depth": 5, "width": 6}
    entries = [
        {"name": "a"},
        {"name": "b", "set": {"task.name": "cifar10_npz", "task.model": "vgg8"}},
        {"name": "c", "set": {"task.name": "tabular", "task.root": "tabular/churn.csv", "task.target": "Exited"}},
        {"name": "d", "set": {"task.name": "text", "task.root": None}},
        {"name": "e", "set": {"task.name": "mnist", "task.root": "/elsewhere"}},
    ]
    many = experiment_of({"task": shared, "method": {"name": "ste"}, "tasks": {"entries": entries}})
    a, b, c, d, e = (drawn.experiment.task for drawn in TaskFamily(many).each())
    assert (a.root, a.depth, a.width) == (None, 5, 6)
    assert (b.root, b.model, b.depth) == ("data", "vgg8", None)
    assert (c.root, d.root, e.root) == ("data/tabular/churn.csv", None, "/elsewhere")
    with pytest.raises(MetaschedError, match=r"task\.root: has no effect"):
        experiment_of({"task": shared})


def test_a_factory_of_one_s_own_takes_nothing_of_the_shared_section_but_the_steps() -> None:
    own = {
        "name": "own",
        "set": {"task.factory": "mine:made"},
        "draw": {"task.args.width": [3], "task.args.shift": [0.5]},
    }
    back = {"name": "back", "set": {"task.name": "digits", "task.model": "mlp"}}
    many = experiment_of({"task": {"width": 5, "steps": 7}, "tasks": {"entries": [own]}})
    task = TaskFamily(many).sample(0).experiment.task
    assert (task.factory, task.args, task.steps) == ("mine:made", {"width": 3, "shift": 0.5}, 7)
    base = {"factory": "mine:made", "args": {"width": 9, "depth": 2}, "steps": 7}
    many = experiment_of({"task": base, "tasks": {"entries": [{"name": "a", "set": {"task.args.width": 4}}, back]}})
    a, digits = (drawn.experiment.task for drawn in TaskFamily(many).each())
    assert a.args == {"width": 4, "depth": 2} and (digits.factory, digits.name, digits.steps) == (None, "digits", 7)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "a", "set": {"task.depht": 3}}, "tasks.a: task.depht"),
        ({"name": "a", "set": {"task.steps": 0}}, "tasks.a: task.steps"),
        ({"name": "a", "draw": {"task.steps": {"from": 0, "to": 3}}}, "goes from 0 to 3"),
        ({"name": "a", "draw": {"task.steps": []}}, "empty list"),
        ({"name": "a", "draw": {"task.steps": {"from": 1}}}, "{from: a, to: b}"),
        ({"name": "a", "set": {"task.steps": 3}, "draw": {"task.steps": [3]}}, "set and drawn"),
        ({"name": "a", "set": {"meta.steps": 3}}, "meta.steps"),
    ],
)
def test_mistakes_are_one_line(entry: Any, words: str) -> None:
    with pytest.raises(MetaschedError) as caught:
        TaskFamily(experiment(entry)).sample(0)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_names_are_unique() -> None:
    with pytest.raises(MetaschedError, match="occurs twice"):
        experiment(CNN, CNN)


def test_files_and_hashes_of_one_task_do_not_have_the_section() -> None:
    one = experiment_of({"name": "one"})
    assert "tasks" not in to_dict(one) and "tasks" in to_dict(experiment(CNN))
    assert experiment_of(to_dict(experiment(CNN, MLP))) == experiment(CNN, MLP)
    assert config_hash(one) != config_hash(experiment(CNN))
