"""The inner optimizers as pure functions: SGD, Adam and AdamW of torch.optim, differentiable in everything they read.

Each hyperparameter is a number or a 0-d tensor of this step, and its derivative is right also where its value is
exactly 0. So a tensor is never compared with 0 nor turned into a number, as torch.optim and ``higher`` do; only a plain
0.0, which has no derivative, drops its term. Parameters, gradients and state are flat dicts, and nothing is changed
in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch

from metasched.config.schema import OptimizerConfig

OptState = dict[str, torch.Tensor]  # "<quantity>.<parameter>" -> tensor of the parameter's shape; Adam: "step", 0-d
Hyper = Mapping[str, float | torch.Tensor]


class Optimizer(Protocol):
    """A rule for the parameters' next values.

    Attributes:
        hyperparameters: names that ``hyper`` must hold; 0-d tensors have the parameters' dtype and device.
    """

    hyperparameters: ClassVar[tuple[str, ...]]

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """State before the first step."""
        ...

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """Parameters and state after a step.

        A parameter whose gradient is None or missing stays as it is, with its part of the state.
        """
        ...


class SGD:
    """Stochastic gradient descent with momentum m and weight decay d.

        g <- g + d p,    v <- m v + g,    p <- p - lr v,    v = 0 at first

    As torch.optim.SGD, without dampening and Nesterov's variant. Differs where m is 0 at some steps only: v is then
    the gradient of the step before, where torch.optim keeps its older buffer.

    >>> p = {"w": torch.tensor([1.0])}
    >>> p, _ = SGD().update(p, {"w": torch.tensor([2.0])}, SGD().init(p), dict(lr=0.25, momentum=0.9, weight_decay=0.0))
    >>> p["w"].tolist()
    [0.5]
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay")

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """Momentum buffers of zeros: the first step makes them the gradient."""
        return {f"momentum_buffer.{name}": torch.zeros_like(p).detach() for name, p in params.items()}

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step; see Optimizer.update."""
        momentum, weight_decay, size = hyper["momentum"], hyper["weight_decay"], -hyper["lr"]
        new_params, new_state = dict(params), dict(state)
        for name, p in params.items():
            g = grads.get(name)
            if g is None:
                continue
            key = f"momentum_buffer.{name}"
            v = _plus(_plus(g, weight_decay, p), momentum, state[key])
            new_params[name], new_state[key] = _plus(p, size, v), v
        return new_params, new_state


class Adam:
    """Adam with weight decay d as a term of the gradient (L2).

        g <- g + d p,    m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        p <- p - lr (m / c1) / (sqrt(v / c2) + eps),    c_i = 1 - beta_i^t at the t-th step, t = 1, 2, ...

    As torch.optim.Adam without amsgrad (Kingma and Ba, 2015, arXiv 1412.6980, algorithm 1). Where v is 0 the square
    root's derivative is taken as 0: there m is 0 too, and what the step owes to v vanishes. Differs where a parameter
    gets a gradient at some steps only: t counts all steps, where torch.optim counts each parameter's own.
    """

    hyperparameters: ClassVar[tuple[str, ...]] = ("lr", "weight_decay", "beta1", "beta2", "eps")

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """No steps taken, moments of zeros."""
        moments = {f"exp_avg.{name}": torch.zeros_like(p).detach() for name, p in params.items()}
        squares = {f"exp_avg_sq.{name}": torch.zeros_like(p).detach() for name, p in params.items()}
        # On the CPU, where reading it waits for no device.
        return {"step": torch.zeros((), dtype=torch.int64, device="cpu"), **moments, **squares}

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step; see Optimizer.update."""
        weight_decay, beta1, beta2 = hyper["weight_decay"], hyper["beta1"], hyper["beta2"]
        new_params, new_state = dict(params), dict(state)
        new_state["step"] = state["step"] + 1
        t = int(new_state["step"])
        # sqrt(c2) is taken out of the fraction, so that numbers meet numbers and each tensor one operation less.
        root = _bias_correction(beta2, t) ** 0.5
        size = -hyper["lr"] * root / _bias_correction(beta1, t)
        eps = hyper["eps"] * root
        for name, p in params.items():
            g = grads.get(name)
            if g is None:
                continue
            g = _plus(g, weight_decay, p)
            m = torch.lerp(state[f"exp_avg.{name}"], g, 1 - beta1)
            v = torch.lerp(state[f"exp_avg_sq.{name}"], g * g, 1 - beta2)
            # The clamp changes no value that eps would not hide, and its derivative is 0 where sqrt has infinity.
            denominator = v.clamp_min(torch.finfo(v.dtype).tiny).sqrt() + eps
            if isinstance(size, torch.Tensor):
                new_params[name] = torch.addcmul(p, size, m / denominator)
            else:
                new_params[name] = torch.addcdiv(p, m, denominator, value=size)
            new_state[f"exp_avg.{name}"], new_state[f"exp_avg_sq.{name}"] = m, v
        return new_params, new_state


class AdamW:
    """Adam with decoupled weight decay d: p <- (1 - lr d) p, then a step of Adam without weight decay.

    As torch.optim.AdamW without amsgrad (Loshchilov and Hutter, 2019, arXiv 1711.05101).
    """

    hyperparameters: ClassVar[tuple[str, ...]] = Adam.hyperparameters

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """The state of Adam."""
        return Adam().init(params)

    def update(
        self,
        params: Mapping[str, torch.Tensor],
        grads: Mapping[str, torch.Tensor | None],
        state: OptState,
        hyper: Hyper,
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step; see Optimizer.update."""
        shrink = -hyper["lr"] * hyper["weight_decay"]
        shrunk = {name: p if grads.get(name) is None else _plus(p, shrink, p) for name, p in params.items()}
        return Adam().update(shrunk, grads, state, {**hyper, "weight_decay": 0.0})


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
}


class Recipe(NamedTuple):
    """An optimizer and the values of its hyperparameters, before any schedule changes them."""

    optimizer: Optimizer
    hyper: dict[str, float]


def recipe(config: OptimizerConfig) -> Recipe:
    """What a config asks for; ``hyper["lr"]`` is the rate before its decay.

    >>> recipe(OptimizerConfig(name="sgd", lr=0.1)).hyper
    {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.0}
    """
    optimizer = OPTIMIZERS[config.name]()
    beta1, beta2 = config.betas
    values = {
        "lr": config.lr,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "beta1": beta1,
        "beta2": beta2,
        "eps": config.eps,
    }
    return Recipe(optimizer, {name: values[name] for name in optimizer.hyperparameters})


def learning_rate(config: OptimizerConfig, progress: float) -> float:
    """The learning rate at progress u in [0, 1]: lr times 1, (1 + cos(pi u)) / 2 or 1 - u.

    >>> learning_rate(OptimizerConfig(lr=0.1, decay="linear"), 0.5)
    0.05
    """
    return config.lr * DECAYS[config.decay](progress)


def _plus(y: torch.Tensor, a: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Add a x to y, in one operation that is differentiable in a."""
    if isinstance(a, torch.Tensor):
        return torch.addcmul(y, a, x)
    return y if a == 0 else torch.add(y, x, alpha=a)


def _bias_correction(beta: float | torch.Tensor, t: int) -> float | torch.Tensor:
    """1 - beta^t, in double precision: in single precision it loses three digits for beta near 1."""
    if isinstance(beta, torch.Tensor):
        return (1 - beta.double() ** t).to(beta.dtype)
    return 1 - beta**t
