"""``calibrate``: a trained network is quantized unit by unit, in the order of execution, from unlabelled batches.

Each unit, a layer with the normalization and activation right after it or a block, gets its inputs from the network
whose earlier units are quantized already, and its targets from the float network.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_map

from metasched.calibration.batches import Batches, Call, checked, placed
from metasched.calibration.following import Followed, followed
from metasched.calibration.nearest import nearest
from metasched.calibration.parts import Part, parts_of
from metasched.calibration.shell import Shell
from metasched.calibration.table import ProcedureSpec, find_procedure, options_of
from metasched.calibration.unit import INNER, Rounded, Segment, Unit, first_tensor
from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.methods.config import MethodConfig
from metasched.methods.oriented import Oriented
from metasched.methods.ste import STE
from metasched.methods.table import STEConfig
from metasched.network.flow import Example
from metasched.network.operations import without_fused_layers
from metasched.network.quantize import quantize
from metasched.network.recipe import Recipe
from metasched.network.sites import copied, refuse_quantized

By = Literal["layer", "block"] | Sequence[str]
_SHARED = ("levels", "activation_levels", "granularity")  # parameters of the recipe's method that are read as they are


@dataclass(frozen=True)
class UnitReport:
    """What was done with a unit.

    Attributes:
        unit: name of the layer or block.
        layers: names of its quantized layers.
        nearest: relative squared error of its outputs with all weights on their nearest levels.
        error: the same as it is now.
        seconds: wall time.
        details: numbers of the procedure, means over the layers.
    """

    unit: str
    layers: tuple[str, ...]
    nearest: float
    error: float
    seconds: float
    details: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """How far a calibration is.

    Attributes:
        unit: name of the layer or block that is worked on, or has just been done.
        done: units that are done.
        total: all units.
        seconds: since the start.
        left: seconds to go, if all units take the same time; None before anything is known.
        report: of the unit, if it has just been done.
    """

    unit: str
    done: int
    total: int
    seconds: float
    left: float | None
    report: UnitReport | None = None


def calibrate(
    model: nn.Module,
    recipe: Recipe | MethodConfig | str,
    batches: Batches,
    method: str = "adaround",
    *,
    by: By = "layer",
    progress: Callable[[Progress], object] | None = None,
    **options: Any,
) -> nn.Module:
    """The trained network with quantized weights and activations, in eval mode; the given one stays as it is.

    The result is a module like those of ``prepare``: ``metasched.convert`` makes a plain one of it, which
    ``metasched.deploy`` takes. Scales of activations are fitted, layer by layer, to what reaches them.

    >>> import metasched
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> recipe = metasched.Recipe("ste", weights="int2", activations=None, granularity="channel")
    >>> found = metasched.calibrate(model, recipe, [torch.randn(16, 4)], steps=20)
    >>> [len(row.unique()) <= 4 for row in metasched.convert(found)[0].weight][:3]
    [True, True, True]

    Args:
        model: a trained network; it is run in eval mode.
        recipe: its levels, granularity and rules say what is quantized; which method it names plays no part. A scale
            ``unit`` or ``learned`` of weights is one of least squares here, and an activation scale of 1 is fitted.
        batches: inputs [N, ...] of the training data, or mappings of keyword arguments; a few hundred examples.
        method: procedure: ``nearest``, ``adaround``, ``bit_split``, ``bit_split_weights`` or ``multipoint``.
        by: ``layer``; ``block``, with residual blocks as units where there are some; or names of modules, each a unit.
        progress: is called often, see there.
        options: of the procedure, see ``metasched list``.

    Raises:
        MetaschedError: what does not fit, with the batch, layer or option that it is about.
    """
    spec = find_procedure(method)
    settings = options_of(spec, options)
    walk = _Walk(model, recipe, batches, spec, by)
    start = time.perf_counter()
    total = len(walk.parts)

    def tell(name: str, done: int, share: float, report: UnitReport | None = None) -> None:
        seconds = time.perf_counter() - start
        left = seconds * (total - done - share) / (done + share) if done + share > 0 else None
        if progress is not None:
            progress(Progress(name, done, total, seconds, left, report))

    for k, part in enumerate(walk.parts):
        began = time.perf_counter()
        tell(part.name, k, 0.0)
        unit = walk.unit(part, lambda share, k=k, name=part.name: tell(name, k, share))
        rounded = spec.builder(unit, settings)
        walk.settle(part, rounded)
        report = _report(unit, rounded, time.perf_counter() - began)
        tell(part.name, k + 1, 0.0, report)
    return walk.shell.module


def units(
    model: nn.Module, recipe: Recipe | MethodConfig | str, batches: Batches, *, by: By = "layer"
) -> Iterator[Unit]:
    """The units one after the other, each with the layers before it on their nearest levels; see ``calibrate``.

    For experiments with one unit, such as learning the schedule of its rounding.
    """
    walk = _Walk(model, recipe, batches, find_procedure("nearest"), by)
    for part in walk.parts:
        yield (unit := walk.unit(part, lambda share: None))
        walk.settle(part, nearest(unit))


class _Walk:
    """The float network, the shell of the quantized one, and the parts in their order."""

    def __init__(
        self, model: nn.Module, recipe: Recipe | MethodConfig | str, batches: Batches, spec: ProcedureSpec, by: By
    ) -> None:
        refuse_quantized(model)
        self.reference = copied(model).eval()
        calls = checked(batches)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.calls = placed(calls, like)
        seen = _first_pass(self.reference, self.calls[0])
        network = quantize(model, _plain(recipe, spec), _example(self.calls[0]))
        if network.floats:
            warnings.warn(f"model: stay in float: {'; '.join(network.floats)}", MetaschedWarning, stacklevel=4)
        self.layers = network.layers
        self.methods = tuple(_of_weights(network.method_of(i), spec) for i in range(len(self.layers)))
        for layer, own in zip(self.layers, self.methods, strict=True):
            if spec.balanced and not _is_balanced(own.quantizer.levels.levels):
                problem = f"takes ternary or balancedB levels, and the layer has {_shown(own.quantizer.levels.levels)}"
                raise MetaschedError(f"model.{layer.name}", f"{spec.name} {problem}", "set weights='balanced4'")
        self.parts = parts_of(self.layers, seen, self.reference, by, blocks=spec.blocks)
        self.tails = seen.tails
        self.shell = Shell(network, _example(self.calls[0]))

    def unit(self, part: Part, tick: Callable[[float], None]) -> Unit:
        """A part with its inputs and targets, as the network is now.

        Raises:
            MetaschedError: the float network puts out numbers that are not finite there.
        """
        inner = self.reference.get_submodule(part.name)
        layers = tuple(replace(self.layers[i], quantizes="weight", key=f"{INNER}.{key}") for i, key in part.layers)
        tail, modules = self.tails[part.name], dict(self.reference.named_modules())
        norm = modules[tail.norm] if tail.norm else None
        after = modules[tail.activation] if isinstance(tail.activation, str) else tail.activation
        segment = Segment(inner, norm, after, [key for _, key in part.layers])
        calls = inputs_of(self.shell.module, part.name, self.calls)
        raw = [y for _, y in _runs(self.reference, part.name, self.calls)]
        with torch.no_grad():
            targets = [segment.after(y.clone()) for y in raw]
        if not all(bool(t.isfinite().all()) for t in targets):
            problem = "puts out numbers that are not finite in the float network"
            raise MetaschedError(f"model.{part.name}", problem, "check the network and the batches")
        methods = tuple(self.methods[i] for i, _ in part.layers)
        return Unit(part.name, segment, layers, methods, calls, raw, targets, seed=0, tick=tick)

    def settle(self, part: Part, rounded: Sequence[Rounded]) -> None:
        """Puts the layers of a part into the network, and fits the scales of their activations."""
        for (i, _), own in zip(part.layers, rounded, strict=True):
            self.shell.put(i, own)
        for i, _ in part.layers:
            self.shell.fit_activation(i, self.calls)


def inputs_of(module: nn.Module, name: str, calls: Sequence[Call]) -> list[Call]:
    """The arguments of a submodule in passes of a module, one entry for each of its calls."""
    return [given for given, _ in _runs(module, name, calls)]


@torch.no_grad()
def _runs(module: nn.Module, name: str, calls: Sequence[Call]) -> list[tuple[Call, torch.Tensor]]:
    """Arguments and first output tensor of each call of a submodule; copies, as later functions may write to them."""
    found: list[tuple[Call, torch.Tensor]] = []
    waiting: list[Call] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        waiting.append(tree_map(_copied, (args, kwargs)))

    def leave(_: nn.Module, inputs: Any, output: Any) -> None:
        found.append((waiting.pop(), first_tensor(output).detach().clone()))

    inner = module.get_submodule(name)
    hooks = (inner.register_forward_pre_hook(enter, with_kwargs=True), inner.register_forward_hook(leave))
    try:
        with without_fused_layers():
            for args, kwargs in calls:
                module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _first_pass(model: nn.Module, call: Call) -> Followed:
    """Follows a pass of the float network.

    Raises:
        MetaschedError: it does not take the batch.
    """
    args, kwargs = call
    try:
        with without_fused_layers():
            return followed(model, lambda module: module(*args, **kwargs))
    except MetaschedError:
        raise
    except Exception as error:  # whatever the code of a model raises
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise MetaschedError(
            "calibrate: batch 0", f"the network does not take it ({said})", "give its inputs"
        ) from error


def _example(call: Call) -> Example:
    args, kwargs = call
    return lambda module: module(*args, **kwargs)


def _plain(recipe: Recipe | MethodConfig | str, spec: ProcedureSpec) -> Recipe:
    """The recipe with ``ste`` for its method: hard weights and activations, with scales that fit.

    Raises:
        MetaschedError: its method is built already.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    config = recipe.method
    if not isinstance(config, MethodConfig):
        raise MetaschedError("recipe", "has a method that is built already", "give it a MethodConfig")
    own = {name: getattr(config, name) for name in _SHARED}
    if spec.channels:
        own["granularity"] = "channel"
    scale = "least_squares" if config.scale in ("unit", "learned") else config.scale
    activation = "learned" if config.activation_scale == 1 else config.activation_scale
    plain = STEConfig(**own, scale=scale, activation_scale=activation)
    return Recipe(plain, recipe.rules, recipe.first, recipe.last)


