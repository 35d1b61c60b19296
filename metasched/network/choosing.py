"""Which tensors of a model are quantized, and why the others are not: the recipe's rules on what the example ran."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.methods.base import Method
from metasched.methods.oriented import oriented, rows_first
from metasched.network.choice import Choice, Rules
from metasched.network.flow import Example, Flow, Use, flow_of, layer_name
from metasched.network.kinds import ActivationKind, WeightKind, weight_kind, weights_of
from metasched.network.recipe import Recipe
from metasched.network.redirecting import Key, Redirecting, Site
from metasched.network.sites import ActivationSite, compute, copied, refuse_quantized

OWN = "its own parameters are not quantized"  # of modules around others: position embeddings, layer scales
Excuse = Literal["", "rule", "end", "default"]


@dataclass(frozen=True)
class Tensor:
    """A tensor that could be quantized.

    Attributes:
        name: of its site, as rules name it.
        what: ``weight`` or ``activation``.
        type: class of its module, or name of its function.
        layer: index of the layer that quantizes it; None: it stays in float.
        why: why it stays in float.
        excuse: who wants it so: a rule; first and last; a default of the package; empty: nobody.
        parameter: name of a weight among the parameters.
        keeps: whether an activation function is computed before the quantizer.
    """

    name: str
    what: Literal["weight", "activation"]
    type: str
    layer: int | None = None
    why: str = ""
    excuse: Excuse = ""
    parameter: str = ""
    keeps: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.type}): {self.why}"


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
    modes = {name: m.training for name, m in module.named_modules()}
    flow = flow_of(module, example)
    rules = Rules(recipe, module)
    weights = _Weights(module, flow, rules, recipe)
    uses = {
        unit: rules.about(flow.name(unit), unit.what if unit.module else unit.caller, flow.kinds[unit].name)
        for unit in flow.ran
        if isinstance(unit, Use)
    }
    rules.refuse_unused()
    if not weights.chosen:
        has = ", ".join(str(t) for t in weights.floats if t.excuse in ("", "rule"))
        problem = f"the model has no layer left to quantize{f' (in float: {has})' if has else ''}"
        raise MetaschedError("quantize", problem, "set quantize.last or first: true")
    if "" in weights.chosen:
        raise MetaschedError("model", "is a single layer", "wrap it: torch.nn.Sequential(layer)")
    base = recipe.build()
    methods = [m for m in rules.methods([weights.about[name] for name in weights.chosen])] or [base] * len(
        weights.chosen
    )
    sites, tensors = _activations(flow, weights, uses, methods, recipe)
    followed = {site.layer for site in sites.values()}
    layers = []
    for i, (name, method) in enumerate(zip(weights.chosen, methods, strict=True)):
        owner, key = weights.place[name]
        w, groups, row = owner.get_parameter(key), weights.groups(name), weight_kind(owner)
        assert row is not None
        layers.append(
            Layer(
                name=name,
                depth=i / (len(methods) - 1) if len(methods) > 1 else 0.0,
                kind=row.kind,
                quantizes="weight+activation" if i in followed else "weight",
                fan_in=rows_first(w, groups)[0].numel() if row.sums else 1,
                num_weights=w.numel(),
                bits=method.bits,
                key="" if weights.key[name] == f"{name}.weight" else weights.key[name],
            )
        )
    methods = [oriented(m, weights.groups(name)) for m, name in zip(methods, weights.chosen, strict=True)]
    _install(module, flow, sites)
    _restore(module, model, modes)
    uniform = all(method == base for method in methods)
    return Chosen(module, tuple(layers), () if uniform else tuple(methods), (*weights.tensors, *tensors))


class _Weights:
    """The layers of a model.

    Attributes:
        chosen: names of those that are quantized, in the order of the pass; tied ones once.
        index: name of a layer -> index of the quantized layer whose weight it uses.
        place: name -> its module, and the name of its weight there.
        key: name -> name of its weight among the parameters.
        about: name -> what the rules say.
        tensors: all weights.
    """

    def __init__(self, module: nn.Module, flow: Flow, rules: Rules, recipe: Recipe) -> None:
        names = {id(p): name for name, p in module.named_parameters()}
        ran = [unit for unit in flow.ran if isinstance(unit, str)]
        self.place = {n: (module.get_submodule(flow.layers[n][0]), flow.layers[n][1]) for n in ran}
        self.about = {n: rules.about(n, flow.layers[n][0]) for n in ran}
        defaults = [n for n in ran if self._row(n).default]
        ends = {n: "is the first layer" for n in defaults[: 0 if recipe.first else 1]}
        ends |= {} if recipe.last else {n: "is the last layer" for n in defaults[-1:]}
        wishes = {n: self._wish(n, ends) for n in ran}
        users: dict[int, list[str]] = {}
        for n in ran:
            if (p := self._parameter(n)) is not None:
                users.setdefault(id(p), []).append(n)
        self.key = {n: names[p] for p, alike in users.items() for n in alike}
        self.chosen: list[str] = []
        self.index: dict[str, int] = {}
        self.tensors: list[Tensor] = []
        for n in ran:
            alike = users.get(id(self._parameter(n)), [n])
            wished, _, _ = wishes[n]
            if any(wishes[other][0] for other in alike):
                self._refuse_shared(module, alike, wishes)
                if alike[0] == n:
                    main = next(other for other in alike if wishes[other][0])
                    self.index |= dict.fromkeys(alike, len(self.chosen))
                    self.chosen.append(main)
            elif len(alike) > 1 and wished is None and (no := next((o for o in alike if wishes[o][0] is False), None)):
                wishes[n] = None, f"shares its weight with {no}, which {wishes[no][1]}", wishes[no][2]
        for n in ran:
            _, why, excuse = wishes[n]
            parameter = self.key.get(n, "")
            row = Tensor(n, "weight", type(self.place[n][0]).__name__, parameter=parameter)
            quantized = n in self.index
            self.tensors.append(
                replace(row, layer=self.index[n]) if quantized else replace(row, why=why, excuse=excuse)
            )
        self.tensors.extend(_other_weights(module, flow, rules, {*self.key.values()}))

    @property
    def floats(self) -> list[Tensor]:
        return [t for t in self.tensors if t.layer is None]

    def groups(self, name: str) -> int:
        """How its weight lies; see ``WeightKind.groups``."""
        return self._row(name).groups(self.place[name][0])

    def _row(self, name: str) -> WeightKind:
        row = weight_kind(self.place[name][0])
        assert row is not None
        return row

    def _parameter(self, name: str) -> nn.Parameter | None:
        owner, key = self.place[name]
        return owner._parameters.get(key)

    def _wish(self, name: str, ends: dict[str, str]) -> tuple[bool | None, str, Excuse]:
        """Whether a layer is to be quantized (None: nobody says), why not, and who says so."""
        choice = self.about[name]
        if self._parameter(name) is None:
            return False, "has a computed weight, parametrized or pruned", "rule" if choice.quantize is False else ""
        if choice.quantize is not None:
            return choice.quantize, choice.why, "rule"
        if name in ends:
            return False, ends[name], "end"
        if not self._row(name).default:
            return None, "is quantized by a rule only", "default"
        return True, "", ""

    def _refuse_shared(
        self, module: nn.Module, alike: list[str], wishes: dict[str, tuple[bool | None, str, Excuse]]
    ) -> None:
        """A weight that one of its layers wants in float, or that something else uses, cannot be quantized."""
        wants = next(n for n in alike if wishes[n][0])
        other = next((n for n in alike if wishes[n][0] is False), None)
        if other is None:
            p, known = self._parameter(wants), {id(self.place[n][0]) for n in alike}
            others = (
                n or "the model"
                for n, m in module.named_modules()
                if id(m) not in known and any(q is p for q in m._parameters.values())
            )
            other = next(others, None)
        if other is not None:
            problem = f"shares its weight with {other}, which is not quantized"
            raise MetaschedError(f"model.{wants}", problem, "give both the same rule, or the layer a weight of its own")


def _other_weights(module: nn.Module, flow: Flow, rules: Rules, known: set[str]) -> list[Tensor]:
    """Parameters of two or more dimensions that cannot be quantized, or that the example does not reach."""
    found = []
    for name, m in module.named_modules():
        row, own = weight_kind(m), weights_of(m)
        for key, p in m.named_parameters(recurse=False):
            full, parameter = layer_name(name, key), f"{name}.{key}".lstrip(".")
            if p.dim() < 2 or parameter in known or ".parametrizations" in name:
                continue
            if row is not None and key in own:
                if full in flow.layers:
                    continue  # tied
                why = "is not run as a layer by the example"
            else:
                inside = any(True for _ in m.children())
                why = OWN if inside else "is of a type that is not quantized"
            choice = rules.about(full, name)
            excuse: Excuse = "rule" if choice.quantize is False else "default" if row and not row.default else ""
            why = choice.why if choice.quantize is False else why
            found.append(Tensor(full or "model", "weight", type(m).__name__, None, why, excuse, parameter))
    return found


def _activations(
    flow: Flow, weights: _Weights, about: dict[Use, Choice], methods: list[Method], recipe: Recipe
) -> tuple[dict[Use, Site], list[Tensor]]:
    """The sites of activations, and all activations; rules about an activation change the method of its layer."""
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
                methods[layer] = method
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
        redirecting = Redirecting(told, compute)
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
