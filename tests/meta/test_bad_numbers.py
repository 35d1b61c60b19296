"""A NaN or an infinity, planted anywhere, moves nothing: no parameter, no optimizer state, no running mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from learning import learn

from metasched.cli import main
from metasched.config.schema import Experiment
from metasched.engines import higher_unroll
from metasched.estimators import ESTIMATORS
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.config import CompareConfig
from metasched.evaluation.statistics import counted
from metasched.meta import outer
from metasched.meta.config import MetaConfig
from metasched.meta.guards import RunStopped
from metasched.meta.online import setting_of, train_online
from metasched.meta.outer import OuterState, OuterStep
from metasched.meta.start import learned_controls
from metasched.methods.config import MethodConfig
from metasched.runs.cells import cell_scores, played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.family import ScheduleFamily
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.schedules.network import ScheduleNetwork
from metasched.schedules.table import hand_coded
from metasched.tasks import TASKS
from metasched.tasks.config import TaskConfig
from metasched.tasks.digits import digits_task
from metasched.tasks.supervised import Split
from metasched.training import stacked, step
from metasched.training.optimizers.adam import Adam
from metasched.training.problem import build_problem, forget
from metasched.training.stacked import mapping_pays

NAN, INF = math.nan, math.inf
STEPS, BAD_STEP = 4, 2


class Plant:
    """A number that is put into computations while it is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed = False
        self.patch, self.set_item = monkeypatch.setattr, monkeypatch.setitem

    def wrap(self, owners: tuple[Any, ...], name: str, change: Callable[..., Any]) -> None:
        """``name`` of each owner, its result changed by ``change(result, *arguments)``."""
        original = getattr(owners[0], name)

        def planted(*arguments: Any, **keywords: Any) -> Any:
            found = original(*arguments, **keywords)
            return change(found, *arguments) if self.armed else found

        for owner in owners:
            self.patch(owner, name, planted)


def in_inner_loss(plant: Plant, bad: float) -> None:
    """The value alone: its gradient stays what it was."""

    def change(found: Any, problem: Any, state: Any, controls: Any, at: int, *rest: Any) -> Any:
        loss, method = found
        return (loss + bad if at == BAD_STEP else loss), method

    plant.wrap((step, higher_unroll), "training_loss", change)


def in_inner_gradient(plant: Plant, bad: float) -> None:
    """The gradient alone: the square root of something that is 0 has an infinite slope."""

    def change(found: Any, problem: Any, state: Any, controls: Any, at: int, *rest: Any) -> Any:
        loss, method = found
        total = state.params["linear2.weight"].sum()
        zero = total * 0 if math.isnan(bad) else total - total.detach()
        return (loss + zero.sqrt() if at == BAD_STEP else loss), method

    plant.wrap((step, higher_unroll), "training_loss", change)


def in_inner_update(plant: Plant, bad: float) -> None:
    def change(found: Any, *rest: Any) -> Any:
        proposed, state = found
        if int(state["step"]) != BAD_STEP + 1:
            return found
        name = next(iter(proposed))
        return {**proposed, name: proposed[name] + bad}, state

    plant.wrap((Adam,), "update", change)


def in_inner_moment(plant: Plant, bad: float) -> None:
    """Adam's second moment of one parameter, which then never moves again."""

    def change(found: Any, *rest: Any) -> Any:
        proposed, state = found
        if int(state["step"]) != BAD_STEP + 1:
            return found
        name = next(n for n in state if n.startswith("exp_avg_sq."))
        return proposed, {**state, name: state[name] + bad}

    plant.wrap((Adam,), "update", change)


def in_control(plant: Plant, bad: float) -> None:
    def change(values: dict[str, torch.Tensor], schedule: Any, progress: torch.Tensor, layers: Any) -> Any:
        mask = torch.zeros(len(progress), len(layers))
        mask[-1, 0] = bad
        return {**values, "noise_mean": values["noise_mean"] + mask}

    for kind in (ScheduleNetwork, ScheduleFamily):
        plant.wrap((kind,), "forward", change)


def in_outer_loss(plant: Plant, bad: float) -> None:
    def build_task(config: TaskConfig) -> Any:
        task = digits_task(config)
        x = task.validation.x.clone()
        x[0] = bad

        class Planted(type(task)):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                own = super().__getattribute__(name)
                return Split(x.to(own.x), own.y) if name == "validation" and plant.armed else own

            def to(self, device: Any, dtype: Any) -> Any:
                return Planted(**vars(task.to(device, dtype)))

        return Planted(**vars(task))

    plant.set_item(TASKS, "digits", replace(TASKS["digits"], builder=build_task))


