"""Parameter groups by rule: an own factor on the learning rate and an own weight decay for chosen parameters.

The first rule that matches a parameter decides; one that no rule matches has the optimizer's own values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.training.optimizers.base import Hyper, Optimizer, OptState
from metasched.training.optimizers.config import GroupConfig

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance normalization
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)

_SCALES = ("scale", "activation_scale", "activation_clip")
# word -> does it mean the parameter of this name, in a module (None: a trainable tensor of the method)
WORDS: dict[str, Callable[[str, nn.Module | None], bool]] = {
    "norm": lambda name, module: isinstance(module, _NORMS),
    "bias": lambda name, module: name.rpartition(".")[2] == "bias",
    "scale": lambda name, module: module is None and name.rpartition("/")[2] in _SCALES,
}


@dataclass(frozen=True)
class Group:
    """What holds for some parameters.

    Attributes:
        names: which; those that a run does not have are no fault here.
        lr_factor: times ``hyper["lr"]``.
        weight_decay: in place of ``hyper["weight_decay"]``; None: that of all.
    """

    names: frozenset[str]
    lr_factor: float = 1.0
    weight_decay: float | None = None

    def hyper(self, hyper: Hyper) -> Hyper:
        """The hyper-parameters of this group: numbers or 0-d tensors."""
        own = dict(hyper)
        if self.lr_factor != 1:
            own["lr"] = hyper["lr"] * self.lr_factor
        if self.weight_decay is not None:
            own["weight_decay"] = self.weight_decay
        return own


@dataclass(frozen=True)
class Grouped:
    """A rule that steps each group of parameters with its own hyper-parameters."""

    rule: Optimizer
    groups: tuple[Group, ...]

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Those of the rule."""
        return self.rule.hyperparameters

    @property
    def elementwise(self) -> bool:
        """As the rule is."""
        return self.rule.elementwise

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """The state of the rule."""
        return self.rule.init(params)

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step; see Optimizer.update."""
        new_params, new_state = dict(params), dict(state)
        rest = Group(frozenset(params).difference(*(group.names for group in self.groups)))
        for group in (*self.groups, rest):
            own = {name: p for name, p in params.items() if name in group.names}
            if own:
                # what all groups share, such as the number of steps, is read and found the same by each of them
                seen = {key: t for key, t in state.items() if (of := key.partition(".")[2]) in own or of not in params}
                stepped, found = self.rule.update(own, grads, seen, group.hyper(hyper))
                new_params.update(stepped)
                new_state.update(found)
        return new_params, new_state


def resolve(rules: Sequence[GroupConfig], names: Iterable[str], module: nn.Module) -> tuple[Group, ...]:
    """The groups that the rules make of these parameters.

    Args:
        rules: in order; a parameter belongs to the first that matches it.
        names: all that is trained: the module's parameters, and trainable tensors of the method ("conv1/scale").
        module: the network, whose submodules say of which type the owner of a parameter is.

    Raises:
        MetaschedError: a rule that no parameter is left for.
    """
    names = list(names)
    owners = {name: _owner(module, name) for name in names}
    left, groups = dict.fromkeys(names), []
    for i, rule in enumerate(rules):
        matched = [name for name in names if matches(rule.match, name, owners[name])]
        own = frozenset(name for name in matched if name in left)
        if not own:
            why = "only matches parameters that earlier rules match" if matched else "matches no parameter"
            fix = (
                "move it up, or leave it out"
                if matched
                else f"use one of {', '.join(WORDS)}, or a name as in {_few(names)}"
            )
            raise MetaschedError(f"optimizer.groups[{i}].match", f"{rule.match!r} {why}", fix)
        left = {name: None for name in left if name not in own}
        groups.append(Group(own, rule.lr_factor, rule.weight_decay))
    return tuple(groups)


def matches(match: str, name: str, owner: nn.Module | None) -> bool:
    """Whether a rule means a parameter: by one of WORDS, the class of the module that has it, or a glob on its name.

    >>> matches("bias", "conv1.bias", None), matches("Linear", "fc.weight", nn.Linear(1, 1)), matches("fc.*", "x", None)
    (True, True, False)
    """
    if match in WORDS:
        return WORDS[match](name, owner)
    return type(owner).__name__ == match or fnmatchcase(name, match)


def _owner(module: nn.Module, name: str) -> nn.Module | None:
    """The submodule that has this parameter; None if none has it."""
    path, _, last = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    return owner if last in owner._parameters else None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
