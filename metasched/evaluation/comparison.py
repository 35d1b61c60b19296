"""The result of a comparison: scores of all arms on the same seeds, and statistics of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metasched.core.extras import from_extra
from metasched.core.shown import Printed
from metasched.evaluation.statistics import PairedDifference, Summary, counted, holm, paired_difference, summarize
from metasched.evaluation.tuned_rate import TunedRate
from metasched.exchange.format import Spent
from metasched.methods.spec import CEILING, FLOOR

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]: an extra
    import torch

LSQ = "lsq"
FLOORS = (FLOOR, LSQ)  # no schedule: hard from the first step, with fixed scales and with learned ones
_NAMED = 6  # arms in the representation
REFERENCES = (*FLOORS, CEILING)  # what every comparison has; the ceiling has no quantization


@dataclass(frozen=True)
class Arm:
    """One schedule of one method at one horizon.

    Attributes:
        name: name of the arm.
        horizon: T, inner steps of each run.
        scores: final score of the hardened network on the test split, one a seed; NaN for a run that diverged.
        inner_steps: training steps that this arm spent: T for each seed.
        spent: training steps that finding the schedule, or tuning the learning rate, took before; empty for none.
        method: name of the method that it drives; empty where an old result file does not say.
        worst: what a run that diverged counts.
        tuned: how its learning rate was chosen; None: it has the experiment's.
        size: bytes of the deployed network (network/size.py); None where training decides it, or an older result does
            not say.
    """

    name: str
    horizon: int
    scores: tuple[float, ...]
    inner_steps: int
    spent: tuple[Spent, ...] = ()
    method: str = ""
    worst: float = 0.0
    tuned: TunedRate | None = None
    size: int | None = None

    @property
    def counted(self) -> tuple[float, ...]:
        """The scores as they count."""
        return counted(self.scores, self.worst)

    @property
    def summary(self) -> Summary:
        """Mean, standard deviation, n, of the scores as they count."""
        return summarize(self.counted)

    @property
    def diverged(self) -> int:
        """Number of runs that diverged."""
        return sum(math.isnan(score) for score in self.scores)


class Drawn(NamedTuple):
    """A schedule for a picture: its name, those of the L layers, and {control: [T, L]} at T equal steps of progress."""

    name: str
    layers: tuple[str, ...]
    values: Mapping[str, torch.Tensor]


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """All arms at all horizons, on the same seeds in the same order: what ``Study.compare`` and ``Result`` give.

    Printed, it is the verdicts and a table of scores.

    Attributes:
        seeds: the inner seeds.
        arms: all arms of each horizon, in the given order.
        learned: names of the arms with which all others are compared, besides the floors.
        drawn: schedules that ``report`` draws; they are not in ``to_dict``.
    """

    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    learned: tuple[str, ...]
    drawn: tuple[Drawn, ...] = field(default=(), compare=False, repr=False)

    def __repr__(self) -> str:
        names = list(dict.fromkeys(arm.name for arm in self.arms))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        steps = ", ".join(map(str, self.horizons))
        return f"Comparison(of {', '.join(names[:_NAMED])}{more}; after {steps} steps, n = {len(self.seeds)})"

    def __str__(self) -> str:
        from metasched.evaluation.short import scores_text

        return scores_text(self)

    def at(self, horizon: int) -> dict[str, Arm]:
        """The arms of one horizon by name."""
        return {arm.name: arm for arm in self.arms if arm.horizon == horizon}

    @property
    def horizons(self) -> list[int]:
        """The horizons, in inner steps."""
        return sorted({arm.horizon for arm in self.arms})

    def floors(self, horizon: int) -> list[Arm]:
        """The floors that the arms of a horizon are held against, the best one first.

        If the learning rates of all floors were tuned at this horizon, the one with the best score on meta-validation
        alone: it is named before the test split is read. Otherwise, as at longer horizons, where the other one may be
        the better, all that were played (older results have ``ste`` only, or none), by their mean score. At ties
        ``ste`` is first.
        """
        arms = self.at(horizon)
        floors = [arms[name] for name in FLOORS if name in arms]
        scores = [arm.tuned.score for arm in floors if arm.tuned is not None and arm.tuned.steps == horizon]
        if floors and len(scores) == len(floors):
            return [floors[scores.index(max(scores))]]
        return sorted(floors, key=lambda arm: -arm.summary.mean)

    def difference(self, arm: Arm, other: Arm) -> PairedDifference:
        """Mean paired difference arm - other with its 95 % interval."""
        return paired_difference(arm.counted, other.counted)

    def corrected(self, arm: Arm) -> dict[str, float]:
        """P-value of the difference to each other arm at the same horizon, corrected for their number (Holm)."""
        others = [other for other in self.at(arm.horizon).values() if other.name != arm.name]
        adjusted = holm([self.difference(arm, other).p for other in others])
        return {other.name: p for other, p in zip(others, adjusted, strict=True)}

    def rows(self, horizon: int, references: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
        """The table of a horizon, sorted by mean, best first: names of columns, and rows of text.

        Args:
            horizon: horizon in inner steps.
            references: arms with a column of differences, besides the floors; default: ``learned``.
        """
        arms = self.at(horizon)
        names = self.learned if references is None else references
        others = [arms[name] for name in names if name in arms and name not in FLOORS]
        floors = sorted(self.floors(horizon), key=lambda arm: FLOORS.index(arm.name))
        tuned = any(arm.tuned for arm in arms.values())
        diverged = any(arm.diverged for arm in arms.values())
        found = any(arm.spent for arm in arms.values())
        sized = any(arm.size is not None for arm in arms.values())
        steps = len({arm.inner_steps for arm in arms.values()}) > 1  # for instance if one arm adapts online
        columns = [
            "schedule",
            "mean",
            "sd",
            "n",
            *["bytes"] * sized,
            *["diverged"] * diverged,
            *["inner steps"] * steps,
        ]
        columns += [*["tuned lr"] * tuned, *["found in (inner steps)"] * found]
        columns += [f"this - {floor.name} [95 % interval]" for floor in floors]
        for arm in others:
            columns += [f"{arm.name} - this [95 % interval]", "p (Holm)"]
        corrected = {arm.name: self.corrected(arm) for arm in others}
        rows = []
        for arm in sorted(arms.values(), key=lambda a: -a.summary.mean):
            s = arm.summary
            row = [arm.name, f"{s.mean:.4f}", f"{s.sd:.4f}", str(s.n)]
            row += [f"{arm.size:,}" if arm.size is not None else ""] * sized
            row += [*[str(arm.diverged)] * diverged, *[str(arm.inner_steps)] * steps]
            row += [f"{arm.tuned.lr:.3g}" if arm.tuned else ""] * tuned
            row += [" + ".join(f"{spent.inner_steps} {spent.by}" for spent in arm.spent)] * found
            row += ["" if arm is floor else _interval(self.difference(arm, floor)) for floor in floors]
            for reference in others:
                if reference is arm:
                    row += ["", ""]
                else:
                    p = corrected[reference.name][arm.name]
                    row += [_interval(self.difference(reference, arm)), f"{p:.2g}"]
            rows.append(row)
        return columns, rows

    def to_dataframe(self) -> pandas.DataFrame:
        """The scores, a row for each arm, horizon and seed; NaN for a run that diverged.

        Raises:
            MetaschedError: pandas is not installed.
        """
        with from_extra("dataframe"):
            import pandas  # pyright: ignore[reportMissingImports]: an extra
        rows = [
            {"arm": arm.name, "method": arm.method, "horizon": arm.horizon, "seed": seed, "score": score}
            for arm in self.arms
            for seed, score in zip(self.seeds, arm.scores, strict=True)
        ]
        return pandas.DataFrame(rows)

    def report(self, path: str | Path, title: str = "Comparison of schedules") -> Path:
        """Writes a page that needs nothing else: verdicts, tables, pictures of the scores and of schedules.

        Args:
            path: of the HTML file.
            title: of the page.

        Raises:
            MetaschedError: the file cannot be written, or matplotlib is not installed.
        """
        from metasched.evaluation.page import write_page

        return write_page(Path(path), title, self)

    def to_dict(self) -> dict[str, Any]:
        """All results as plain values, for JSON."""
        arms = []
        for arm in self.arms:
            entry: dict[str, Any] = {
                "name": arm.name,
                "method": arm.method,
                "horizon": arm.horizon,
                **arm.summary._asdict(),
                "diverged": arm.diverged,
                "inner_steps": arm.inner_steps,
                "spent": [asdict(spent) for spent in arm.spent],
                "scores": list(arm.scores),
                **({"worst": arm.worst} if arm.worst else {}),
                **({"tuned": arm.tuned.to_dict()} if arm.tuned else {}),
                **({"bytes": arm.size} if arm.size is not None else {}),
            }
            arms_here = self.at(arm.horizon)
            references = [arms_here[n] for n in self.learned if n in arms_here]
            for key, name in zip(("over_floor", "over_lsq"), FLOORS, strict=True):
                if name in arms_here and name != arm.name:
                    entry[key] = self.difference(arm, arms_here[name])._asdict()
            entry["differences"] = {
                r.name: {**self.difference(r, arm)._asdict(), "p_holm": self.corrected(r)[arm.name]}
                for r in references
                if r is not arm
            }
            arms.append(entry)
        return {"seeds": list(self.seeds), "learned": list(self.learned), "arms": arms}


def comparison_of(result: Mapping[str, Any]) -> Comparison:
    """The comparison that ``to_dict`` has written, by this version or an older one."""
    arms = tuple(
        Arm(
            a["name"],
            a["horizon"],
            tuple(map(float, a["scores"])),
            a["inner_steps"],
            tuple(Spent(**entry) for entry in a.get("spent", [])),
            a.get("method", ""),
            a.get("worst", 0.0),
            TunedRate.from_dict(a["tuned"]) if "tuned" in a else None,
            a.get("bytes"),
        )
        for a in result["arms"]
    )
    return Comparison(tuple(result["seeds"]), arms, tuple(result["learned"]))


def _interval(d: PairedDifference) -> str:
    return f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
