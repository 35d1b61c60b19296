"""Gradient clipping: a wrapper that changes the gradients before a rule sees them, differentiable in its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from metasched.training.optimizers.base import Hyper, Optimizer, OptState

Gradients = Mapping[str, torch.Tensor | None]


def clip_norm(grads: Gradients, threshold: float | torch.Tensor) -> dict[str, torch.Tensor | None]:
    """All gradients times min(1, c / (n + 1e-6)), with n the Euclidean norm of them all together.

    As torch.nn.utils.clip_grad_norm_. Where n is 0 its derivative is taken as 0.

    >>> clip_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 10.0)
    {'a': tensor([3.]), 'b': tensor([4.])}

    Args:
        grads: of one run; None for a parameter without a gradient.
        threshold: c > 0, a number or a 0-d tensor.
    """
    squares = [(g * g).sum() for g in grads.values() if g is not None]
    if not squares:
        return dict(grads)
    total = torch.stack(squares).sum()
    # The clamp hides no norm that 1e-6 would not hide, and its derivative is 0 where sqrt has infinity.
    norm = total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
    factor = (threshold / (norm + 1e-6)).clamp(max=1.0)
    return {name: None if g is None else g * factor.to(g.dtype) for name, g in grads.items()}


def clip_value(grads: Gradients, threshold: float | torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Each element of the gradients [...] limited to [-c, c], as torch.nn.utils.clip_grad_value_; c is 0-d or a number.

    >>> clip_value({"a": torch.tensor([3.0, -0.5])}, 1.0)["a"].tolist()
    [1.0, -0.5]
    """
    limit: Any = threshold  # torch's annotation of clamp has numbers and tensors, and not either of them
    return {name: None if g is None else g.clamp(-limit, limit) for name, g in grads.items()}


CLIPPINGS: dict[str, Callable[[Gradients, float | torch.Tensor], dict[str, torch.Tensor | None]]] = {
    "clip_norm": clip_norm,
    "clip_value": clip_value,
}


@dataclass(frozen=True)
class Clipped:
    """A rule on clipped gradients.

    Attributes:
        rule: any optimizer.
        by: a name in CLIPPINGS, and that of the threshold in ``hyper``.
    """

    rule: Optimizer
    by: str
    elementwise = False

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Those of the rule, and the threshold."""
        return (*self.rule.hyperparameters, self.by)

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """The state of the rule for parameters [...]."""
        return self.rule.init(params)

    def update(
        self, params: Mapping[str, torch.Tensor], grads: Gradients, state: OptState, hyper: Hyper
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step, on gradients [...] that are clipped; see Optimizer.update."""
        return self.rule.update(params, CLIPPINGS[self.by](grads, hyper[self.by]), state, hyper)
