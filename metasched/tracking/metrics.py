"""The table of all logged names, with units and meanings. ``<...>`` matches any name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    """A logged number or name."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "select/name": Metric("name", "hand-coded schedule that was tried as the initial one"),
    "select/score": Metric("score", "its mean score on meta-validation, hardened"),
    "outer/step": Metric("outer steps", "outer updates done; axis of outer/"),
    "outer/loss": Metric("loss", "outer loss, mean over the finite inner runs"),
    "outer/score": Metric("score", "score on meta-validation at the end of the inner runs, hardened, mean"),
    "outer/gradient_norm": Metric("loss per parameter", "2-norm of an inner run's hypergradient before clipping, mean"),
    "outer/clipped": Metric("inner runs", "inner runs whose hypergradient was scaled down to meta.clip"),
    "outer/skipped": Metric("inner runs", "inner runs left out because of non-finite numbers"),
    "outer/nonfinite": Metric("numbers", "non-finite numbers in the losses and hypergradients of this step"),
    "outer/dead_layers": Metric("share", "share of (step, layer) pairs in which no gradient reaches the weights, mean"),
    "outer/inner_steps": Metric("inner steps", "inner training steps done since the start"),
    "outer/seconds": Metric("s", "wall time of this outer step"),
    "guard/skipped": Metric("outer steps", "outer steps so far without an update, because of non-finite numbers"),
    "guard/fault": Metric("text", "which numbers of this step were not finite; logged only if there are any"),
    "estimator/tangents": Metric("inner runs", "runs with a tangent for each seed: parameters that move (forward)"),
    "estimator/pairs": Metric("pairs", "antithetic pairs of inner runs (es, guided, pes, nres)"),
    "estimator/guides": Metric("directions", "independent guides that perturbations are stretched along (guided)"),
    "estimator/guided_share": Metric("share", "of the estimate's squared norm that lies along the guides (guided)"),
    "estimator/spread": Metric("loss", "standard deviation over pairs of the slope along the perturbation"),
    "estimator/bad_losses": Metric("inner runs", "inner runs whose loss was not finite; their pairs are left out (es)"),
    "estimator/resets": Metric("pairs", "pairs restarted because of a non-finite loss or state (pes, nres)"),
    "estimator/mode": Metric("index", "estimator in use: 0 exact, 1 mixed, 2 es (auto)"),
    "estimator/growth_rate": Metric("per step", "exponential growth rate of the adjoint, backwards in time (auto)"),
    "estimator/growth": Metric("factors of ten", "growth of the adjoint over the whole run at that rate (auto)"),
    "estimator/growth_peak": Metric("factors of ten", "the largest derivative in the controls over the last (auto)"),
    "estimator/signal": Metric("ratio", "squared norm of the exact mean over its variance, moving average (auto)"),
    "estimator/agreement": Metric("cosine", "of slopes that exact gradients predict and pairs measure, average (auto)"),
    "estimator/agreement_error": Metric("cosine", "standard error of the agreement (auto)"),
    "estimator/exact_weight": Metric("share", "weight of the exact part in the mix (mixed, auto)"),
    "estimator/exact_runs": Metric("inner runs", "exact runs of this step that are finite (mixed, auto, weighted)"),
    "estimator/agreement_mean": Metric(
        "squared length", "of the mean unit vector of exact runs, all blocks (weighted)"
    ),
    "estimator/agreement_most": Metric("squared length", "the same of the block in which runs agree most (weighted)"),
    "estimator/agreement/<block>": Metric(
        "squared length", "the same of one block; 0 in the mean for noise (weighted)"
    ),
    "estimator/exact_norm": Metric("loss", "norm of the exact mean, parameters in units of scale (mixed, auto)"),
    "estimator/es_norm": Metric("loss", "norm of the mean over pairs, parameters in units of scale (mixed, auto)"),
    "estimator/cosine": Metric("cosine", "of the exact mean and the mean over pairs (mixed, auto)"),
    "estimator/loss/<task>": Metric("loss", "outer loss of the tasks of an entry, mean; several tasks only"),
    "estimator/score/<task>": Metric("score", "their score on meta-validation, hardened, mean"),
    "estimator/weight/<task>": Metric("ratio", "what they count in the mean over the tasks of this step"),
    "tune/trial": Metric("candidates", "candidates tried (pbt: populations); axis of tune/"),
    "tune/score": Metric("score", "mean score of the candidate on meta-validation, hardened (pbt: of the best member)"),
    "online/step": Metric("steps", "steps played, including those after this look-ahead; axis of online/"),
    "online/loss": Metric("loss", "loss of the hardened network at the end of the window, on held-out examples"),
    "online/score": Metric("score", "score of the hardened network there"),
    "online/gradient_norm": Metric("loss per parameter", "2-norm of the window's hypergradient before clipping"),
    "online/clipped": Metric("true or false", "whether the hypergradient was scaled down to meta.clip"),
    "online/skipped": Metric("true or false", "whether it was not finite, so that the schedule was not updated"),
    "online/dead_layers": Metric("share", "(step, layer) pairs of the window in which no gradient reaches the weights"),
    "online/inner_steps": Metric("inner steps", "training steps done since the start, including look-aheads"),
    "online/train_loss": Metric("loss", "training loss, mean over the steps played after this look-ahead"),
    "online/looking": Metric("s", "time of the look-ahead: CPU time, or wall time on other devices"),
    "online/fault": Metric("text", "which numbers were not finite; empty if all were finite"),
    "online/playing": Metric("s", "time of the steps played after it, measured in the same way"),
    "schedule/progress": Metric("share of the run", "training time from 0 to 1; axis of schedule/"),
    "schedule/<control>/<layer>": Metric("the control's", "value of a control in a layer under the learned schedule"),
    "confirm/seed": Metric("seed", "inner seed of a run that confirms, the same for what was learned and its start"),
    "confirm/task": Metric("index", "of the fresh task, where what was learned is confirmed over several"),
    "confirm/arm": Metric("name", "learned or start"),
    "confirm/score": Metric("score", "score of the hardened network on meta-validation"),
    "confirm/difference": Metric("score", "mean of what was learned minus its start, paired by seed"),
    "confirm/low": Metric("score", "lower end of the 95 % interval of the difference"),
    "confirm/high": Metric("score", "upper end of that interval"),
    "confirm/runs": Metric("inner runs", "number of pairs"),
    "confirm/gain": Metric("true or false", "whether the interval is above 0, so that what was learned is exported"),
    "confirm/inner_steps": Metric("inner steps", "training steps of all these runs"),
    "floors/name": Metric("name", "floor or ceiling whose learning rate was tuned"),
    "floors/lr": Metric("optimizer.lr", "learning rate that was tried"),
    "floors/score": Metric("score", "its mean score on meta-validation, hardened"),
    "compare/task": Metric("index", "of the fresh task, where several are compared"),
    "compare/index": Metric("index", "number of the seed, from 0; axis of compare/"),
    "compare/arm": Metric("name", "name of the arm"),
    "compare/seed": Metric("seed", "inner seed, the same for all arms"),
    "compare/horizon": Metric("inner steps", "length of the inner run"),
    "compare/score": Metric("score", "score of the hardened network on test data"),
    "result/learned": Metric("score", "mean test score of the first learned arm, at the first horizon"),
    "result/floor": Metric("score", "that of no schedule: the floor that meta-validation named, or the better one"),
    "result/ceiling": Metric("score", "that of the float network"),
    "result/best_published": Metric("score", "that of the best hand-coded schedule that was played"),
    "result/difference": Metric("score", "mean of learned minus floor, paired by seed"),
    "result/low": Metric("score", "lower end of the 95 % interval of the difference"),
    "result/high": Metric("score", "upper end of that interval"),
    "result/p": Metric("p-value", "of the difference, corrected for the number of arms"),
    "result/n": Metric("seeds", "number of pairs"),
}

