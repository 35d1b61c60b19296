"""Work in this process whose outcome is recorded: name -> a function that gives its entries (see scripts/golden.py).

Everything is in float64 and tiny: digits, a small network, a few steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from metasched import (
    Experiment,
    MethodConfig,
    build_method,
    build_problem,
    export,
    find_unroll,
    hardened_score,
    progress_of_steps,
    quantize,
    train,
)
from metasched.core.randomness import generator
from metasched.engines.base import OuterLoss, control_gradient
from metasched.engines.tangent import slope_along
from metasched.estimators import build_estimator
from metasched.evaluation.measured import measured_schedule
from metasched.exchange.format import Provenance
from metasched.exchange.schedule_file import dumps
from metasched.meta.config import MetaConfig
from metasched.runs.cells import played
from metasched.runs.config import RunConfig
from metasched.runs.pool import Pool
from metasched.runs.pooled import PooledRuns
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.schedules.table import schedules_of
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import Split, SupervisedTask
from metasched.training.optimizers.config import OptimizerConfig
from metasched.training.optimizers.recipe import recipe
from metasched.training.state import InnerProblem

Entry = torch.Tensor | Mapping[str, torch.Tensor] | list[float] | str
Entries = dict[str, Entry]

STEPS, WINDOW, SEED = 6, 2, 11
PARTS = ("params", "buffers", "optimizer", "method", "health")

METHODS: dict[str, tuple[MethodConfig, str]] = {  # variant -> method, hand-coded schedule
    "ste": (MethodConfig(name="ste"), "ste"),
    "ana": (MethodConfig(name="ana", forward="random"), "ana_linear"),
    "blend": (MethodConfig(name="blend"), "blend_onset"),
    "blend_learned": (MethodConfig(name="blend", scale="learned", activation_scale="learned"), "blend_linear"),
    "temperature": (MethodConfig(name="temperature", scale="learned"), "temperature_hestia"),
    "temperature_both": (MethodConfig(name="temperature", scale="least_squares"), "temperature_cosine"),
    "parq": (MethodConfig(name="parq", scale="learned", granularity="channel"), "parq_sigmoid_10"),
    "widths_clip": (
        MethodConfig(name="widths", scale="learned", activation_levels="uint2", activation_scale="clip"),
        "widths_narrowing",
    ),
    "inq_magnitude": (MethodConfig(name="inq", partition="magnitude"), "inq_linear"),
    "inq_random": (MethodConfig(name="inq", partition="random"), "inq_linear"),
    "inq_relaxation": (MethodConfig(name="inq", partition="relaxation"), "inq_linear"),
    "inq_hard": (MethodConfig(name="inq", live="hard", scale="learned", granularity="channel"), "inq_linear"),
    "oscillation": (MethodConfig(name="oscillation", momentum=0.5, scale="learned"), "oscillation_mobilenetv2_3bit"),
    "pruning": (MethodConfig(name="pruning", sparsity=0.6, scale="learned"), "pruning_cubic"),
    "quant_noise": (MethodConfig(name="quant_noise", noise_block=3, scale="learned"), "quant_noise_int8"),
    "rounding": (MethodConfig(name="rounding", levels="midrise2", scale="learned"), "rounding_linear"),
    "admm": (MethodConfig(name="admm", sparsity=0.6, projection_every=2, scale="max"), "admm_progressive"),
    "joint": (MethodConfig(name="joint", scale="least_squares"), "joint_linear"),
    "rates": (MethodConfig(name="rates", scale="learned"), "rates_late"),
    "joint_of_widths": (MethodConfig(name="joint", of="widths+rates", scale="max"), "widths_narrowing"),
    "gxnor": (MethodConfig(name="gxnor"), "gxnor_cosine"),
    "metropolis": (MethodConfig(name="metropolis"), "metropolis_geometric"),
    "metropolis_adaptive": (MethodConfig(name="metropolis", cooling="adaptive"), "metropolis_geometric"),
    "bayesian_bits": (MethodConfig(name="bayesian_bits", activation_scale="learned"), "bayesian_bits_cooling"),
    "metropolis_batch": (MethodConfig(name="metropolis", energy="batch", blocks=2), "metropolis_geometric"),
    "adaround": (MethodConfig(name="adaround", scale="max", levels="int3"), "adaround_cosine"),
}
OPTIMIZERS = {  # eps far above rounding: derivatives through Adam else multiply it where a gradient is almost 0
    "sgd": OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-3, decay="cosine"),
    "adam": OptimizerConfig(name="adam", lr=0.02, weight_decay=1e-3, eps=1e-2),
    "adamw": OptimizerConfig(name="adamw", lr=0.02, weight_decay=0.1, decay="linear", eps=1e-2),
}
ENGINES = ("sweep", "higher", "unroll")
DIFFERENTIATED = (
    *(
        "ana",
        "joint_of_widths",
        "widths_clip",
        "blend",
        "blend_learned",
        "temperature_both",
        "parq",
        "inq_magnitude",
        "inq_hard",
        "joint",
        "gxnor",
    ),
    "metropolis",
)
OBJECTIVES = ("relaxed", "trajectory")
ESTIMATORS = (
    "sweep",
    "weighted",
    "es",
    "guided",
    "pes",
    "nres",
    "mixed",
    "auto",
)  # and forward, which takes a run for each parameter


def experiment_of(variant: str, optimizer: str = "adam", model: Any = "mlp", width: int = 8, **meta: Any) -> Experiment:
    """A tiny experiment with a variant of METHODS."""
    method, start = METHODS[variant]
    kind = "family" if meta.get("estimator") == "forward" else "network"
    return Experiment(
        task=TaskConfig(model=model, width=width, steps=STEPS, batch=16, train=64, validation=32, test=32),
        optimizer=OPTIMIZERS[optimizer],
        method=method,
        schedule=ScheduleConfig(start=start, kind=kind, knots=3, hidden=2, directions=None),
        meta=MetaConfig(runs=2, window=WINDOW, **meta),
        run=RunConfig(workers=1, dtype="float64"),
    )


def controls_of(experiment: Experiment) -> dict[str, torch.Tensor]:
    """What the hand-coded schedule of an experiment gives each layer at each step."""
    start = schedules_of(experiment.method)[experiment.schedule.start]
    return dict(start(progress_of_steps(STEPS), build_problem(experiment.problem).network.layers))


def training(variant: str, optimizer: str) -> Entries:
    """A whole inner run: losses, final state, hardened score."""
    experiment = experiment_of(variant, optimizer, "convnet", width=3)
    problem = build_problem(experiment.problem).with_seed(SEED)
    state, losses = train(problem, controls_of(experiment))
    scores = [hardened_score(problem, state, "test")]
    return {"losses": losses, "scores": scores, **{part: getattr(state, part) for part in PARTS}}


TABLES = {  # variant -> method of tables, hand-coded schedule
    "dpq": (MethodConfig(name="dpq", groups=2, codes=8), "dpq_exponential"),
    "dpq_soft": (MethodConfig(name="dpq", groups=4, codes=4, selection="soft"), "dpq_linear"),
    "dpq_vq": (MethodConfig(name="dpq", groups=2, codes=8, lookup="vq", selection="soft"), "dpq_constant"),
}


def table_training(variant: str) -> Entries:
    """A whole inner run of a network with a table of embeddings, on classes of words."""
    method, start = TABLES[variant]
    draws = generator(SEED, "words")
    x = torch.randint(20, (96, 3), generator=draws)
    parts = [Split(x[i : i + 32], x[i : i + 32].sum(1) % 3) for i in (0, 32, 64)]

    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3))

    def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).to(outputs.dtype).mean()

    task = SupervisedTask("words", *parts, build, F.cross_entropy, accuracy, batch_size=16)
    rule, hyper = recipe(OPTIMIZERS["adam"])
    problem = InnerProblem(quantize(build(), build_method(method), x[:2]), task, rule, hyper, STEPS, SEED)
    state, losses = train(problem, dict(schedules_of(method)[start](progress_of_steps(STEPS), problem.network.layers)))
    scores = [hardened_score(problem, state, "test")]
    return {"losses": losses, "scores": scores, **{part: getattr(state, part) for part in PARTS}}


def engine(name: str, variant: str, optimizer: str = "adam", objective: Any = "hardened") -> Entries:
    """The derivative of the outer loss in the controls, by one engine."""
    experiment = experiment_of(variant, optimizer)
    problem = build_problem(experiment.problem, relaxation=0.3).with_seed(SEED)
    unroll = find_unroll(name)
    found = control_gradient(unroll, problem, widened(controls_of(experiment)), OuterLoss(objective))
    return {"loss": torch.tensor(found.loss), "scores": [found.score], **dict(found.wrt)}


def forward_engine(variant: str) -> Entries:
    """The slope of the outer loss along a direction in the controls, by forward mode."""
    experiment = experiment_of(variant)
    problem = build_problem(experiment.problem, relaxation=0.3).with_seed(SEED)
    controls = widened(controls_of(experiment))
    direction = {c: torch.rand(v.shape, generator=generator(SEED, "direction")) for c, v in controls.items()}
    found = slope_along(problem, controls, direction, OuterLoss("hardened"))
    return {"loss": torch.tensor(found.loss), "scores": [found.score], "slope": torch.tensor(found.slope)}


def widened(controls: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With noise that never gets narrow, as while learning."""
    return {
        name: v.clamp_min(0.35) if name in ("weight_noise", "activation_noise") else v for name, v in controls.items()
    }


