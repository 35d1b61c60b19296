"""The bridge to ``higher``, which is imported here only: our exact optimizers in its classes, and what it cannot do.

The Adam of ``higher`` 0.2.1 is not torch's and its derivatives in beta2 and eps are wrong, tensors equal to 0 get no
gradient, it has no AdamW, and it drops hooks without a word. Importing this file registers optimizers that are right
(``higher.register_optim`` replaces what it had for the class); ``refuse`` names what would still go wrong. What it
cannot see: torch.utils.checkpoint inside a forward method recomputes with the newest weights, a wrong hypergradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.extras import from_extra
from metasched.training.optimizers.adam import Adam
from metasched.training.optimizers.adamw import AdamW
from metasched.training.optimizers.base import Optimizer, OptState
from metasched.training.optimizers.sgd import SGD

with warnings.catch_warnings(), from_extra("train"):
    # Two slips in the released source, seen when Python first compiles it; an error where warnings are errors.
    warnings.filterwarnings("ignore", message='"is" with', category=SyntaxWarning)
    warnings.filterwarnings("ignore", message=".*invalid escape sequence")
    import higher
    from higher import monkeypatch
    from higher.optim import DifferentiableOptimizer

__all__ = [
    "DIFFERENTIABLE",
    "DifferentiableAdam",
    "DifferentiableAdamW",
    "DifferentiableOptimizer",
    "DifferentiableSGD",
    "OfRule",
    "differentiable",
    "monkeypatch",
    "refuse",
]

# Options of torch.optim that change the step and that the classes below do not have -> what to do instead.
REFUSED_OPTIONS: dict[str, str] = {
    "maximize": "minimize the negated loss",
    "amsgrad": "set amsgrad=False",
    "nesterov": "set nesterov=False",
    "dampening": "set dampening=0",
    "decoupled_weight_decay": "use torch.optim.AdamW",
    "fused": "set fused=False",
    "capturable": "set capturable=False",
}


class _Exact(DifferentiableOptimizer):
    """A ``higher`` optimizer that hands each parameter group to a pure rule."""

    rule: Optimizer
    options: tuple[str, ...]
    names: Sequence[str] = ()  # of the parameters of the one group; none: their indices

    def __init__(self, other: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        _refuse_options(other)
        super().__init__(other, *args, **kwargs)
        self._states: dict[int, OptState] = {}

    def _apply_override(self, override: dict[str, list[Any]]) -> None:
        for option in override:
            if option not in self.options:
                raise unknown_name("override", option, self.options)
        super()._apply_override(override)

    def _update(self, grouped_grads: list[list[torch.Tensor]], **kwargs: Any) -> None:
        # higher cuts the parameters' graph when it does not track, but would leave that of the state to grow.
        with nullcontext() if self._track_higher_grads else torch.no_grad():
            for index, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
                names = self.names or [str(i) for i in range(len(grads))]
                params = dict(zip(names, group["params"], strict=True))
                hyper = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
                if index not in self._states:
                    self._states[index] = _resume(self.rule.init(params), self.state[index])
                new_params, self._states[index] = self.rule.update(
                    params, dict(zip(names, grads, strict=True)), self._states[index], hyper
                )
                group["params"] = list(new_params.values())

    def carried(self) -> list[torch.Tensor]:
        """The state of the rule, of all groups."""
        return [t for state in self._states.values() for t in state.values()]


class DifferentiableSGD(_Exact):
    """torch.optim.SGD without dampening and Nesterov's variant."""

    rule = SGD()
    options = ("lr", "momentum", "weight_decay")


class DifferentiableAdam(_Exact):
    """torch.optim.Adam without amsgrad."""

    rule = Adam()
    options = ("lr", "betas", "eps", "weight_decay")


class DifferentiableAdamW(_Exact):
    """torch.optim.AdamW without amsgrad."""

    rule = AdamW()
    options = DifferentiableAdam.options


