"""Learns annealing schedules for training quantized neural networks: the public names, each loaded when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metasched.api import Result as Result
    from metasched.api import compare as compare
    from metasched.api import learn as learn
    from metasched.api import tune as tune
    from metasched.calibration.walking import calibrate as calibrate
    from metasched.config.load import load_experiment as load_experiment
    from metasched.config.schema import Experiment as Experiment
    from metasched.core.errors import MetaschedError as MetaschedError
    from metasched.core.errors import MetaschedWarning as MetaschedWarning
    from metasched.core.layer import Layer as Layer
    from metasched.engines import find_unroll as find_unroll
    from metasched.evaluation.statistics import paired_difference as paired_difference
    from metasched.exchange.export import export as export
    from metasched.exchange.played import PlayedSchedule as PlayedSchedule
    from metasched.exchange.player import SchedulePlayer as SchedulePlayer
    from metasched.exchange.player import load as load
    from metasched.exchange.portfolios import portfolio as portfolio
    from metasched.exchange.schedule_file import read_schedule as read_schedule
    from metasched.exchange.schedule_file import write_schedule as write_schedule
    from metasched.exchange.shipped import list_schedules as list_schedules
    from metasched.families.family import TaskFamily as TaskFamily
    from metasched.meta.outer import meta_train as meta_train
    from metasched.methods import METHODS as METHODS
    from metasched.methods import MethodSpec as MethodSpec
    from metasched.methods import build_method as build_method
    from metasched.methods import register_method as register_method
    from metasched.methods.base import Control as Control
    from metasched.methods.config import MethodConfig as MethodConfig
    from metasched.models import ModelSpec as ModelSpec
    from metasched.models import register_model as register_model
    from metasched.network.config import Rule as Rule
    from metasched.network.convert import convert as convert
    from metasched.network.inspect import Inspection as Inspection
    from metasched.network.inspect import inspect as inspect
    from metasched.network.module import QuantizedModule as QuantizedModule
    from metasched.network.prepare import prepare as prepare
    from metasched.network.quantize import quantize as quantize
    from metasched.network.quantized import QuantizedNetwork as QuantizedNetwork
    from metasched.network.recipe import Recipe as Recipe
    from metasched.schedules.base import progress_of_steps as progress_of_steps
    from metasched.schedules.curves import HandCoded as HandCoded
    from metasched.schedules.network import ScheduleNetwork as ScheduleNetwork
    from metasched.schedules.table import hand_coded as hand_coded
    from metasched.schedules.table import published as published
    from metasched.search.bits.allocate import Allocation as Allocation
    from metasched.search.bits.allocate import allocate as allocate
    from metasched.study.study import Study as Study
    from metasched.tasks import TaskSpec as TaskSpec
    from metasched.tasks import register_task as register_task
    from metasched.tasks.base import Task as Task
    from metasched.tasks.data import DataTask as DataTask
    from metasched.training.curvature import hessian_traces as hessian_traces
    from metasched.training.loop import hardened_score as hardened_score
    from metasched.training.loop import train as train
    from metasched.training.optimizers import OptimizerSpec as OptimizerSpec
    from metasched.training.optimizers import register_optimizer as register_optimizer
    from metasched.training.problem import build_problem as build_problem

MODULES: dict[str, str] = {  # public name -> module
    "Experiment": "metasched.config.schema",
    "MethodConfig": "metasched.methods.config",
    "load_experiment": "metasched.config.load",
    "MetaschedError": "metasched.core.errors",
    "MetaschedWarning": "metasched.core.errors",
    "Layer": "metasched.core.layer",
    "Control": "metasched.methods.base",
    "METHODS": "metasched.methods",
    "MethodSpec": "metasched.methods",
    "ModelSpec": "metasched.models",
    "OptimizerSpec": "metasched.training.optimizers",
    "TaskSpec": "metasched.tasks",
    "register_method": "metasched.methods",
    "register_model": "metasched.models",
    "register_optimizer": "metasched.training.optimizers",
    "register_task": "metasched.tasks",
    "build_method": "metasched.methods",
    "quantize": "metasched.network.quantize",
    "QuantizedNetwork": "metasched.network.quantized",
    "inspect": "metasched.network.inspect",
    "Inspection": "metasched.network.inspect",
    "progress_of_steps": "metasched.schedules.base",
    "HandCoded": "metasched.schedules.curves",
    "hand_coded": "metasched.schedules.table",
    "published": "metasched.schedules.table",
    "ScheduleNetwork": "metasched.schedules.network",
    "build_problem": "metasched.training.problem",
    "train": "metasched.training.loop",
    "hessian_traces": "metasched.training.curvature",
    "hardened_score": "metasched.training.loop",
    "QuantizedModule": "metasched.network.module",
    "prepare": "metasched.network.prepare",
    "convert": "metasched.network.convert",
    "calibrate": "metasched.calibration.walking",
    "find_unroll": "metasched.engines",
    "export": "metasched.exchange.export",
    "list_schedules": "metasched.exchange.shipped",
    "load": "metasched.exchange.player",
    "portfolio": "metasched.exchange.portfolios",
    "read_schedule": "metasched.exchange.schedule_file",
    "write_schedule": "metasched.exchange.schedule_file",
    "PlayedSchedule": "metasched.exchange.played",
    "SchedulePlayer": "metasched.exchange.player",
    "TaskFamily": "metasched.families.family",
    "Task": "metasched.tasks.base",
    "DataTask": "metasched.tasks.data",
    "Recipe": "metasched.network.recipe",
    "Rule": "metasched.network.config",
    "Result": "metasched.api",
    "learn": "metasched.api",
    "compare": "metasched.api",
    "tune": "metasched.api",
    "paired_difference": "metasched.evaluation.statistics",
    "meta_train": "metasched.meta.outer",
    "Allocation": "metasched.search.bits.allocate",
    "allocate": "metasched.search.bits.allocate",
    "Study": "metasched.study.study",
}


def __getattr__(name: str) -> Any:
    if name == "deploy":  # a package, which can be called
        return import_module("metasched.deploy")
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
