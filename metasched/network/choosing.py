"""Which tensors of a model are quantized, and why the others are not: the recipe's rules on what the example ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.base import Method
from metasched.methods.oriented import oriented, rows_first
from metasched.network.choice import Choice, Rules
from metasched.network.flow import Example, Flow, Use, run_example
from metasched.network.kinds import ActivationKind, weight_kind
from metasched.network.operations import operations
from metasched.network.recipe import Recipe
from metasched.network.redirecting import Key, Redirecting, Site
from metasched.network.sites import ActivationSite, compute, copied, refuse_quantized
from metasched.network.tracing import flow_of
from metasched.network.weights import Excuse, Tensor, Weights


class Chosen(NamedTuple):
    """A copy of a model with its sites; its L layers, their methods (empty: the recipe's), and all tensors."""

    module: nn.Module
    layers: tuple[Layer, ...]
    methods: tuple[Method, ...]
    tensors: tuple[Tensor, ...]


def choose(model: nn.Module, recipe: Recipe, example: Example) -> Chosen:
    """A copy of a model with its sites, and its L quantized layers in the order in which a pass runs them.

    Chosen are all layers that the table of kinds has and a forward pass of ``example`` runs. An activation belongs to
    the layer whose output it gets, if that layer has none yet; of several layers (a sum of two branches) to the one
    that ran last. Outputs of the network and gates stay in float.

    Args and errors are those of ``quantize``; a tensor as example is [N, ...].
    """
    refuse_quantized(model)
    module = copied(model)
    _functions_as_modules(module)
    modes = {name: m.training for name, m in module.named_modules()}
    flow = flow_of(module, example)
    rules = Rules(recipe, module)
    weights = Weights(module, flow, rules, recipe)
    uses = {
        unit: rules.about(flow.name(unit), unit.what if unit.module else unit.caller, flow.kinds[unit].name)
        for unit in flow.ran
        if isinstance(unit, Use)
    }
    rules.refuse_unused()
    if not weights.chosen:
        has = ", ".join(str(t) for t in weights.floats if t.excuse in ("", "rule"))
        problem = f"the model has no layer left to quantize{f' (in float: {has})' if has else ''}"
        ends = any(t.excuse == "end" for t in weights.floats)
        other = "give one whose layers can be quantized, or change the rules"
        fix = "set quantize.last or first: true" if ends else other
        if recipe.build().tables:
            problem, fix = (
                "the model has no table of embeddings left to quantize",
                "take one that has, or another method",
            )
        raise MetaschedError("quantize", problem, fix)
    if "" in weights.chosen:
        raise MetaschedError("model", "is a single layer", "wrap it: torch.nn.Sequential(layer)")
    base = recipe.build()
    methods = [m for m in rules.methods([weights.about[name] for name in weights.chosen])] or [base] * len(
        weights.chosen
    )
    overrides = [weights.about[name].overrides for name in weights.chosen]
    sites, tensors = _activations(flow, weights, uses, methods, overrides, recipe)
    for i, name in enumerate(weights.chosen):
        if weights.about[name].channel_bits:
            owner, key = weights.place[name]
            channels = len(rows_first(owner.get_parameter(key), weights.groups(name)))
            methods[i] = rules.by_channel(weights.about[name], overrides[i], channels)
    followed = {site.layer for site in sites.values()}
    layers = []
    for i, (name, method) in enumerate(zip(weights.chosen, methods, strict=True)):
        owner, key = weights.place[name]
        w, groups, row = owner.get_parameter(key), weights.groups(name), weight_kind(owner)
        assert row is not None
        if reason := method.refusal(rows_first(w, groups).shape):
            problem, _, fix = reason.partition("; ")
            raise MetaschedError(f"model.{name}", problem, fix)
        layers.append(
            Layer(
                name=name,
                depth=i / (len(methods) - 1) if len(methods) > 1 else 0.0,
                kind=row.kind,
                quantizes="weight+activation" if i in followed else "weight",
                fan_in=rows_first(w, groups)[0].numel() if row.sums else 1,
                num_weights=w.numel(),
                bits=method.bits_of(rows_first(w, groups).shape),
                key="" if weights.key[name] == f"{name}.weight" else weights.key[name],
            )
        )
    methods = _of_costs(methods, module, example, [layer.weight_key for layer in layers])
    methods = [oriented(m, weights.groups(name)) for m, name in zip(methods, weights.chosen, strict=True)]
    _install(module, flow, sites)
    _restore(module, model, modes)
    uniform = all(method == base for method in methods)
    return Chosen(module, tuple(layers), () if uniform else tuple(methods), (*weights.tensors, *tensors))


def _of_costs(methods: list[Method], module: nn.Module, example: Example, weights: list[str]) -> list[Method]:
    """The methods, told what their layers cost if they ask; ``weights`` are names of the layers' weights."""
    if all(type(method).of_cost is Method.of_cost for method in methods):
        return methods
    counts = operations(module.eval(), lambda plain: run_example(plain, example))
    macs = [counts[name] or module.get_parameter(name).numel() for name in weights]
    return [method.of_cost(count / max(macs)) for method, count in zip(methods, macs, strict=True)]


def _activations(
    flow: Flow,
    weights: Weights,
    about: dict[Use, Choice],
    methods: list[Method],
    overrides: list[Mapping[str, Any]],
    recipe: Recipe,
) -> tuple[dict[Use, Site], list[Tensor]]:
    """The sites of activations, and all activations.

    Rules about an activation change the method of its layer, and its overrides.
    """
    sites: dict[Use, Site] = {}
    tensors: list[Tensor] = []
    asked = any(method.quantizes == "weight+activation" for method in methods)
    taken: dict[int, Use] = {}
    current: str | None = None
    order = {unit: i for i, unit in enumerate(flow.ran)}
    last = max((i for unit, i in order.items() if isinstance(unit, str)), default=-1)
    for unit in flow.ran:
        if isinstance(unit, str):
            current = unit
            continue
        kind, choice = flow.kinds[unit], about[unit]
        row = Tensor(flow.name(unit), "activation", kind.name)
        feeding = [s for s in flow.sources[unit] if isinstance(s, str)]
        free = [s for s in feeding if weights.index.get(s) not in taken]
        owner = max(free or feeding, key=lambda s: order.get(s, -1)) if feeding else None
        owner = current if not flow.sources[unit] else owner
        layer = None if owner is None else weights.index.get(owner)
        why, excuse = _why_float(flow, unit, kind, choice, later=order[unit] < last)
        if excuse != "rule" and not asked:
            why, excuse = "the method quantizes weights only", "end"
        if not why and owner is not None and layer is None:
            why, excuse = f"its layer {owner} stays in float", "end"
        if not why and layer is None:
            why = "does not follow a layer" if not flow.sources[unit] else "is the second activation of its layer"
        if not why and layer in taken and not _same(taken[layer], unit):
            why = "is the second activation of its layer"
        if not why:
            assert layer is not None
            own = {name: value for name, value in choice.overrides.items() if name.startswith("activation")}
            with_weight = {**weights.about[weights.chosen[layer]].overrides, **own}
            method = recipe.build(with_weight, choice.where) if own else methods[layer]
            why, excuse, keep = _fit(kind, choice, method, recipe)
            if not why:
                methods[layer], overrides[layer] = method, with_weight
                taken.setdefault(layer, unit)
                sites[unit] = Site(layer, keep, unit in flow.reused)
                tensors.append(replace(row, layer=layer, keeps=keep))
                continue
        tensors.append(replace(row, why=why, excuse=excuse))
    for name in flow.functions:
        where, _, what = name.rpartition(" (")
        if asked:
            tensors.append(Tensor(where, "activation", what.rstrip(")"), None, "is of a kind that is not quantized"))
    return sites, tensors


def _same(one: Use, other: Use) -> bool:
    """Whether two calls are of one module or function in one forward: those of a loop over a layer."""
    return one[:3] == other[:3]


def _why_float(flow: Flow, unit: Use, kind: ActivationKind, choice: Choice, *, later: bool) -> tuple[str, Excuse]:
    """Why an activation stays in float, whatever its layer; empty if it does not."""
    if choice.quantize is False or choice.activation == "float":
        return choice.why or "a rule says so", "rule"
    if choice.quantize:
        return "", ""
    if unit not in flow.feeds and not (flow.lost and later):
        return "is the output of the network", ""
    if unit in flow.gates and kind.default:
        return "is a gate", ""
    if not kind.default:
        return "is quantized by a rule only", "default"
    return "", ""


def _fit(kind: ActivationKind, choice: Choice, method: Method, recipe: Recipe) -> tuple[str, Excuse, bool]:
    """Why an activation stays in float under a method, who says so, and else whether its function is kept."""
    if method.quantizes != "weight+activation":
        return "the method quantizes weights only", "end", False
    levels = getattr(getattr(method, "quantizer", None), "activation_levels", None)
    negative = levels is None or levels.levels[0] < 0
    if choice.activation is not None:
        return "", "", choice.activation == "keep"
    keep = not kind.replaced or (not recipe.redraw and (negative or kind.name != "ReLU"))
    if keep and kind.signed and not negative and not choice.quantize:
        return "puts out negative numbers, and its levels have none", "", False
    return "", "", keep


def _install(module: nn.Module, flow: Flow, sites: dict[Use, Site]) -> None:
    """Puts the sites into a module."""
    uses: dict[tuple[str, bool], list[Use]] = {}
    for use in flow.kinds:
        uses.setdefault((use.what, use.module), []).append(use)
    told: dict[Key, tuple[Site, ...]] = {}
    several: dict[str, Site] = {}
    for (what, is_module), alike in uses.items():
        chosen = [sites[use] for use in alike if use in sites]
        if not chosen:
            continue
        if is_module and len(alike) == 1:
            ActivationSite.replace(module.get_submodule(what), chosen[0])
            continue
        if is_module:
            several[what] = chosen[0]
        by_caller: dict[str, list[Use]] = {}
        for use in alike:
            by_caller.setdefault(use.caller, []).append(use)
        for caller, calls in by_caller.items():
            if is_module or any(use in sites for use in calls):
                found = (sites.get(use, Site(None)) for use in sorted(calls, key=lambda use: use.index))
                told[caller, what if is_module else f"{what}()"] = tuple(found)
    if told:
        redirecting = Redirecting(told, compute, flow.inputs)
        redirecting.watch(
            module, {name for name, m in module.named_modules() if isinstance(m, ActivationSite)} | {*several}
        )
        for name, site in several.items():
            ActivationSite.replace(module.get_submodule(name), site, name, redirecting)
        if redirecting.catches:
            for m in module.modules():
                if isinstance(m, ActivationSite):
                    m.redirecting = m.redirecting or redirecting
    _no_fused_path(module, {caller for caller, _ in told})


def _functions_as_modules(module: nn.Module) -> None:
    """Gives torch's transformer layers, which torch.fx cannot trace, modules for their activation functions."""
    for m in module.modules():
        if isinstance(m, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            made = {nn.functional.relu: nn.ReLU, torch.relu: nn.ReLU, nn.functional.gelu: nn.GELU}.get(m.activation)
            if made is not None:
                del m.activation
                m.activation = made()
            if isinstance(m, nn.TransformerDecoderLayer):  # a copy of which is a ReLU where its attributes have none
                m.__dict__["activation"] = m.activation


def _no_fused_path(module: nn.Module, callers: set[str]) -> None:
    """Torch's fused transformer layers, used in eval mode, would go around the sites in them."""
    fused = nn.TransformerEncoderLayer, nn.TransformerEncoder
    for name, m in module.named_modules():
        if not isinstance(m, fused):
            continue
        within = [f"{name}.{inner}".strip(".") for inner, _ in m.named_modules()]
        if not callers.isdisjoint(within) or any(isinstance(inner, ActivationSite) for inner in m.modules()):
            if isinstance(m, nn.TransformerEncoder):
                m.use_nested_tensor = False
            else:
                m.activation_relu_or_gelu = 0


def _restore(module: nn.Module, model: nn.Module, modes: dict[str, bool]) -> None:
    """Training mode; what the user has put into eval mode, such as a frozen batch normalization, stays there."""
    module.train()
    if model.training:
        for name, m in module.named_modules():
            m.training = modes[name]
