"""What is looked at before a task of the user's own is trained: that it does what the contract says."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset, TensorDataset

from metasched.core.errors import MetaschedError
from metasched.tasks.base import Task, start

_PARTS = ("train", "validation", "test")


def check_task(task: Task) -> None:
    """Try a task out with its float network: name, batches, loss, outer batch, score, splits.

    Raises:
        MetaschedError: the first thing that does not fit.
    """
    name = getattr(task, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[\w.:/ -]{1,100}", name)):
        raise MetaschedError("task.name", f"is {name!r}", "give it a short name of letters, digits, - and _")
    check_disjoint(task.splits())
    check_examples(task.splits())
    task = task.to("cpu", torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = _said("build", lambda: start(task)).to(torch.float32)
        net.eval()

        def model(*args: Any, **kwargs: Any) -> Any:
            return net(*task.placed(args), **task.placed(kwargs))

        check_finite("task.batch", _said("batch", lambda: task.batch(0, 0)))
        outer = task.placed(_said("outer_batch", task.outer_batch))
        check_finite("task.outer_batch", outer)
        with torch.no_grad():
            check_loss(_said("loss", lambda: task.loss(model, outer)))
            check_score(_said("score", lambda: task.score(model, "validation")))


def _said(method: str, call: Callable[[], Any]) -> Any:
    """What a method of the user's gives; what it raises as one line."""
    try:
        return call()
    except MetaschedError:
        raise
    except Exception as error:  # whatever the user's code raises
        problem = f"raised {type(error).__name__}: {error}"
        raise MetaschedError(f"task.{method}", problem, "mend it") from error


def check_loss(loss: object) -> None:
    """Refuses a loss that is no 0-d floating tensor.

    Raises:
        MetaschedError: it is none.
    """
    if not isinstance(loss, torch.Tensor):
        raise MetaschedError("task.loss", f"gives a {type(loss).__name__}, no tensor", "return a 0-d tensor")
    if loss.dim() or not loss.is_floating_point():
        kind = str(loss.dtype).removeprefix("torch.")
        raise MetaschedError(
            "task.loss", f"gives a {kind} tensor of shape {tuple(loss.shape)}, and must give a 0-d floating one",
            "take the mean over the batch",
        )  # fmt: skip


def check_score(score: object) -> None:
    """Refuses a score that is no number.

    Raises:
        MetaschedError: it is none.
    """
    try:
        number = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        kind = type(score).__name__
        raise MetaschedError("task.score", f"gives a {kind}, no number", "return a float, higher is better") from None
    if math.isnan(number):
        raise MetaschedError("task.score", "gives NaN for the untrained network", "return a number")


def check_finite(place: str, batch: Any) -> None:
    """Refuses a batch without a tensor, or with NaN or infinity in it.

    Raises:
        MetaschedError: that.
    """
    tensors = [t for t in tree_leaves(batch) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise MetaschedError(place, "gives no tensor", "give a tensor, or tuples and dicts of tensors")
    for t in tensors:
        if t.is_floating_point() and not bool(t.isfinite().all()):
            what = "NaN" if bool(t.isnan().any()) else "an infinite number"
            raise MetaschedError(place, f"holds {what} in a tensor of shape {tuple(t.shape)}", "clean the data")


def check_examples(splits: Mapping[str, Any]) -> None:
    """Refuses NaN and infinity in any example of data sets in memory (``TensorDataset``, and subsets of one).

    Of other data sets only the first batch is looked at: reading all of a data set on disk takes long.

    Raises:
        MetaschedError: a split has such an example.
    """
    for name in _PARTS:
        root, places = _flat(splits[name]) if splits.get(name) is not None else (None, ())
        if not isinstance(root, TensorDataset):
            continue
        chosen = torch.tensor([*places])
        for t in root.tensors:
            if not t.is_floating_point():
                continue
            bad = ~t[chosen.to(t.device)].flatten(1).isfinite().all(1) if t.dim() > 1 else ~t[chosen].isfinite()
            if bool(bad.any()):
                first = int(chosen[bad.nonzero()[0, 0]])
                problem = f"holds NaN or an infinite number in {int(bad.sum())} examples, the first at index {first}"
                raise MetaschedError(f"task.{name}", problem, "clean the data")


def check_disjoint(splits: Mapping[str, Any]) -> None:
    """Refuses splits that share an example.

    It sees: the same data set given twice, subsets (``torch.utils.data.Subset``, nested too) of one data set with a
    common index, and equal examples of data sets in memory (``TensorDataset``). It does not see the same example in two
    data sets that read from disk, nor one that was changed (augmented, resized).

    Raises:
        MetaschedError: two of them overlap.
    """
    parts = [(name, splits[name]) for name in _PARTS if splits.get(name) is not None]
    for i, (name, data) in enumerate(parts):
        for other_name, other in parts[i + 1 :]:
            common = _common(data, other)
            if common:
                many = "an example" if common == 1 else f"{common} examples"
                problem = f"shares {many} with {other_name}"
                raise MetaschedError(f"task.{name}", problem, "make the splits disjoint, and drop duplicates")


def _common(a: Any, b: Any) -> int:
    (root, places), (other, others) = _flat(a), _flat(b)
    if root is other:
        return len({*places} & {*others})
    found, theirs = _hashes(root, places), _hashes(other, others)
    return len(found & theirs)


def _flat(data: Any) -> tuple[Any, Iterable[int]]:
    """The data set under subsets, and which of its examples are meant."""
    if not isinstance(data, Subset):
        return data, range(len(data))
    root, places = _flat(data.dataset)
    places = list(places)
    return root, [places[i] for i in data.indices]


def _hashes(data: Dataset[Any], places: Iterable[int]) -> set[bytes]:
    """A hash of each example; none for data that are not in memory."""
    return set(_each(data, places)) if isinstance(data, TensorDataset) else set()


def _each(data: TensorDataset, places: Iterable[int]) -> Iterator[bytes]:
    arrays = [np.ascontiguousarray(t.detach().cpu().numpy()) for t in data.tensors]
    for i in places:
        found = hashlib.blake2b(digest_size=16)
        for array in arrays:
            found.update(array[i].tobytes())
        yield found.digest()
