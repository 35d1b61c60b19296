"""A quantized network for anybody's own training loop: an nn.Module whose controls are given at each call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from metasched.core.errors import MetaschedError
from metasched.network.quantize import QuantizedNetwork, Tensors

LayerValues = Mapping[str, Mapping[str, float]]  # layer name -> control -> value, as SchedulePlayer gives them


class QuantizedModule(nn.Module):
    """``QuantizedNetwork`` with its parameters, buffers and method state in one module.

    Tensors that the method trains (learned scales) are parameters of it, so an optimizer of ``module.parameters()``
    trains them, and ``state_dict`` has them.

    >>> from metasched.config.schema import MethodConfig
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
        network: what ``quantize`` gave; its module is copied.
        first: values of the controls at the first step.
        seed: of the draws (and of the initial weights, where the method draws them).

    Raises:
        MetaschedError: from here and from each call, for controls that lack a layer or one of the method's controls.
    """

    def __init__(self, network: QuantizedNetwork, first: LayerValues, seed: int = 0) -> None:
        super().__init__()
        network = replace(network, module=copy.deepcopy(network.module))
        self.network = network
        self.seed = seed
        own = {name: p.detach().clone() for name, p in network.module.named_parameters()}
        params, state = network.initialize(own, self._rows(first), seed)
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
        """Outputs under the controls of this step; in training mode, ``settle`` must follow the optimizer's step."""
        rows = self._rows(controls)
        params = self.parameters_by_name()
        state = self.network.prepare(params, self.method_state(), rows, self.seed, step)
        if self.training:
            before = {name: p.detach().clone() for name, p in params.items()}
            self._pending = before, {k: v.detach() for k, v in state.items()}, rows, step
        call = self.network.call(dict(self.network.module.named_buffers()))
        model, self._penalty = self.network.model(call, params, state, rows, self.seed, step)
        return model(x)

    def penalty(self) -> torch.Tensor:
        """The method's term of the loss at the last forward pass, 0-d; 0 for a method without one.

        To be added to the loss before ``backward``, as metasched's own training does.
        """
        return next(self.module.parameters()).new_zeros(()) if self._penalty is None else self._penalty

    @torch.no_grad()
    def settle(self) -> None:
        """After ``optimizer.step()``: lets the method decide what becomes of the step (frozen weights are restored)."""
        assert self._pending is not None, "settle() follows a forward pass in training mode and optimizer.step()"
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
        """The deployed parameters by name: every quantized weight exactly on its level set."""
        return self.network.harden(self.parameters_by_name(), self.method_state())

    @torch.no_grad()
    def deployed(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of the deployed network: hard weights, hard activations; batch normalization by its mode."""
        call = self.network.call(dict(self.network.module.named_buffers()))
        return self.network.hardened_model(call, self.hardened())(x)

    def method_state(self) -> Tensors:
        """The state of the method by name, as ``QuantizedNetwork.harden`` takes it."""
        return {name: self.get_buffer(f"method_state_{i}") for i, name in enumerate(self._state_names)}

    def parameters_by_name(self) -> Tensors:
        """Those of the network, and the method's trainable tensors as ``layer/name``."""
        trainable = {name: self.get_parameter(f"method_parameter_{i}") for i, name in enumerate(self._trainable_names)}
        return {**dict(self.network.module.named_parameters()), **trainable}

    def _rows(self, values: LayerValues) -> Tensors:
        like = next(self.network.module.parameters())
        layers, controls = self.network.layers, self.network.method.controls
        for layer in layers:
            if missing := {c.name for c in controls} - set(values.get(layer.name, ())):
                problem = f"has no value of {', '.join(sorted(missing))}"
                fix = "give SchedulePlayer a schedule of this method, and layers=network.layers"
                raise MetaschedError(f"controls.{layer.name}", problem, fix)
        return {
            c.name: torch.tensor([values[layer.name][c.name] for layer in layers], dtype=like.dtype, device=like.device)
            for c in controls
        }
