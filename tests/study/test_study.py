"""Studies: learners find a known best schedule, nothing is run twice, and what goes wrong is one line."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import closed_forms
import pytest
import torch
from closed_forms import BEST, EXAMPLE, RECIPE, STEPS, distance, slowly
from torch import nn
from torch.nn import functional as F

import metasched
from metasched import MetaschedError, MethodConfig, Study
from metasched.exchange.portfolios import Entry, Portfolio, dumps
from metasched.methods.table import ROWS
from metasched.study.learners import LEARNERS, find_learner
from metasched.study.work import COMPARE, LEARN, SELECT, seed_of

ROOT = Path(__file__).parents[2]
LEARNED = ["es", "tpe", "cmaes", "random", "pbt"]
FLOOR = -(math.log(0.5 / BEST) ** 2)  # the score of no schedule
BUDGETS = {"es": 40, "tpe": 30, "cmaes": 40, "random": 30, "pbt": 40, "portfolio": 16}


def study(folder: Path | None = None, fit: Callable[..., Any] = distance, **given: Any) -> Study:
    own = {"make_model": closed_forms.model, "recipe": RECIPE, "fit": fit, "example": EXAMPLE, "steps": STEPS}
    own |= {"learn": None if given.get("recipe") else ["weight_width"], "judged": 2, "quiet": True, "storage": folder}
    return Study(**{**own, **given})


@pytest.fixture(autouse=True)
def libraries() -> None:
    pytest.importorskip("optuna", reason="optional: tuning")
    pytest.importorskip("cma", reason="optional: tuning")


@pytest.mark.parametrize("learner", [*LEARNED, "portfolio"])
def test_a_learner_comes_nearer_to_the_best_schedule_within_its_budget(learner: str, tmp_path: Path) -> None:
    calls = []

    def counted(*given: Any) -> float:
        calls.append(given[2])
        return distance(*given)

    made = study(tmp_path / "study", counted)
    settings = {"lr": 0.3, "pairs": 2} if learner == "es" else {"repeats": 1}
    found = made.optimize(learner, runs=BUDGETS[learner], **settings)
    assert len(calls) <= BUDGETS[learner] == found.runs
    assert found.score > FLOOR + (0.5 if learner != "es" else 0.3)
    best = made.best
    values = best(torch.linspace(0, 1, STEPS, dtype=torch.float64), best.layers)["weight_width"]
    assert -(values / BEST).log().square().mean() == pytest.approx(found.score, abs=0.02)
    assert best.file.provenance.spent[-1].inner_steps == found.runs * STEPS
    metasched.write_schedule(tmp_path / "best.json", best.file)
    assert metasched.read_schedule(tmp_path / "best.json") == best.file


def test_searches_of_other_packages_are_learners_too() -> None:
    assert {"tpe", "cmaes", "random"}.isdisjoint(LEARNERS) and find_learner("cmaes").summary == "CMA-ES"


def test_seeds_of_learning_judging_and_comparing_are_disjoint() -> None:
    streams = [{seed_of(3, stream, i, j) for i in range(300) for j in range(4)} for stream in (LEARN, SELECT, COMPARE)]
    assert all(len(own) == 1200 and {s % 4 for s in own} == {i} for i, own in enumerate(streams))
    assert all(0 <= seed < 2**31 for own in streams for seed in own)
    seen: list[int] = []

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        seen.append(seed)
        return distance(model, player, seed, steps)

    made = study(None, fit)
    made.optimize("portfolio", runs=16, repeats=2)
    learned = len(seen)
    made.compare(seeds=3, published=False)
    assert {seed % 4 for seed in seen[:learned]} == {LEARN, SELECT} and {s % 4 for s in seen[learned:]} == {COMPARE}


def test_finalists_are_judged_from_the_same_seeds_and_arms_are_paired() -> None:
    by_seed: dict[int, int] = {}

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        by_seed[seed] = by_seed.get(seed, 0) + 1
        return distance(model, player, seed, steps)

    made = study(None, fit)
    made.optimize("random", runs=24, repeats=1)
    judged = {seed: n for seed, n in by_seed.items() if seed % 4 == SELECT}
    assert len(judged) == 2 and set(judged.values()) == {3}  # the start, which is a finalist too, and two others
    comparison = made.compare(seeds=3, schedules=["widths_narrowing"], published=False)
    assert [n for seed, n in by_seed.items() if seed % 4 == COMPARE] == [5, 5, 5]
    assert [arm.name for arm in comparison.arms] == ["learned", "widths_narrowing", "ste", "lsq", "float"]


def test_a_portfolio_is_enqueued_in_its_order(tmp_path: Path) -> None:
    recipe: Any = {"method": "widths", "levels": "int4", "activation_levels": None, "parameters": {}}
    names = ["widths_narrowing", "floor", "widths_constant_150"]
    entries = tuple(Entry(name=n, schedule=n, own_rank=1.0, rank=1.0, scores={"a": (0.5,)}) for n in names)
    one = Portfolio(**recipe, entries=entries, compared=3, horizons=(1,), seeds=2, sources={})
    (tmp_path / "portfolio.json").write_text(dumps([one]))
    made = study(None)
    made.enqueue(metasched.portfolio("widths", named=str(tmp_path / "portfolio.json")))
    assert [tried.name for tried in made._queue] == names


def in_stream(seen: list[int], stream: int) -> int:
    return sum(seed % 4 == stream for seed in seen)


def test_what_is_enqueued_is_tried_first_and_the_best_of_it_is_where_learning_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[int] = []

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        seen.append(seed)
        return distance(model, player, seed, steps)

    made = study(None, fit, quiet=False)
    made.enqueue("widths_constant_075", metasched.published("widths")[1:4])  # 075 again, 100, 150
    found = made.optimize("es", runs=24, pairs=1)
    assert (found.name, found.runs) == ("widths_constant_150", 24) and found.score == pytest.approx(0, abs=0.02)
    assert in_stream(seen, LEARN) == 2 * 3 + 10 and in_stream(seen, SELECT) == 2 * 3  # equal ones are run once
    out = capsys.readouterr().out
    assert "es goes on from widths_constant_150" in out and out.index("es enqueued 4/4") < out.index("es step 1/5")
    made.optimize("es", runs=8, pairs=2)  # nothing is left, and it starts at what was found
    assert "es starts at widths_constant_150" in capsys.readouterr().out


def test_what_the_runs_do_not_last_for_waits(capsys: pytest.CaptureFixture[str]) -> None:
    made = study(quiet=False)
    made.enqueue(metasched.hand_coded("widths"))
    made.optimize("es", runs=16)  # 6 to judge, 8 to learn
    assert "es: the runs are for 1 of 7 enqueued schedules" in capsys.readouterr().out
    made.optimize("random", runs=18, repeats=1)  # 10 to judge, 1 to learn
    assert "random enqueued 6/6: widths_halving" in capsys.readouterr().out


def test_the_best_published_schedule_is_an_arm_and_what_was_tried_is_not_run_again() -> None:
    seen: list[int] = []

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        seen.append(seed)
        return distance(model, player, seed, steps)

    made = study(None, fit)
    made.optimize("es", runs=12)
    before = len(seen)
    comparison = made.compare(seeds=3)
    assert [arm.name for arm in comparison.arms] == ["learned", "widths_constant_150", "ste", "lsq", "float"]
    learned, published = (in_stream(seen[before:], stream) for stream in (LEARN, SELECT))
    assert (learned, published) == (2 * 7, 2 * 3)  # all are tried, and the three best are judged
    comparison = made.compare(seeds=3, schedules=metasched.published("widths"))
    assert len(comparison.arms) == 1 + 7 + 3
    n = len(seen)
    made.compare(seeds=3)
    assert len(seen) == n


def test_a_comparison_is_a_dataframe_and_a_page(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="optional: dataframe")
    pytest.importorskip("matplotlib", reason="optional: train")
    made = study()
    made.optimize("portfolio", runs=16)
    comparison = made.compare(seeds=3)
    frame = comparison.to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and list(frame) == ["arm", "method", "horizon", "seed", "score"]
    means = frame.groupby("arm")["score"].mean()
    assert {arm.name: arm.summary.mean for arm in comparison.arms} == pytest.approx(dict(means))
    path = comparison.report(tmp_path / "report.html", "Widths <1>")
    text = path.read_text("utf-8")
    assert path == tmp_path / "report.html" and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert "<h1>Widths &lt;1&gt;</h1>" in text and "schedule.</strong> After 4 steps: " in text
    assert (
        "test data" not in text and "Not drawn, because constant and the same everywhere: weight_width is 1.5" in text
    )
    with pytest.raises(MetaschedError, match=r"report.html: cannot be written \(No such file or dir.*; check that"):
        comparison.report(tmp_path / "nowhere" / "report.html")


def test_the_best_schedule_is_played_by_prepare_and_keeps_what_it_took() -> None:
    made = study()
    made.enqueue("widths_constant_150")
    made.optimize("random", runs=16)
    made.optimize("random", runs=16)
    second = metasched.read_schedule(made.storage.path / made.found[1].file)
    assert [spent.inner_steps for spent in second.provenance.spent] == [16 * STEPS, 16 * STEPS]
    module, player = metasched.prepare(closed_forms.model(), RECIPE, EXAMPLE, made.best, total_steps=100)
    assert player.value("weight_width", player.layers[0].name) == pytest.approx(BEST)
    assert module(EXAMPLE).shape == (2, 1)


def test_the_code_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas", reason="optional: dataframe")
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/study.md").read_text("utf-8"), re.M | re.S)
    shorter = {"steps=300": "steps=2, judged=2", "runs=200": "runs=18, pairs=2", "10_000": "2"}
    for long, short in {**shorter, "seeds=16": "seeds=2, published=False"}.items():
        assert long in block
        block = block.replace(long, short)

    def make_model() -> nn.Module:
        layers = {"stem": nn.Linear(4, 8), "act": nn.ReLU(), "body": nn.Linear(8, 8), "relu": nn.ReLU()}
        return nn.Sequential(OrderedDict({**layers, "classifier": nn.Linear(8, 2)}))

    x, y = torch.randn(16, 4), torch.arange(16) % 2
    names: dict[str, Any] = {"make_model": make_model, "x": x, "loader": [x], "cross_entropy": F.cross_entropy}
    names |= {"batches": lambda seed, steps: [(x, y)] * steps, "accuracy": lambda model: float(model(x)[0, 0])}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metasched.study.study.open_console", lambda stream: None)
    exec(compile(block, "docs/study.md", "exec"), names)
    assert {"ste", "lsq", "float", "learned"} == {arm.name for arm in names["comparison"].arms}
    assert len(names["plain"].body.weight.unique()) <= 3 < len(names["plain"].stem.weight.unique())


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("learner", ["es", pytest.param("cmaes", marks=pytest.mark.slow)])
def test_a_study_that_was_stopped_goes_on_with_the_same_numbers_and_runs_nothing_twice(
    learner: str, tmp_path: Path
) -> None:
    calls: list[int] = []
    stop_at = [16]

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        if len(calls) == stop_at[0]:
            stop_at[0] = -1
            raise Stopped
        calls.append(seed)
        return distance(model, player, seed, steps)

    def script(folder: Path) -> tuple[list[Any], Any]:
        made = study(folder, fit)
        made.optimize("portfolio", runs=14)
        made.optimize(learner, runs=24)
        return made.found, made.compare(seeds=2).to_dict()

    with pytest.raises(Stopped):
        script(tmp_path / "one")
    with open(tmp_path / "one" / "evaluations.jsonl", "ab") as file:
        file.write(b'{"key": "a line that was not fin')  # as a kill in the middle of a write leaves it
    resumed = script(tmp_path / "one")
    n = len(calls)
    assert script(tmp_path / "one") == resumed and len(calls) == n
    assert script(tmp_path / "two") == resumed and len(calls) == 2 * n
    rows = [json.loads(line) for line in (tmp_path / "one" / "evaluations.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == n


def test_a_larger_budget_goes_on_from_a_smaller_one(tmp_path: Path) -> None:
    calls: list[int] = []

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        calls.append(seed)
        return distance(model, player, seed, steps)

    study(tmp_path / "study", fit).optimize("tpe", runs=16)
    first = len(calls)
    study(tmp_path / "study", fit).optimize("tpe", runs=24)
    assert len(calls) - first <= 8 + 6  # eight more to learn, and at most three other finalists


def test_workers_share_the_runs_and_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (1, 2):
        calls = tmp_path / f"calls{workers}"
        calls.mkdir()
        monkeypatch.setenv("CALLS", str(calls))
        made = study(tmp_path / f"study{workers}", slowly)
        made.optimize("es", runs=20, workers=workers)
        found.append((made.found, made.compare(seeds=2).to_dict()))
        names = [path.name.split("_") for path in calls.iterdir()]
        assert len(names) == len(made.storage)  # each run once
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_killed_process_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()
    monkeypatch.setenv("CALLS", str(calls))
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import torch
torch.set_default_dtype(torch.float64)
import closed_forms as c
from metasched import Study
Study(c.model, c.RECIPE, c.slowly, example=c.EXAMPLE, steps=c.STEPS, learn=["weight_width"], judged=2,
      storage={str(tmp_path / "study")!r}).optimize("es", runs=1000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while len(list(calls.iterdir())) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(list(calls.iterdir()))
    made = study(tmp_path / "study", slowly)
    assert before - 1 <= len(made.storage) <= before
    made.optimize("es", runs=28)
    assert len(list(calls.iterdir())) <= len(made.storage) + 1  # what it was killed in is run again
    rows = (tmp_path / "study" / "evaluations.jsonl").read_text().splitlines()
    assert len({json.loads(row)["key"] for row in rows}) == len(rows)


def test_the_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    study(tmp_path / "study").optimize("portfolio", runs=16)
    for changed, what in (
        ({"steps": 5}, "steps"),
        ({"seed": 1}, "seed"),
        ({"fit": slowly}, "fit"),
        ({"evaluate": lambda model: 0.0}, "evaluate"),
    ):
        with pytest.raises(MetaschedError, match=rf"study: holds a study with another {what}; give another folder"):
            study(tmp_path / "study", **changed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(MetaschedError, match=r"other: is there and is no study; give another folder$"):
        study(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    study(tmp_path / "study")  # the same one is not


def test_an_error_in_fit_names_the_run_and_keeps_the_traceback(tmp_path: Path) -> None:
    calls: list[int] = []

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        calls.append(seed)
        if len(calls) == 5:
            raise KeyError("lost")
        return distance(model, player, seed, steps)

    with pytest.raises(
        MetaschedError, match=r"^random: run 5, seed \d+: the training function failed: KeyError: 'lost'"
    ) as e:
        study(tmp_path / "study", fit).optimize("random", runs=24, repeats=1)
    cause = e.value.__cause__
    assert isinstance(cause, KeyError) and cause.__traceback__ is not None
    assert len(str(e.value).splitlines()) == 1
    made = study(tmp_path / "study", fit)
    assert len(made.storage) == 4
    made.optimize("random", runs=24, repeats=1)
    assert len(calls) == len(made.storage) + 1


def enqueued() -> Study:
    made = study()
    made.enqueue("widths_narrowing")
    return made


def found() -> Study:
    made = study()
    made.optimize("es", runs=8, pairs=2)
    return made


def gives(value: Any) -> Callable[..., Any]:
    return lambda model, player, seed, steps: value


@pytest.mark.parametrize(
    ("do", "line"),
    [
        (lambda: study(fit=gives(None)).optimize(runs=20), r"^es: run 1: fit: gives nothing, and a score was expec"),
        (lambda: study(fit=gives("0.5")).optimize(runs=20), r"^es: run 1: fit: gives a str, and a score was expect"),
        (lambda: study(fit=gives(math.nan)).optimize(runs=20), r"^fit: every run of floor, .*, gave NaN; lower"),
        (lambda: study(fit=lambda model, player: 0.0), r"^fit: takes \(model, player\), and is called as fit\(model,"),
        (lambda: study(fit=0.5), r"^fit: is a float; give a function that is called as fit\(model, player, seed, ste"),
        (lambda: study(evaluate=lambda: 0.0), r"^evaluate: takes \(\), and is called as evaluate\(model\); give it"),
        (lambda: study(evaluate=lambda model, other: 0.0), r"^evaluate: takes \(model, other\), and is called as"),
        (lambda: study(steps=0), r"^steps: must be at least 1, got 0; "),
        (lambda: study(judged=1), r"^judged: must be at least 2, got 1; "),
        (lambda: study(learn=["noise"]), r"^learn: unknown name 'noise'; .*weight_width"),
        (lambda: study(start="widths_narowing"), r"^schedule: 'widths_narowing' is not the .*'widths_narrowing'\?"),
        (lambda: study(start="inq_linear"), r"^start: inq_linear is for inq, not widths; give one of widths_"),
        (lambda: study(make_model=lambda: 3), r"^make_model: gives a int; let it give an nn.Module$"),
        (lambda: study(make_model=None), r"^make_model: is no function; "),
        (lambda: study(recipe="ste"), r"^recipe.method: ste has no control to learn; "),
        (lambda: study(recipe=3), r"^recipe: has a int, and floors"),
        (lambda: study().optimize("tpee", runs=20), r"^by: unknown name 'tpee'; did you mean 'tpe'\?"),
        (lambda: study().optimize("tpe", runs=20, sigma=1.0), r"^tpe: setting: unknown name 'sigma'; Known: repeats$"),
        (lambda: study().optimize("tpe", runs=20, repeats=0), r"^repeats: must be a number of runs, at least 1, got 0"),
        (lambda: study().optimize("es", runs=20, sigma=-1.0), r"^sigma: Input should be greater than 0; "),
        (
            lambda: study().optimize("es", runs=11),
            r"^runs: is 11: es judges 2 schedules 2 times, and needs 8 to learn; give at least 12$",
        ),
        (lambda: study().optimize("es", runs=20, workers=0), r"^workers: must be at least 1, got 0; "),
        (lambda: study(fit=gives(1.0)).optimize(runs=20, workers=2), r"^workers: more than one needs functions at"),
        (lambda: study().enqueue("widths_narowing"), r"^schedule: 'widths_narowing' is not the .*'widths_narrowing'\?"),
        (lambda: study().enqueue(["inq_linear"]), r"^enqueue: inq_linear is for inq, not widths; give one of widths_"),
        (
            lambda: study().enqueue(cast(Any, 3)),
            r"^enqueue: has a int for a schedule; give a name, the path of a file, or a sche",
        ),
        (
            lambda: study().enqueue(cast(Any, [None])),
            r"^enqueue: has a NoneType for a schedule; give a name, the path of a file",
        ),
        (
            lambda: enqueued().optimize("es", runs=15),
            r"^runs: is 15: es judges 3 .* and 2 to try .* at least 16$",
        ),
        (lambda: study().optimize("es", runs=20, pairs=0), r"^pairs: must be a number of runs, at least 1, got 0"),
        (lambda: found().compare(schedules=cast(Any, [3])), r"^schedules: has a int for a schedule; "),
        (
            lambda: found().compare(schedules=["widths_halving"] * 2),
            r"^schedules: two arms have the same name; they",
        ),
        (lambda: metasched.published("width"), r"^method.name: unknown name 'width'; did you mean 'widths'\?"),
        (
            lambda: metasched.published(cast(Any, 3)),
            r"^published: has a int for a method; give the name of a method, a Method",
        ),
        (lambda: study().compare(seeds=1), r"^seeds: must be at least 2, got 1; "),
        (lambda: study().compare(), r"^study: has found nothing yet; call optimize first$"),
        (lambda: study().best, r"^study: has found nothing yet; call optimize first$"),
    ],
)
def test_mistakes_are_one_line(do: Callable[[], object], line: str) -> None:
    with pytest.raises(MetaschedError, match=line) as e:
        do()
    assert len(str(e.value).splitlines()) == 1


def test_a_run_that_diverged_counts_as_the_lowest_score() -> None:
    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        return math.inf if seed % 8 == SELECT else distance(model, player, seed, steps)

    made = study(None, fit, judged=4)
    found = made.optimize("portfolio", runs=20, repeats=1)
    rows = [json.loads(line) for line in (made.storage.path / "evaluations.jsonl").read_text().splitlines()]
    assert {row["score"] for row in rows if row["seed"] % 8 == SELECT} <= {"nan"} and math.isfinite(found.score)


def test_evaluate_is_told_the_split_and_gets_the_hard_network_without_gradients() -> None:
    seen: list[tuple[str, int]] = []

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> None:
        assert model.training
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
            player.step()

    def evaluate(model: nn.Module, split: str, seed: int) -> torch.Tensor:
        assert not model.training and not torch.is_grad_enabled()
        weight = model.get_submodule("2").weight
        assert isinstance(weight, torch.Tensor)
        seen.append((split, len(weight.unique())))
        return -model(torch.ones(3, 4)).square().mean()

    made = study(None, fit, evaluate=evaluate)
    made.optimize("portfolio", runs=16, repeats=2)
    assert {split for split, _ in seen} == {"validation"} and all(levels <= 3 for _, levels in seen)
    del seen[:]
    made.compare(seeds=2, published=False)
    assert {split for split, _ in seen} == {"test"} and max(levels for _, levels in seen) > 3  # of the float network


def test_a_run_is_that_of_ones_own_loop_and_leaves_the_generators_alone() -> None:
    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            (loss := model(torch.randn(3, 4)).square().mean()).backward()
            optimizer.step()
            player.step()
        return float(loss.detach())

    made, seed = study(None, fit), seed_of(0, SELECT, 0)
    state = torch.random.get_rng_state()
    made.optimize("portfolio", runs=16, repeats=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(seed)
    model = closed_forms.model()
    start = metasched.schedules.table.floor_of(RECIPE, "")
    module, player = metasched.prepare(model, RECIPE, EXAMPLE, start, STEPS, seed)
    rows = [json.loads(line) for line in (made.storage.path / "evaluations.jsonl").read_text().splitlines()]
    assert rows[0]["seed"] == seed and rows[0]["score"] == fit(module, player, seed, STEPS)


CONTROLLED = [  # dpq takes tables only
    row.name for row in ROWS if row.name != "dpq" and metasched.build_method(MethodConfig(name=row.name)).controls
]


@pytest.mark.parametrize("name", CONTROLLED)
def test_every_method_with_controls_can_be_learned_for(name: str) -> None:
    config = MethodConfig(name=name)

    def fit(model: nn.Module, player: Any, seed: int, steps: int) -> float:
        for _ in range(steps):
            model(EXAMPLE).sum().backward()
            player.step()
        return torch.randn((), generator=torch.Generator().manual_seed(seed)).item()

    made = Study(closed_forms.model, config, fit, example=EXAMPLE, steps=2, judged=2, quiet=True, directions=4, knots=3)
    assert made.optimize("es", runs=8, pairs=2).runs == 8
