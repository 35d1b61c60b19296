"""A tiny task whose network has a table of embeddings: the class of three words."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from metasched.core.randomness import generator
from metasched.tasks.supervised import Split, SupervisedTask

VOCABULARY, WIDTH, WORDS = 12, 4, 3


def build() -> nn.Module:
    """Two tables, one after the other, and two linear layers."""
    tables = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
    return Words(*tables)


class Words(nn.Module):
    def __init__(self, first: nn.Embedding, second: nn.Embedding) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.fc, self.act, self.out = nn.Linear(WORDS * WIDTH, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [N, 3] of words [N, 3], int64."""
        return self.out(self.act(self.fc((self.first(x) * self.second(x.flip(1))).flatten(1))))


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).to(outputs.dtype).mean()


@cache
def task() -> SupervisedTask:
    """The class of three words is the sum of their numbers, in three parts of its range."""
    draws = generator(0, "words")

    def split(n: int) -> Split:
        x = torch.randint(VOCABULARY, (n, WORDS), generator=draws)
        return Split(x, (x.sum(1) * 3 // (WORDS * VOCABULARY)).clamp(0, 2))

    return SupervisedTask("words", split(48), split(24), split(12), build, F.cross_entropy, accuracy, batch_size=12)