def in_gradient(plant: Plant, bad: float) -> None:
    """By an estimator that does not say so."""

    def change(estimator: Any, *rest: Any) -> Any:
        class Lying:
            begin = estimator.begin

            def estimate(self, *arguments: Any) -> Any:
                answer = estimator.estimate(*arguments)
                if plant.armed:
                    for found in answer.found:
                        found.gradient[-1].view(-1)[0] = bad
                return answer

        return Lying()

    original = outer.build_estimator
    plant.patch(outer, "build_estimator", lambda meta: change(original(meta)))


def in_outer_update(plant: Plant, bad: float) -> None:
    def change(found: Any, optimizer: Adam) -> None:
        with torch.no_grad():
            optimizer.parameters[-1].view(-1)[0] = bad

    plant.wrap((outer.Adam,), "step", change)


def in_outer_moment(plant: Plant, bad: float) -> None:
    def change(found: Any, optimizer: Adam) -> None:
        optimizer.state[optimizer.parameters[0]]["exp_avg_sq"].view(-1)[0] = bad

    plant.wrap((outer.Adam,), "step", change)


PLACES: Mapping[str, tuple[Callable[[Plant, float], None], str]] = {
    "inner loss": (in_inner_loss, "inner loss at inner step 2"),
    "inner gradient": (in_inner_gradient, "inner gradient of linear2.weight at inner step 2"),
    "inner update": (in_inner_update, "inner update of linear1.weight at inner step 2"),
    "inner moment": (in_inner_moment, "inner update of exp_avg_sq.linear1.weight at inner step 2"),
    "control": (in_control, "control noise_mean of linear1 at inner step 3"),
    "outer loss": (in_outer_loss, "outer loss"),
    "gradient": (in_gradient, ""),
    "outer update": (in_outer_update, "outer update of "),
    "outer moment": (in_outer_moment, "optimizer's state of exp_avg_sq of "),
}


def tiny(estimator: str, width: int = 2) -> Experiment:
    few = estimator == "forward"  # a run for each parameter
    return Experiment(
        task=TaskConfig(model="mlp", width=width, depth=2, train=16, validation=8, test=8, batch=4, steps=STEPS),
        method=MethodConfig(name="ana"),
        schedule=ScheduleConfig(kind="family" if few else "network", learn=("weight_noise",), knots=3, hidden=2),
        meta=MetaConfig(estimator=estimator, steps=4, runs=1 if few else 2, window=STEPS),  # type: ignore[arg-type]
        compare=CompareConfig(seeds=3),
        run=RunConfig(workers=1, dtype="float64"),
    )


def learner(experiment: Experiment) -> LearnableSchedule:
    network = build_problem(experiment.problem).network
    controls, start = network.method.controls, hand_coded("ana")["ana_linear"]
    learn = learned_controls(experiment.method.name, experiment.schedule.learn, controls)
    return build_learnable(experiment.schedule, controls, start, learn, network.layers, 0)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    forget()
    yield Plant(monkeypatch)
    forget()


def bad_after_one_step(plant: Plant, experiment: Experiment) -> tuple[list[OuterState], list[OuterStep], str]:
    """What was saved and logged by a run that is sound in its first step only, and how it ended."""
    saved: list[OuterState] = []
    log: list[OuterStep] = []

    def save(state: OuterState) -> None:
        saved.append(state)
        plant.armed = state.step >= 1

    with Pool(1) as pool, pytest.raises(RunStopped) as caught:
        learn(
            experiment,
            learner(experiment),
            pool,
            log.append,
            save=save,
        )
    return saved, log, str(caught.value)


AVERAGES = {"log_variance_exact", "log_variance_es", "log_signal", "agreement", "agreement_pairs"}
OUTER = ("gradient", "outer update", "outer moment")  # what happens there is not the estimator's doing


@pytest.mark.parametrize(
    ("place", "estimator"),
    [(p, e) for p in PLACES for e in ESTIMATORS if p not in OUTER or e in ("sweep", "pes", "auto")],
)
def test_a_bad_number_changes_nothing_is_counted_and_named_and_the_third_stops_the_run(plant, place, estimator):
    put, named = PLACES[place]
    bad = (NAN, INF)[(list(PLACES).index(place) + list(ESTIMATORS).index(estimator)) % 2]
    put(plant, bad)
    saved, log, message = bad_after_one_step(plant, tiny(estimator))
    sound, last = saved[1], saved[-1]
    assert last.step == 3 and bool(sound.optimizer) and last.averaged == 0
    for before, after in zip(sound[1:4], last[1:4], strict=True):  # parameters, optimizer, running mean
        assert before.keys() == after.keys() and all(torch.equal(before[n], t) for n, t in after.items())
    if place not in OUTER and estimator in ("mixed", "auto"):  # moving averages of their own
        before, after = sound.estimator, last.estimator
        assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before if n in AVERAGES)
        assert len(AVERAGES & before.keys()) == {"mixed": 2, "auto": 5}[estimator]
    assert [record.updates_skipped for record in log] == [0, 1, 2, 3]
    assert log[0].fault == "" and all(named in record.fault for record in log[1:])
    assert message.startswith("outer step 4: no update on digits in 3 steps in a row") and named in message


