"""A small transformer that predicts the next character: decoder-only, causal, pre-norm."""

from __future__ import annotations

import torch
from torch import nn

HEAD_WIDTH = 16  # channels of an attention head


class Transformer(nn.Module):
    """Embedding of characters, blocks, LayerNorm, linear to the vocabulary.

    Each projection is a linear layer of its own, and attention is written out, so that a quantizer finds all layers,
    and every derivative exists, mapped over stacked runs too.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2), section 2.3; positions
    enter as in Press et al., "Train Short, Test Long: Attention with Linear Biases", ICLR 2022, arXiv 2108.12409. We
    differ in the activation, which is ReLU, in the initial weights, which are torch's defaults, in leaving out dropout,
    and in steeper slopes (see ``Block``), with which it learns in few steps.

    Args:
        vocabulary: V, number of characters.
        width: channels; at most 16, or a multiple of 16.
        depth: number of blocks, at least 1.

    >>> sum(p.numel() for p in Transformer(vocabulary=100, width=48, depth=2).parameters())
    66340
    """

    def __init__(self, vocabulary: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [N, V, T] of the character after each of x, int64 [N, T], of which it sees those up to that one."""
        return self.head(self.norm(self.blocks(self.embedding(x)))).transpose(1, 2)


class Block(nn.Module):
    """h + attention(norm(h)), and to that its own MLP(norm(h)): linear to 4 width - ReLU - linear.

    Attention of position t to s <= t is softmax_s(q_t k_s / sqrt(d) - m_i (t - s)) v_s in each of width / 16 heads of d
    channels (one head for less than 16), with the slopes m_i = 2, 1/2, 1/8, ... of heads i = 0, 1, 2, ...
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        assert width <= HEAD_WIDTH or width % HEAD_WIDTH == 0, width
        self.heads = max(1, width // HEAD_WIDTH)
        self.norm1 = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.act = nn.ReLU()
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """The next h, [N, T, width]."""
        h = h + self.attention(self.norm1(h))
        return h + self.linear2(self.act(self.linear1(self.norm2(h))))

    def attention(self, h: torch.Tensor) -> torch.Tensor:
        """Of each position to itself and those before it, [N, T, width]."""
        q, k, v = (m(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        place = torch.arange(h.shape[1], device=h.device)
        back = place[:, None] - place  # t - s
        slopes = 2 * 0.25 ** torch.arange(self.heads, device=h.device, dtype=h.dtype)
        biases = torch.where(back < 0, float("-inf"), -slopes[:, None, None] * back)
        scores = q @ k.mT / q.shape[-1] ** 0.5 + biases
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))
