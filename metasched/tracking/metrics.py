"""Every name that is logged, once, with its unit and meaning. ``<...>`` stands for any name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    """A logged number or name."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "select/name": Metric("name", "hand-coded schedule that was tried as the start"),
    "select/score": Metric("score", "its mean score on meta-validation, hardened"),
    "outer/step": Metric("outer steps", "outer updates done; axis of all of outer/"),
    "outer/loss": Metric("loss", "outer loss, mean over the inner runs that are finite"),
    "outer/score": Metric("score", "score on meta-validation at the end of the inner runs, hardened, mean"),
    "outer/gradient_norm": Metric("loss per parameter", "2-norm of an inner run's hypergradient before clipping, mean"),
    "outer/clipped": Metric("inner runs", "inner runs whose hypergradient was scaled down to meta.clip"),
    "outer/skipped": Metric("inner runs", "inner runs left out because a number was not finite"),
    "outer/nonfinite": Metric("numbers", "non-finite numbers in the losses and hypergradients of this step"),
    "outer/dead_layers": Metric("share", "(step, layer) pairs in which no gradient reaches the weights, mean"),
    "outer/inner_steps": Metric("inner steps", "inner training steps done since the start"),
    "outer/seconds": Metric("s", "wall time of this outer step"),
    "guard/skipped": Metric("outer steps", "steps so far without an update, because of numbers that are not finite"),
    "guard/fault": Metric("text", "which numbers of this step were not finite; only where there are any"),
    "estimator/tangents": Metric("inner runs", "runs with a tangent for each seed: parameters that move (forward)"),
    "estimator/pairs": Metric("pairs", "antithetic pairs of inner runs (es, pes, nres)"),
    "estimator/spread": Metric("loss", "standard deviation over pairs of the slope along the perturbation"),
    "estimator/bad_losses": Metric("inner runs", "inner runs whose loss was not finite; their pairs are left out (es)"),
    "estimator/resets": Metric("pairs", "pairs begun anew because a loss or a state was not finite (pes, nres)"),
    "estimator/mode": Metric("index", "estimator in use: 0 exact, 1 mixed, 2 es (auto)"),
    "estimator/growth_rate": Metric("per step", "growth of the adjoint, as an exponent, going back in time (auto)"),
    "estimator/growth": Metric("factors of ten", "growth of the adjoint over the whole run at that rate (auto)"),
    "estimator/growth_peak": Metric("factors of ten", "the largest derivative in the controls over the last (auto)"),
    "estimator/signal": Metric("ratio", "squared norm of the exact mean over its variance, moving average (auto)"),
    "estimator/agreement": Metric("cosine", "of slopes that exact gradients predict and pairs measure, average (auto)"),
    "estimator/agreement_error": Metric("cosine", "standard error of the agreement (auto)"),
    "estimator/exact_weight": Metric("share", "weight of the exact part in the mix (mixed, auto)"),
    "estimator/exact_runs": Metric("inner runs", "exact runs of this step that are finite (mixed, auto)"),
    "estimator/exact_norm": Metric("loss", "norm of the exact mean, parameters in units of scale (mixed, auto)"),
    "estimator/es_norm": Metric("loss", "norm of the mean over pairs, parameters in units of scale (mixed, auto)"),
    "estimator/cosine": Metric("cosine", "of the exact mean and the mean over pairs (mixed, auto)"),
    "tune/trial": Metric("candidates", "candidates tried (pbt: populations); axis of all of tune/"),
    "tune/score": Metric("score", "mean score of the candidate on meta-validation, hardened (pbt: of the best member)"),
    "online/step": Metric("steps", "steps played, those after this look-ahead included; axis of all of online/"),
    "online/loss": Metric("loss", "loss of the hardened network at the end of the window, on held-out examples"),
    "online/score": Metric("score", "its score there"),
    "online/gradient_norm": Metric("loss per parameter", "2-norm of the window's hypergradient before clipping"),
    "online/clipped": Metric("true or false", "it was scaled down to meta.clip"),
    "online/skipped": Metric("true or false", "it was not finite, and the schedule stayed as it was"),
    "online/dead_layers": Metric("share", "(step, layer) pairs of the window in which no gradient reaches the weights"),
    "online/inner_steps": Metric("inner steps", "training steps done since the start, look-aheads included"),
    "online/train_loss": Metric("loss", "training loss, mean over the steps played after this look-ahead"),
    "online/looking": Metric("s", "time of the look-ahead: of the CPU, or on another device wall time"),
    "online/fault": Metric("text", "which numbers were not finite; empty where all were"),
    "online/playing": Metric("s", "time of the steps played after it, likewise"),
    "schedule/progress": Metric("share of the run", "training time from 0 to 1; axis of all of schedule/"),
    "schedule/<control>/<layer>": Metric("the control's", "value of a control in a layer under the learned schedule"),
    "compare/arm": Metric("name", "schedule that was played"),
    "compare/seed": Metric("seed", "the same seeds for all schedules; axis of all of compare/"),
    "compare/horizon": Metric("inner steps", "length of the inner run that it was played on"),
    "compare/score": Metric("score", "score on test data, hardened"),
}

AXES: dict[str, str] = {
    "outer/*": "outer/step",
    "estimator/*": "outer/step",
    "guard/*": "outer/step",
    "tune/*": "tune/trial",
    "online/*": "online/step",
    "schedule/*": "schedule/progress",
    "compare/*": "compare/seed",
}
"""The axis of each family: wandb plots the names on the left against the name on the right."""

SCORES_PICTURE = "scores_by_arm"
"""The picture of a comparison: for each schedule a dot for each seed, and the mean."""

_PATTERNS = [re.compile(re.sub("<[a-z]+>", "[^/]+", name)) for name in METRICS]


def unknown_metrics(names: Iterable[str]) -> list[str]:
    """The names that the table does not have.

    >>> unknown_metrics(["outer/loss", "schedule/noise_scale/conv1", "outer/los"])
    ['outer/los']
    """
    return [name for name in names if not any(p.fullmatch(name) for p in _PATTERNS)]
