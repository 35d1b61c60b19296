"""A quantized network for your own training loop: an nn.Module that takes the controls in each call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from metasched.core.errors import MetaschedError, MetaschedWarning
from metasched.core.layer import Layer
from metasched.network.damping import damped
from metasched.network.fitting import fitted
from metasched.network.flat import Tensors
from metasched.network.flow import Example
from metasched.network.identity import identity, same
from metasched.network.quantized import QuantizedNetwork
from metasched.network.recomputing import Calls
from metasched.network.sites import copied, recompute_by, running
from metasched.network.starts import Starts
from metasched.network.thawing import frozen_share, held


class _Step(NamedTuple):
    """The step that ``settle`` ends: parameters before it, the method's state in it, controls and number."""

    before: Tensors
    state: Tensors
    values: dict[str, list[float]]
    step: int


LayerValues = Mapping[str, Mapping[str, float]]  # layer name -> control -> value, as SchedulePlayer gives them


class QuantizedModule(nn.Module):
    """A ``QuantizedNetwork`` together with its parameters, buffers and method state.

    Trainable tensors of the method, such as learned scales, are parameters of this module: an optimizer of
    ``module.parameters()`` trains them, and ``state_dict`` contains them.

    >>> from metasched.methods.config import MethodConfig
    >>> from metasched.methods import build_method
    >>> from metasched.network.quantize import quantize
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> network = quantize(model, build_method(MethodConfig(name="inq")), torch.zeros(1, 4))
    >>> module = QuantizedModule(network, {"0": {"freeze_fraction": 0.0}}, seed=0)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> for step, fraction in enumerate((0.0, 0.5, 1.0)):
    ...     controls = {"0": {"freeze_fraction": fraction}}
    ...     loss = module(torch.ones(3, 4), controls, step).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     module.settle()
    >>> sorted(set(module.hardened()["0.weight"].flatten().tolist())) in ([-1.0, 0.0, 1.0], [-1.0, 1.0])
    True

    Args:
        network: result of ``quantize``; its module is copied.
        first: layer -> control -> value at the first step.
        seed: seed of the method's random numbers, and of the initial weights if the method redraws them.
        example: a first batch, as for ``quantize``; needed for learned scales of activations, which start at it.

    Layers whose weight has ``requires_grad=False`` are not drawn anew, and what is in eval mode in a network in
    training mode stays there; a warning names both, and what stays in float. Scales fit the weights at the first step:
    of those that are loaded before it, too. The scales of layers that start at zero follow them until some are frozen.

    Raises:
        MetaschedError: here or in a call, if the controls lack a layer or one of the method's controls; an example is
            missing, or does not reach a layer whose activation is quantized; a state dict is of other layers or levels.
    """

    method_identity: torch.Tensor

    def __init__(
        self, network: QuantizedNetwork, first: LayerValues, seed: int = 0, example: Example | None = None
    ) -> None:
        super().__init__()
        network = replace(network, module=copied(network.module))
        self.network = network
        self.seed = seed
        own = {name: p.detach().clone() for name, p in network.module.named_parameters()}
        fixed = {layer.name for layer in network.layers if not self._weight(layer).requires_grad}
        params, state = network.initialize(own, self._rows(first), seed, fixed)
        if network.fits_activations:
            trainable, fitted = self.fitted(own, example, fixed)
            params, state = params | trainable, state | fitted
        with torch.no_grad():
            for name, p in network.module.named_parameters():
                p.copy_(params[name])
        self.module = network.module
        self._trainable_names = list(network.trainable(params))
        for i, name in enumerate(self._trainable_names):
            self.register_parameter(f"method_parameter_{i}", nn.Parameter(params[name].clone()))
        self._state_names = list(state)
        for i, name in enumerate(self._state_names):
            self.register_buffer(f"method_state_{i}", state[name])
        self.register_buffer("method_identity", identity(network, self._state_names, self._trainable_names))
        self._still = [name for name, m in self.module.named_modules() if self.module.training and not m.training]
        self._starts = Starts(self)
        self._pending: _Step | None = None
        self._last: dict[str, list[float]] | None = None
        self._resumed = self._said_fall = False
        self._penalty: torch.Tensor | None = None
        self._calls = Calls()
        for layer in network.layers:
            self._calls.watch(self.module, layer.weight_key, running)
        recompute_by(self.module, self._calls)
        self.module.register_load_state_dict_post_hook(partial(_on_load, self))
        self._say(fixed)

    def forward(
        self, *inputs: Any, controls: LayerValues | None = None, step: int | None = None, **keywords: Any
    ) -> Any:
        """Outputs of the quantized network; in training mode, call ``settle`` after the optimizer's step.

        ``module(x, controls, step)``, ``module(x, y, controls, step)`` or ``module(x, mask=m, controls=c, step=n)``. Of
        several passes in training mode before ``settle``, its step starts at the first one.

        Args:
            inputs, keywords: those of the model, [N, ...] usually.
            controls: layer -> control -> value at this step.
            step: index of the training step; random numbers are a function of it.

        Returns:
            outputs of the model, [N, ...] usually.
        """
        if step is None and inputs:
            inputs, step = inputs[:-1], inputs[-1]
        if controls is None and inputs:
            inputs, controls = inputs[:-1], inputs[-1]
        if not isinstance(controls, Mapping) or step is None:
            raise MetaschedError("controls", "or the step is not given", "call module(*inputs, controls, step)")
        if self.training:
            self._starts.fit(self, inputs, keywords)
        values = self._lists(controls)
        values = self._held(values) if self.training else values
        rows, params = self._tensors(values), self.parameters_by_name()
        now = self._pending
        same_step = now is not None and (now.values, now.step) == (values, step)
        if self.training and now is not None and not same_step:
            if all(torch.equal(now.before[name], p) for name, p in params.items()):
                now = self._pending = None  # no optimizer has moved on since: this pass begins the step
        if now is not None and same_step:
            state = now.state
        else:
            state = self.network.prepare(params, self.method_state(), rows, self.seed, step)
        if self.training and now is None:
            before = {name: p.detach().clone() for name, p in params.items()}
            self._pending = _Step(before, {k: v.detach() for k, v in state.items()}, values, step)
        call = self._noted if torch.is_grad_enabled() else self.network.call({})
        model, self._penalty = self.network.model(call, self._damped(params, state), state, rows, self.seed, step)
        return model(*inputs, **keywords)

    def _noted(self, params: Tensors, *args: Any, **kwargs: Any) -> Any:
        self._calls.begin(running(), params)
        return self.network.call({})(params, *args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Training or eval mode; what was in eval mode when the network was made stays there."""
        super().train(mode)
        for name in self._still:
            self.module.get_submodule(name).training = False
        return self

    def fitted(self, own: Tensors, example: Example | None, kept: set[str]) -> tuple[Tensors, Tensors]:
        """What starts at the first inputs of activations: trainable tensors and state [...], as ``layer/name``.

        Args:
            own: parameters of the float network.
            example: as for ``quantize``.
            kept: layers that keep their weights.
        """
        return fitted(self.network, own, example, self.seed, kept, "QuantizedModule")

    def penalty(self) -> torch.Tensor:
        """The method's penalty at the last forward pass, 0-d; 0 if the method has none.

        Add it to the loss before ``backward``.
        """
        return self.network.zero if self._penalty is None else self._penalty

    @torch.no_grad()
    def settle(self) -> None:
        """Applies the method's update after ``optimizer.step()``; INQ, for example, restores the frozen weights."""
        assert self._pending is not None, "call settle() after a forward pass in training mode and optimizer.step()"
        now, params = self._pending, self.parameters_by_name()
        rows = self._tensors(now.values)
        settled, state = self.network.update(now.before, params, now.state, rows, self.seed, now.step)
        for name, p in params.items():
            if p.requires_grad:
                p.copy_(settled[name])
        for i, name in enumerate(self._state_names):
            self.get_buffer(f"method_state_{i}").copy_(state[name])
        self._last, self._pending, self._penalty = now.values, None, None
        self._calls.end()
        self._starts.follow(self)

    @property
    def pending(self) -> bool:
        """Whether a pass in training mode waits for ``settle``."""
        return self._pending is not None

    @torch.no_grad()
    def hardened(self) -> Tensors:
        """The deployed parameters by name; every element of a quantized weight is a level times its scale."""
        self._starts.fit_weights(self)
        return self.network.harden(self.parameters_by_name(), self.method_state())

    @torch.no_grad()
    def deployed(self, *inputs: Any, **keywords: Any) -> Any:
        """Outputs [N, ...] of the deployed network, with hard weights and activations, for the model's inputs.

        Batch normalization uses the mode of the module, training or evaluation.
        """
        self._starts.fit_weights(self)
        model = self.network.hardened_model(self.network.call({}), self.parameters_by_name(), self.method_state())
        return model(*inputs, **keywords)

    def method_state(self) -> Tensors:
        """The state of the method by name (``layer/name``), as an argument for ``QuantizedNetwork.harden``."""
        return {name: self.get_buffer(f"method_state_{i}") for i, name in enumerate(self._state_names)}

    def parameters_by_name(self) -> Tensors:
        """The parameters of the network by name, and the method's trainable tensors as ``layer/name``."""
        trainable = {name: self.get_parameter(f"method_parameter_{i}") for i, name in enumerate(self._trainable_names)}
        return {**dict(self.network.module.named_parameters()), **trainable}

    def _damped(self, params: Tensors, state: Tensors) -> Tensors:
        """The parameters, whose gradients ``backward`` multiplies by the method's factors."""
        ones = {name: torch.ones_like(params[name]) for name in self._trainable_names}
        factors = self.network.gradients(ones, state) if ones else {}
        return {**params, **{name: damped(params[name], f) for name, f in factors.items()}}

    def _weight(self, layer: Layer) -> nn.Parameter:
        return self.network.module.get_parameter(layer.weight_key)

    def _rows(self, values: LayerValues) -> Tensors:
        return self._tensors(self._lists(values))

    def _lists(self, values: LayerValues) -> dict[str, list[float]]:
        """Control -> the values of all layers."""
        layers, controls = self.network.layers, self.network.method.controls
        for layer in layers:
            if missing := {c.name for c in controls} - set(values.get(layer.name, ())):
                problem = f"has no value for {', '.join(sorted(missing))}"
                fix = "create SchedulePlayer with a schedule of this method and with layers=network.layers"
                raise MetaschedError(f"controls.{layer.name}", problem, fix)
        return {c.name: [values[layer.name][c.name] for layer in layers] for c in controls}

    def _tensors(self, values: Mapping[str, list[float]]) -> Tensors:
        like = self.network.zero
        return {name: torch.tensor(row, dtype=like.dtype, device=like.device) for name, row in values.items()}

    def _held(self, values: dict[str, list[float]]) -> dict[str, list[float]]:
        """The controls, with freeze fractions that do not fall, as they would in a run that is made longer."""
        if "freeze_fraction" not in values:
            return values
        found, fell = held(values, self._fractions(), self.network.layers, say=not self._said_fall)
        self._said_fall |= fell
        return found

    def _fractions(self) -> list[float]:
        """The share of each layer that is frozen: of the last step, or of a state that was loaded; else empty."""
        if self._last is None and self._resumed:
            masks = [self.method_state()[f"{layer.name}/frozen"] for layer in self.network.layers]
            self._last = {"freeze_fraction": [frozen_share(mask) for mask in masks]}
        return [] if self._last is None else self._last["freeze_fraction"]

    def _say(self, fixed: set[str]) -> None:
        """One line for each thing that is not as one might think."""
        if fixed and any(self.network.method.keeping() != self.network.method for _ in fixed):
            what = "requires_grad is False: their weights are kept, where others are drawn anew"
            warnings.warn(f"model: {', '.join(sorted(fixed))}: {what}", MetaschedWarning, stacklevel=3)
        if self._still:
            what = "in eval mode (frozen normalization), and stay there in training"
            warnings.warn(f"model: {', '.join(self._still)}: are {what}", MetaschedWarning, stacklevel=3)
        if zero := self._starts.zero:
            what = "all weights are 0; their scales follow them until some are frozen"
            warnings.warn(f"model: {', '.join(zero)}: {what}", MetaschedWarning, stacklevel=3)
        if self.network.floats:
            warnings.warn(f"model: stay in float: {'; '.join(self.network.floats)}", MetaschedWarning, stacklevel=3)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}method_identity"
        if key in state_dict and not same(state_dict[key], self.method_identity):
            names = ", ".join(layer.name for layer in self.network.layers)
            problem = f"is of other layers, levels or scales than those of this network, which quantizes {names}"
            raise MetaschedError("state_dict", problem, "quantize the model as it was when the state was saved")
        given = {name for name in state_dict if name.startswith(f"{prefix}method_")}
        if given and key not in state_dict:  # of an earlier version
            state_dict = {**state_dict, key: self.method_identity}
        super()._load_from_state_dict(state_dict, prefix, *args)
        if given:
            self._starts.done()
            self._last, self._resumed = None, True


def _on_load(owner: QuantizedModule, module: nn.Module, keys: object) -> None:
    owner._pending = None
