"""Which weights of a model are quantized, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.choice import Rules
from metasched.network.flow import Flow, layer_name
from metasched.network.kinds import WeightKind, weight_kind, weights_of
from metasched.network.recipe import Recipe

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
        excuse: who wants it so: a rule; ``end``: first and last, or the method; a default; empty: nobody.
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


class Weights:
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
        self._tables = recipe.build().tables
        self.place = {n: (module.get_submodule(flow.layers[n][0]), flow.layers[n][1]) for n in ran}
        self.about = {n: rules.about(n, flow.layers[n][0]) for n in ran}
        defaults = [n for n in ran if self._row(n).default]
        ends = {n: "is the first layer" for n in defaults[: 0 if recipe.first else 1]}
        ends |= {} if recipe.last else {n: "is the last layer" for n in defaults[-1:]}
        ends = {} if self._tables else ends
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
        """Those that stay in float."""
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
        p, excuse = self._parameter(name), "rule" if choice.quantize is False else ""
        if p is None:
            return False, "has a computed weight, parametrized or pruned", excuse
        if not p.is_floating_point():
            return False, f"its numbers are {str(p.dtype).removeprefix('torch.')}", excuse
        if choice.quantize is not False and self._tables and self._row(name).sums:
            why = "is not a table of embeddings, and the method quantizes those only"
            if choice.quantize:
                raise MetaschedError(f"model.{name}", why, f"leave it out of {choice.why}, or take another method")
            return None, why, "end"
        if choice.quantize is not None:
            return choice.quantize, choice.why, "rule"
        if name in ends:
            return False, ends[name], "end"
        if not self._row(name).default and not self._tables:
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
