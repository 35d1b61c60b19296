#!/usr/bin/env python
"""Tables of technique x bits x model x data: accuracy, exact bytes, and the difference to float with its interval.

    python scripts/technique_table.py experiments/tables/capstone.yaml -o runs/capstone --set churn task.root=churn.csv

Each experiment of the file is one ``metasched compare``, whose arms are all techniques at all levels on the same seeds,
beside ``ste``, ``lsq`` and ``float`` of the experiment itself. Folders that are complete are not run again, and a
comparison that was stopped goes on. The tables, one an experiment, are OUTPUT/table.md, the numbers
OUTPUT/table.json. P-values are corrected (Holm) over all arms of an experiment.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from metasched import MetaschedError
from metasched.cli import main as metasched
from metasched.evaluation.comparison import Comparison, comparison_of
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.io.strict_yaml import read_mapping
from metasched.methods.spec import CEILING

_PARTS = {"levels", "techniques", "experiments"}
COLUMNS = ("technique", "levels", "score", "sd", "bytes", "float / bytes", "this - float", "p (Holm)")


class Line(NamedTuple):
    """One technique at one level set in one experiment: score over n seeds, bytes, difference to float."""

    experiment: str
    technique: str
    levels: str
    mean: float
    sd: float
    n: int
    bytes: int
    smaller: float
    difference: float | None
    low: float | None
    high: float | None
    p: float | None


def arm_name(technique: str, levels: str) -> str:
    """The name of the arm of a technique at named levels.

    >>> arm_name("learned scales", "4 bits")
    'learned_scales@4_bits'
    """
    return f"{technique}@{levels}".replace(" ", "_")


def arms(table: Mapping[str, Any]) -> list[list[str]]:
    """The options ``--arm`` of all techniques at all levels."""
    return [
        ["--arm", arm_name(name, bits), how["schedule"], f"method.levels={levels}", *how.get("fields", [])]
        for name, how in table["techniques"].items()
        for bits, levels in table["levels"].items()
    ]


def lines(name: str, comparison: Comparison, table: Mapping[str, Any]) -> list[Line]:
    """The lines of one experiment, the float network first."""
    found, horizon = [], comparison.horizons[0]
    here = comparison.at(horizon)
    ceiling = here[CEILING]
    corrected = comparison.corrected(ceiling)
    wanted = {
        arm_name(technique, levels): (technique, levels)
        for technique in table["techniques"]
        for levels in table["levels"]
    }
    for arm, (technique, levels) in {CEILING: (CEILING, "32 bits"), **wanted}.items():
        s, size = here[arm].summary, here[arm].size
        assert size is not None and ceiling.size is not None, "an older comparison without sizes"
        d = comparison.difference(here[arm], ceiling) if arm != CEILING else None
        numbers = (None, None, None, None) if d is None else (d.mean, d.low, d.high, corrected[arm])
        found.append(Line(name, technique, levels, s.mean, s.sd, s.n, size, ceiling.size / size, *numbers))
    return found


def markdown(found: Sequence[Line]) -> str:
    """The table of each experiment as Markdown."""
    return "\n".join(_markdown(name, list(of)) for name, of in groupby(found, key=lambda x: x.experiment))


def _markdown(name: str, found: Sequence[Line]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    for x in found:
        difference = "" if x.difference is None else f"{x.difference:+.4f} [{x.low:+.4f}, {x.high:+.4f}]"
        p = "" if x.p is None else f"{x.p:.2g}"
        numbers = [f"{x.mean:.4f}", f"{x.sd:.4f}", f"{x.bytes:,}", f"{x.smaller:.2f}"]
        rows.append([x.technique, x.levels, *numbers, difference, p])
    return f"`{name}`, n = {found[0].n}:\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def read(path: Path) -> dict[str, Any]:
    """The description of a table.

    Raises:
        MetaschedError: it lacks a part, or has another one.
    """
    table = dict(read_mapping(path))
    if set(table) != _PARTS or not all(isinstance(table[part], dict) and table[part] for part in _PARTS):
        raise MetaschedError(str(path), f"has {', '.join(table)}", f"give it {', '.join(sorted(_PARTS))}, none empty")
    return table


def run(folder: Path, described: Mapping[str, Any], options: Sequence[str], changes: Sequence[str]) -> Comparison:
    """Runs the comparison of one experiment, or reads or resumes it.

    Raises:
        MetaschedError: the command failed; it has said why.
    """
    files = RunFolder(folder)
    if not files.done.exists():
        fields = [f"--{change}" for change in (*described.get("fields", []), *changes)]
        how = (
            ["--resume", str(folder)]
            if files.schedules.exists()
            else [described["file"], *fields, *options, "--folder", str(folder)]
        )
        if code := metasched(["compare", *how]):
            raise MetaschedError(str(folder), f"metasched compare ended with {code}", "see the line above")
    return comparison_of(json.loads(files.comparison.read_text("utf-8")))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all comparisons and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="the description, a YAML file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="experiments whose names begin so")
    change = "fields of the experiments whose names begin with NAME"
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar=("NAME", "FIELD=VALUE"), help=change)
    arguments = parser.parse_args(argv)
    try:
        table = read(arguments.table)
        chosen = [n for n in table["experiments"] if not arguments.only or n.startswith(tuple(arguments.only))]
        if not chosen:
            raise MetaschedError("--only", "names no experiment", f"use one of {', '.join(table['experiments'])}")
        options, found = [word for arm in arms(table) for word in arm], []
        for name in chosen:
            changes = [field for start, *fields in arguments.set if name.startswith(start) for field in fields]
            comparison = run(arguments.output / name, table["experiments"][name], options, changes)
            found += lines(name, comparison, table)
    except MetaschedError as error:
        parser.error(str(error))
    kept = {"lines": [line._asdict() for line in found], "environment": environment()}
    write_atomic(arguments.output / "table.json", (json_text(kept, indent=1) + "\n").encode())
    write_atomic(arguments.output / "table.md", markdown(found).encode())
    print(markdown(found), end="")


if __name__ == "__main__":
    main()