class OfRule(_Exact):
    """Any of our optimizers, clipping and parameter groups included, by the names that they know the parameters by.

    ``override`` takes the hyper-parameters of the rule, and each step needs all of them.

    Args:
        rule: the optimizer.
        named: the parameters of the model, in the order of the lists that ``step`` takes and gives.
    """

    def __init__(self, rule: Optimizer, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        names, params = zip(*named, strict=True)
        self.rule, self.options, self.names = rule, rule.hyperparameters, names
        super().__init__(torch.optim.SGD(params, lr=0.0), params)  # which higher takes the list of parameters from


DIFFERENTIABLE: dict[type[torch.optim.Optimizer], type[_Exact]] = {
    torch.optim.SGD: DifferentiableSGD,
    torch.optim.Adam: DifferentiableAdam,
    torch.optim.AdamW: DifferentiableAdamW,
}
for _known, _exact in DIFFERENTIABLE.items():
    higher.register_optim(_known, _exact)  # type: ignore[arg-type]  # higher's annotation says instance, and means class


def differentiable(
    optimizer: torch.optim.Optimizer,
    reference_params: Iterable[torch.Tensor],
    *,
    fmodel: nn.Module | None = None,
    override: dict[str, list[Any]] | None = None,
    track_higher_grads: bool = True,
) -> _Exact:
    """The differentiable form of an optimizer, in the state that it is in.

    Parameters and gradients have any shape [...].
    ``step(loss, params=..., override={"lr": [tensor], "betas": [(tensor, tensor)]})`` gives the next parameters.
    Without ``fmodel`` they must be given at each step, and may be changed between two steps.

    Args:
        optimizer: a torch.optim.SGD, Adam or AdamW (exactly, no subclass).
        reference_params: parameters of the model, in the order of the lists that ``step`` takes and gives.
        fmodel: a patched model that ``step`` takes its parameters from and puts them into.
        override: options of the optimizer for all steps: a list of one value, or of one for each parameter group.
        track_higher_grads: False: each step's result starts a new graph.

    Raises:
        MetaschedError: another class of optimizer, or an option that we do not have.
    """
    _refuse_class(optimizer)
    return DIFFERENTIABLE[type(optimizer)](
        optimizer, reference_params, fmodel=fmodel, override=override, track_higher_grads=track_higher_grads
    )


def refuse(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Does nothing if ``higher`` unrolls this model and optimizer rightly.

    Raises:
        MetaschedError: hooks of a module, a parameter or the optimizer (ignored by ``higher``), an instance's own or
            compiled forward (run with the original weights), the old weight_norm and spectral_norm (frozen), an
            optimizer that is not exactly torch.optim's SGD, Adam or AdamW, one of REFUSED_OPTIONS, or parameters
            that are not the model's.
    """
    _refuse_class(optimizer)
    _refuse_options(optimizer)
    for path, problem, fix in _faults(model, optimizer):
        raise MetaschedError(path, problem, fix)


def _faults(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, str, str]]:
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        yield "optimizer", "its step hooks would be ignored by higher", "remove the hooks"
    known = {id(p) for p in model.parameters()}
    for index, group in enumerate(optimizer.param_groups):
        if any(id(p) not in known for p in group["params"]):
            path = f"optimizer.param_groups[{index}].params"
            yield path, "holds a parameter that is not in the model", "build the optimizer from model.parameters()"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            yield f"model.{name}", "its gradient hooks would be ignored by higher", "put them into the loss"
    for name, module in model.named_modules():
        path = f"model.{name}" if name else "model"
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                old = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
                problem = f"torch.nn.utils.{old} would stay at its first value under higher"
                yield path, problem, f"use torch.nn.utils.parametrizations.{old}"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            yield path, "its hooks would be ignored by higher", "move what they do into forward"
        if "forward" in vars(module) or vars(module).get("_compiled_call_impl") is not None:
            problem = "its own or compiled forward would run with the original weights under higher"
            yield path, problem, "define forward in the class and do not compile the module"


def _refuse_class(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer) not in DIFFERENTIABLE:
        known = ", ".join(cls.__name__ for cls in DIFFERENTIABLE)
        problem = f"{type(optimizer).__name__} has no exact differentiable form"
        raise MetaschedError("optimizer", problem, f"use torch.optim's {known}")


def _refuse_options(optimizer: torch.optim.Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        for option, fix in REFUSED_OPTIONS.items():
            own_nature = option == "decoupled_weight_decay" and type(optimizer) is torch.optim.AdamW
            if group.get(option) and not own_nature:
                problem = f"{option}={group[option]} is not supported in a differentiable {type(optimizer).__name__}"
                raise MetaschedError(f"optimizer.param_groups[{index}].{option}", problem, fix)


def _resume(fresh: OptState, saved: Mapping[int, Mapping[str, Any]]) -> OptState:
    """The state of a rule that goes on where torch.optim stopped; parameters are named by their index."""
    state = dict(fresh)
    steps = {int(entries["step"]) for entries in saved.values() if "step" in entries}
    if len(steps) > 1:
        problem = f"its parameters have taken different numbers of steps ({', '.join(map(str, sorted(steps)))})"
        raise MetaschedError("optimizer.state", problem, "give it gradients for all of them, or start a new optimizer")
    for index, entries in saved.items():
        for quantity, value in entries.items():
            if f"{quantity}.{index}" in state and value is not None:
                state[f"{quantity}.{index}"] = value
    return {**state, "step": state["step"] + steps.pop()} if steps else state
