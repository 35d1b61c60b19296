"""What calibration reads: batches of inputs without labels, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from metasched.core.errors import MetaschedError

Batch = torch.Tensor | Mapping[str, Any]  # the input of a model, [N, ...], or its keyword arguments
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of one call of a module
Batches = Iterable[Batch]

_LABELS = {"label", "labels", "target", "targets", "y"}


def checked(batches: Batches) -> list[Call]:
    """The batches as calls of the model.

    Args:
        batches: each the input of the model, [N, ...]; or a mapping of keyword arguments.

    Raises:
        MetaschedError: there are none, one has labels, numbers that are not finite, or another shape or dtype than the
            first one.
    """
    if isinstance(batches, torch.Tensor | Mapping) or not isinstance(batches, Iterable):
        problem = f"is a {type(batches).__name__}, not batches of inputs"
        raise MetaschedError("calibrate: batches", problem, "give a list of input tensors, [x] for a single batch")
    calls: list[Call] = []
    first: dict[str, torch.Tensor] = {}
    for i, batch in enumerate(batches):
        where = f"calibrate: batch {i}"
        tensors = _tensors(batch, where)
        for name, t in tensors.items():
            _refuse_bad_numbers(t, f"{where} {name}".rstrip())
        first = first or tensors
        _refuse_others(tensors, first, where)
        calls.append(((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {}))
    if not calls:
        raise MetaschedError("calibrate: batches", "has no batches", "give inputs of the training data, without labels")
    return calls


def examples(calls: Iterable[Call]) -> int:
    """Number of examples: the sum over calls of the length of the first tensor."""
    return sum(len(next(t for t in tree_leaves(call) if isinstance(t, torch.Tensor))) for call in calls)


def placed(calls: Iterable[Call], like: torch.Tensor) -> list[Call]:
    """The calls with their tensors on the device of ``like``, [...], the floating ones in its dtype."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.detach().to(like) if leaf.is_floating_point() else leaf.detach().to(like.device)

    return [tree_map(moved, call) for call in calls]


def _tensors(batch: object, where: str) -> dict[str, torch.Tensor]:
    """The tensors of a batch, by the names of their arguments; of a batch that is a tensor, by an empty one."""
    if isinstance(batch, list | tuple):
        problem = f"is a {type(batch).__name__} of {len(batch)}, and inputs come without labels"
        raise MetaschedError(where, problem, "give the inputs alone: (x for x, _ in loader)")
    if isinstance(batch, Mapping):
        if labels := sorted(_LABELS & {str(name).lower() for name in batch}):
            raise MetaschedError(where, f"has {labels[0]}, and inputs come without labels", "leave the labels out")
        if found := {str(name): t for name, t in batch.items() if isinstance(t, torch.Tensor)}:
            return found
        raise MetaschedError(where, "has no tensors", "give the keyword arguments of the model")
    if not isinstance(batch, torch.Tensor):
        problem = f"is a {type(batch).__name__}, not an input of the model"
        raise MetaschedError(where, problem, "give a tensor [N, ...], or a dict of keyword arguments")
    return {"": batch}


def _refuse_bad_numbers(t: torch.Tensor, where: str) -> None:
    if t.dim() == 0 or t.numel() == 0:
        raise MetaschedError(where, f"has the shape {list(t.shape)}", "give at least one example, [N, ...]")
    if t.is_floating_point() and not bool(t.isfinite().all()):
        bad = int((~t.isfinite()).sum())
        raise MetaschedError(where, f"has {bad} numbers that are not finite", "clean the data, or leave the batch out")


def _refuse_others(tensors: Mapping[str, torch.Tensor], first: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises a MetaschedError for arguments, shapes or dtypes that differ from those of the first batch."""
    if tensors.keys() != first.keys():
        problem = f"has the arguments {', '.join(tensors)}, and the first one {', '.join(first)}"
        raise MetaschedError(where, problem.replace("  ", " "), "give the same arguments in all batches")
    for name, t in tensors.items():
        if t.shape[1:] != first[name].shape[1:] or t.dtype != first[name].dtype:
            problem = f"has the shape {_shape(t)}, and the first one {_shape(first[name])}"
            raise MetaschedError(f"{where} {name}".rstrip(), problem, "give batches of one shape and dtype")


def _shape(t: torch.Tensor) -> str:
    return f"[N, {', '.join(map(str, t.shape[1:]))}] of {str(t.dtype).removeprefix('torch.')}".replace(", ]", "]")
