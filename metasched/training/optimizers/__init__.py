"""The inner optimizers as pure functions: those of torch.optim, differentiable in everything they read.

An optimizer is one file and one row in the table, which does not import torch. Clipping and parameter groups are
wrappers around any of them; learning-rate curves are numbers, made once for all steps.
"""

from __future__ import annotations

from metasched.training.optimizers.table import OPTIMIZERS, OptimizerSpec, Parameter, register_optimizer

__all__ = ["OPTIMIZERS", "OptimizerSpec", "Parameter", "register_optimizer"]
