"""Reads the files of QuantLab: controllers of its ANA and INQ.

QuantLab sets the controls at the start of each epoch t = 0, 1, ... and keeps them for the epoch. ANA has a timer for
each group of modules, with a decay for the mean of the noise (``mi``) and one for its scale (``sigma``):

    value(t) = beta m(t)
    bws, bounded window      m = ((tend - t) / (tend - tstart))^alpha,    t clipped to [tstart, tend]
    uws, unbounded window    m = (1 / (t - tstart + 1))^alpha,            t at least tstart; 0 where m < eps

INQ has a fraction for each epoch at which it changes: ``{"5": 0.2, "15": 0.4}``.

The file is either an experiment of QuantLab, of which ``training.quantize`` and ``training.n_epochs`` are read, or only
the controller: the list ``ctrl_spec`` of ANA, or the epochs of INQ. Files are untrusted: they are read strictly, and
nothing in them is executed.

Source: pulp-platform/quantlib, ``algorithms/ana/controller.py`` and ``algorithms/inq/inq_ops.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from metasched.core.errors import MetaschedError, printable, unknown_name
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, join, parse, show

_FIX = "give an experiment of QuantLab with a controller of ANA or INQ"
_DEPTH = 16  # an experiment holds more than its controller
_OLDER = {"fnoise", "bnoise"}  # noise of the forward and the backward pass apart
_EPOCH = re.compile(r"0|[1-9][0-9]{0,8}")


class Decay(NamedTuple):
    """One decay of a timer; ``stop`` is tend of a bounded window or eps of an unbounded one."""

    beta: float
    function: str
    start: int
    stop: float
    alpha: int

    def at(self, epoch: int) -> float:
        """The value in an epoch."""
        return self.beta * FUNCTIONS[self.function][1](epoch, self.start, self.stop, self.alpha) + 0.0  # no -0


class Timer(NamedTuple):
    """The decays of the noise in a group of modules."""

    modules: tuple[str, ...]
    mean: Decay
    scale: Decay


class Controller(NamedTuple):
    """Content of a file: timers of ANA, or fractions of INQ by epoch; None for what the file does not contain."""

    timers: tuple[Timer, ...] | None
    fractions: dict[int, float] | None
    epochs: int | None
    noise: str | None
    place: str


def bws(epoch: int, start: int, stop: float, alpha: int) -> float:
    """Bounded window: 1 until ``start``, 0 from ``stop`` on; 1 throughout if alpha is 0.

    >>> [bws(t, 1, 3, 2) for t in range(5)]
    [1.0, 1.0, 0.25, 0.0, 0.0]
    """
    return float((stop - min(max(epoch, start), stop)) / (stop - start)) ** alpha


def uws(epoch: int, start: int, stop: float, alpha: int) -> float:
    """Unbounded window: 1 until ``start``, then (1 / (epoch - start + 1))^alpha; 0 where this is below ``stop``.

    >>> [uws(t, 1, 0.3, 1) for t in range(5)]
    [1.0, 1.0, 0.5, 0.3333333333333333, 0.0]
    """
    value = (1 / (max(epoch, start) - start + 1)) ** alpha
    return 0.0 if value < stop else value


FUNCTIONS: dict[str, tuple[str, Callable[[int, int, float, int], float]]] = {"bws": ("tend", bws), "uws": ("eps", uws)}


def activation_module(layer: str) -> str:
    """The name that stands for the activation of a layer among the modules of a timer, where its noise is its own."""
    return f"{layer}.activation"


def read_quantlab(path: str | os.PathLike[str]) -> Controller:
    """Reads the controller in a file.

    Raises:
        MetaschedError: the file cannot be read, is larger than 1 MiB, or does not have the form above.
    """
    where = printable(os.fspath(path))
    data = read_regular(path, MAX_BYTES, _FIX)
    try:
        tree = parse(data, _DEPTH)
        return _controller(tree)._replace(place=where)
    except MetaschedError as error:
        raise MetaschedError(f"{where}: {error.path}" if error.path else where, error.problem, error.fix) from None


def _controller(tree: Any) -> Controller:
    if isinstance(tree, list):
        return Controller(_timers(tree, ""), None, None, None, "")
    if not isinstance(tree, dict):
        raise MetaschedError("", "must be an object or an array", _FIX)
    if "training" not in tree:
        return Controller(None, _fractions(tree, ""), None, None, "")
    training = _member(tree, "training", "")
    kwargs = _member(_member(training, "quantize", "training"), "kwargs", "training.quantize")
    place = "training.quantize.kwargs"
    epochs = _integer(training["n_epochs"], "training.n_epochs", 1) if "n_epochs" in training else None
    if "ctrl_spec" in kwargs:
        noise = tree
        for key in ("network", "quantize", "kwargs", "noise_type"):
            noise = noise.get(key) if isinstance(noise, dict) else None
        timers = _timers(kwargs["ctrl_spec"], f"{place}.ctrl_spec")
        return Controller(timers, None, epochs, noise if isinstance(noise, str) else None, "")
    if isinstance(kwargs.get("config"), dict) and "INQ" in kwargs["config"]:
        inq = _member(kwargs["config"], "INQ", f"{place}.config")
        schedule = _member(inq, "schedule", f"{place}.config.INQ")
        return Controller(None, _fractions(schedule, f"{place}.config.INQ.schedule"), epochs, None, "")
    raise MetaschedError(place, "has neither ctrl_spec (of ANA) nor config.INQ (of INQ)", _FIX)


def _timers(specs: Any, place: str) -> tuple[Timer, ...]:
    if not isinstance(specs, list) or not specs:
        raise MetaschedError(place, f"must be an array of timers, got {show(specs)}", _FIX)
    timers, seen = [], set()
    for i, spec in enumerate(specs):
        where = join(place, i)
        if isinstance(spec, dict) and _OLDER & spec.keys():
            problem = "is in the older form of QuantLab's ANA controller, with fnoise and bnoise, which is not read"
            raise MetaschedError(where, problem, "write the noise of its forward pass as mi and sigma")
        _keys(spec, ("modules", "mi", "sigma"), where)
        modules = spec["modules"]
        if not isinstance(modules, list) or not modules or not all(isinstance(name, str) for name in modules):
            raise MetaschedError(f"{where}.modules", f"must be an array of names, got {show(modules)}", "name modules")
        if twice := seen & set(modules):
            raise MetaschedError(
                f"{where}.modules", f"{show(min(twice))} already has a timer", "remove it from one of the two"
            )
        seen.update(modules)
        mean, scale = _decay(spec["mi"], f"{where}.mi"), _decay(spec["sigma"], f"{where}.sigma")
        if scale.beta < 0:
            raise MetaschedError(
                f"{where}.sigma.beta", f"must be at least 0, got {scale.beta!r}", "it is the width of the noise"
            )
        timers.append(Timer(tuple(modules), mean, scale))
    return tuple(timers)


def _decay(spec: Any, place: str) -> Decay:
    _keys(spec, ("beta", "fun", "kwargs"), place)
    if not isinstance(spec["fun"], str) or spec["fun"] not in FUNCTIONS:
        raise unknown_name(f"{place}.fun", str(spec["fun"])[:60], FUNCTIONS)
    stop_name = FUNCTIONS[spec["fun"]][0]
    kwargs, inside = spec["kwargs"], f"{place}.kwargs"
    _keys(kwargs, ("tstart", stop_name, "alpha"), inside)
    start = _integer(kwargs["tstart"], f"{inside}.tstart", 0)
    if stop_name == "tend":
        stop = _integer(kwargs["tend"], f"{inside}.tend", start + 1)
    else:
        stop = _number(kwargs["eps"], f"{inside}.eps")
        if stop < 0:
            raise MetaschedError(f"{inside}.eps", f"must be at least 0, got {stop!r}", "correct it")
    alpha = _integer(kwargs["alpha"], f"{inside}.alpha", 0)
    return Decay(_number(spec["beta"], f"{place}.beta"), spec["fun"], start, stop, alpha)


def _fractions(spec: dict[str, Any], place: str) -> dict[int, float]:
    if not spec:
        raise MetaschedError(place, "has no epochs", _FIX)
    fractions = {}
    for key, value in spec.items():
        if not _EPOCH.fullmatch(key):
            raise MetaschedError(join(place, key), "must be an epoch, such as '5'", _FIX)
        fractions[int(key)] = _number(value, join(place, key))
        if not 0 <= fractions[int(key)] <= 1:
            raise MetaschedError(join(place, key), f"must be a share in [0, 1], got {value!r}", "correct it")
    before = 0.0
    for epoch in sorted(fractions):
        if fractions[epoch] < before:
            problem = f"must be at least {before!r}, the fraction of the epochs before, got {fractions[epoch]!r}"
            raise MetaschedError(
                join(place, str(epoch)), problem, "give increasing fractions: frozen weights stay frozen"
            )
        before = fractions[epoch]
    return fractions


def _member(tree: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    if not isinstance(tree.get(key), dict):
        raise MetaschedError(join(place, key), "must be an object" if key in tree else "missing", _FIX)
    return tree[key]


def _keys(tree: Any, keys: Sequence[str], place: str) -> None:
    if not isinstance(tree, dict):
        raise MetaschedError(place, f"must be an object, got {show(tree)}", _FIX)
    for key in tree:
        if key not in keys:
            raise unknown_name(place, key[:60], keys)
    for key in keys:
        if key not in tree:
            raise MetaschedError(join(place, key), "missing", "add it")


def _integer(value: Any, place: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise MetaschedError(place, f"must be an integer of at least {least}, got {show(value)}", "correct it")
    return value


def _number(value: Any, place: str) -> float:
    if type(value) not in (int, float):
        raise MetaschedError(place, f"must be a number, got {show(value)}", "correct it")
    return float(value)
