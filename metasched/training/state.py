"""What an inner run trains, and what training carries from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.network.fitting import fit
from metasched.network.flat import ControlRow, Tensors
from metasched.network.quantized import QuantizedNetwork
from metasched.schedules.feedback import open_loop
from metasched.tasks.base import Task, start
from metasched.training.finite import FINITE, all_finite
from metasched.training.optimizers.base import Hyper, Optimizer


class TrainingState(NamedTuple):
    """All that training carries from step to step: flat dicts of tensors.

    ``health`` says whether all numbers so far were finite (see finite.py); ``measured`` is what a run under a
    closed-loop schedule has measured of itself (see feedback.py), and empty in other runs.
    """

    params: Tensors
    buffers: Tensors
    optimizer: Tensors
    method: Tensors
    health: Tensors
    measured: Tensors = {}  # noqa: RUF012 - never changed in place


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
            first: the controls of the first step, {control: [L]}; gains among them play no part.

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
        params, method = self.network.initialize(own, open_loop(first), self.seed)
        if self.network.fits_activations:
            trainable, fitted = self._fitted(own)
            params, method = params | trainable, method | fitted
        health = {FINITE: all_finite(params.values())}
        return TrainingState(params, self.network.buffers(), self.optimizer.init(params), method, health)

    def _fitted(self, own: Tensors) -> tuple[Tensors, Tensors]:
        """What starts at the first batch, from the float network's parameters; it does not depend on the controls."""
        params, state = self.network.initialize(own, self.network.neutral(), self.seed)
        batch = self.task.placed(self.task.batch(self.seed, 0))
        with own_draws(self, 0):
            call = self.network.call(self.network.buffers())
            return fit(self.network, call, params, state, lambda model: self.task.loss(model, batch))

    def with_seed(self, seed: int) -> InnerProblem:
        """The same problem from another seed."""
        return replace(self, seed=seed)


@contextmanager
def own_draws(problem: InnerProblem, step: int) -> Iterator[None]:
    """Within: draws from torch's global generator (dropout, augmentation) are a function of the seed and the step."""
    if not (problem.network.draws or problem.task.draws):
        yield
        return
    device = next(problem.network.module.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(problem.seed, "forward", step))
        yield
