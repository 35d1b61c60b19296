"""``metasched portfolio``: an ordered list of schedules to try, from the scores of arenas, or of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from metasched.arena.greedy import Matrix, Recipe, curse, greedy, matrices, ranked, regret
from metasched.arena.scores import Line, dumps, join, read_scores
from metasched.core.errors import MetaschedError, printable
from metasched.exchange import portfolios, schedule_file
from metasched.exchange.extras import Membership
from metasched.exchange.format import VERSIONS, ScheduleFile
from metasched.exchange.portfolios import MOST, Entry, Portfolio, content_hash, portfolios_of, shipped_portfolios
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.exchange.shipped import file_of
from metasched.io.atomic import write_atomic
from metasched.tracking.console import Console


def build(
    given: Sequence[Path], out: Path, console: Console, without: Sequence[str] = (), most: int = MOST
) -> dict[str, Any]:
    """Builds the portfolio of each recipe and writes them to one file; schedule files are copied beside it.

    A copy says which portfolio it is in, and its rank. A file that lies where its copy would be stays as it was scored.

    Args:
        given: folders of arenas on the validation part, or their scores.
        out: the file.
        console: where it is shown.
        without: families of tasks that play no part, to be judged on.
        most: entries at most.

    Raises:
        MetaschedError: scores that cannot be read or joined or are of the test part, a schedule file that has changed
            since it was scored, or a write that failed.
    """
    if not out.parent.is_dir():
        raise MetaschedError(str(out), "its folder does not exist", "make it, or give another --out")
    parts = [(str(path), read_scores(path)) for path in given]
    scores = join(parts)
    sources = {Path(name).name: hashlib.sha256(dumps(own).encode()).hexdigest() for name, own in parts}
    found, files = [], {}
    every = matrices(scores, without)
    for recipe, matrix in every.items():
        made, copies = _portfolio(recipe, matrix, sources, out, most)
        found.append(made)
        files |= copies
        for line in matrix.left_out:
            console.note(f"left out: {line}")
    for target, file in files.items():
        write_schedule(target, file)
    write_atomic(out, portfolios.dumps(found).encode())
    for made, matrix in zip(found, every.values(), strict=True):
        _show(made, console, _regret(made, matrix))
    return {"portfolio": str(out), "portfolios": [asdict(made) for made in found]}


def show(named: str | None, console: Console) -> dict[str, Any]:
    """Shows a portfolio of the package or of a file, or all of the package.

    Raises:
        MetaschedError: there is none of this name.
    """
    if named is None:
        shipped = shipped_portfolios()
        if not shipped:
            console.note("no portfolio comes with this version; `metasched portfolio build` makes one from an arena")
        for name, summary in shipped.items():
            console.note(f"{name}: {summary}")
    found = portfolios_of(named)
    for portfolio in found:
        _show(portfolio, console)
    return {"portfolios": [asdict(portfolio) for portfolio in found]}


def _portfolio(
    recipe: Recipe, matrix: Matrix, sources: dict[str, str], out: Path, most: int
) -> tuple[Portfolio, dict[Path, ScheduleFile]]:
    """The portfolio of a matrix, and the schedule files beside it, {path: what it holds}."""
    means, weights = matrix.scores.mean(2), matrix.weights
    ranks = ranked(means)
    order, after = greedy(ranks, weights, most)
    entries, copies = [], dict[Path, ScheduleFile]()
    for number, (index, rank) in enumerate(zip(order, after, strict=True), 1):
        line = matrix.schedules[index]
        place, source = _place(line, out)
        bound = line.hash if source else None
        if source is not None and source.resolve() != (out.parent / place).resolve():  # else it lies there already
            member = Membership(name=printable(out.stem), rank=number)
            copy = replace(read_schedule(source), portfolio=member, version=VERSIONS[-1])  # the lowest that will do
            copies[out.parent / place] = copy
            bound = hashlib.sha256(schedule_file.dumps(copy).encode()).hexdigest()
        scores: dict[str, tuple[float, ...]] = {}
        for (task, _), mean in zip(matrix.cases, means[:, index], strict=True):
            scores[task] = (*scores.get(task, ()), float(mean))
        own = float(weights @ ranks[:, index])
        entries.append(Entry(name=line.arm, schedule=place, hash=bound, own_rank=own, rank=rank, scores=scores))
    first = matrix.schedules[0]
    made = Portfolio(
        method=recipe.method,
        levels=recipe.levels,
        activation_levels=recipe.activation_levels,
        parameters=first.parameters or {},
        entries=tuple(entries),
        compared=len(matrix.schedules),
        horizons=tuple(sorted({horizon for _, horizon in matrix.cases})),
        seeds=matrix.scores.shape[2],
        curse=curse(matrix.scores, weights),
        sources=sources,
    )
    return made, copies


def _place(line: Line, out: Path) -> tuple[str, Path | None]:
    """What an entry calls its schedule, and the file that must be copied for it; None for a name of the package."""
    assert line.schedule is not None
    path = file_of(line.schedule)
    if path is None:
        return line.schedule, None
    if line.hash is not None and content_hash(path) != line.hash:
        raise MetaschedError(str(path), "has changed since it was scored", "put it back, or run the arena again")
    return (line.schedule, None) if path != Path(line.schedule) else (f"{out.stem}_{line.arm}.json", path)


def _regret(portfolio: Portfolio, matrix: Matrix) -> list[float]:
    by_place = {line.arm: i for i, line in enumerate(matrix.schedules)}
    return regret(matrix.scores.mean(2), matrix.weights, [by_place[entry.name] for entry in portfolio.entries])


def _show(portfolio: Portfolio, console: Console, regrets: Sequence[float] = ()) -> None:
    title = (
        f"{portfolio.recipe}: best {len(portfolio.entries)} of {portfolio.compared} schedules on "
        f"{len(portfolio.tasks)} tasks, {portfolio.seeds} seeds, horizons {', '.join(map(str, portfolio.horizons))}"
    )
    columns = ["try", "schedule", "own mean rank", "best rank so far", *["regret"] * bool(regrets)]
    rows = []
    for i, entry in enumerate(portfolio.entries):
        own = [f"{regrets[i]:.4f}"] if regrets else []
        rows.append([str(i + 1), entry.name, f"{entry.own_rank:.2f}", f"{entry.rank:.2f}", *own])
    console.table(title, columns, rows)
    for c in portfolio.curse:
        console.note(
            f"  best of the first {c.k}, chosen by half of the seeds: {c.chosen:.4f} at choice, {c.fresh:.4f} from the "
            f"others ({c.chosen - c.fresh:+.4f} is luck of the choice)"
        )