AXES: dict[str, str] = {
    "outer/*": "outer/step",
    "estimator/*": "outer/step",
    "guard/*": "outer/step",
    "tune/*": "tune/trial",
    "online/*": "online/step",
    "schedule/*": "schedule/progress",
    "compare/*": "compare/index",
}
"""Family of metrics -> its axis in wandb."""

RESULT = "result/"
"""Prefix of the numbers of a whole run: scalars of its summary in wandb, by which runs are sorted, without an axis."""

OF_ARMS = ("select/*", "floors/*", "confirm/*", "compare/*")
"""Families with a row for each arm: the last of them says nothing about the run, so wandb's summary has none."""

SCORES_PICTURE = "scores_by_arm"
"""Name of the plot of a comparison: for each arm, one dot per seed and the mean."""

PLACEHOLDER = "<[a-z]+>"
_PATTERNS = [re.compile(re.sub(PLACEHOLDER, "[^/]+", name)) for name in METRICS]


def unknown_metrics(names: Iterable[str]) -> list[str]:
    """The names that are not in the table.

    >>> unknown_metrics(["outer/loss", "schedule/weight_noise/conv1", "outer/los"])
    ['outer/los']
    """
    return [name for name in names if not any(p.fullmatch(name) for p in _PATTERNS)]
