"""Networks without sites: staircases stand where the quantizers of activations stood.

Where each site is a module of its own, the modules are replaced. Where activations are functions, or modules that are
called several times, the ways of ``graphs`` are tried in order, and what comes out is compared with the network on
inputs like those of the example; what these cannot trace is recorded by torch.export (exported.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from metasched.core.errors import MetaschedError
from metasched.network.exported import exported
from metasched.network.graphs import Stairs, forget_calls, replace_sites, traced_by_callers, traced_whole
from metasched.network.operations import without_fused_layers
from metasched.network.redirecting import Redirecting, redirecting_of
from metasched.network.sites import copied_with_computed

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def without_sites(network: nn.Module, stairs: Stairs) -> nn.Module:
    """A network in eval mode whose sites are staircases; the given one is used up.

    Raises:
        MetaschedError: activations are functions, and neither torch.fx nor torch.export can trace the network.
    """
    redirecting = redirecting_of(network)
    if redirecting is None:
        replace_sites(network, stairs)
        return network
    given, wanted = _reference(network, redirecting)
    problems: list[Exception] = []
    for way in (traced_whole, traced_by_callers):
        try:
            made = way(copied_with_computed(network), stairs)
            if wanted is None or given is None or _alike(_outputs(made, given), wanted):
                forget_calls(made)
                return made.eval()
        except Exception as error:  # whatever the code of a model raises where a tensor has no value
            problems.append(error)
    if given is not None:
        try:
            return exported(network, stairs, given)
        except Exception as error:
            problems.append(error)
    if own := next((error for error in problems if isinstance(error, MetaschedError)), None):
        raise own
    first, last = (_line(problems[i]) if problems else "its branches hang on its inputs" for i in (0, -1))
    problem = f"calls activations as functions, and torch.fx cannot trace it ({first}), nor torch.export ({last})"
    raise MetaschedError("convert", problem, "make them modules, such as torch.nn.ReLU, each used once")


def _reference(network: nn.Module, redirecting: Redirecting) -> tuple[Arguments | None, list[torch.Tensor] | None]:
    """Inputs like those of the example, and what the network makes of them; None where that is not known."""
    inputs = redirecting.inputs
    if inputs is None:
        return None, None
    for rows in (2, None) if inputs.one_row else (None,):
        given = inputs.like(network, rows=rows)
        try:
            return given, _outputs(network, given)
        except Exception:  # a batch of two, or token 0, may be none that it takes
            continue
    return inputs.like(network), None


def _outputs(network: nn.Module, given: Arguments) -> list[torch.Tensor]:
    args, kwargs = given
    with torch.no_grad(), without_fused_layers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [leaf for leaf in tree_leaves(network(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]


def _alike(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    """Whether tensors have the same bits."""
    if len(found) != len(wanted) or any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return False
    return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(found, wanted, strict=True))


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
