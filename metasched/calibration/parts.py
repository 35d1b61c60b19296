"""Which modules of a network are calibrated as one: layers, residual blocks, or modules that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn

from metasched.calibration.following import Followed
from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.layer import Layer

By = Literal["layer", "block"] | Sequence[str]  # see ``calibrate``


class Part(NamedTuple):
    """A module that is calibrated as one.

    Attributes:
        name: of the module.
        layers: the index of each quantized layer in it, and the name of its weight in the module.
    """

    name: str
    layers: tuple[tuple[int, str], ...]


def parts_of(
    layers: Sequence[Layer],
    seen: Followed,
    model: nn.Module,
    by: By,
    *,
    blocks: bool,
) -> list[Part]:
    """The parts of a network in the order of execution; each quantized layer is in one of them.

    Args:
        layers: the quantized layers in the order of execution.
        seen: what a pass of the network has shown.
        model: the network.
        by: as for ``calibrate``.
        blocks: whether the procedure takes several layers at once.

    Raises:
        MetaschedError: there is no such module, it runs no layer, or the procedure takes one layer at once only.
    """
    chosen = _chosen(layers, seen, model, by)
    if chosen and not blocks:
        raise MetaschedError("calibrate: by", "needs a procedure that takes blocks", "use adaround, or by='layer'")
    found: dict[str, list[tuple[int, str]]] = {}
    for i, layer in enumerate(layers):
        name = _around(layer.weight_key, chosen) or _around(layer.weight_key, seen.called)
        if not name:
            problem = "runs in no module of its own, so that its inputs are not known"
            raise MetaschedError(f"model.{layer.name}", problem, "leave it in float by a rule")
        found.setdefault(name, []).append((i, layer.weight_key.removeprefix(f"{name}.")))
    parts = [Part(name, tuple(own)) for name, own in found.items()]
    for part in parts:
        if len(part.layers) > 1 and not blocks:
            i = part.layers[0][0]
            problem = f"runs inside {part.name} together with others, and this procedure takes one layer at once"
            raise MetaschedError(f"model.{layers[i].name}", problem, "use adaround or nearest")
    return parts


def _chosen(layers: Sequence[Layer], seen: Followed, model: nn.Module, by: By) -> list[str]:
    """Names of the modules that are units with all that is in them, none inside another one."""
    if by == "layer":
        return []
    if by == "block":
        names = [name for name in seen.residual if any(layer.weight_key.startswith(f"{name}.") for layer in layers)]
        if not names:
            problem = "is block, and the network has no residual block"
            raise MetaschedError("calibrate: by", problem, "name the modules that are to be units, or leave it out")
        return [name for name in names if not any(other != name and other.startswith(f"{name}.") for other in names)]
    if isinstance(by, str):
        raise MetaschedError("calibrate: by", f"is {by!r}", "give layer, block, or a list of names of modules")
    known = dict(model.named_modules())
    for name in by:
        if name not in known or not name:
            raise unknown_name("calibrate: by", name, [n for n in known if n])
        if not any(layer.weight_key.startswith(f"{name}.") for layer in layers):
            raise MetaschedError("calibrate: by", f"{name} has no quantized layer", "leave it out")
        if name not in seen.called:
            raise MetaschedError("calibrate: by", f"the first batch does not run {name}", "name a module that runs")
        if outer := next((other for other in by if other != name and name.startswith(f"{other}.")), None):
            raise MetaschedError("calibrate: by", f"names {name}, which is inside {outer}", "name one of both")
    return list(by)


def _around(weight: str, names: Sequence[str]) -> str:
    """The innermost of these modules that a weight is in; empty if there is none."""
    return max((name for name in names if name and weight.startswith(f"{name}.")), key=len, default="")
