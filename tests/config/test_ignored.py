"""Each field of an experiment changes something, or is refused where it would not."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from metasched.config.fields import fields
from metasched.config.ignored import Rule, ignored, rules, value_at
from metasched.config.load import load_experiment, with_fields
from metasched.config.schema import Experiment
from metasched.config.writing import dump_yaml, to_dict
from metasched.core.errors import MetaschedError
from metasched.estimators import ESTIMATORS, build_estimator
from metasched.evaluation.contenders import fresh_seeds
from metasched.methods import METHODS, build_method
from metasched.methods.config import MethodConfig
from metasched.models import MODELS
from metasched.runs.pooled import local_runs
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import hand_coded
from metasched.search.bits import BIT_SEARCHES
from metasched.search.table import SEARCHES
from metasched.search.tuning import trials_within
from metasched.tasks import TASKS
from metasched.training.optimizers.decays import DECAYS
from metasched.training.optimizers.recipe import learning_rates, recipe
from metasched.training.optimizers.table import OPTIMIZERS
from metasched.training.problem import build_problem

ROOT = Path(__file__).parents[2]
SMALL = ["--task.model=mlp", "--task.width=3", "--task.steps=6", "--task.batch=16", "--task.train=64"]


# --- what a field changes ---


def task_of(e: Experiment) -> Any:
    task = build_problem(e.problem).task
    batch = task.batch(0, 0)
    return digest([*batch, *task.validation, *task.test, *task.build().state_dict().values()])


def method_of(e: Experiment) -> Any:
    return repr(build_method(e.method))


def layers_of(e: Experiment) -> Any:
    return [layer.name for layer in build_problem(e.problem).network.layers]


def optimizer_of(e: Experiment) -> Any:
    found = recipe(e.optimizer)
    return repr(found), learning_rates(e.optimizer, 12)


def groups_of(e: Experiment) -> Any:
    return repr(recipe(e.optimizer, build_problem(e.problem).network.module))


def runs_of(e: Experiment) -> Any:
    runs = local_runs(e.problem, e.meta)
    return repr((runs.outer, runs.unroll, runs.memory, runs.problem.network.method))


def estimator_of(e: Experiment) -> Any:
    return repr(build_estimator(e.meta))


def schedule_of(e: Experiment) -> Any:
    network = build_problem(e.problem).network
    start = hand_coded(e.method.name)[f"{e.method.name}_linear"]
    learn = e.schedule.learn or tuple(c.name for c in network.method.controls)
    built = build_learnable(e.schedule, network.method.controls, start, learn, network.layers, 0)
    return type(built).__name__, built.knots.tolist(), [tuple(p.shape) for p in built.parameters()]


def seeds_of(e: Experiment) -> Any:
    return fresh_seeds(e.seed, e.compare.seeds)


def digest(tensors: list[Any]) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


BUILT = {  # field -> (what it changes, another value, settings under which it counts)
    "task.name": (task_of, "quadratic", []),
    "task.train": (task_of, "65", []),
    "task.validation": (task_of, "31", []),
    "task.test": (task_of, "31", []),
    "task.data_seed": (task_of, "1", []),
    "task.model": (task_of, "convnet", []),
    "task.width": (task_of, "4", []),
    "task.depth": (task_of, "2", []),
    "task.batch": (task_of, "15", []),
    "task.steps": (lambda e: build_problem(e.problem).steps, "7", []),
    "optimizer.name": (optimizer_of, "adamw", []),
    "optimizer.lr": (optimizer_of, "0.3", []),
    "optimizer.warmup": (optimizer_of, "0.3", []),
    "optimizer.decay": (optimizer_of, "cosine", []),
    "optimizer.step_every": (optimizer_of, "0.5", ["--optimizer.decay=step"]),
    "optimizer.step_gamma": (optimizer_of, "0.5", ["--optimizer.decay=step"]),
    "optimizer.pct_start": (optimizer_of, "0.5", ["--optimizer.decay=one_cycle"]),
    "optimizer.div_factor": (optimizer_of, "5", ["--optimizer.decay=one_cycle"]),
    "optimizer.final_div_factor": (optimizer_of, "5", ["--optimizer.decay=one_cycle"]),
    "optimizer.clip_norm": (optimizer_of, "1", []),
    "optimizer.clip_value": (optimizer_of, "1", []),
    "optimizer.groups": (groups_of, "[{match: bias, lr_factor: 2}]", []),
    "optimizer.nesterov": (optimizer_of, "true", ["--optimizer.name=sgd"]),
    "optimizer.momentum": (optimizer_of, "0.5", ["--optimizer.name=sgd"]),
    "optimizer.betas": (optimizer_of, "[0.5, 0.5]", []),
    "optimizer.eps": (optimizer_of, "1e-3", []),
    "optimizer.weight_decay": (optimizer_of, "0.1", []),
    "method.name": (method_of, "ana", []),
    "method.levels": (method_of, "binary", []),
    "method.activation_levels": (method_of, "null", []),
    "method.scale": (method_of, "max", []),
    "method.granularity": (method_of, "channel", ["--method.scale=max"]),
    "method.activation_scale": (method_of, "0.5", []),
    "method.noise": (method_of, "uniform", []),
    "method.forward": (method_of, "random", []),
    "method.backward": (method_of, "fixed", []),
    "method.partition": (method_of, "random", []),
    "method.live": (method_of, "hard", ["--method.name=inq"]),
    "method.momentum": (method_of, "0.5", ["--method.name=oscillation"]),
    "method.sparsity": (method_of, "0.5", ["--method.name=pruning"]),
    "method.budget": (method_of, "global", ["--method.name=pruning"]),
    "method.noise_block": (method_of, "8", ["--method.name=quant_noise"]),
    "method.weight_gradient": (method_of, "float", ["--method.name=blend"]),
    "method.constraint": (method_of, "quantize", ["--method.name=admm"]),
    "method.projection_every": (method_of, "3", ["--method.name=admm"]),
    "method.window": (method_of, "uniform", ["--method.name=widths"]),
    "method.of": (method_of, "widths+rates", ["--method.name=joint"]),
    "method.half_width": (method_of, "0.7", ["--method.name=gxnor"]),
    "method.steepness": (method_of, "2", ["--method.name=gxnor"]),
    "method.uphill": (method_of, "0.1", ["--method.name=metropolis"]),
    "method.cooling": (method_of, "adaptive", ["--method.name=metropolis"]),
    "method.groups": (method_of, "4", ["--method.name=dpq"]),
    "method.codes": (method_of, "32", ["--method.name=dpq"]),
    "method.lookup": (method_of, "vq", ["--method.name=dpq"]),
    "method.selection": (method_of, "soft", ["--method.name=dpq"]),
    "method.commitment": (method_of, "0.1", ["--method.name=dpq", "--method.lookup=vq"]),
    "method.energy": (method_of, "batch", ["--method.name=metropolis"]),
    "method.blocks": (method_of, "2", ["--method.name=metropolis", "--method.energy=batch"]),
    "quantize.first": (layers_of, "false", []),
    "quantize.last": (layers_of, "true", []),
    "quantize.rules": (layers_of, "[{match: '*2', quantize: false}]", []),
    "quantize.redraw": (runs_of, "false", ["--method.name=ana"]),
    "schedule.kind": (schedule_of, "family", []),
    "schedule.learn": (schedule_of, "[weight_noise]", ["--schedule.kind=family"]),
    "schedule.knots": (schedule_of, "7", []),
    "schedule.hidden": (schedule_of, "7", ["--schedule.directions=null"]),
    "schedule.directions": (schedule_of, "12", []),
    "meta.estimator": (estimator_of, "es", []),
    "meta.memory": (runs_of, "1 GiB", []),
    "meta.sigma": (estimator_of, "0.1", ["--meta.estimator=es"]),
    "meta.window": (estimator_of, "3", ["--meta.estimator=pes"]),
    "meta.relaxation": (runs_of, "0.1", []),
    "meta.objective": (runs_of, "relaxed", []),
    "meta.surrogate": (runs_of, "0.7", []),
    "meta.noise_floor": (estimator_of, "0.1", []),
    "compare.seeds": (seeds_of, "3", []),
    "seed": (seeds_of, "1", []),
    "tune.inner_steps": (lambda e: trials_within(e.tune, e.task.steps), "30000", []),
    "tune.runs": (lambda e: trials_within(e.tune, e.task.steps), "3", []),
    "tune.finalists": (lambda e: trials_within(e.tune, e.task.steps), "200", []),
    "tune.final_runs": (lambda e: trials_within(e.tune, e.task.steps), "200", []),
    "run.dtype": (lambda e: str(build_problem(e.problem).task.train.x.dtype), "float64", []),
    "run.autocast": (lambda e: build_problem(e.problem).autocast, "true", []),
}
ELSEWHERE = {  # field -> the test that shows what it changes
    **dict.fromkeys(("task.root", "task.download"), "tests/tasks/test_vision.py"),
    "task.image_size": "tests/tasks/test_imagenet.py",
    **dict.fromkeys(("task.target", "task.drop", "task.missing"), "tests/tasks/test_tabular.py"),
    "task.pretrained": "tests/tasks/test_pretraining.py",
    **dict.fromkeys(("task.factory", "task.args"), "tests/tasks/test_own_task.py"),
    "optimizer.parameters": "tests/training/optimizers/test_outside.py",
    "schedule.feedback": "tests/commands/test_feedback.py",
    "schedule.start": "tests/e2e/test_train.py",
    **dict.fromkeys(("meta.steps", "meta.runs", "meta.clip"), "tests/estimators/test_contract.py"),
    "meta.lr": "tests/meta/test_resume.py",
    "meta.select_runs": "tests/meta/test_start.py",
    "meta.tune_lr": "tests/meta/test_rate.py",
    **dict.fromkeys(("meta.search_steps", "meta.search_numbers"), "tests/meta/test_hybrid.py"),
    "meta.confirm_runs": "tests/commands/test_confirming.py",
    **dict.fromkeys(("compare.baselines", "compare.horizons"), "tests/evaluation/test_compare.py"),
    "compare.tune_floors": "tests/evaluation/test_floors.py",
    **dict.fromkeys(("tune.search", "tune.space", "tune.population", "tune.interval"), "tests/search/test_tuning.py"),
    **dict.fromkeys(
        (
            "allocate.search",
            "allocate.bits",
            "allocate.score",
            "allocate.runs",
            "allocate.evaluations",
            "allocate.budget",
        ),
        "tests/commands/test_allocate.py",
    ),
    **dict.fromkeys(("allocate.resource", "allocate.latency"), "tests/search/bits/test_resources.py"),
    "allocate.exploration_decay": "tests/search/bits/test_searches.py",
    **dict.fromkeys(("online.every", "online.window", "online.lr", "online.held_out"), "tests/meta/test_online.py"),
    **dict.fromkeys(("tracking.wandb", "tracking.project", "name"), "tests/tracking/test_wandb.py"),
    **dict.fromkeys(("run.folder", "run.device"), "tests/e2e/test_mistakes.py"),
    "run.workers": "tests/runs/test_pool.py",
    "run.store": "tests/search/test_surface.py",
    "run.where": "tests/runs/test_cluster.py",
    "tasks.entries": "tests/families/test_family.py",
    "tune.warm_start": "tests/search/test_warm.py",
    **dict.fromkeys(("tasks.per_step", "tasks.normalize", "tasks.features"), "tests/meta/test_many.py"),
    **dict.fromkeys(("tasks.cheaper", "tasks.examples"), "tests/commands/test_train_many.py"),
    **dict.fromkeys(
        (
            "arena.seeds",
            "arena.horizons",
            "arena.part",
            "arena.rate_runs",
            "arena.choice_runs",
            "arena.searches",
            "arena.arms",
        ),
        "tests/arena/test_arena.py",
    ),
}


@cache
def rule_of() -> dict[str, list[Rule]]:
    """The rules that concern each field, over all methods."""
    found: dict[str, list[Rule]] = {}
    for method in METHODS:
        for rule in rules(method):
            for field in rule.governed:
                found.setdefault(field, []).append(rule)
    return found


@pytest.fixture
def write(tmp_path: Path):
    def write(document: dict[str, Any] | str) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        return path

    return write


def test_every_field_is_in_one_of_the_tables() -> None:
    own = {f.path for f in fields()}
    package = {p for spec in METHODS.values() for p in spec.parameters if "metasched" in spec.config.__module__}
    shared = {f.removeprefix("method.") for f in own if f.startswith("method.")}
    outside = {f"method.{p}" for p in shared if p not in package} - {f for f in BUILT if f.startswith("method.")}
    assert own - outside == BUILT.keys() | ELSEWHERE.keys()
    assert not BUILT.keys() & ELSEWHERE.keys()
    for field, place in ELSEWHERE.items():
        assert field.rpartition(".")[2] in (ROOT / place).read_text("utf-8"), f"{place} says nothing of {field}"


@pytest.mark.parametrize("field", BUILT)
def test_a_field_changes_what_is_built(write, field: str) -> None:
    built, value, settings = BUILT[field]
    path = write("seed: 0")
    base = [s for s in SMALL if s.partition("=")[0] not in {t.partition("=")[0] for t in settings}]
    if field == "task.name":
        base = ["--task.steps=6", "--quantize.last=true"]
    before = load_experiment(path, [*base, *settings])
    after = load_experiment(path, [*base, *settings, f"--{field}={value}"])
    assert value_at(before, field) != value_at(after, field)
    assert built(before) != built(after)


REFUSED = [  # settings, the field that they leave without effect, what the line holds
    (
        ["meta.estimator=sweep"],
        "meta.sigma=0.1",
        "meta.estimator is sweep; leave it out; it is for es, guided, pes, nres",
    ),
    (
        ["meta.estimator=unroll"],
        "meta.memory=1 GiB",
        "meta.estimator is unroll; leave it out; it is for sweep, weighted",
    ),
    (["meta.estimator=mixed"], "meta.window=3", "meta.estimator is mixed; leave it out; it is for pes and nres"),
    (["meta.estimator=es"], "meta.noise_floor=0.1", "meta.estimator is es; leave it out; it is for sweep, higher"),
    (["meta.estimator=es"], "meta.relaxation=0.1", "meta.estimator is es"),
    (["meta.estimator=nres"], "meta.surrogate=0.1", "meta.estimator is nres"),
    (["meta.objective=relaxed"], "meta.surrogate=0.1", "meta.objective is relaxed; leave it out; it is for hardened"),
    (["schedule.kind=family"], "schedule.hidden=8", "schedule.kind is family; leave it out; it is for network"),
    (["schedule.start=inq_linear"], "meta.select_runs=2", "schedule.start is inq_linear; leave it out; it is for best"),
    (["tune.search=tpe"], "tune.population=8", "tune.search is tpe; leave it out; it is for pbt"),
    (["tune.search=random"], "tune.interval=8", "tune.search is random; leave it out; it is for pbt"),
    (["tune.search=pbt"], "tune.runs=8", "tune.search is pbt; leave it out; it is for tpe, cmaes and random"),
    (["method.name=ana"], "meta.relaxation=0.1", "method.name is ana; leave it out; it is for methods that freeze"),
    (["method.name=inq"], "meta.noise_floor=0.1", "method.name is inq; leave it out; it is for methods with noise"),
    (
        ["method.activation_levels=null"],
        "method.activation_scale=2",
        "null; leave it out, or set method.activation",
    ),
    (["method.name=gxnor", "method.activation_levels=null"], "method.half_width=2", "method.activation_levels is null"),
    (["method.name=metropolis", "method.activation_levels=null"], "method.noise=uniform", "activation_levels is null"),
    (["method.scale=unit"], "method.granularity=channel", "method.scale is unit; leave it out, or set method.scale"),
    (["method.name=float"], "method.levels=binary", "method.name is float; leave it out; it is for methods that quant"),
    (["method.name=float"], "quantize.first=false", "method.name is float"),
    (
        ["method.name=bayesian_bits"],
        "method.scale=max",
        "method.name is bayesian_bits; leave it out; it is for",
    ),
    (["method.name=dpq"], "method.levels=binary", "method.name is dpq; leave it out; it is for methods that put each"),
    (["method.name=dpq"], "quantize.first=false", "method.name is dpq; leave it out; it is for methods that put each"),
    (["method.name=inq"], "method.noise=uniform", "method.name is inq; leave it out; it is a parameter of ana"),
    (["optimizer.name=adam"], "optimizer.momentum=0.5", "optimizer.name is adam; leave it out; it is for sgd"),
    (["optimizer.name=sgd"], "optimizer.eps=1", "optimizer.name is sgd; leave it out; it is for adam and adamw"),
    (["optimizer.name=sgd", "optimizer.momentum=0"], "optimizer.nesterov=true", "or set optimizer.momentum"),
    (["optimizer.decay=cosine"], "optimizer.step_gamma=0.5", "optimizer.decay is cosine; leave it out; it is for step"),
    (["schedule.kind=network"], "meta.search_numbers=3", "meta.search_steps is 0; leave it out, or set meta.search_st"),
    (["schedule.kind=family", "meta.search_steps=9"], "meta.search_numbers=3", "schedule.kind is family; leave it out"),
    (["tracking.wandb=disabled"], "tracking.project=a", "tracking.wandb is disabled; leave it out, or set tracking.w"),
    (
        ["allocate.search=greedy"],
        "allocate.evaluations=8",
        "allocate.search is greedy; leave it out; it is for exhaustive",
    ),
    (
        ["allocate.search=random"],
        "allocate.exploration_decay=0.9",
        "allocate.search is random; leave it out; it is for haq",
    ),
    (["allocate.score=rounded"], "allocate.runs=2", "allocate.score is rounded; leave it out; it is for trained"),
    (["allocate.resource=size"], "allocate.latency=a", "allocate.resource is size; leave it out; it is for latency"),
    (["task.name=mnist"], "task.target=a", "task.name is mnist; leave it out; it is for tabular"),
    (["task.name=digits"], "task.root=a", "task.name is digits; leave it out; it is for mnist"),
    (["task.name=imagenet"], "task.download=true", "task.name is imagenet; leave it out; it is for mnist"),
    (["task.name=mnist"], "task.image_size=32", "task.name is mnist; leave it out; it is for imagenet"),
    (["task.name=quadratic"], "task.batch=32", "task.name is quadratic; leave it out; it is for digits"),
    (["run.where=ray"], "run.workers=2", "run.where is ray; leave it out; it is for processes here"),
    (["tasks.entries=[]"], "tasks.per_step=3", "leave it out, or give tasks in tasks.entries"),
    (["task.model=vgg8"], "task.depth=4", "task.model is vgg8; leave it out; it is for mlp and convnet"),
]


@pytest.mark.parametrize(("settings", "given", "expected"), REFUSED, ids=[f"{' '.join(r[0])} {r[1]}" for r in REFUSED])
def test_a_setting_that_would_be_ignored_is_refused(write, settings: list[str], given: str, expected: str) -> None:
    path, overrides = write("seed: 0"), [f"--{s}" for s in settings]
    load_experiment(path, overrides)
    with pytest.raises(MetaschedError) as caught:
        load_experiment(path, [*overrides, f"--{given}"])
    said = str(caught.value)
    assert said.startswith(f"--{given.partition('=')[0]}: has no effect, because ") and "\n" not in said
    assert expected in said


def test_every_rule_has_a_case_above() -> None:
    cases = {given.partition("=")[0] for _, given, _ in REFUSED}
    sections = {(rule.setting, field) for field, found in rule_of().items() for rule in found}
    missing = {setting for setting, _ in sections} - {s for s, field in sections if field in cases}
    assert missing == set()


def test_a_field_at_its_default_is_accepted_and_reported_once() -> None:
    assert list(ignored(Experiment(), str)) == []
    float_network = Experiment(method=MethodConfig(name="float", levels="binary"))
    assert [error.path for error in ignored(float_network, str)] == ["method.levels"]


TABLES: dict[str, list[Any]] = {
    "task": [TASKS, MODELS],
    "optimizer": [OPTIMIZERS, DECAYS],
    "meta": [ESTIMATORS],
    "tune": [SEARCHES],
    "allocate": [BIT_SEARCHES],
}


@pytest.mark.parametrize("section", TABLES)
def test_rows_read_fields_that_there_are(section: str) -> None:
    known = {f.path.removeprefix(f"{section}.") for f in fields() if f.path.startswith(f"{section}.")}
    for table in TABLES[section]:
        for row in table.values():
            assert {*row.reads} <= known, row.name


def test_what_a_run_left_is_read_though_it_ignores_fields(write) -> None:
    text = dump_yaml(to_dict(load_experiment(write({"meta": {"estimator": "es", "sigma": 0.2}}))))
    old = text.replace("estimator: es", "estimator: sweep")
    assert load_experiment(write(old)).meta.sigma == 0.2
    with pytest.raises(MetaschedError, match=r"--meta\.window: has no effect, because meta\.estimator is sweep"):
        load_experiment(write(old), ["--meta.window=3"])


def test_an_arm_may_inherit_what_it_ignores_but_not_be_given_it() -> None:
    base = with_fields(Experiment(), ["optimizer.betas=[0.5, 0.5]"], "a")
    assert with_fields(base, ["optimizer.name=sgd"], "a").optimizer.name == "sgd"
    with pytest.raises(MetaschedError, match=r"a: optimizer\.eps: has no effect, because optimizer\.name is sgd"):
        with_fields(base, ["optimizer.name=sgd", "optimizer.eps=1"], "a")


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_experiments_ignore_nothing(path: Path) -> None:
    load_experiment(path)


def test_a_name_that_is_gone_says_what_to_write(write) -> None:
    with pytest.raises(MetaschedError) as caught:
        load_experiment(write({"meta": {"estimator": "truncated"}}))
    assert str(caught.value).endswith(
        "meta.estimator: 'truncated' is no longer there; write sweep, which is exact and "
        "keeps the graph of one step at a time"
    )
