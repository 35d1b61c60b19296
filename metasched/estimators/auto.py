"""The estimator that looks after itself: it measures as it goes, and chooses exact, mixed or evolution strategies.

The rules are in verdict.py. Growth of the adjoint is seen wherever there are exact runs; the rest needs antithetic
pairs too. So pairs are run at every step in ``mixed``, at each CHECK-th one in ``exact``; and in ``es`` exact runs are
done at each CHECK-th step. Between them, evolution strategies are guided by the latest exact hypergradients
(guided.py). A change of mind needs two measurements in a row that ask for it (the second follows at the next step); an
explosion needs one.
Biased as the estimator that it has chosen (reverse.py, mixed.py, es.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from metasched.engines.base import Hypergradient
from metasched.estimators.base import PLACE, Estimate, State, check_like, check_range
from metasched.estimators.diagnosis import adjoint_growth
from metasched.estimators.es import Pairs, antithetic_pairs
from metasched.estimators.guided import no_guides, orthonormal, stretched, with_new
from metasched.estimators.mixed import Mix, require_spread
from metasched.estimators.reverse import Differentiated, differentiate
from metasched.estimators.verdict import (
    Mode,
    broken_share,
    examine,
    explosion,
    growth_notes,
    unexamined,
    verdict,
)
from metasched.meta.config import MetaConfig
from metasched.runs.local import Runs

MODES: tuple[Mode, ...] = get_args(Mode)  # the state holds indices into it
CHECK = 10  # steps: a pair costs two runs, so that checking ten steps of exact runs costs a fifth more


@dataclass(frozen=True)
class Auto:
    """Hypergradients by whichever estimator is trusted at the moment.

    Attributes:
        noise_floor: of the exact runs, see Reverse.
        sigma: standard deviation of the perturbations of the pairs, in units of the parameters' scales.
    """

    noise_floor: float | None
    sigma: float

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Nothing decided (-1), nothing measured."""
        counts = {"mode": torch.tensor(-1), "asked": torch.tensor(-1), "step": torch.tensor(0)}
        return {**counts, "guides": no_guides(schedule), **unexamined()}

    def check(self, schedule: nn.Module, runs: Runs, num_runs: int, state: State) -> None:
        """See Estimator."""
        check_like(PLACE, state, self.begin(schedule, runs))
        for name, high in (("mode", len(MODES) - 1), ("asked", len(MODES) - 1), ("step", 2**62)):
            check_range(name, state[name], 0, high)

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        mode, asked, step = (int(state[name]) for name in ("mode", "asked", "step"))
        before = MODES[mode] if mode >= 0 else None
        check = before is None or mode != asked or step % CHECK == 0
        exact = differentiate(schedule, runs, seeds, self.noise_floor) if check or before != "es" else None
        guides = with_new(schedule, state["guides"], exact.found) if exact else state["guides"]
        # what is measured are pairs of evolution strategies; what is only learned from goes along the guides
        basis = orthonormal(guides) if before == "es" and not check else None
        deltas = None if basis is None or not basis.numel() else [stretched(schedule, basis, seed) for seed in seeds]
        pairs = antithetic_pairs(schedule, runs, seeds, self.sigma, deltas) if check or before != "exact" else None
        notes: dict[str, float] = dict(pairs.notes) if pairs else {}
        now, wanted, why, mix = before, before, "", None
        if exact and pairs:
            measured, mix, averages, notes = examine(schedule, exact, pairs, state)
            wanted, why = verdict(measured)
            exploding = explosion(measured.growth, measured.broken)
            if not exploding:  # which speaks for itself, and would stay in the averages for long
                state = averages
            now = wanted if before is None or exploding or wanted == MODES[asked] else before
        elif exact:
            growth = adjoint_growth(exact.in_controls)
            notes = growth_notes(growth)
            if why := explosion(growth, broken_share(exact.found)):
                now = wanted = "es"
                pairs = antithetic_pairs(schedule, runs, seeds, self.sigma)
        assert now is not None and wanted is not None
        decided = {"mode": MODES.index(now), "asked": MODES.index(wanted), "step": step + 1}
        line = f"outer step {step + 1}: estimator {now}{f' instead of {before}' if before else ''}: {why}"
        spent = (len(seeds) if exact else 0) + (2 * len(seeds) if pairs else 0)
        return Estimate(
            found=_of_mode(now, exact, pairs, mix),
            state={**state, "guides": guides, **{name: torch.tensor(value) for name, value in decided.items()}},
            inner_steps=spent * runs.problem.steps,
            notes={**notes, "mode": float(decided["mode"])},
            line=line if now != before else None,
        )


def _of_mode(mode: Mode, exact: Differentiated | None, pairs: Pairs | None, mix: Mix | None) -> list[Hypergradient]:
    """The hypergradients of a mode, from what was run for it."""
    if mode == "exact":
        assert exact is not None
        return exact.found
    if mode == "mixed":
        assert mix is not None
        return [mix.found]
    assert pairs is not None
    return [pairs.mean]


_SHOWN = {  # note -> label and format
    "growth": ("growth of the adjoint 10^", ".1f"),
    "signal": ("signal ", ".2g"),
    "agreement": ("agreement ", ".2f"),
    "agreement_error": ("its error ", ".2f"),
    "exact_weight": ("weight of the exact part ", ".2g"),
}


def summary(notes: Sequence[Mapping[str, float]]) -> str:
    """What was used in how many steps, and the last measures: one line, from the notes of all steps.

    >>> summary([{"mode": 0.0, "growth": 1.25}, {"mode": 2.0, "growth": 14.0, "signal": 0.9}, {"mode": 2.0}])
    'exact in 1 step, es in 2 steps; last measured: growth of the adjoint 10^14.0, signal 0.9'
    """
    modes = [MODES[int(of_step["mode"])] for of_step in notes]
    counts = [(mode, modes.count(mode)) for mode in MODES if mode in modes]
    text = ", ".join(f"{mode} in {count} step{'s' if count > 1 else ''}" for mode, count in counts)
    last = {name: value for of_step in notes for name, value in of_step.items()}
    shown = [f"{label}{last[name]:{form}}" for name, (label, form) in _SHOWN.items() if name in last]
    return f"{text}; last measured: {', '.join(shown)}"


def build(meta: MetaConfig) -> Auto:
    """As configured.

    Raises:
        MetaschedError: fewer than two inner runs.
    """
    require_spread(meta)
    return Auto(meta.noise_floor, meta.sigma)
