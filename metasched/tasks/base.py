"""What an inner run trains: the contract of a task.

A user's task is a subclass of ``Task`` with six methods; ``DataTask`` (data.py) makes one of data sets and functions.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from metasched.core.errors import MetaschedError
from metasched.tasks.fingerprint import fingerprint_of
from metasched.training.optimizers.config import OptimizerConfig

Part = Literal["validation", "test"]
Model = Callable[..., Any]  # the network as it runs now: model(*args, **kwargs)

CALIBRATION_BATCHES = 20


class Task(ABC):
    """Data, model, loss and score of an inner run.

    A batch is any structure of tensors (tuples, lists, dicts, named tuples). ``model`` is the quantized network as it
    runs at this step: ``model(*args, **kwargs)``; it may run several times in a loss, and then draws the same noise
    each time. Around ``batch`` and ``loss`` torch's global generator is seeded from (seed, step); what draws from
    elsewhere (``random``, numpy) must seed itself from them.

    Attributes:
        name: for logs and files.
        optimizer: the inner optimizer; counts where the section ``optimizer`` of the experiment is left at its
            defaults.
        worst_score: what a run counts that diverged; None: the lowest finite score of the comparison.
        draws: whether ``batch`` or ``loss`` may draw from torch's global generator.
        maps: whether torch.vmap can train many runs of it at once.
    """

    name: str
    optimizer: OptimizerConfig | None = None
    worst_score: float | None = None
    draws: bool = True
    _place: tuple[torch.device, torch.dtype] | None = None

    @property
    def maps(self) -> bool:
        """See the class."""
        return False

    @abstractmethod
    def build(self) -> nn.Module:
        """The float network; its weights are drawn from torch's global generator, which the caller seeds."""

    def initial(self) -> Mapping[str, torch.Tensor] | None:
        """The state dict that training starts from (pretrained), or None: ``build`` draws it anew for each seed."""
        return None

    @abstractmethod
    def batch(self, seed: int, step: int) -> Any:
        """The training batch of a step: a function of (seed, step) alone, augmentation included."""

    @abstractmethod
    def loss(self, model: Model, batch: Any) -> torch.Tensor:
        """The loss of a batch, 0-d, floating."""

    @abstractmethod
    def outer_batch(self) -> Any:
        """What the outer loss is measured on, in one pass: meta-validation examples, in memory."""

    @abstractmethod
    def score(self, model: Model, part: Part) -> float:
        """The score on the meta-validation or the test part, higher is better; in batches, without a graph."""

    def judge(self, model: Model, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Outer loss and score, both 0-d, of a network on the outer batch."""
        loss = self.loss(model, batch)
        with torch.no_grad():
            return loss, loss.new_tensor(float(self.score(model, "validation")))

    def judged_on(self, size: int | None, seed: int, step: int) -> Self:
        """The task with another outer batch at each look-ahead of online training; here the same."""
        return self

    def calibrate(self, model: Model) -> None:
        """Run training data once, so that batch normalization sees them: here the first 20 batches of seed 0."""
        for step in range(CALIBRATION_BATCHES):
            self.loss(model, self.placed(self.batch(0, step)))

    def splits(self) -> Mapping[str, Any]:
        """The data sets ``train``, ``validation`` and ``test``, to be held against each other; none are known here."""
        return {}

    @property
    def batches_per_epoch(self) -> float | None:
        """Training batches in one pass of the training data; None where that is not known."""
        data = self.splits().get("train")
        return None if data is None else len(data) / examples(self.batch(0, 0))

    def fingerprint(self) -> str:
        """A hash of model, data, loss and code; see fingerprint.py for what it sees."""
        return fingerprint_of(self)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """A copy whose tensors, in attributes of any structure, are on a device, the floating ones in a dtype."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            setattr(moved, name, place(value, device, dtype))
        moved._place = (torch.device(device), dtype)
        return moved

    def placed(self, tree: Any) -> Any:
        """A structure of tensors where ``to`` has put the task."""
        return tree if self._place is None else place(tree, *self._place)


def place(tree: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A structure with its tensors on a device, the floating ones in a dtype; all else stays as it is."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)

    return tree_map(moved, tree)


def examples(batch: Any) -> int:
    """Examples of a batch: the length of its first tensor.

    >>> examples({"x": torch.zeros(3, 2)})
    3
    """
    return next((len(t) for t in tree_leaves(batch) if isinstance(t, torch.Tensor) and t.dim()), 1)


def start(task: Task) -> nn.Module:
    """The float network before training, from torch's global generator or from the pretrained state.

    Raises:
        MetaschedError: a state that does not fit the network.
    """
    model, state = task.build(), task.initial()
    if state is not None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
            raise MetaschedError("task.initial", f"does not fit the model ({why})", "give its own state dict") from None
    return model
