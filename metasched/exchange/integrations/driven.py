"""QuantizedModule for trainers that call ``model(x)``: it holds the controls of the step that a callback gave it."""

from __future__ import annotations

import torch
from torch import nn

from metasched.exchange.integrations import LayerValues
from metasched.network.module import QuantizedModule
from metasched.network.quantize import Tensors


class DrivenModule(nn.Module):
    """A ``QuantizedModule`` that is called with the inputs alone.

        callback("schedule.json", driven.apply_controls, settle=driven.settle, layers=driven.layers)

    In eval mode it is the deployed network: hard weights and hard activations. Values and step are no part of its state
    dict: they follow from the trainer's global step.

    Args:
        module: what to drive.
        first: values of the controls until a callback gives others.
    """

    def __init__(self, module: QuantizedModule, first: LayerValues) -> None:
        super().__init__()
        self.module = module
        self.layers = module.network.layers
        self._values = first
        self._step = 0

    def apply_controls(self, values: LayerValues, step: int) -> None:
        """Take the values and the number of the step that comes."""
        self._values, self._step = values, step

    def settle(self) -> None:
        """After the optimizer's step, as ``QuantizedModule.settle``."""
        self.module.settle()

    def hardened(self) -> Tensors:
        """The deployed parameters by name."""
        return self.module.hardened()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs under the values of the step; in eval mode those of the deployed network."""
        return self.module(x, self._values, self._step) if self.training else self.module.deployed(x)
