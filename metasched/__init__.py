"""Learns annealing schedules for training quantized neural networks: the public names, each loaded when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metasched.config import Experiment as Experiment
    from metasched.config import MethodConfig as MethodConfig
    from metasched.errors import MetaschedError as MetaschedError
    from metasched.evaluation.compare import compare as compare
    from metasched.evaluation.statistics import paired_difference as paired_difference
    from metasched.exchange.export import export as export
    from metasched.exchange.export import read_schedule as read_schedule
    from metasched.exchange.export import write_schedule as write_schedule
    from metasched.exchange.player import PlayedSchedule as PlayedSchedule
    from metasched.exchange.player import SchedulePlayer as SchedulePlayer
    from metasched.hypergradients import find_unroll as find_unroll
    from metasched.layers import Layer as Layer
    from metasched.loading import load_experiment as load_experiment
    from metasched.meta.outer import meta_train as meta_train
    from metasched.methods import METHODS as METHODS
    from metasched.methods import build_method as build_method
    from metasched.methods.base import Control as Control
    from metasched.network import QuantizedNetwork as QuantizedNetwork
    from metasched.network import quantize as quantize
    from metasched.schedules.base import progress_of_steps as progress_of_steps
    from metasched.schedules.curves import HandCoded as HandCoded
    from metasched.schedules.network import ScheduleNetwork as ScheduleNetwork
    from metasched.schedules.table import hand_coded as hand_coded
    from metasched.training.loop import hardened_score as hardened_score
    from metasched.training.loop import train as train
    from metasched.training.own_loop import QuantizedModule as QuantizedModule
    from metasched.training.problem import build_problem as build_problem

MODULES: dict[str, str] = {  # public name -> module
    "Experiment": "metasched.config",
    "MethodConfig": "metasched.config",
    "load_experiment": "metasched.loading",
    "MetaschedError": "metasched.errors",
    "Layer": "metasched.layers",
    "Control": "metasched.methods.base",
    "METHODS": "metasched.methods",
    "build_method": "metasched.methods",
    "quantize": "metasched.network",
    "QuantizedNetwork": "metasched.network",
    "progress_of_steps": "metasched.schedules.base",
    "HandCoded": "metasched.schedules.curves",
    "hand_coded": "metasched.schedules.table",
    "ScheduleNetwork": "metasched.schedules.network",
    "build_problem": "metasched.training.problem",
    "train": "metasched.training.loop",
    "hardened_score": "metasched.training.loop",
    "QuantizedModule": "metasched.training.own_loop",
    "find_unroll": "metasched.hypergradients",
    "export": "metasched.exchange.export",
    "read_schedule": "metasched.exchange.export",
    "write_schedule": "metasched.exchange.export",
    "PlayedSchedule": "metasched.exchange.player",
    "SchedulePlayer": "metasched.exchange.player",
    "compare": "metasched.evaluation.compare",
    "paired_difference": "metasched.evaluation.statistics",
    "meta_train": "metasched.meta.outer",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
