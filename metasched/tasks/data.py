"""``DataTask``: a task made of data sets and functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from metasched.core.errors import MetaschedError
from metasched.core.randomness import generator, permutation
from metasched.tasks.base import CALIBRATION_BATCHES, Model, Part, Task, examples
from metasched.training.optimizers.config import OptimizerConfig

_SCORED = 256  # examples of a batch of the score


class DataTask(Task):
    """A task from map-style data sets (``len(d)``, ``d[i]``), whose examples are read when a batch needs them.

    Args:
        model: makes the float network, from torch's global generator.
        train, validation, test: data sets; they must be disjoint (see ``check.check_disjoint``).
        loss: (outputs, targets) -> 0-d, where a batch is a pair (inputs, targets); or, if its first parameter is called
            ``model``, (model, batch) -> 0-d.
        score: likewise, of one batch, higher is better; the score of a part is the mean over its examples. Default: the
            negative loss.
        batch_size: examples of a training step; a last batch of fewer is left out.
        augment: (batch, generator) -> batch, for training batches; the generator is a function of seed and step.
        collate: [examples] -> batch; default: torch's.
        initial: state dict of a pretrained start.
        optimizer, worst_score, name: see Task.

    Raises:
        MetaschedError: a model that is built already, data that is no map-style data set or has no example, or a batch
            that is larger than the training set.
    """

    def __init__(
        self,
        *,
        model: Callable[[], nn.Module],
        train: Dataset[Any],
        validation: Dataset[Any],
        test: Dataset[Any],
        loss: Callable[..., torch.Tensor],
        score: Callable[..., torch.Tensor | float] | None = None,
        batch_size: int = 64,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        initial: Mapping[str, torch.Tensor] | None = None,
        optimizer: OptimizerConfig | None = None,
        worst_score: float | None = None,
        name: str = "data",
    ) -> None:
        self.name, self.optimizer, self.worst_score = name, optimizer, worst_score
        self._data: dict[str, Any] = {"train": train, "validation": validation, "test": test}
        self._model, self._loss, self._score = model, loss, score
        self._augment, self._collate, self._initial = augment, collate, initial
        if isinstance(model, nn.Module):
            raise MetaschedError("task.model", "is a module", "give a function that builds it, such as lambda: Net()")
        for part, data in self._data.items():
            if isinstance(data, DataLoader):
                raise MetaschedError(f"task.{part}", "is a DataLoader", "give its data set, loader.dataset")
            if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
                problem = f"is a {type(data).__name__}, which has no len(d) or no d[i]"
                raise MetaschedError(f"task.{part}", problem, "give a map-style data set")
            if not len(data):
                raise MetaschedError(f"task.{part}", "has no example", "give it some")
        if not 1 <= batch_size <= len(self._data["train"]):
            problem = f"is {batch_size}, and there are {len(self._data['train'])} training examples"
            raise MetaschedError("task.batch_size", problem, "lower it")
        self.batch_size = batch_size

    def build(self) -> nn.Module:
        """See Task."""
        return self._model()

    def initial(self) -> Mapping[str, torch.Tensor] | None:
        """See Task."""
        return self._initial

    def splits(self) -> Mapping[str, Any]:
        """See Task."""
        return self._data

    def batch(self, seed: int, step: int) -> Any:
        """Epochs of random permutations, augmented: a function of (seed, step)."""
        data = self._data["train"]
        epoch, index = divmod(step, len(data) // self.batch_size)
        order = permutation(seed, "batches", epoch, n=len(data))
        batch = self._read("train", order[index * self.batch_size : (index + 1) * self.batch_size].tolist())
        return batch if self._augment is None else self._augment(batch, generator(seed, "augment", step))

    def loss(self, model: Model, batch: Any) -> torch.Tensor:
        """The loss of a batch, 0-d."""
        return self._of(self._loss, model, batch)

    def outer_batch(self) -> Any:
        """All meta-validation examples."""
        return self._read("validation", range(len(self._data["validation"])))

    def score(self, model: Model, part: Part) -> float:
        """The mean over the examples of a part, in batches of 256."""
        total = count = 0.0
        for batch in self._batches(part, _SCORED):
            n = examples(batch)
            if self._score is None:
                total -= n * float(self._of(self._loss, model, batch))
            else:
                total += n * float(self._of(self._score, model, batch))
            count += n
        return total / count

    def calibrate(self, model: Model) -> None:
        """The first epoch in order, without augmentation, or its first 20 batches."""
        for batch, _ in zip(self._batches("train", self.batch_size), range(CALIBRATION_BATCHES), strict=False):
            self._of(self._loss, model, batch)

    def _batches(self, part: str, size: int) -> Iterator[Any]:
        n = len(self._data[part])
        for start in range(0, n, size):
            yield self.placed(self._read(part, range(start, min(start + size, n))))

    def _read(self, part: str, places: Sequence[int]) -> Any:
        data = self._data[part]
        if isinstance(data, TensorDataset) and self._collate is None:
            chosen = torch.tensor(list(places))
            return [t[chosen.to(t.device)] for t in data.tensors]
        return (self._collate or default_collate)([data[i] for i in places])

    def _of(self, function: Callable[..., Any], model: Model, batch: Any) -> Any:
        given = (model, batch)
        if not _takes_model(function):
            inputs, targets = batch
            given = (model(inputs), targets)
        try:
            return function(*given)
        except (IndexError, KeyError) as error:  # such as a label that no class has, in a batch that comes late
            what = "score" if function is self._score else "loss"
            said = f"raised {type(error).__name__} on a batch: {error}"
            raise MetaschedError(f"task.{what}", said, "look at the labels, or mend the function") from error


def _takes_model(function: Callable[..., Any]) -> bool:
    try:
        return next(iter(inspect.signature(function).parameters), "") == "model"
    except (TypeError, ValueError):  # of C
        return False
