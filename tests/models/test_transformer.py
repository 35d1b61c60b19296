"""The transformer: its attention in closed form, and that it looks at nothing that comes later."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from metasched.models.transformer import Block, Transformer


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(vocabulary=11, width=32, depth=2)


def test_scores_are_one_a_character_and_position_and_gradients_reach_every_parameter(model: Transformer) -> None:
    scores = model(torch.arange(10).view(2, 5))
    assert scores.shape == (2, 11, 5)
    scores.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        # a bias of the keys adds the same to all scores of a query, which the softmax does not see
        assert p.grad.abs().sum() > 1e-12 or name.endswith("k.bias"), name


def test_a_score_depends_on_its_character_and_those_before_it_only(model: Transformer) -> None:
    x = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
    before = model(x)
    for t in range(8):
        other = x.clone()
        other[:, t] = (other[:, t] + 1) % 11
        changed = (model(other) != before).any(1).any(0)
        assert changed.tolist() == [s >= t for s in range(8)]


@torch.no_grad()
def test_attention_with_two_positions_in_closed_form() -> None:
    torch.manual_seed(0)
    block = Block(32)  # two heads of 16 channels, with slopes 2 and 1/2
    h = torch.randn(1, 2, 32)
    q, k, v = block.q(h)[0], block.k(h)[0], block.v(h)[0]
    seen = v.clone()
    for head, slope in enumerate((2.0, 0.5)):
        own = slice(16 * head, 16 * head + 16)
        here = math.exp(q[1, own] @ k[1, own] / 4)
        back = math.exp(q[1, own] @ k[0, own] / 4 - slope)
        seen[1, own] = (here * v[1, own] + back * v[0, own]) / (here + back)
    torch.testing.assert_close(block.attention(h)[0], block.out(seen), rtol=1e-12, atol=1e-12)


def test_narrow_networks_have_one_head_and_wide_ones_heads_of_16_channels() -> None:
    assert [Block(width).heads for width in (8, 16, 32, 48)] == [1, 1, 2, 3]
    with pytest.raises(AssertionError):
        Block(40)


def test_layers_are_registered_in_the_order_in_which_they_run(model: Transformer) -> None:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.ReLU)}
    ran: list[str] = []
    for name, m in layers.items():
        m.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(torch.zeros(1, 3, dtype=torch.int64))
    assert ran == list(layers)
