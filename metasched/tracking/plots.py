"""Plots for the run folder: the curves of a schedule, its sensitivity, and the scores of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasched.core.extras import from_extra
from metasched.io.atomic import write_atomic

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

_MANY = 12  # layers; with more, a colour bar replaces the legend
_MANY_ROWS = 24  # layers; with more, their names are left out
_DECADES = 2  # of derivatives with a logarithmic colour scale; smaller ones have a linear one
_LARGEST_T = 5.0
_LEARNED, _OTHER = "#c1272d", "#4d4d4d"
_FOUND = ("C0", "C1", "C2", "C4", "C5", "C9", "C6", "C8")  # without C3, which resembles _LEARNED


def plot_schedule(
    path: Path, values: Mapping[str, torch.Tensor], layers: Sequence[str], progress: torch.Tensor
) -> None:
    """Plots each control in each layer over progress, one panel per control; dark at the input, bright at the output.

    Args:
        path: path of the PNG.
        values: control -> [T, L].
        layers: the L names, from input to output.
        progress: [T], in [0, 1].
    """
    with from_extra("train"):
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize

    figure, axes = _panels(len(values), width=5.0, height=3.4)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    # later curves are thinner, so that equal curves stay visible
    widths = np.linspace(3.0, 1.2, len(layers)) if len(layers) <= _MANY else np.full(len(layers), 1.0)
    u = progress.detach().cpu().double().numpy()
    for axis, (control, curves) in zip(axes, values.items(), strict=True):
        for i, curve in enumerate(curves.detach().cpu().double().numpy().T):
            axis.plot(u, curve, color=colors[i], linewidth=widths[i], label=layers[i])
        axis.set(title=control, xlabel="progress", xlim=(0, 1))
    axes[0].set_ylabel("value")
    if len(layers) <= _MANY:
        axes[-1].legend(title="layer", loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    else:
        scale = ScalarMappable(Normalize(0, 1), ListedColormap(colors))
        figure.colorbar(scale, ax=axes, label=f"relative depth of the {len(layers)} layers", pad=0.02)
    _save(figure, path)


def plot_comparison(
    path: Path,
    scores: Mapping[int, Mapping[str, Sequence[float]]],
    learned: Sequence[str] = (),
    axis: str = "score (dots: seeds; mean, 95 % interval)",
    of: str = "seeds",
) -> None:
    """Plots the scores, mean and 95 % t-interval of each arm, one panel per horizon; the best arm is on top.

    Args:
        path: path of the PNG.
        scores: horizon in inner steps -> arm -> one score per seed; higher is better.
        learned: arms to highlight.
        axis: what is drawn, and how.
        of: what each dot is one of: seeds, or tasks, at a horizon that is a multiple of each one's steps.
    """
    figure, axes = _panels(len(scores), width=4.6, height=1.4 + 0.3 * max(len(arms) for arms in scores.values()))
    for panel, (horizon, arms) in zip(axes, scores.items(), strict=True):
        order = sorted(arms, key=lambda arm: float(np.mean(arms[arm])))
        for row, arm in enumerate(order):
            sample, color = np.asarray(arms[arm], dtype=float), _LEARNED if arm in learned else _OTHER
            panel.scatter(sample, np.full(len(sample), row - 0.18), s=14, color=color, alpha=0.45, linewidths=0)
            panel.errorbar(  # shifted, so that the interval does not cover the dots
                sample.mean(), row + 0.12, xerr=_half_interval(sample), fmt="o", markersize=5, capsize=3, color=color
            )
        panel.set_yticks(range(len(order)), order)
        for label in panel.get_yticklabels():
            label.set_color(_LEARNED if label.get_text() in learned else "black")
            label.set_parse_math(False)  # names of files may contain dollar signs
        length, n = f"{horizon} {'steps' if of == 'seeds' else 'x steps'}", max(map(len, arms.values()))
        panel.set(title=f"{length}, n = {n} {of}", xlabel=axis)
        panel.set_ylim(-0.7, len(order) - 0.3)
    _save(figure, path)


def plot_compute(
    path: Path,
    found: Mapping[str, Mapping[float, Sequence[float]]],
    free: Mapping[str, Sequence[float]],
    learned: Collection[str],
) -> None:
    """Plots the mean score, with its 95 % t-interval, over the cost of finding a schedule in plain training runs.

    Args:
        path: path of the PNG.
        found: way to find a schedule -> cost in plain training runs -> one score per seed; higher is better.
        free: arm -> scores of schedules without cost, drawn as horizontal lines.
        learned: ways to highlight.
    """
    figure, (axis,) = _panels(1, width=7.0, height=4.0)
    for i, (name, curve) in enumerate(found.items()):
        runs = sorted(curve)
        beside = [r * 1.03**i for r in runs]  # shifted, so that intervals at the same cost do not overlap
        samples = [np.asarray(curve[r], dtype=float) for r in runs]
        color, width = (_LEARNED, 2.4) if name in learned else (_FOUND[i % len(_FOUND)], 1.2)
        means, halves = [sample.mean() for sample in samples], [_half_interval(sample) for sample in samples]
        marker = "o" if len(runs) > 1 else "D"
        axis.errorbar(beside, means, halves, marker=marker, capsize=3, linewidth=width, color=color, label=name)
    for name, scores in free.items():
        axis.axhline(float(np.mean(scores)), color=_OTHER, linestyle="--", linewidth=1, label=f"{name} (costs nothing)")
    ticks = sorted({runs for curve in found.values() for runs in curve})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set(xlabel="plain training runs spent", ylabel="score (mean, 95 % interval)")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    _save(figure, path)


def plot_sensitivity(path: Path, maps: Mapping[str, tuple[torch.Tensor, torch.Tensor]], layers: Sequence[str]) -> None:
    """Plots the mean derivative of the outer loss and its t-value over runs, two panels per control.

    The axes of a panel are progress and layers. In red areas a lower value of the control would help, in blue areas a
    higher one; the colours of the derivative are logarithmic.

    Args:
        path: path of the PNG.
        maps: control -> (mean, t), [T, L] each; non-finite values are white.
        layers: the L names, from input to output; shown from top to bottom.
    """
    with from_extra("train"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import Normalize, SymLogNorm
        from matplotlib.figure import Figure

    height = 1.2 + 0.25 * min(len(layers), _MANY_ROWS)
    figure = Figure(figsize=(11, height * len(maps)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(maps), 2, squeeze=False, sharex=True, sharey=True)
    for row, (control, panels) in zip(rows, maps.items(), strict=True):
        mean, t = (panel.detach().cpu().double().numpy().T for panel in panels)  # [L, T]
        largest = float(np.abs(mean[np.isfinite(mean)]).max(initial=0)) or 1.0
        colours = SymLogNorm(largest / 10**_DECADES, vmin=-largest, vmax=largest)
        what = [(mean, colours, f"d loss / d {control}"), (t, Normalize(-_LARGEST_T, _LARGEST_T), "t over runs")]
        for axis, (values, norm, title) in zip(row, what, strict=True):
            extent = (0.0, 1.0, len(layers) - 0.5, -0.5)
            image = axis.imshow(values, norm=norm, cmap="RdBu_r", aspect="auto", interpolation="nearest", extent=extent)
            axis.set(title=title)
            if len(layers) <= _MANY_ROWS:
                axis.set_yticks(range(len(layers)), layers)
            figure.colorbar(image, ax=axis)
    for axis in rows[-1]:
        axis.set_xlabel("progress")
    _save(figure, path)


def _half_interval(sample: np.ndarray) -> float:
    """Half the width of the 95 % t-interval of the mean; 0 for a single number."""
    with from_extra("train"):
        from scipy.special import stdtrit

    n = len(sample)
    return float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A row of panels, or rows of two for more than three; without pyplot, which keeps every figure alive."""
    with from_extra("train"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    columns = count if count <= 3 else 2
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + 1.2, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    axes = places[:count]
    for place in places[count:]:
        place.remove()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with from_extra("train"):
        from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")  # long labels are not cut
    Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)  # a third of the size
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, small.getvalue())
