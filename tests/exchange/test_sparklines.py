from __future__ import annotations

import torch

from metasched.exchange.sparklines import ASCII, BLOCKS, moments, sparkline


def test_a_sparkline_has_the_lowest_and_the_highest_mark_at_the_ends_of_the_range() -> None:
    assert len(BLOCKS) == len(ASCII) == 8
    assert sparkline([i / 7 for i in range(8)], 0, 1) == BLOCKS
    assert sparkline([-5, 9], 0, 1) == BLOCKS[0] + BLOCKS[-1]  # clipped
    assert sparkline([3.0] * 4, 3, 3) == BLOCKS[0] * 4


def test_moments_are_the_corners_of_broken_lines() -> None:
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    corners = torch.tensor([0.0, 0.25, 0.9, 1.0], dtype=torch.float64)
    heights = torch.tensor([[0.0, 5.0], [4.0, 5.0], [4.0, 5.0], [1.0, 0.0]], dtype=torch.float64)
    right = torch.searchsorted(corners, u, right=True).clamp(1, 3)
    share = ((u - corners[right - 1]) / (corners[right] - corners[right - 1]))[:, None]
    curves = heights[right - 1] + share * (heights[right] - heights[right - 1])
    assert moments(u, curves, 9) == [0, 25, 90, 100]
    assert len(moments(u, curves, 3)) == 3
    assert moments(u, torch.ones(101, 2, dtype=torch.float64), 9) == [0, 100]


def test_moments_of_a_step_stand_on_both_sides_of_it() -> None:
    u = torch.tensor([0.0, 0.5, 0.9, 0.9 + 1e-9, 1.0], dtype=torch.float64)
    assert moments(u, torch.tensor([0, 0, 0, 1, 1], dtype=torch.float64)[:, None], 5) == [0, 2, 3, 4]
