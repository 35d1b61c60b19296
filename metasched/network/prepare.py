"""``prepare``: any model and a method become an ordinary module that trains quantized, and the player of a schedule."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.exchange.format import ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.player import SchedulePlayer, load
from metasched.methods.base import Method
from metasched.methods.config import MethodConfig
from metasched.methods.spec import draws_weights
from metasched.network.fitting import fitted
from metasched.network.flow import Example
from metasched.network.hosting import Quantizer, Running, host
from metasched.network.playing import Player
from metasched.network.quantize import quantize
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recipe import Recipe
from metasched.network.sites import recompute_by
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.curves import HandCoded
from metasched.schedules.feedback import is_closed_loop, open_loop
from metasched.schedules.table import completed
from metasched.training.feedback import controller_of

Model = TypeVar("Model", bound=nn.Module)


def prepare(
    model: Model,
    recipe: Recipe | Method | MethodConfig | str,
    example: Example,
    schedule: str | os.PathLike[str] | ScheduleFile | Schedule | None = None,
    total_steps: int = 1,
    seed: int = 0,
    *,
    rate: float | None = None,
    batches_per_epoch: float | None = None,
    pretrained: bool | None = None,
) -> tuple[Model, Player]:
    """A copy of a model that trains quantized, and what plays a schedule on it.

    The copy is called like the model. It has the model's class, its parameters under their names, and in each quantized
    layer a submodule ``weight_quantizer`` with the method's state. In training mode it computes what the method
    computes under the schedule; in eval mode it is the hard network.

    >>> import metasched
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> inq = metasched.MethodConfig(name="inq")
    >>> module, player = prepare(model, inq, torch.zeros(1, 4), "inq_linear", total_steps=3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> for _ in range(3):
    ...     loss = module(torch.ones(3, 4)).square().mean() + player.penalty()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     player.step()
    >>> len(module.eval()[0].weight.unique()) <= 3
    True

    Args:
        model: any module that ``quantize`` takes; it stays as it is.
        recipe: what quantizes it, and which layers; a method, or its name, is a recipe without rules. Layers keep their
            weights, with scales that fit them, unless the recipe says ``redraw``.
        example: a batch, as for ``quantize``; learned scales of activations start at it.
        schedule: a name or path as for ``load``, a file that was read, or any schedule; None: no schedule, each control
            has the value that means this.
        total_steps: length of the run in steps of the optimizer.
        seed: of the method's random numbers.
        rate, batches_per_epoch, pretrained: of the task, for a file whose form depends on them; see ``SchedulePlayer``.
            Where the recipe says ``redraw``, training does not start from a pretrained network.

    Raises:
        MetaschedError: as ``quantize``; the schedule is not known or lacks a control of the method; or there is none,
            and the method needs one.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    network = quantize(model, recipe, example)
    about = {"rate": rate, "batches_per_epoch": batches_per_epoch}
    about |= {"pretrained": False if pretrained is None and recipe.redraw else pretrained}
    values = _played(schedule, network, total_steps, about)
    plays = values.schedule
    _say(network, plays, redraw=recipe.redraw)
    if norms := [name for name, m in network.module.named_modules() if isinstance(m, _NormBase) and not m.training]:
        what = "in eval mode, and stays there until train() is called, as in the model itself"
        warnings.warn(
            f"model: {', '.join(norms)}: {what}: call eval() of it after that", MetaschedWarning, stacklevel=2
        )
    player = Player(
        module := with_quantizers(network, example, seed),
        network,
        values,
        seed,
        moves=_moves(plays, network),
        controller=controller_of(network, next(iter(values.at(0).values())), total_steps),
    )
    if zero := player.zero_layers:
        what = "all weights are 0; their scales follow them until some are frozen"
        warnings.warn(f"model: {', '.join(zero)}: {what}", MetaschedWarning, stacklevel=2)
    return module, player  # pyright: ignore[reportReturnType]


def _played(
    given: str | os.PathLike[str] | ScheduleFile | Schedule | None,
    network: QuantizedNetwork,
    total_steps: int,
    about: Mapping[str, Any],
) -> SchedulePlayer:
    """The values of a run, of which ``about`` says what its schedule may know."""
    controls = network.method.controls
    schedule: Schedule | None
    if given is None:
        schedule = completed(HandCoded("floor", "", "no schedule: the controls do not move", {}, "previous"), controls)
        if schedule is None:
            without = ", ".join(c.name for c in controls if c.none_value is None)
            problem = f"is not given, and {without} has no value that means no schedule"
            raise MetaschedError("schedule", problem, "name one of `metasched list`, or give a file")
    elif isinstance(given, str | os.PathLike):
        schedule = load(given)
    else:
        schedule = PlayedSchedule(given) if isinstance(given, ScheduleFile) else given
    if not callable(schedule):
        problem = f"is a {type(schedule).__name__}"
        raise MetaschedError("schedule", problem, "give a name of `metasched list`, a path, a file or a schedule")
    if isinstance(schedule, HandCoded):
        schedule = completed(schedule, controls) or schedule
    player = SchedulePlayer(schedule, total_steps, network.layers, **about, closed_loop=True)
    set_by_it = player.at(0)[network.layers[0].name]
    for control in controls:
        if control.name not in set_by_it:
            has = f"; it has {', '.join(set_by_it)}" if set_by_it else ""
            problem = f"lacks {control.name}, which the method reads{has}"
            raise MetaschedError("schedule", problem, "give one of the same method")
    return player


def _moves(schedule: Schedule, network: QuantizedNetwork) -> bool:
    """Whether the values of a schedule change over a run."""
    with torch.no_grad():
        values = schedule(progress_of_steps(9), network.layers)
    return any(bool((column != column[:1]).any()) for column in open_loop(values).values()) or is_closed_loop(values)


def with_quantizers(network: QuantizedNetwork, example: Example, seed: int) -> nn.Module:
    """The network's module, with a quantizer in each layer."""
    module = network.module
    own = {name: p.detach().clone() for name, p in module.named_parameters()}
    kept = {layer.name for layer in network.layers if not module.get_parameter(layer.weight_key).requires_grad}
    params, state = network.initialize(own, network.neutral(), seed, kept)
    by_activation: dict[str, torch.Tensor] = {}
    if network.fits_activations:
        found, fits = fitted(network, own, example, seed, kept, "prepare")
        by_activation = {**found, **fits}
        params, state = params | found, state | fits
    quantizers = []
    for i, layer in enumerate(network.layers):
        owner_name, _, key = layer.weight_key.rpartition(".")
        owner = module.get_submodule(owner_name)
        with torch.no_grad():
            weight = owner.get_parameter(key)
            weight.copy_(params[layer.weight_key])
        prefix = f"{layer.name}/"
        states, trainable, fits = (
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.rpartition("/")[0] == layer.name}
            for tensors in (state, network.trainable(params), by_activation)
        )
        quantizer = Quantizer(network.method_of(i), layer, i, seed, states, trainable, tuple(fits))
        quantizer.train(owner.training)
        quantizers.append(quantizer)
        hosts = [(m, own) for m in module.modules() for own, p in m._parameters.items() if p is weight]
        for m, own in hosts:  # several where layers are tied
            host(m, own, quantizer)
    recompute_by(module, Running(quantizers))  # pyright: ignore[reportArgumentType]
    return module


def _say(network: QuantizedNetwork, schedule: Schedule, *, redraw: bool) -> None:
    """One line for each thing that is not as one might think."""
    if not redraw and isinstance(schedule, PlayedSchedule) and draws_weights(schedule.method):
        what = "was learned from scratch, with weights that its method draws; this network keeps its weights"
        warnings.warn(f"schedule: {what}: compare it with no schedule, or redraw them", MetaschedWarning, stacklevel=3)
    if network.floats:
        warnings.warn(f"model: stay in float: {'; '.join(network.floats)}", MetaschedWarning, stacklevel=3)
