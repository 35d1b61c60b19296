#!/usr/bin/env python
"""Where schedules matter: each ramp learned, searched with as many steps, and compared with what nobody has to learn.

    python scripts/where_schedules_matter.py experiments/tables/ramps.yaml -o runs/ramps

For each ramp of the file: ``metasched train`` learns it, ``metasched tune`` searches the same numbers with TPE and as
many training steps, and ``metasched compare`` plays both on the same fresh seeds beside no schedule, constants,
published schedules and float. Of several constants, or published schedules, the best one on the test set counts, which
flatters them. A learned schedule that its run does not confirm is not exported: its start is played instead, and the
line says so and shows the score of what was learned as well. P-values are corrected (Holm) over all lines. Folders that
are complete are not run again, and what was stopped goes on. ``--kept FILE`` takes the lines of ramps that are not
chosen from an earlier table.json; each line has the environment that it was measured in. The table is
OUTPUT/table.md, its numbers are in OUTPUT/table.json, the figure is OUTPUT/figure.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metasched import MetaschedError
from metasched.cli import main as metasched
from metasched.evaluation.comparison import Arm, Comparison, comparison_of
from metasched.evaluation.statistics import PairedDifference, holm
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.io.strict_yaml import read_mapping
from metasched.methods.spec import CEILING

KINDS = ("none", "constants", "published")  # of hand-coded schedules
PARTS = {"learn", "tune", "ramps"}
LEARNED, SEARCHED, UNCONFIRMED = "learned", "tpe", "unconfirmed"
SCORES = ("ramp", "no schedule", "constant", "best published", "TPE", "learned", "float")
DIFFERENCES = ("ramp", "learned - no schedule", "p (Holm)", "learned - best published", "p (Holm)", "learned - TPE")


def described(path: Path) -> dict[str, Any]:
    """The file of ramps.

    Raises:
        MetaschedError: it lacks a part, or has another one.
    """
    table = dict(read_mapping(path))
    if set(table) != PARTS or not table["ramps"]:
        raise MetaschedError(str(path), f"has {', '.join(table)}", f"give it {', '.join(sorted(PARTS))}")
    for name, ramp in table["ramps"].items():
        if lacks := {"file", "fields", *KINDS} - set(ramp):
            raise MetaschedError(f"{path}: {name}", f"lacks {', '.join(sorted(lacks))}", "give an empty list for none")
    return table


def kept_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Ramp -> its line in an earlier table.json."""
    result = json.loads(path.read_text("utf-8"))
    return {x["ramp"]: {"environment": result.get("environment"), "unconfirmed": None, **x} for x in result["lines"]}


def run(command: str, folder: Path, words: Sequence[str]) -> RunFolder:
    """A command's finished run folder: it is run, resumed, or left as it is.

    Raises:
        MetaschedError: the command failed; it has said why.
    """
    files = RunFolder(folder)
    if not files.done.exists():
        how = ["--resume", str(folder)] if files.config.exists() else [*words, "--folder", str(folder)]
        if code := metasched([command, *how]):
            raise MetaschedError(str(folder), f"metasched {command} ended with {code}", "see the line above")
    return files


def spent(schedule: Path) -> int:
    """Training steps that learning a schedule took, without choosing its start and confirming: TPE gets as many."""
    found = json.loads(schedule.read_text("utf-8"))["provenance"]["spent"]
    return sum(part["inner_steps"] for part in found if part["by"] not in ("best", "confirm"))