def _of_weights(method: Any, spec: ProcedureSpec) -> Any:
    """The method of a layer, with a fixed scale of the weight."""
    if isinstance(method, Oriented):
        return Oriented(_of_weights(method.base, spec), method.groups)
    quantizer = method.quantizer
    scale = "least_squares" if quantizer.scale in ("unit", "learned") else quantizer.scale
    granularity = "channel" if spec.channels else quantizer.granularity
    return STE(replace(quantizer, scale=scale, granularity=granularity))


def _is_balanced(levels: tuple[float, ...]) -> bool:
    top = int(levels[-1])
    return levels == tuple(float(q) for q in range(-top, top + 1)) and (top + 1) & top == 0


def _shown(levels: tuple[float, ...]) -> str:
    return f"{len(levels)} of them from {levels[0]:g} to {levels[-1]:g}"


def _report(unit: Unit, rounded: Sequence[Rounded], seconds: float) -> UnitReport:
    plain = unit.error(r.weight for r in nearest(unit))
    error = unit.error(r.weight for r in rounded)
    names = {name for r in rounded for name in r.details}
    details = {name: sum(r.details[name] for r in rounded) / len(rounded) for name in sorted(names)}
    return UnitReport(unit.name, tuple(layer.name for layer in unit.layers), plain, error, seconds, details)
