"""Hand-coded schedules of ``admm``: its penalty ``rho``, ``sparsity`` as a share of the target, ``weight_blend``.

    admm_lenet5        rho 1e-4, weights on their levels from u = 17/19 on; nothing is pulled before 2/19
    admm_constant      rho 1e-2, on their levels from 3/4 on
    admm_growing       rho 1e-3, times 1.5 in each tenth of the first 3/4; on their levels from 3/4 on
    admm_progressive   the same, and sparsity rises linearly over the first 3/4
    admm_at_end        as admm_growing over the whole run, on their levels in the last step: no retraining
    admm_one_shot      on their levels, and pruned, from the first step on: no schedule

The authors' run for LeNet-5 takes 20,000 dense steps, 30 times 5,000 steps with a projection after each, and 20,000
steps of retraining. The dense part is that with the lowest rho.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from metasched.core.layer import Layer
from metasched.methods.admm import LOWEST, PUBLISHED
from metasched.schedules.curves import Curve, HandCoded, constant, steps

YE = (
    "Ye, Zhang, Zhang, Li, Xie, Liang, Liu, Lin, Wang: A Unified Framework of DNN Weight Pruning and Weight "
    "Clustering/Quantization Using ADMM. AAAI 2019, arXiv 1811.01907; kaiqzhan/admm-pruning, tensorflow-mnist-code"
)
RETRAINING = 0.75  # where it begins
ROUNDS, GROWTH = 10, 1.5
_DENSE, _ROUNDS, _LAST = 20_000, 30 * 5_000, 20_000  # steps of the authors' run
_ALL = _DENSE + _ROUNDS + _LAST
_PRUNED: Curve = partial(constant, value=1.0)
_WEAK: Curve = partial(constant, value=PUBLISHED)


def growing(progress: torch.Tensor, layers: Sequence[Layer], *, start: float, until: float) -> torch.Tensor:
    """A start times 1.5^(10 c) with c = min(u / until, 1), at progress u [T], the same for L layers: [T, L]."""
    rounds = ROUNDS * (progress / until).clamp(max=1)
    return (start * GROWTH**rounds)[:, None].repeat(1, len(layers))


def rising(progress: torch.Tensor, layers: Sequence[Layer], *, until: float) -> torch.Tensor:
    """min(u / until, 1) at progress u [T]: [T, L], equal in all layers."""
    return (progress / until).clamp(max=1)[:, None].repeat(1, len(layers))


def admm() -> list[HandCoded]:
    """The authors' constant, growing penalties, a growing sparsity, and no ADMM at all."""
    first, last = _DENSE / _ALL, 1 - _LAST / _ALL
    ours = "times 1.5 in each of ten rounds, then retrained; not from a paper"
    published = partial(steps, times=(first,), values=(LOWEST, PUBLISHED))
    grown = partial(growing, start=1e-3, until=RETRAINING)
    return [
        _schedule("lenet5", f"{YE}, solver.py and admm_pruning.py", published, from_=last, jumps=(first, last)),
        _schedule("constant", "rho 1e-2, then retrained; not from a paper", partial(constant, value=1e-2)),
        _schedule("growing", f"rho 1e-3 {ours}", grown),
        _schedule("progressive", f"rho 1e-3 {ours}", grown, partial(rising, until=RETRAINING)),
        _schedule(
            "at_end", "projected in the last step, not from a paper", partial(growing, start=1e-3, until=1.0), from_=1.0
        ),
        _schedule(
            "one_shot", "projected from the first step on: no schedule", partial(constant, value=PUBLISHED), from_=0
        ),
    ]


def _schedule(
    name: str,
    citation: str,
    rho: Curve,
    sparsity: Curve = _PRUNED,
    from_: float = RETRAINING,
    jumps: tuple[float, ...] | None = None,
) -> HandCoded:
    """``weight_blend`` is 0 before ``from_`` and 1 from there on."""
    blend: Curve = partial(steps, times=(from_,), values=(0.0, 1.0)) if from_ > 0 else _PRUNED
    at = jumps if jumps is not None else (from_,) if from_ > 0 else ()
    curves = {"rho": rho, "sparsity": sparsity, "weight_blend": blend}
    return HandCoded(f"admm_{name}", "admm", citation, curves, "linear", at)
