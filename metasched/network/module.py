"""A quantized network for your own training loop: an nn.Module that takes the controls in each call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.quantize import QuantizedNetwork, Tensors
from metasched.network.sites import Example, run_example


class _Damped(torch.autograd.Function):
    """The identity whose gradient is multiplied by a factor [...] of its shape."""

    @staticmethod
    def forward(ctx: Any, p: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.factor = factor
        return p.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore
        return grad * ctx.factor, None


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

    Raises:
        MetaschedError: here or in a call, if the controls lack a layer or one of the method's controls; an example is
            missing, or does not reach a layer whose activation is quantized.
    """

    def __init__(
        self, network: QuantizedNetwork, first: LayerValues, seed: int = 0, example: Example | None = None
    ) -> None:
        super().__init__()
        network = replace(network, module=copy.deepcopy(network.module))
        self.network = network
        self.seed = seed
        own = {name: p.detach().clone() for name, p in network.module.named_parameters()}
        params, state = network.initialize(own, self._rows(first), seed)
        if network.method.fits_activations:
            trainable, fitted = self._fitted(own, example)
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
        self._pending: tuple[Tensors, Tensors, Tensors, int] | None = None
        self._penalty: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, controls: LayerValues, step: int) -> torch.Tensor:
        """Outputs of the quantized network; in training mode, call ``settle`` after the optimizer's step.

        Args:
            x: input of the model, [N, ...].
            controls: layer -> control -> value at this step.
            step: index of the training step; random numbers are a function of it.

        Returns:
            outputs of the model, [N, ...].
        """
        rows = self._rows(controls)
        params = self.parameters_by_name()
        state = self.network.prepare(params, self.method_state(), rows, self.seed, step)
        if self.training:
            before = {name: p.detach().clone() for name, p in params.items()}
            self._pending = before, {k: v.detach() for k, v in state.items()}, rows, step
        call = self.network.call(dict(self.network.module.named_buffers()))
        model, self._penalty = self.network.model(call, self._damped(params, state), state, rows, self.seed, step)
        return model(x)

    def _fitted(self, own: Tensors, example: Example | None) -> tuple[Tensors, Tensors]:
        """What starts at the first inputs of activations, from the float network's parameters."""
        if example is None:
            problem = "is missing, and learned scales of activations start at a first batch"
            raise MetaschedError("QuantizedModule: example", problem, "pass a batch of the training data")
        params, state = self.network.initialize(own, self.network.neutral(), self.seed)
        call = self.network.call(self.network.buffers())
        with torch.random.fork_rng(devices=[]):  # dropout in this pass does not move the user's generator
            return self.network.fit(call, params, state, lambda model: run_example(model, example))

    def penalty(self) -> torch.Tensor:
        """The method's penalty at the last forward pass, 0-d; 0 if the method has none.

        Add it to the loss before ``backward``.
        """
        return next(self.module.parameters()).new_zeros(()) if self._penalty is None else self._penalty

    @torch.no_grad()
    def settle(self) -> None:
        """Applies the method's update after ``optimizer.step()``; INQ, for example, restores the frozen weights."""
        assert self._pending is not None, "call settle() after a forward pass in training mode and optimizer.step()"
        before, state, rows, step = self._pending
        params = self.parameters_by_name()
        settled, state = self.network.update(before, params, state, rows, self.seed, step)
        for name, p in params.items():
            p.copy_(settled[name])
        for i, name in enumerate(self._state_names):
            self.get_buffer(f"method_state_{i}").copy_(state[name])
        self._pending = self._penalty = None

    @torch.no_grad()
    def hardened(self) -> Tensors:
        """The deployed parameters by name; every element of a quantized weight is a level times its scale."""
        return self.network.harden(self.parameters_by_name(), self.method_state())

    @torch.no_grad()
    def deployed(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs [N, ...] of the deployed network, with hard weights and activations, for inputs x [N, ...].

        Batch normalization uses the mode of the module, training or evaluation.
        """
        call = self.network.call(dict(self.network.module.named_buffers()))
        return self.network.hardened_model(call, self.parameters_by_name(), self.method_state())(x)

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
        return {**params, **{name: _Damped.apply(params[name], f) for name, f in factors.items()}}

    def _rows(self, values: LayerValues) -> Tensors:
        like = next(self.network.module.parameters())
        layers, controls = self.network.layers, self.network.method.controls
        for layer in layers:
            if missing := {c.name for c in controls} - set(values.get(layer.name, ())):
                problem = f"has no value for {', '.join(sorted(missing))}"
                fix = "create SchedulePlayer with a schedule of this method and with layers=network.layers"
                raise MetaschedError(f"controls.{layer.name}", problem, fix)
        return {
            c.name: torch.tensor([values[layer.name][c.name] for layer in layers], dtype=like.dtype, device=like.device)
            for c in controls
        }
