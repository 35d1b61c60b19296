"""What an inner run trains, and what training carries from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.network.quantize import ControlRow, QuantizedNetwork, Tensors
from metasched.tasks.base import Task, start
from metasched.training.finite import FINITE, all_finite
from metasched.training.optimizers.base import Hyper, Optimizer


class TrainingState(NamedTuple):
    """All that training carries from step to step: flat dicts of tensors.

    ``health`` says whether all numbers so far were finite (see finite.py).
    """

    params: Tensors
    buffers: Tensors
    optimizer: Tensors
    method: Tensors
    health: Tensors


@dataclass(frozen=True)
class InnerProblem:
    """What an inner run trains, from which seed, for how long.

    Attributes:
        network: the quantized network.
        task: data, loss and batches.
        optimizer: the inner optimizer.
        hyper: its hyper-parameters: name -> a number for all steps, or T of them (a tuple, or a [T] tensor that may
            require gradients).
        steps: T.
        seed: of initial weights, batches and draws.
        autocast: run the module in bfloat16 where torch.autocast does (see loss.py).
        fingerprint: of the task and of what made it.
    """

    network: QuantizedNetwork
    task: Task
    optimizer: Optimizer
    hyper: Mapping[str, float | tuple[float, ...] | torch.Tensor]
    steps: int
    seed: int
    autocast: bool = False
    fingerprint: str = ""

    def hyper_at(self, step: int) -> Hyper:
        """The optimizer's hyper-parameters at a step."""
        now: dict[str, float | torch.Tensor] = {}
        for name, value in self.hyper.items():
            if isinstance(value, tuple):
                now[name] = value[step]
            elif isinstance(value, torch.Tensor):
                now[name] = value[step] if value.dim() else value
            else:
                now[name] = value
        return now

    def initial(self, first: ControlRow) -> TrainingState:
        """The state before the first step; the initial weights are a function of the seed and of ``first``.

        Args:
            first: the controls of the first step, {control: [L]}.

        Raises:
            MetaschedError: controls that have not one value for each layer.
        """
        for name, values in first.items():
            if values.shape[-1:] != (len(self.network.layers),):
                what = f"is for {values.shape[-1] if values.dim() else 'no'} layers, and the network has"
                fix = "play a schedule that was made for this network, or one that follows relative depth"
                raise MetaschedError(f"control {name}", f"{what} {len(self.network.layers)} of them", fix)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "weights"))
            fresh = start(self.task)
        module = self.network.module
        like = {name: p for name, p in module.named_parameters()}
        own = {name: p.detach().to(like[name]) for name, p in fresh.named_parameters()}
        params, method = self.network.initialize(own, first, self.seed)
        health = {FINITE: all_finite(params.values())}
        return TrainingState(params, self.network.buffers(), self.optimizer.init(params), method, health)

    def with_seed(self, seed: int) -> InnerProblem:
        """The same problem from another seed."""
        return replace(self, seed=seed)
