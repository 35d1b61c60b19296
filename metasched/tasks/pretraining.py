"""A pretrained start for the built-in tasks: the float network, trained for ``task.pretrained`` steps.

All inner runs start from the same weights, as those of a user do who has one checkpoint; their seeds differ in batches
and draws. The weights are a function of the section ``task`` alone. They do not follow the experiment's optimizer,
because tuning its learning rate would change the start too: Adam, learning rate 0.005 with a cosine decay to 0, float32
on the CPU, in one thread. Only training examples are read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.io.environment import INNER_THREADS
from metasched.tasks.config import TaskConfig
from metasched.tasks.supervised import SupervisedTask

LR = 0.005


@dataclass(frozen=True, eq=False)
class PretrainedTask(SupervisedTask):
    """A task whose runs start from given weights.

    Attributes:
        weights: state dict of the float network, batch normalization included.
        made_by: hash of all that the weights follow from; it is the fingerprint, because their last bits differ from
            processor to processor.
    """

    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    made_by: str = ""

    def initial(self) -> Mapping[str, torch.Tensor]:
        """See Task."""
        return self.weights

    def fingerprint(self) -> str:
        """See ``made_by``."""
        return self.made_by


def pretrained(task: object, config: TaskConfig) -> PretrainedTask:
    """The task with the start that ``task.pretrained`` asks for.

    Raises:
        MetaschedError: a task that is not of tensors in memory, or weights that are not finite.
    """
    if not isinstance(task, SupervisedTask):
        problem = f"is for tasks of tensors in memory, and {config.label} is none"
        raise MetaschedError("task.pretrained", problem, "leave it out; Task.initial gives a start of one's own")
    recipe = (task.fingerprint(), config.pretrained, config.data_seed, LR)
    made_by = hashlib.blake2b(repr(recipe).encode(), digest_size=16).hexdigest()
    attributes = {name: getattr(task, name) for name in SupervisedTask.__dataclass_fields__}
    weights = float_weights(task, config.pretrained, config.data_seed)
    return PretrainedTask(**attributes, weights=weights, made_by=made_by)


def float_weights(task: SupervisedTask, steps: int, seed: int) -> dict[str, torch.Tensor]:
    """The state dict of the float network after some steps from a seed.

    Raises:
        MetaschedError: numbers that are not finite.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "pretrained"))
        model = task.build().to(torch.float32).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)
        batches = derive_seed(seed, "pretrained batches")
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            task.loss(model, task.batch(batches, step)).backward()
            optimizer.step()
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise MetaschedError("task.pretrained", "training in float diverged", "give fewer steps, or another task")
    return weights


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within: the bits of a worker process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(INNER_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