def learnable(experiment: Experiment) -> LearnableSchedule:
    """A learnable schedule at parameters of its own: those that fit its start are found to a few digits less."""
    network = build_problem(experiment.problem).network
    controls = network.method.controls
    start = schedules_of(experiment.method)[experiment.schedule.start]
    learn = [c.name for c in controls]
    schedule = build_learnable(experiment.schedule, controls, start, learn, network.layers, SEED)
    with torch.no_grad():
        for i, p in enumerate(schedule.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=generator(SEED, "golden", i), dtype=p.dtype))
    return schedule


def estimator(name: str, variant: str, estimates: int = 3) -> Entries:
    """Estimates that follow each other, as many as there are windows in a run."""
    experiment = experiment_of(variant, estimator=name)
    schedule, own, entries = learnable(experiment), build_estimator(experiment.meta), {}
    with Pool(1) as pool:
        runs = PooledRuns(experiment.problem, experiment.meta, pool)
        state = own.begin(schedule, runs)
        for step in range(estimates):
            estimate = own.estimate(schedule, runs, [SEED + 2 * step, SEED + 2 * step + 1], state)
            state = estimate.state
            gradients = [torch.cat([g.flatten() for g in found.gradient]) for found in estimate.found]
            entries[f"loss {step}"] = torch.tensor([found.loss for found in estimate.found])
            entries[f"gradient {step}"] = torch.stack(gradients)
            entries[f"notes {step}"] = {note: torch.tensor(value) for note, value in estimate.notes.items()}
    return {**entries, "state": dict(state)}


