from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image

from metasched.tracking import plots
from metasched.tracking.plots import plot_comparison, plot_schedule


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that were drawn."""
    drawn: list[matplotlib.figure.Figure] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    return drawn


def curves(num_layers: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    u = torch.linspace(0, 1, 100)
    depth = torch.linspace(0, 1, num_layers)
    return u, {"weight_noise": 0.5 * (1 - u[:, None]) ** (1 + depth), "freeze_fraction": u[:, None] ** (1 + depth)}


@pytest.mark.parametrize("num_layers", [1, 5, 12, 13, 40])
def test_schedule(tmp_path: Path, figures, num_layers: int) -> None:
    u, values = curves(num_layers)
    values["weight_noise"].requires_grad_()
    names = [f"features.{i}" for i in range(num_layers)]
    path = tmp_path / "plots" / "schedule.png"
    plot_schedule(path, values, names, u)
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        width, height = image.size
    assert 800 < width < 2000 and 300 < height < 600
    (figure,) = figures
    for axis, (control, value) in zip(figure.axes, values.items(), strict=False):
        assert axis.get_title() == control
        assert [line.get_label() for line in axis.lines] == names
        np.testing.assert_array_equal(np.array([line.get_ydata() for line in axis.lines]).T, value.detach().numpy())
        np.testing.assert_array_equal(axis.lines[0].get_xdata(), u.numpy())
        assert len({line.get_color().tobytes() for line in axis.lines}) == num_layers
    legend = figure.axes[1].get_legend()
    assert (legend is not None) == (num_layers <= 12)
    assert legend is None or [t.get_text() for t in legend.get_texts()] == names


def test_more_than_three_panels_are_in_rows_of_two(tmp_path: Path, figures) -> None:
    u, values = curves(3)
    names = [f"control{i}" for i in range(5)]
    plot_schedule(tmp_path / "five.png", dict.fromkeys(names, values["freeze_fraction"]), ["x", "y", "z"], u)
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == names
    places = [axis.get_subplotspec() for axis in figure.axes]
    assert [(p.rowspan.start, p.colspan.start) for p in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_comparison(tmp_path: Path, figures) -> None:
    scores = {
        100: {"cosine": [0.5, 0.7], "learned": [0.8, 0.9], "linear": [0.1, 0.2]},
        300: {"learned": [0.6], "cosine": [0.9]},
    }
    path = tmp_path / "comparison.png"
    plot_comparison(path, scores, learned=["learned"])
    assert path.stat().st_size < 200_000
    first, second = figures[0].axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["linear", "cosine", "learned"]  # the best on top
    assert [t.get_text() for t in second.get_yticklabels()] == ["learned", "cosine"]
    assert first.get_title() == "100 steps, n = 2 seeds"
    assert [t.get_color() == plots._LEARNED for t in first.get_yticklabels()] == [False, False, True]
    means = [float(c.lines[0].get_xdata()[0]) for c in first.containers]
    assert means == pytest.approx([0.15, 0.6, 0.85])
    left, right = first.containers[1].lines[2][0].get_segments()[0][:, 0]
    # t(0.975, 1 degree of freedom) = 12.7062047; standard error of (0.5, 0.7) = 0.1.
    assert (left, right) == pytest.approx((0.6 - 1.27062047, 0.6 + 1.27062047), abs=1e-7)


def test_no_figure_is_kept_by_pyplot(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_comparison(tmp_path / "a.png", {1: {"a": [0.0, 1.0]}})
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_pictures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    u, values = curves(3)
    for name in ("a.png", "b.png"):
        plot_schedule(tmp_path / name, values, ["x", "y", "z"], u)
    pictures = [
        np.asarray(Image.open(io.BytesIO((tmp_path / n).read_bytes())).convert("RGB")) for n in ("a.png", "b.png")
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])
