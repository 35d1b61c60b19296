"""Exports schedule files as controllers of QuantLab: exactly if possible, else by least squares.

QuantLab sets a control at the start of an epoch and keeps it, so the values of a schedule at progress t / epochs
matter. INQ uses them directly, one value for all layers. For ANA, a decay is fitted by least squares for each layer and
control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from metasched.core.errors import MetaschedError
from metasched.exchange.format import ScheduleFile
from metasched.exchange.played import PlayedSchedule, check_open_loop
from metasched.exchange.quantlab.controllers import FUNCTIONS, Decay, activation_module
from metasched.exchange.quantlab.importing import MAX_EPOCHS
from metasched.quantizers.noise import NOISE_FAMILIES

Array = np.ndarray[Any, np.dtype[np.float64]]

_POWERS = (0, 1, 2, 4, 8, 16, 32)
_PARTS = 8  # number of parts of the run in the first grid of windows
_SHAPES: dict[str, Callable[[Array, int, float, int], Array]] = {  # FUNCTIONS, for all epochs at once
    "bws": lambda t, start, stop, alpha: ((stop - t.clip(start, stop)) / (stop - start)) ** alpha,
    "uws": lambda t, start, stop, alpha: _cut((1 / (t.clip(start) - start + 1)) ** alpha, stop),
}


class Fit(NamedTuple):
    """Root mean square and largest error of a layer's exported values over the epochs, in the unit of the control."""

    control: str
    layer: str
    rms: float
    largest: float


class Written(NamedTuple):
    """Part of a QuantLab experiment, to be merged into one, and the errors of its values."""

    config: dict[str, Any]
    fits: tuple[Fit, ...]


def export_quantlab(file: ScheduleFile, epochs: int) -> Written:
    """The QuantLab controller that is closest to a schedule.

    INQ: the fractions of the schedule; if layers differ, their mean, because QuantLab has one schedule for all layers.
    All weights are frozen in the last epoch. ANA: one timer per layer, with the layer's name; where the noise of the
    layer's activation differs from that of its weight, a second one with the name ``<layer>.activation``. QuantLab
    needs the names of the activation modules there, which schedule files do not contain.

    Args:
        file: a schedule of method ``ana`` or ``inq``.
        epochs: epochs of the whole run.

    Raises:
        MetaschedError: another method, or the number of epochs is out of range.
    """
    if not 1 <= epochs <= MAX_EPOCHS:
        problem = f"must be in [1, {MAX_EPOCHS}], got {epochs}"
        raise MetaschedError("--epochs", problem, "give the epochs of the whole run")
    if file.method.name not in _WRITERS:
        problem = f"is {file.method.name!r}; QuantLab has {' and '.join(_WRITERS)}"
        raise MetaschedError("method.name", problem, "export a schedule of one of these methods")
    schedule = PlayedSchedule(file)
    check_open_loop(schedule, "feedback")
    starts = torch.arange(epochs, dtype=torch.float64) / epochs
    played = {name: values.numpy() for name, values in schedule(starts, schedule.layers).items()}
    quantize, fits = _WRITERS[file.method.name](file, played)
    return Written({"training": {"n_epochs": epochs, "quantize": quantize}}, tuple(fits))


def fit_decay(curve: Array) -> Decay:
    """The decay, of either function, with the least squared error over the epochs.

    Start and stop are searched on a grid and then in halving steps; alpha among powers of 2 and then in steps of 1;
    beta has a closed form.

    Args:
        curve: [epochs], float64, in the unit of the control.

    >>> fit_decay(np.array([0.5, 0.5, 0.125, 0.0, 0.0]))
    Decay(beta=0.5, function='bws', start=1, stop=3, alpha=2)
    """
    return min((_search_power(curve, function) for function in FUNCTIONS), key=_error).decay


def _ana(file: ScheduleFile, played: dict[str, Array]) -> tuple[dict[str, Any], list[Fit]]:
    unit = NOISE_FAMILIES[str(file.method.parameters.get("noise", "uniform"))].unit
    timers, fits = [], []
    for i, layer in enumerate(file.layers):
        noises = {"weight_noise": layer.name}
        if layer.quantizes == "weight+activation":
            noises["activation_noise"] = activation_module(layer.name)
        found = {control: fit_decay(played[control][:, i]) for control in ("noise_mean", *noises)}
        for control, decay in found.items():
            fitted = np.array([decay.at(t) for t in range(len(played[control]))])
            fits.append(_compare(control, layer.name, played[control][:, i], fitted))
        for control, module in noises.items():
            if control == "weight_noise" or found[control] != found["weight_noise"]:
                timers.append(_timer(module, found["noise_mean"], found[control], unit))
    return {"function": "all_ana_controller", "kwargs": {"ctrl_spec": timers}}, fits