def measured(name: str, variant: str) -> Entries:
    """The values of a schedule that is measured before training."""
    config = experiment_of(variant, "adam", "convnet", width=3).problem
    return {**played(config, measured_schedule(config, name), STEPS)}


def exported(kind: Any) -> Entries:
    """The text of a schedule file, without its version and its form, which tests/formats holds."""
    experiment = experiment_of("joint")
    experiment = replace(experiment, schedule=replace(experiment.schedule, kind=kind))
    problem, schedule = build_problem(experiment.problem), learnable(experiment)
    file = export(
        schedule,
        method_name="joint",
        method_parameters={"levels": "ternary"},
        controls=problem.network.method.controls,
        layers=problem.network.layers,
        knots=schedule.knots,
        interpolation="linear",
        provenance=Provenance(kind="learned", name="golden", seeds=(SEED,)),
    )
    text, count = re.subn(r'"version": \d+', '"version": ?', dumps(replace(file, version=1, form=None)))
    assert count == 1, count
    return {"text": text, **values_of(file)}


def values_of(file: Any) -> dict[str, Entry]:
    """The curves of a schedule file, {control: [L, K]}."""
    return {name: torch.tensor(curves) for name, curves in file.values.items()}


CASES: dict[str, Callable[[], Entries]] = {
    **{f"training/{m}/{o}": partial(training, m, o) for m, o in product(METHODS, OPTIMIZERS)},
    **{f"engine/{e}/{m}": partial(engine, e, m) for e, m in product(ENGINES, DIFFERENTIATED)},
    **{f"engine/{e}/joint/{o}": partial(engine, e, "joint", o) for e, o in product(ENGINES, ("sgd", "adamw"))},
    **{f"engine/sweep/joint/{o}": partial(engine, "sweep", "joint", objective=o) for o in OBJECTIVES},
    **{f"engine/forward/{m}": partial(forward_engine, m) for m in DIFFERENTIATED},
    **{f"estimator/{e}/joint": partial(estimator, e, "joint") for e in ESTIMATORS},
    **{f"estimator/{e}/ana": partial(estimator, e, "ana") for e in ESTIMATORS},
    "estimator/forward/inq_random": partial(estimator, "forward", "inq_random", estimates=1),
    "measured/temperature_hestia_hessian": partial(measured, "temperature_hestia_hessian", "temperature"),
    **{f"export/{kind}": partial(exported, kind) for kind in ("network", "family")},
    **{f"training/{m}": partial(table_training, m) for m in TABLES},
}
