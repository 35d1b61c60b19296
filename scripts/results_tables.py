"""Writes the tables of results in docs/tables from the JSON files in experiments/results.

    python scripts/results_tables.py

A result file contains the result of ``Comparison.to_dict``, and the command, versions and hardware:
``{"seeds", "learned", "arms", "command", "versions", "hardware"}``. Files without arms are other measurements.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from metasched.evaluation.comparison import FLOORS, LSQ, Arm, Comparison, comparison_of
from metasched.evaluation.measured import method_of_named
from metasched.evaluation.statistics import PairedDifference
from metasched.evaluation.verdict import verdicts
from metasched.io.atomic import write_atomic
from metasched.methods.spec import CEILING, FLOOR

_OURS = (FLOOR, CEILING, "widths")  # methods without a published schedule
_LEARNED = "learned"
_SEARCHES = {"tpe": "TPE", "cmaes": "CMA-ES", "random": "random search"}  # arm -> what it is called

SHOWN = 2  # verdicts of a horizon above the fold: the best arm's and the first learned one's
NO_FLOOR = "No verdict: training without a schedule was not among the arms."

ROOT = Path(__file__).parents[1]
RESULTS, TABLES = ROOT / "experiments" / "results", ROOT / "docs" / "tables"


def tables(results: Path) -> dict[str, str]:
    """File name in docs/tables -> its text, for every comparison in a folder of results."""
    return {f"results_{name}.md": markdown(name, result) for name, result in _read(results).items()}


def markdown(name: str, result: dict[str, Any]) -> str:
    """The section of one comparison: its verdicts, and folded all arms of each horizon, command, versions, hardware."""
    comparison = comparison_of(result)
    found = {
        horizon: [f"- {verdict}" for verdict in verdicts(comparison) if verdict.horizon == horizon]
        for horizon in comparison.horizons
    }
    shown = [line for lines in found.values() for line in lines[:SHOWN]] or [f"- {NO_FLOOR}"]
    versions = ", ".join(f"{package} {version}" for package, version in sorted(result["versions"].items()))
    made = f"Made by `{result['command']}` with {versions} on {result['hardware']}."
    for added in result.get("joined", []):
        made += f" {', '.join(added['arms'])} joined later, by `{added['command']}` on {added['hardware']}."
    parts = [f"### {name}", f"{len(comparison.seeds)} paired seeds.", "\n".join(shown)]
    parts.append("<details><summary>All arms, command, versions, hardware</summary>")
    for horizon in comparison.horizons:
        columns, rows = comparison.rows(horizon)
        more = found[horizon][SHOWN:]
        parts += ["\n".join(more)] * bool(more)
        parts += [f"Hardened test score after {horizon} inner steps:", _table(columns, rows)]
    return "\n\n".join([*parts, made, "</details>"]) + "\n"


def overviews(results: Path) -> dict[str, str]:
    """File name in docs/tables -> a table with a line for each comparison and horizon, with a link to its section.

    The first has the comparisons with training without a schedule, and their verdicts; the second has the others.
    """
    with_floor, without = [], []
    for name, result in _read(results).items():
        comparison = comparison_of(result)
        best = {verdict.horizon: verdict for verdict in reversed(verdicts(comparison))}  # the first of each horizon
        for horizon in comparison.horizons:
            first = [f"[{name}](#{name.replace('_', '-')})", str(horizon)]
            if (verdict := best.get(horizon)) is None:
                arms = [arm for arm in comparison.at(horizon).values() if arm.name != CEILING]
                arm = max(arms, key=lambda arm: arm.summary.mean)
                without.append([*first, arm.name, f"{arm.summary.mean:.4f}"])
            else:
                d = verdict.difference
                said = ["none is better", ""] if d is None else [verdict.finding, _interval(d)]
                with_floor.append([*first, *said, verdict.arm, f"{verdict.mean:.4f}"])
    columns = ["result", "steps", "verdict", "best - no schedule [95 % interval]", "best arm", "mean"]
    return {
        "overview.md": _table(columns, with_floor) + "\n",
        "overview_without_floor.md": _table([*columns[:2], *columns[4:]], without) + "\n",
    }


def floors(results: Path) -> str:
    """One line for each comparison and horizon that has a floor: no schedule, learned, published, constant, float.

    Differences are to the floor that the verdict is about; older results have ``ste`` only.
    """
    columns = ["result", "steps", "n", "no schedule (ste)", "no schedule (lsq)", "learned"]
    columns += ["learned - floor [95 % interval]", "best published - floor", "best constant - floor", "float"]
    rows = [
        _floor_row(name, comparison, horizon, described_arms(result["command"]))
        for name, result, comparison, horizon in _with_floors(results)
    ]
    return _table(columns, rows) + "\n"


def searches(results: Path) -> str:
    """One line for each comparison of an arm ``learned`` with searches of the same controls: differences to each."""
    columns = ["result", "steps", "n", "no schedule", "learned", "learned - no schedule [95 % interval]"]
    columns += [f"learned - {said}" for said in _SEARCHES.values()]
    rows = []
    for name, _, comparison, horizon in _with_floors(results):
        arms, floor = comparison.at(horizon), comparison.floors(horizon)[0]
        if _LEARNED in arms and arms.keys() & _SEARCHES.keys():
            learned = arms[_LEARNED]
            means = (f"{floor.name} {floor.summary.mean:.4f}", f"{learned.summary.mean:.4f}")
            others = [floor, *(arms.get(search) for search in _SEARCHES)]
            over = ("" if arm is None else _interval(comparison.difference(learned, arm)) for arm in others)
            rows.append([name, str(horizon), str(len(comparison.seeds)), *means, *over])
    return _table(columns, rows) + "\n"


def _with_floors(results: Path) -> Iterator[tuple[str, dict[str, Any], Comparison, int]]:
    """Name and content of each result that is a comparison, and each of its horizons that has a floor."""
    for name, result in _read(results).items():
        comparison = comparison_of(result)
        yield from ((name, result, comparison, h) for h in comparison.horizons if comparison.floors(h))


def described_arms(command: str) -> dict[str, str | None]:
    """Arm -> the hand-coded schedule that a command's ``--arm NAME SCHEDULE [FIELD=VALUE ...]`` plays in it.

    None for an arm with other settings than its method, which its floor does not have.

    >>> described_arms("metasched compare a.yaml --arm b blend_half method.name=blend --arm c ste optimizer.lr=1 -o x")
    {'b': 'blend_half', 'c': None}
    """
    found: dict[str, str | None] = {}
    words = shlex.split(command)
    for i, word in enumerate(words):
        if word == "--arm" and words[i + 2] in method_of_named():
            fields = list(takewhile(lambda w: not w.startswith("-"), words[i + 3 :]))
            alike = all(field.startswith("method.name=") for field in fields)
            found[words[i + 1]] = words[i + 2] if alike else None
    return found


def _floor_row(name: str, comparison: Comparison, horizon: int, described: Mapping[str, str | None]) -> list[str]:
    arms = comparison.at(horizon)
    floor = comparison.floors(horizon)[0]

    def best(names: Iterable[str]) -> Arm | None:
        return max((arms[n] for n in names if n in arms), key=lambda arm: arm.summary.mean, default=None)

    def over(arm: Arm | None) -> str:
        if arm is None:
            return ""
        return _interval(comparison.difference(arm, floor))

    plays = {n: described.get(n, n) or "" for n in arms}  # arm -> name of a hand-coded schedule, where it plays one
    constants = [n for n in arms if "_constant" in plays[n]]
    families = method_of_named()
    published = [n for n in arms if families.get(plays[n], "widths") not in _OURS and n not in constants]
    learned = best(n for n in comparison.learned if n not in (*FLOORS, *described, *_SEARCHES))
    plain = {n: f"{arms[n].summary.mean:.4f}" if n in arms else "" for n in (FLOOR, LSQ, CEILING)}
    return [
        name,
        str(horizon),
        str(len(comparison.seeds)),
        plain[FLOOR],
        plain[LSQ],
        "" if learned is None else f"{learned.summary.mean:.4f}",
        over(learned),
        over(best(published)),
        over(best(constants)),
        plain[CEILING],
    ]


def _read(results: Path) -> dict[str, dict[str, Any]]:
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))}
    return {name: result for name, result in found.items() if "arms" in result}


def _interval(d: PairedDifference) -> str:
    return f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def main() -> None:
    """Write every table."""
    TABLES.mkdir(exist_ok=True)
    for name, text in {
        **tables(RESULTS),
        **overviews(RESULTS),
        "floors.md": floors(RESULTS),
        "searches.md": searches(RESULTS),
    }.items():
        write_atomic(TABLES / name, text.encode())


if __name__ == "__main__":
    main()
