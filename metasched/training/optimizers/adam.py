"""Adam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from metasched.core.recording import recorded
from metasched.training.optimizers import each
from metasched.training.optimizers.base import Hyper, OptState
from metasched.training.optimizers.twice_adam import Numbers, step


@dataclass(frozen=True)
class Adam:
    """Adam with weight decay d as a term of the gradient (L2).

        g <- g + d p,    m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        p <- p - lr (m / c1) / (sqrt(v / c2) + eps),    c_i = 1 - beta_i^t at the t-th step, t = 1, 2, ...

    As torch.optim.Adam without amsgrad (Kingma and Ba, 2015, arXiv 1412.6980, algorithm 1). Where v is 0 the square
    root's derivative is taken as 0: there m is 0 too, and what the step owes to v vanishes. Differs where a parameter
    gets a gradient at some steps only: t counts all steps, where torch.optim counts each parameter's own.
    """

    hyperparameters = ("lr", "weight_decay", "beta1", "beta2", "eps")
    elementwise = True

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
        t = new_state["step"].double() if recorded() else int(new_state["step"])
        # sqrt(c2) is taken out of the fraction, so that numbers meet numbers and each tensor one operation less.
        root = _bias_correction(beta2, t) ** 0.5
        size = -hyper["lr"] * root / _bias_correction(beta1, t)
        eps = hyper["eps"] * root
        moved = {name: g for name in params if (g := grads.get(name)) is not None}
        if isinstance(t, torch.Tensor) and moved:
            size, eps = (torch.as_tensor(a).to(params[next(iter(moved))].dtype) for a in (size, eps))
        own = [params[name] for name in moved]
        found = each.plus(list(moved.values()), weight_decay, own)
        means, squares = ([state[f"{key}.{name}"] for name in moved] for key in ("exp_avg", "exp_avg_sq"))
        stepped = step(own, found, means, squares, Numbers(1 - beta1, 1 - beta2, size, eps))
        for name, p, m, v in zip(moved, *stepped, strict=True):
            new_params[name], new_state[f"exp_avg.{name}"], new_state[f"exp_avg_sq.{name}"] = p, m, v
        return new_params, new_state


def _bias_correction(beta: float | torch.Tensor, t: int | torch.Tensor) -> float | torch.Tensor:
    """1 - beta^t, in double precision: in single precision it loses three digits for beta near 1."""
    if isinstance(beta, torch.Tensor):
        return (1 - beta.double() ** t).to(beta.dtype)
    return 1 - beta**t