def measured(ramp: Mapping[str, Any], table: Mapping[str, Any], folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Learns, searches and compares one ramp; returns the comparison and whether the learned schedule was exported."""
    own = [ramp["file"], *(f"--{change}" for change in (*ramp["fields"], *changes))]
    learn = [f"--{change}" for change in table["learn"]]
    quick = ["--compare.baselines", "[]", "--compare.horizons", "[1]", "--compare.tune_floors", "0"]
    short = [*quick, "--compare.seeds", "2"]  # of the comparisons that come with learning and searching
    learned = run("train", folder / "learned", [*own, *learn, *short])
    trained = json.loads(learned.comparison.read_text("utf-8"))
    at = learned.learned if learned.learned.exists() else learned.schedule
    budget = ["--tune.inner_steps", str(spent(at)), *(f"--{change}" for change in table["tune"])]
    searched = run("tune", folder / "searched", [*own, *learn, *short, *budget])
    names = [name for kind in KINDS for name in ramp[kind]]
    arms = ["--arm", LEARNED, str(learned.schedule), "--arm", SEARCHED, str(searched.schedule)]
    if learned.learned.exists():
        arms += ["--arm", UNCONFIRMED, str(learned.learned)]
    seeds = [field for field in learn if field.startswith("--compare.")]
    compared = run(
        "compare", folder / "compared", [*own, *quick, *seeds, f"--compare.baselines=[{', '.join(names)}]", *arms]
    )
    return {
        "exported": bool(trained["confirmed"]["gain"]),
        "confirmed": trained["confirmed"]["text"],
        "start": trained["confirmed"]["start"],
        "inner_steps": spent(at),
        "comparison": json.loads(compared.comparison.read_text("utf-8")),
    }


def best(arms: Mapping[str, Arm], names: Sequence[str]) -> Arm | None:
    """The arm of the highest mean among those named; None of none."""
    return max((arms[name] for name in names), key=lambda arm: arm.summary.mean, default=None)


def line(name: str, ramp: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of one ramp."""
    comparison: Comparison = comparison_of(found["comparison"])
    arms = comparison.at(comparison.horizons[0])
    learned = arms[LEARNED]
    others = {kind: best(arms, ramp[kind]) for kind in KINDS} | {SEARCHED: arms[SEARCHED], CEILING: arms[CEILING]}
    return {
        "ramp": name,
        "learned": learned.summary.mean,
        "n": learned.summary.n,
        "exported": found["exported"],
        "unconfirmed": arms[UNCONFIRMED].summary.mean if UNCONFIRMED in arms else None,
        "start": found["start"],
        "inner_steps": found["inner_steps"],
        "others": {kind: arm and {"name": arm.name, "mean": arm.summary.mean} for kind, arm in others.items()},
        "differences": {
            kind: comparison.difference(learned, arm)._asdict()
            for kind, arm in others.items()
            if arm and kind != CEILING
        },
    }


def corrected(lines: Sequence[Mapping[str, Any]], kind: str) -> list[float | None]:
    """P-values of learned minus a kind of schedule, by Holm over all lines that have one."""
    ps = {i: line["differences"][kind]["p"] for i, line in enumerate(lines) if kind in line["differences"]}
    fixed = dict(zip(ps, holm(list(ps.values())), strict=True))
    return [fixed.get(i) for i in range(len(lines))]


def _breakable(name: str) -> str:
    return name.replace("_", "_<wbr>")  # a long name may be broken in a narrow column


def _interval(d: Mapping[str, float] | None) -> str:
    return "" if d is None else f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Two tables as Markdown: scores, and differences of what was learned."""
    scores: list[Sequence[str]] = [SCORES, ["---"] * len(SCORES)]
    differences: list[Sequence[str]] = [DIFFERENCES, ["---"] * len(DIFFERENCES)]
    floor, published = corrected(lines, "none"), corrected(lines, "published")
    for x, p, q in zip(lines, floor, published, strict=True):
        others, d = x["others"], x["differences"]
        cells = [f"{arm['mean']:.4f} ({_breakable(arm['name'])})" if (arm := others[kind]) else "" for kind in KINDS]
        learned = f"{x['learned']:.4f}"
        if not x["exported"]:
            found = "" if x["unconfirmed"] is None else f"; found {x['unconfirmed']:.4f}"
            learned += f" (no gain confirmed: {_breakable(x['start'])}{found})"
        ps = ["" if value is None else f"{value:.2g}" for value in (p, q)]
        searched, ceiling = (f"{others[kind]['mean']:.4f}" for kind in (SEARCHED, CEILING))
        scores.append([x["ramp"], *cells, searched, learned, ceiling])
        over = [_interval(d.get(kind)) for kind in ("none", "published", SEARCHED)]
        differences.append([x["ramp"], over[0], ps[0], over[1], ps[1], over[2]])
    return "\n".join("".join(f"| {' | '.join(row)} |\n" for row in rows) for rows in (scores, differences))


def figure(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Learned minus no schedule, best published and TPE, with 95 % intervals, for each ramp."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"none": "no schedule", "published": "best published", SEARCHED: "TPE, as many steps"}
    fig, axis = pyplot.subplots(figsize=(8, 0.6 * len(lines) + 1.4), layout="constrained")
    for i, (kind, label) in enumerate(shown.items()):
        found = [
            (j, PairedDifference(**x["differences"][kind])) for j, x in enumerate(lines) if kind in x["differences"]
        ]
        places = [-j + 0.22 * (1 - i) for j, _ in found]
        means = [100 * d.mean for _, d in found]
        ends = [[100 * (d.mean - d.low) for _, d in found], [100 * (d.high - d.mean) for _, d in found]]
        axis.errorbar(means, places, xerr=ends, fmt="os^"[i], capsize=2, markersize=5, label=f"minus {label}")
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_yticks([-j for j in range(len(lines))], [x["ramp"] for x in lines])
    axis.set_xlabel("learned schedule: points of test accuracy more, 95 % interval over seeds")
    axis.legend(loc="best", fontsize="small")
    fig.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="the file of ramps")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", action="append", default=[], metavar="RAMP", help="ramps whose names begin so")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="an earlier table.json: lines of ramps not chosen")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="changes of all experiments")
    arguments = parser.parse_args(argv)
    try:
        table = described(arguments.table)
        kept = kept_lines(arguments.kept) if arguments.kept else {}
        chosen = [n for n in table["ramps"] if not arguments.only or n.startswith(tuple(arguments.only))]
        if not chosen:
            raise MetaschedError("--only", "names no ramp", f"use one of {', '.join(table['ramps'])}")
        found = {name: kept[name] for name in kept if name not in chosen}
        for name in chosen:
            folder = arguments.output / "".join(c if c.isalnum() else "_" for c in name)
            folder.mkdir(parents=True, exist_ok=True)
            ramp = table["ramps"][name]
            found[name] = line(name, ramp, measured(ramp, table, folder, arguments.set))
            found[name]["environment"] = environment()
            lines = [found[name] for name in table["ramps"] if name in found]
            result = {"lines": lines, "table": table}
            write_atomic(arguments.output / "table.json", (json_text(result, indent=1) + "\n").encode())
            write_atomic(arguments.output / "table.md", markdown(lines).encode())
            figure(lines, arguments.output / "figure.png")
    except MetaschedError as error:
        parser.error(str(error))
    print(markdown(lines), end="")


if __name__ == "__main__":
    main()
