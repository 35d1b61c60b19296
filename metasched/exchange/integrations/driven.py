"""A QuantizedModule for trainers that call ``model(x)``: a callback sets the controls before each step."""

from __future__ import annotations

from typing import Any

from torch import nn

from metasched.exchange.integrations import LayerValues
from metasched.network.flat import Tensors
from metasched.network.module import QuantizedModule


class DrivenModule(nn.Module):
    """A ``QuantizedModule`` that is called with the inputs only.

        callback("schedule.json", driven.apply_controls, settle=driven.settle, layers=driven.layers)

    In eval mode it is the deployed network, with hard weights and activations. The state dict contains neither the
    controls nor the step: they follow from the trainer's global step.

    Args:
        module: the quantized module.
        first: layer -> control -> value, until ``apply_controls`` sets others.
    """

    def __init__(self, module: QuantizedModule, first: LayerValues) -> None:
        super().__init__()
        self.module = module
        self.layers = module.network.layers
        self._values = first
        self._step = 0

    def apply_controls(self, values: LayerValues, step: int) -> None:
        """Sets the controls and the number of the next step."""
        self._values, self._step = values, step

    def settle(self) -> None:
        """Call it after the optimizer's step; ``QuantizedModule.settle``. A batch that was skipped is nothing."""
        if self.module.pending:
            self.module.settle()

    def hardened(self) -> Tensors:
        """The deployed parameters by name."""
        return self.module.hardened()

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Outputs for the model's inputs: of the quantized network, or in eval mode of the deployed one."""
        if self.training:
            return self.module(*inputs, controls=self._values, step=self._step, **keywords)
        return self.module.deployed(*inputs, **keywords)
