"""TorchOpt's differentiable optimizers behind our interface, so that the benchmark can unroll with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from metasched.training.optimizers.base import Hyper, Optimizer, OptState

_EPS_ROOT = 1e-24  # any positive number: without it Adam's derivative is NaN wherever a gradient is exactly 0


class TorchOpt:
    """SGD or Adam of ``torchopt``, at constant numbers; its own state travels in ours as it is."""

    def __init__(self, rule: Optimizer, hyper: Mapping[str, Any]) -> None:
        import torchopt  # pyright: ignore[reportMissingImports]

        self.hyperparameters: ClassVar[tuple[str, ...]] = rule.hyperparameters  # pyright: ignore
        numbers = {name: value for name, value in hyper.items() if not name.startswith("beta")}
        if "beta1" in hyper:
            betas = (hyper["beta1"], hyper["beta2"])
            self.rule = torchopt.adam(**numbers, betas=betas, eps_root=_EPS_ROOT, moment_requires_grad=False)
        else:
            self.rule = torchopt.sgd(**numbers)
        self.apply = torchopt.apply_updates

    def init(self, params: Mapping[str, torch.Tensor]) -> OptState:
        """The leaves of TorchOpt's own state, by number; its structure stays the same."""
        leaves, self.structure = tree_flatten(self.rule.init(dict(params)))
        return _numbered(leaves)

    def update(
        self, params: Mapping[str, torch.Tensor], grads: Mapping[str, Any], state: OptState, hyper: Hyper
    ) -> tuple[dict[str, torch.Tensor], OptState]:
        """One step, in the graph."""
        own = tree_unflatten([state[str(i)] for i in range(len(state))], self.structure)
        updates, new = self.rule.update(dict(grads), own, params=dict(params), inplace=False)
        return self.apply(dict(params), updates, inplace=False), _numbered(tree_flatten(new)[0])


def _numbered(leaves: list[torch.Tensor]) -> OptState:
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves), "a state of other things than tensors"
    return {str(i): leaf for i, leaf in enumerate(leaves)}