@pytest.mark.parametrize("place", ["inner loss", "inner gradient", "inner update", "control"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_runs_that_are_mapped_are_looked_at_too(plant, place, bad, monkeypatch):
    monkeypatch.setattr(stacked, "products_keep_bits", lambda: True)  # on any processor
    put, named = PLACES[place]
    put(plant, bad)
    experiment = tiny("es", width=8)
    assert mapping_pays(build_problem(experiment.problem), 4)
    saved, log, message = bad_after_one_step(plant, experiment)
    assert len(log) == 4 and named in message
    assert all(torch.equal(saved[1].parameters[n], p) for n, p in saved[-1].parameters.items())


@pytest.mark.parametrize("method", ["inq", "joint"])
def test_a_weight_that_freezes_does_not_hide_what_it_was(plant, method):
    """At the end all weights are frozen on levels: the last state alone would not tell."""
    experiment = replace(tiny("sweep"), method=MethodConfig(name=method))
    in_inner_update(plant, INF)
    inner = build_problem(experiment.problem)
    controls = played(experiment.problem, hand_coded(method)[f"{method}_linear"], STEPS)
    plant.armed = True
    (score,) = cell_scores(
        experiment.problem, {n: v.to(torch.float64) for n, v in controls.items()}, [3], STEPS, "test"
    )
    assert math.isnan(score)
    plant.armed = False
    (score,) = cell_scores(experiment.problem, controls, [3], STEPS, "test")
    assert 0 <= score <= 1 and inner.steps == STEPS


def test_a_diverged_run_counts_as_0_and_is_counted():
    arms = (Arm("learned", 5, (0.5, NAN, 0.7), 15), Arm("other", 5, (0.4, 0.2, 0.3), 15))
    comparison = Comparison((1, 2, 3), arms, ("learned",))
    assert counted(arms[0].scores) == (0.5, 0.0, 0.7) and arms[0].diverged == 1
    learned, other = comparison.to_dict()["arms"]
    assert (learned["diverged"], other["diverged"]) == (1, 0)
    assert learned["mean"] == pytest.approx(0.4) and other["differences"]["learned"]["mean"] == pytest.approx(0.1)
    columns, rows = comparison.rows(5)
    assert [row[columns.index("diverged")] for row in rows] == ["1", "0"]
    sound = Comparison((1, 2, 3), arms[1:], ())
    assert "diverged" not in sound.rows(5)[0]


# --- the online mode ---


@pytest.mark.parametrize("place", ["inner loss", "inner gradient", "inner moment", "outer update", "outer moment"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_three_bad_look_aheads_stop_an_online_run(plant, place, bad):
    put, named = PLACES[place]
    put(plant, bad)
    plant.armed = True
    experiment = replace(tiny("sweep"), task=replace(tiny("sweep").task, steps=8))
    experiment = replace(experiment, online=replace(experiment.online, every=1, window=3, held_out=4))
    start, log = hand_coded("ana")["ana_linear"], []
    with pytest.raises(RunStopped, match="in 3 look-aheads in a row") as caught:
        train_online(setting_of(experiment), start, 3, log.append)
    assert named in str(caught.value) and caught.value.path.endswith("of digits")
    assert [r.skipped for r in log] == [True] * 3 and all(named in r.fault for r in log)


# --- the command line ---


def test_the_command_line_ends_with_1_and_one_line(plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "tiny.yaml"
    small = {"model": "mlp", "width": 2, "steps": 4, "batch": 8, "train": 32, "validation": 16, "test": 16}
    settings = {
        "task": small,
        "method": {"name": "ana"},
        "schedule": {"start": "ana_linear", "knots": 3, "hidden": 2},
        "meta": {"steps": 6, "runs": 2},
        "tracking": {"wandb": "disabled"},
        "run": {"workers": 1, "dtype": "float64"},
    }
    config.write_text(yaml.safe_dump(settings))
    in_inner_gradient(plant, NAN)
    plant.armed = True
    assert main(["train", str(config), "--folder", str(tmp_path / "run")]) == 1
    out, err = capsys.readouterr()
    line = (
        "metasched: error: outer step 3: no update on digits in 3 steps in a row, because numbers are not finite "
        "(inner gradient of linear2.weight at inner step 2); raise meta.noise_floor"
    )
    assert err.startswith(line) and err.count("\n") == 1
    assert out.count("not finite: inner gradient of linear2.weight at inner step 2") == 3
    rows = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["guard/skipped"] for row in rows if "outer/step" in row] == [1, 2, 3]
    assert not (tmp_path / "run" / "schedule.json").exists()