def _timer(module: str, mean: Decay, noise: Decay, unit: float) -> dict[str, Any]:
    """A timer of QuantLab; the noise in quanta becomes ``sigma``, in the unit of its family."""
    return {"modules": [module], "mi": _spec(mean), "sigma": _spec(noise._replace(beta=noise.beta * unit))}


def _inq(file: ScheduleFile, played: dict[str, Array]) -> tuple[dict[str, Any], list[Fit]]:
    curves = played["freeze_fraction"]
    same = curves.min(1) == curves.max(1)
    fractions = np.maximum.accumulate(np.where(same, curves[:, 0], curves.mean(1)))  # a mean of equal ones is rounded
    fractions[-1] = 1.0  # all weights are frozen before deployment
    before = [0.0, *fractions[:-1]]
    steps = {str(t): float(f) for t, f in enumerate(fractions) if f != before[t]}
    fits = [
        _compare("freeze_fraction", layer.name, curve, fractions)
        for layer, curve in zip(file.layers, curves.T, strict=True)
    ]
    config = {"INQ": {"schedule": steps, "clear_optim_state_on_step": False}}
    return {"function": "layers_ste_inq_get_controllers", "kwargs": {"config": config}}, fits


_WRITERS: dict[str, Callable[[ScheduleFile, dict[str, Array]], tuple[dict[str, Any], Sequence[Fit]]]] = {
    "ana": _ana,
    "inq": _inq,
}


def _compare(control: str, layer: str, curve: Array, fitted: Array) -> Fit:
    off = curve - fitted
    return Fit(control, layer, float(np.sqrt(np.mean(off**2))), float(np.abs(off).max()))


def _spec(decay: Decay) -> dict[str, Any]:
    kwargs = {"tstart": decay.start, FUNCTIONS[decay.function][0]: decay.stop, "alpha": decay.alpha}
    return {"beta": decay.beta, "fun": decay.function, "kwargs": kwargs}


class _Found(NamedTuple):
    error: float
    decay: Decay
    window: tuple[int, int]


def _error(found: _Found) -> float:
    return found.error


def _search_power(curve: Array, function: str) -> _Found:
    own = _own_window(curve)
    likely = min((_candidate(curve, function, alpha, own) for alpha in range(max(_POWERS))), key=_error).decay.alpha
    best = min((_search_window(curve, function, alpha) for alpha in {*_POWERS, likely}), key=_error)
    while True:
        near = [best.decay.alpha + step for step in (-1, 1)]
        other = min((_search_window(curve, function, alpha) for alpha in near if alpha >= 0), key=_error)
        if other.error >= best.error:
            return best
        best = other


def _search_window(curve: Array, function: str, alpha: int) -> _Found:
    epochs, own = len(curve), _own_window(curve)
    grid = {round(epochs * i / _PARTS) for i in range(_PARTS + 1)}
    windows = [(start, end) for start in sorted({*grid, own[0]}) for end in sorted({*grid, own[1]}) if start < end]
    best = min((_candidate(curve, function, alpha, window) for window in windows), key=_error)
    step = max(epochs // _PARTS, 1)
    while True:
        near = [(best.window[0] + i * step, best.window[1] + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        inside = [window for window in near if 0 <= window[0] < window[1] <= epochs]
        other = min((_candidate(curve, function, alpha, window) for window in inside), key=_error)
        if other.error < best.error:
            best = other
        elif step == 1:
            return best
        else:
            step //= 2


def _own_window(curve: Array) -> tuple[int, int]:
    """From the last epoch with the first value to the first epoch with value 0: exact if the curve is a decay."""
    moved, gone = np.flatnonzero(curve != curve[0]), np.flatnonzero(curve == 0)
    start = int(moved[0]) - 1 if len(moved) else 0
    end = int(gone[0]) if len(gone) else len(curve)
    return start, max(end, start + 1)


def _candidate(curve: Array, function: str, alpha: int, window: tuple[int, int]) -> _Found:
    start, end = window
    stop = _stop(function, start, end, alpha, len(curve))
    shape = _SHAPES[function](np.arange(len(curve), dtype=np.float64), start, stop, alpha)
    square = shape @ shape
    # if the decay is exact, beta is the first value; the closed form equals it only up to rounding
    betas = (float(curve[0]), float(shape @ curve / square) if square else 0.0)
    error, beta = min((float(np.sum((curve - beta * shape) ** 2)), beta) for beta in betas)
    return _Found(error, Decay(beta, function, start, stop, alpha), window)


def _stop(function: str, start: int, end: int, alpha: int, epochs: int) -> float:
    """The parameter for which a decay is 0 from epoch ``end`` on: ``end``, or an eps between two of its values."""
    if function == "bws":
        return end
    if end == epochs or alpha == 0:
        return 0.0
    return ((1 / (end - start)) ** alpha + (1 / (end - start + 1)) ** alpha) / 2


def _cut(values: Array, below: float) -> Array:
    return np.where(values < below, 0.0, values)
