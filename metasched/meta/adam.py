"""Adam of the outer loop: torch's own update, without the class around it, which imports torch's compiler."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.adam import adam

QUANTITIES = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps for each parameter


class Adam:
    """The bits of torch.optim.Adam (Kingma and Ba, 2015, arXiv 1412.6980) with its default betas, 0.9 and 0.999.

    The first use of a class of torch.optim imports torch._dynamo, which takes longer than many a short run.

    Args:
        parameters: of any shapes; moved in place by ``step``.
        lr: learning rate, above 0.

    Attributes:
        state: {parameter: {quantity: tensor}} for each of QUANTITIES: the 0-d number of steps, and the two moments, of
            the parameter's shape; empty before the first step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update along the gradients that the parameters hold; each must hold one."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        assert len(gradients) == len(self.parameters), "a parameter without a gradient"
        for p in self.parameters:
            if p not in self.state:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        counts, first, second = ([self.state[p][name] for p in self.parameters] for name in QUANTITIES)
        settings = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "maximize": False}
        adam(self.parameters, gradients, first, second, [], counts, lr=self.lr, **settings)  # pyright: ignore
