"""A task of the user's own: what the contract asks, what is refused, and that one task is never taken for another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash, dump_yaml, to_dict
from metasched.core import imports
from metasched.core.errors import MetaschedError
from metasched.methods.config import MethodConfig
from metasched.network.quantize import quantize
from metasched.runs.cells import cell_scores, cells_key, former_key, played
from metasched.runs.config import RunConfig
from metasched.schedules.table import hand_coded
from metasched.tasks import TASKS
from metasched.tasks.base import Task, place
from metasched.tasks.check import check_disjoint, check_task
from metasched.tasks.config import TaskConfig
from metasched.tasks.data import DataTask
from metasched.tasks.digits import digits_task
from metasched.tasks.live import register_live
from metasched.tasks.supervised import SupervisedTask
from metasched.training.loop import hardened_score, train
from metasched.training.problem import build_problem, forget

STEPS = 4


def data(n: int, seed: int) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=draws)
    x = torch.randn(n, 6, generator=draws, dtype=torch.float32) + F.one_hot(y, 6)
    return TensorDataset(x, y)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Hardswish(), nn.Linear(width, 3))


def noisy(batch: Any, generator: torch.Generator) -> Any:
    x, y = batch
    return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype), y


def data_task(**changes: Any) -> DataTask:
    given: dict[str, Any] = {
        "model": network,
        "train": data(40, 0),
        "validation": data(20, 1),
        "test": data(20, 2),
        "loss": F.cross_entropy,
        "batch_size": 16,
        "augment": noisy,
    }
    return DataTask(**{**given, **changes})


class TwoInputs(Task):
    """Batches are dicts, the model gets keywords, and runs twice in a loss."""

    name = "two inputs"

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(3)
        self.a, self.b, self.y = (torch.randn(32, 4, generator=draws, dtype=torch.float32) for _ in range(3))

    def build(self) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.act, self.last = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)

            def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"out": self.last(self.act(self.first(a + b)))}

        return Net()

    def read(self, rows: slice) -> dict[str, torch.Tensor]:
        return {"a": self.a[rows], "b": self.b[rows], "y": self.y[rows]}

    def batch(self, seed: int, step: int) -> dict[str, torch.Tensor]:
        start = 8 * ((seed + step) % 2)
        found = self.read(slice(start, start + 8))
        return {**found, "a": found["a"] + 0.1 * torch.randn(8, 4)}  # by torch's generator, which the core seeds

    def loss(self, model: Callable[..., Any], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        one, two = model(batch["a"], b=batch["b"])["out"], model(batch["a"], b=-batch["b"])["out"]
        return F.mse_loss(one, batch["y"]) + F.mse_loss(two, -batch["y"])

    def outer_batch(self) -> dict[str, torch.Tensor]:
        return self.read(slice(16, 24))

    def score(self, model: Callable[..., Any], part: str) -> float:
        return -float(
            self.loss(model, self.placed(self.read(slice(16, 24) if part == "validation" else slice(24, 32))))
        )


def experiment(task: Task, **changes: Any) -> Experiment:
    own = Experiment(
        task=TaskConfig(factory=register_live(task), steps=STEPS),
        method=MethodConfig(name="ana", scale="max"),
        run=RunConfig(workers=1, dtype="float64"),
    )
    return replace(own, **changes)


def scores(config: Experiment) -> list[float]:
    controls = played(config.problem, hand_coded("ana")["ana_linear"], STEPS)
    return cell_scores(config.problem, controls, [1, 2], STEPS, "test")


@pytest.mark.parametrize("task", [data_task(), TwoInputs()], ids=["data", "two inputs"])
def test_it_is_trained_and_scored_as_a_function_of_the_seed(task: Task) -> None:
    config = experiment(task)
    first = scores(config)
    torch.rand(5)
    forget()
    assert scores(config) == first and first[0] != first[1]


def test_a_supervised_task_and_the_same_contract_by_hand_have_the_same_bits() -> None:
    """The built-in class against DataTask without augmentation: batches, losses and weights."""
    train_part, held, test = data(40, 0), data(20, 1), data(20, 2)
    one = experiment(data_task(augment=None, score=lambda outputs, y: (outputs.argmax(1) == y).double().mean()))
    problem = build_problem(one.problem)
    parts = [(d.tensors[0].double(), d.tensors[1]) for d in (train_part, held, test)]
    from metasched.tasks.classification import accuracy
    from metasched.tasks.supervised import Split

    other = SupervisedTask("same", *(Split(*p) for p in parts), network, F.cross_entropy, accuracy, 16)
    assert all(torch.equal(a, b) for a, b in zip(problem.task.batch(3, 5), other.batch(3, 5), strict=True))
    twin = replace(problem, task=other)
    controls = {n: v.double() for n, v in played(one.problem, hand_coded("ana")["ana_linear"], STEPS).items()}
    ours, theirs = train(problem, controls), train(twin, controls)
    assert torch.equal(ours.losses, theirs.losses)
    assert all(torch.equal(p, theirs.state.params[n]) for n, p in ours.state.params.items())
    assert hardened_score(problem, ours.state, "test") == pytest.approx(
        hardened_score(replace(twin, task=replace(other, train=other.train)), theirs.state, "test"), abs=0.11
    )  # statistics are of 32 and of 40 examples


def test_a_layer_that_runs_in_two_calls_is_one_layer() -> None:
    layers = build_problem(experiment(TwoInputs()).problem).network.layers
    assert [(layer.name, layer.quantizes) for layer in layers] == [("first", "weight+activation")]


@pytest.mark.parametrize(
    "example", [(torch.ones(2, 4), torch.ones(2, 4)), {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}]
)
def test_examples_may_be_arguments_or_keywords(example: Any) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(a) + b)

    from metasched.methods import build_method

    assert [x.name for x in quantize(Sum(), build_method(MethodConfig(name="inq")), example).layers] == ["one"]


def test_training_starts_at_the_pretrained_state_and_unit_scales_which_lose_it_are_refused() -> None:
    torch.manual_seed(5)
    state = network().state_dict()
    state["1.running_mean"] += 3
    config = experiment(data_task(initial=state), method=MethodConfig(name="inq", scale="max"))
    problem = build_problem(config.problem)
    first = problem.with_seed(9).initial({"freeze_fraction": torch.zeros(1)})
    assert torch.equal(first.params["0.weight"], state["0.weight"])
    assert torch.equal(first.buffers["1.running_mean"], state["1.running_mean"])
    with pytest.raises(MetaschedError, match=r"method\.scale: unit draws the weights anew"):
        build_problem(replace(config, method=MethodConfig(name="inq")).problem)
    with pytest.raises(MetaschedError, match=r"task\.initial: does not fit the model"):
        build_problem(experiment(data_task(initial={"0.weight": state["0.weight"]})).problem)


def test_controls_of_other_layers_are_refused() -> None:
    problem = build_problem(experiment(data_task()).problem)
    with pytest.raises(MetaschedError, match="control weight_noise: is for 3 layers, and the network has 1"):
        noise = torch.full((STEPS, 3), 0.5)
        train(problem, {"weight_noise": noise, "activation_noise": noise, "noise_mean": torch.zeros(STEPS, 3)})


# --- what is refused ---


def nan_data(n: int) -> TensorDataset:
    found = data(n, 7)
    found.tensors[0][1, 2] = torch.nan
    return found


def inf_targets(n: int) -> TensorDataset:
    found = TensorDataset(data(n, 8).tensors[0], torch.zeros(n))
    found.tensors[1][3] = torch.inf
    return found


class Listed(Dataset[Any]):
    """A data set that is not known to be in memory."""

    def __init__(self, of: TensorDataset) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i: int) -> Any:
        return self.of[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(data(40, 0))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "loss of each example": ({"loss": lambda o, y: F.cross_entropy(o, y, reduction="none")}, r"task\.loss: .*\(20,\)"),
    "whole number": ({"loss": lambda o, y: (o.argmax(1) == y).sum()}, r"task\.loss: gives a int64 tensor"),
    "no tensor": ({"loss": lambda o, y: 1.0}, r"task\.loss: gives a float, no tensor"),
    "raises": ({"loss": lambda o, y: o[7, 7, 7]}, r"task\.loss: raised IndexError"),
    "score of text": ({"score": lambda model, batch: "good"}, r"task\.score: raised ValueError"),
    "score that is NaN": ({"score": lambda o, y: torch.tensor(torch.nan)}, r"task\.score: gives NaN"),
    "NaN in training data": (
        {"train": nan_data(40)},
        r"task\.train: holds NaN .* in 1 examples, the first at index 1",
    ),
    "NaN in a subset": ({"train": Subset(nan_data(40), [5, 3, 1, *range(6, 26)])}, r"task\.train: .*first at index 1"),
    "NaN in validation": ({"validation": nan_data(16)}, r"task\.validation: holds NaN"),
    "infinity in test data": ({"test": inf_targets(16)}, r"task\.test: holds NaN or an infinite number in 1 examples"),
    "NaN in a batch": ({"train": Listed(nan_data(16)), "augment": None}, r"task\.batch: holds NaN"),
    "overlap": ({"validation": data(40, 0)}, r"task\.train: shares 40 examples with validation"),
    "name": ({"name": "a\nb"}, r"task\.name"),
    "a module": ({"model": network()}, r"task\.model: is a module; give a function that builds it"),
    "a loader": ({"test": DataLoader(data(20, 2))}, r"task\.test: is a DataLoader; give its data set"),
    "a stream": ({"train": Stream()}, r"task\.train: is a Stream, which has no len"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_broken_contract_is_one_line(case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(MetaschedError, match=message) as found:
        check_task(data_task(**changes))
    assert len(str(found.value).splitlines()) == 1


def test_a_label_that_no_class_has_is_one_line_wherever_it_comes() -> None:
    wrong = data(40, 0)
    wrong.tensors[1][:] = 7
    task = data_task(train=wrong)
    check_task(task)  # which looks at validation
    with pytest.raises(MetaschedError, match=r"task\.loss: raised IndexError on a batch: Target 7 is out of bounds"):
        build_problem(experiment(task, method=MethodConfig(name="ste", scale="max")).problem)


def test_splits_that_share_an_example() -> None:
    whole = data(10, 0)
    again = Subset(Subset(whole, [5, 6, 7]), [0, 2])
    for train_part, other, shared in [
        (whole, whole, 10),
        (Subset(whole, [0, 1, 5]), again, 1),
        (whole, again, 2),
        (TensorDataset(*(t[:4].clone() for t in whole.tensors)), TensorDataset(*(t[3:] for t in whole.tensors)), 1),
    ]:
        with pytest.raises(
            MetaschedError, match=f"shares {'an example' if shared == 1 else f'{shared} examples'} with"
        ):
            check_disjoint({"train": train_part, "test": other})
    check_disjoint({"train": Subset(whole, [0, 1]), "validation": Subset(whole, [2]), "test": data(5, 1)})


# --- one task is never taken for another ---


def wider(config: TaskConfig) -> Task:
    task = digits_task(config)
    return replace(task, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)))


TINY = TaskConfig(model="mlp", width=4, steps=STEPS, batch=16, train=32, validation=16, test=16)


def test_the_cache_does_not_return_the_first_model(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Experiment(task=TINY, method=MethodConfig(name="ana"))
    first = build_problem(config.problem)
    monkeypatch.setitem(TASKS, "digits", replace(TASKS["digits"], builder=wider))
    second = build_problem(config.problem)
    assert len(first.network.layers) != len(second.network.layers) and first.fingerprint != second.fingerprint


def test_scores_of_another_model_are_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Experiment(task=TINY, method=MethodConfig(name="ana")).problem
    key, old = cells_key(config, {}, [1], STEPS, "test"), former_key(config, {}, [1], STEPS, "test")
    assert old is not None and old != key
    monkeypatch.setitem(TASKS, "digits", replace(TASKS["digits"], builder=wider))
    assert cells_key(config, {}, [1], STEPS, "test") != key
    assert former_key(config, {}, [1], STEPS, "test") is None


def test_a_task_object_is_not_found_in_another_process() -> None:
    config = Experiment(task=TaskConfig(factory="live:f0123", steps=STEPS))
    with pytest.raises(MetaschedError, match="object of another process"):
        build_problem(config.problem)


def test_what_the_fingerprint_sees() -> None:
    def another(batch: Any, generator: torch.Generator) -> Any:
        return batch

    own = data_task().fingerprint()
    assert own == data_task().fingerprint()
    changed = data(40, 0)
    changed.tensors[0][0, 0] += 1e-6
    others = [
        data_task(train=changed),
        data_task(model=lambda: network(9)),
        data_task(loss=F.nll_loss),
        data_task(augment=another),
        data_task(initial=network().state_dict()),
        data_task(worst_score=0.0),
    ]
    assert len({own, *(task.fingerprint() for task in others)}) == 1 + len(others)


def test_the_fingerprint_enters_the_config_hash_of_a_factory() -> None:
    config = experiment(data_task())
    assert config_hash(config, "a") != config_hash(config, "b")
    builtin = Experiment(task=TINY)
    assert config_hash(builtin, "a") == config_hash(builtin)


def test_place_keeps_whole_numbers() -> None:
    moved = place({"x": [torch.ones(2)], "y": torch.ones(2, dtype=torch.int64), "z": "text"}, "cpu", torch.float16)
    assert moved["x"][0].dtype == torch.float16 and moved["y"].dtype == torch.int64 and moved["z"] == "text"


# --- factories ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], TaskConfig]]:
    """Writes a module and gives the config of its ``make``; it is forgotten at the end."""
    monkeypatch.setattr(imports, "_ALLOWED", set())
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str, name: str = "own_package") -> TaskConfig:
        (tmp_path / f"{name}.py").write_text(text)
        return TaskConfig(factory=f"{name}:make", steps=STEPS)

    yield write
    sys.modules.pop("own_package", None)


def test_a_factory_is_imported_only_where_it_is_allowed(package: Callable[[str], TaskConfig]) -> None:
    config = Experiment(task=package("raise SystemError('was imported')"))
    with pytest.raises(MetaschedError, match="add `--import own_package`"):
        build_problem(config.problem)
    with pytest.raises(MetaschedError, match=r"--import own_package: .*SystemError: was imported"):
        imports.allow(["own_package"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "module own_package has no function make"),
        ("def make(): raise KeyError('gone')", "own_package:make raised KeyError: 'gone'"),
        ("def make(width): ...", "own_package:make raised TypeError"),
        ("def make(): return 3", "own_package:make returned a int, not a Task"),
    ],
)
def test_a_factory_that_makes_no_task_is_one_line(
    package: Callable[[str], TaskConfig], text: str, message: str
) -> None:
    config = Experiment(task=package(text))
    imports.allow(["own_package"])
    with pytest.raises(MetaschedError, match=message) as found:
        build_problem(config.problem)
    assert len(str(found.value).splitlines()) == 1


def test_fields_beside_a_factory_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("task: {factory: 'a:make', args: {n: 1, deep: [1, {b: x}]}, width: 8}\n")
    with pytest.raises(MetaschedError, match=r"task\.width: has no effect beside task\.factory"):
        load_experiment(file)
    file.write_text("task: {args: {n: 1}}\n")
    with pytest.raises(MetaschedError, match=r"task\.args: are of a factory"):
        load_experiment(file)
    file.write_text("task: {factory: 'a:make', args: {n: 1, deep: [1, {b: x}]}, steps: 7}\n")
    config = load_experiment(file)
    file.write_text(dump_yaml(to_dict(config)))
    assert load_experiment(file) == config and hash(config) == hash(load_experiment(file))
    assert "width" not in dump_yaml(to_dict(config)) and "factory" not in dump_yaml(to_dict(Experiment()))
