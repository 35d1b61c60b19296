"""Portfolios: for a recipe (a method and its bits) a short ordered list of schedules to try, most promising first.

A file holds one portfolio a recipe, in canonical JSON. An entry is the name of a schedule of the package, ``floor`` (no
schedule), or a schedule file beside it, of which it has the hash. How the order was found: arena/greedy.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metasched.core.errors import MetaschedError, MetaschedWarning, printable, unknown_name
from metasched.core.field_types import STRICT, Float, Int, PathText, Word
from metasched.exchange.player import load
from metasched.io.json_text import json_text
from metasched.io.reading import read_regular
from metasched.io.strict_json import MAX_BYTES, parse
from metasched.methods.config import MethodConfig
from metasched.methods.spec import QUANTIZERS, find_method
from metasched.quantizers.levels import level_set
from metasched.schedules.base import Schedule
from metasched.schedules.table import NO_SCHEDULE, floor_of, schedules_of

FORMAT = "metasched.portfolio"
MOST = 8  # schedules of a portfolio
_DATA = Path(__file__).parents[1] / "data" / "portfolios"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Entry:
    """A schedule of a portfolio, and why it has its place.

    Attributes:
        name: of the schedule.
        schedule: its name in the package, ``floor``, or the path of its file beside that of the portfolio.
        hash: SHA-256 of that file; None for a name.
        own_rank: its mean rank over tasks among all schedules that were compared; 1 is best.
        rank: the mean over tasks of the best rank among the entries up to this one.
        scores: {task: its mean score at each horizon}.
    """

    name: Word
    schedule: PathText
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    own_rank: Float
    rank: Float
    scores: dict[str, tuple[Float, ...]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Curse:
    """What choosing among the first k flatters: half of the seeds choose, the others score it, and the other way round.

    Attributes:
        k: how many schedules are chosen from on each task.
        chosen: mean over tasks of the score that decided.
        fresh: that of the same schedules from the other seeds.
    """

    k: Int
    chosen: Float
    fresh: Float


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Portfolio:
    """An ordered list of schedules for a recipe.

    Attributes:
        method, levels, activation_levels: the recipe.
        parameters: of the method when the scores were made.
        entries: at most eight.
        compared: how many schedules were compared.
        horizons, seeds: multiples of the steps of a task, and number of seeds.
        curse: see Curse; empty with fewer than two seeds.
        sources: {file of scores: SHA-256 of its text}.
    """

    method: Word
    levels: Word
    activation_levels: Word | None
    parameters: dict[str, Any]
    entries: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=MOST)]
    compared: Int
    horizons: tuple[Int, ...]
    seeds: Int
    curse: tuple[Curse, ...] = ()
    sources: dict[str, str]

    @property
    def recipe(self) -> str:
        """The recipe in words."""
        return recipe_text(self.method, self.levels, self.activation_levels)

    @property
    def config(self) -> MethodConfig:
        """The method, as it was when the scores were made."""
        quantizers = {"levels": self.levels, "activation_levels": self.activation_levels}
        return MethodConfig(name=self.method, **quantizers, **self.parameters)

    @property
    def schedules(self) -> tuple[str, ...]:
        """The names, or paths, of the schedules in their order."""
        return tuple(entry.schedule for entry in self.entries)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose scores decided."""
        return tuple(self.entries[0].scores)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _File:
    format: Literal["metasched.portfolio"] = FORMAT
    version: Literal[1] = 1
    portfolios: Annotated[tuple[Portfolio, ...], Field(min_length=1, max_length=1000)]


_ADAPTER: TypeAdapter[_File] = TypeAdapter(cast(Any, _File))


def recipe_text(method: str, levels: str, activation_levels: str | None) -> str:
    """A recipe in words.

    >>> recipe_text("ana", "ternary", None)
    'ana, weights ternary, activations float'
    """
    return f"{method}, weights {levels}, activations {activation_levels or 'float'}"


def dumps(portfolios: Sequence[Portfolio]) -> str:
    """The canonical text of a file of portfolios: sorted keys, one line an entry's scores."""
    tree = _ADAPTER.dump_python(_File(portfolios=tuple(portfolios)), mode="json")
    return json.dumps(json.loads(json_text(tree)), indent=1, sort_keys=True) + "\n"


def read_portfolios(path: str | os.PathLike[str]) -> tuple[Portfolio, ...]:
    """The portfolios in a file; paths of schedule files are as seen from the current folder, and their hashes hold.

    Raises:
        MetaschedError: the file cannot be read or is none, or a schedule file is missing or has changed.
    """
    where = printable(os.fspath(path))
    data = read_regular(path, MAX_BYTES, "give a file that `metasched portfolio build` has written")
    try:
        file = _ADAPTER.validate_python(parse(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MetaschedError(f"{where}: {place}", first["msg"], "build the portfolio again") from None
    except MetaschedError as error:
        raise MetaschedError(f"{where}: {error.path}", error.problem, error.fix) from None
    return tuple(_placed(portfolio, Path(path).parent) for portfolio in file.portfolios)


def _placed(portfolio: Portfolio, folder: Path) -> Portfolio:
    from dataclasses import replace

    def placed(entry: Entry) -> Entry:
        if entry.hash is None:
            return entry
        path = folder / entry.schedule
        if content_hash(path) != entry.hash:
            problem = "is not the file that the portfolio was built with: its hash differs"
            raise MetaschedError(str(path), problem, "put it back, or build the portfolio again")
        return replace(entry, schedule=os.path.join(os.curdir, path) if not path.is_absolute() else str(path))

    return replace(portfolio, entries=tuple(placed(entry) for entry in portfolio.entries))


def content_hash(path: Path) -> str:
    """SHA-256 of a schedule file."""
    return hashlib.sha256(read_regular(path, MAX_BYTES, "put the schedule file back")).hexdigest()


@cache
def _index() -> Mapping[str, Any]:
    """Name -> row of the portfolios that come with the package."""
    path = _DATA / "index.json"
    tree = parse(path.read_bytes())
    assert isinstance(tree, dict)
    return tree


def shipped_portfolios() -> dict[str, str]:
    """The portfolios that come with the package, {name: what they were built from in a line}."""
    return {name: row["summary"] for name, row in _index().items()}


def portfolios_of(named: str | None) -> tuple[Portfolio, ...]:
    """The portfolios of a file, of the package by name, or (None) all of the package.

    Raises:
        MetaschedError: neither.
    """
    if named is None:
        return tuple(p for name in _index() for p in portfolios_of(name))
    if named.endswith(".json") or os.sep in named:
        return read_portfolios(named)
    if named not in _index():
        raise unknown_name("portfolio", named, _index())
    return read_portfolios(_DATA / _index()[named]["file"])


def portfolio_for(method: MethodConfig, named: str | None = None) -> Portfolio:
    """The portfolio for a configured method; a warning where its parameters are others than those it was built with.

    Args:
        method: the method and its bits.
        named: of the package, or the path of a file; None: those of the package.

    Raises:
        MetaschedError: there is none for this recipe.
    """
    every = portfolios_of(named)
    fitting = [p for p in every if p.method == method.name and _same_bits(p, method)]
    if not fitting:
        have = "; ".join(p.recipe for p in every) or "none"
        recipe = recipe_text(method.name, method.levels, method.activation_levels)
        problem = f"there is no portfolio for {recipe} in {named or 'the package'}, which has: {have}"
        fix = "build one with `metasched portfolio build`, or name a schedule from `metasched list`"
        raise MetaschedError("portfolio", problem, fix)
    own = {name: getattr(method, name) for name in find_method(method.name).parameters}
    best = max(fitting, key=lambda p: sum(p.parameters.get(name) == value for name, value in own.items()))
    differ = sorted(name for name, value in own.items() if best.parameters.get(name, value) != value)
    if differ:
        what = f"the portfolio for {best.recipe} was built with another {', '.join(differ)}"
        warnings.warn(f"{what}: its order may not hold", MetaschedWarning, stacklevel=2)
    return best


def _same_bits(portfolio: Portfolio, method: MethodConfig) -> bool:
    return (portfolio.levels, portfolio.activation_levels) == (method.levels, method.activation_levels)


def portfolio(method: str, bits: str | float | None = None, *, named: str | None = None) -> tuple[Schedule, ...]:
    """The schedules to try for a method, in their order: the first one first, at no run of one's own.

    Args:
        method: name of the method.
        bits: of weights: their levels, such as ``ternary`` or ``int4``, or a number of bits; None: whatever there is.
        named: a portfolio of the package, or the path of a file; None: those of the package.

    Raises:
        MetaschedError: there is none for this recipe, or several.
    """
    every = portfolios_of(named)
    fitting = [p for p in every if p.method == method and (bits is None or _has_bits(p, bits))]
    if len(fitting) != 1:
        have = "; ".join(p.recipe for p in (fitting or every)) or "none"
        what = f"{len(fitting) or 'no'} portfolios for {method}{'' if bits is None else f' with bits {bits}'}"
        raise MetaschedError("portfolio", f"there are {what}: {have}", "give other bits, or build one")
    return tuple(schedule_of(fitting[0].config, word) for word in fitting[0].schedules)


def _has_bits(portfolio: Portfolio, bits: str | float) -> bool:
    if isinstance(bits, str):
        return portfolio.levels == bits
    own = level_set(portfolio.levels).bits
    return math.ceil(own) == bits or math.isclose(own, bits, abs_tol=0.01)


def schedule_of(config: MethodConfig, word: str) -> Schedule:
    """The schedule that a word of a portfolio means for a configured method: ``floor``, a name, or a path."""
    if word == NO_SCHEDULE:
        return floor_of(config, "portfolio")
    own = schedules_of(config)
    return own[word] if word in own else load(word)


def parameters_of(config: MethodConfig) -> dict[str, Any]:
    """The parameters of a method that make up its recipe, without what quantizers have, in the types of JSON."""
    own = {name: getattr(config, name) for name in find_method(config.name).parameters if name not in QUANTIZERS}
    return json.loads(json_text(own))
