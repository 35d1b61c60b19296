"""The documentation says what the code does: examples run, tables are complete, names and links exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import loaded

import metasched
from metasched.config.fields import fields
from metasched.evaluation.comparison import Arm, Comparison
from metasched.exchange.format import ScheduleFile
from metasched.schedules.table import hand_coded
from metasched.tracking.metrics import AXES, METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LOG = sorted((DOCS / "log").glob("*.md"))
README = ROOT / "README.md"


def text(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    for channel in names["plain"][0].weight.flatten(1):  # a scale each
        assert len(channel.abs().unique()) <= 2 and type(names["plain"][0]) is torch.nn.Conv2d


def test_every_public_name_is_documented() -> None:
    api = text("api.md")
    assert [name for name in metasched.MODULES if not re.search(rf":: (metasched\.)?{name}\b", api)] == []


@pytest.mark.parametrize("path", [README, *PAGES, *LOG], ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"(?<!!)\[[^]]+\]\(([\w./-]+)(?:#[\w-]+)?\)", path.read_text("utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = re.findall(r"^```{toctree}\n(.*?)^```", text("index.md"), re.MULTILINE | re.DOTALL)
    names = [line for block in listed for line in block.splitlines() if line and not line.startswith(":")]
    notebooks = [path.stem for path in DOCS.glob("*.ipynb")]
    assert sorted(names) == sorted([*(page.stem for page in PAGES if page.stem != "index"), *notebooks, "log/index"])
    (studies,) = re.findall(r"^```{toctree}\n(.*?)^```", text("log/index.md"), re.MULTILINE | re.DOTALL)
    named = [line for line in studies.splitlines() if line and not line.startswith(":")]
    assert sorted(named) == [page.stem for page in LOG if page.stem != "index"]


def test_the_table_of_fields_is_complete() -> None:
    directives = loaded(DOCS / "directives.py")
    sections = re.findall(r"^```{fields} (\w+)", text("configuration.md"), re.MULTILINE)
    shown = "\n".join(directives.fields_table(section) for section in sections)
    assert re.findall(r"^\| `([\w.]+)`", shown, re.MULTILINE) == sorted(
        (f.path for f in fields()), key=lambda path: shown.index(f"\n| `{path}`")
    )


def test_intervals_ranges_units_and_exponents_stay_on_a_line() -> None:
    found = loaded(DOCS / "directives.py").TOGETHER.findall(
        "+0.1 [-0.2, +0.3] is 5 % of 3 ms (1.5 to 2), p 1e-06, n = 16, in 4 sets (1, 2), [a, b]"
    )
    assert found == ["[-0.2, +0.3]", "5 %", "3 ms", "(1.5 to 2)", "1e-06", "n = 16"]


def test_a_cell_of_a_table_is_one_line() -> None:
    directives = loaded(DOCS / "directives.py")
    assert directives.table(["a"], [["b\n  c|d"]]).splitlines()[2:] == ["| b c\\|d |"]


def test_the_tables_of_metrics_are_complete_and_on_their_page() -> None:
    directives = loaded(DOCS / "directives.py")
    assert re.findall(r"^\| `(\S+)` \|", directives.metrics_table(), re.MULTILINE) == list(METRICS)
    families = [name.partition("/")[0] for name in METRICS]
    assert re.findall(r"^## `(\w+)/`", directives.metrics_table(), re.MULTILINE) == list(dict.fromkeys(families))
    assert re.findall(r"^\| `(\S+)` \|", directives.axes_table(), re.MULTILINE) == list(AXES)
    assert "```{metrics}" in text("metrics.md") and "```{metric-axes}" in text("metrics.md")


def test_the_table_of_baselines_is_complete_and_on_its_page() -> None:
    rows = [line.split(" | ") for line in loaded(DOCS / "directives.py").baselines_table().splitlines()[2:]]
    shown = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(shown) == sorted(name for family in metasched.METHODS for name in hand_coded(family))
    assert "```{baselines}" in text("schedules.md")


def test_the_file_format_names_every_field() -> None:
    schema = json.loads((ROOT / "metasched" / "exchange" / "schedule.schema.json").read_text("utf-8"))
    records = [schema, *(schema["$defs"][name] for name in ("ControlEntry", "LayerEntry", "Provenance", "Metric"))]
    names = {name for record in records for name in record["properties"]}
    assert set(ScheduleFile.__dataclass_fields__) <= names
    assert [name for name in sorted(names) if not re.search(rf"`{name}[`.\[]", text("file_format.md"))] == []


@pytest.mark.parametrize("path", [*PAGES, *LOG], ids=lambda path: path.name)
def test_every_formula_is_drawn_without_a_script(path: Path) -> None:
    pytest.importorskip("sphinx")
    mathml = loaded(DOCS / "mathml.py").mathml
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"\$\$(.*?)\$\$", prose, re.DOTALL)
    inline = re.findall(r"(?<![\\\d$])\$(?![\s$])([^$]+?)(?<!\s)\$", re.sub(r"\$\$.*?\$\$", "", prose, flags=re.DOTALL))
    for formula, block in [*((f, True) for f in blocks), *((f, False) for f in inline)]:
        assert mathml(formula.strip(), block).startswith("<math "), formula  # an unknown command raises


def test_a_fraction_of_two_digits_needs_no_braces() -> None:
    pytest.importorskip("sphinx")
    mathml = loaded(DOCS / "mathml.py").mathml
    assert mathml(r"\tfrac12 x", block=False) == mathml(r"\tfrac{1}{2} x", block=False)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("-0.0010", True),
        ("+0.0008 [+0.0003, +0.0014]", True),
        ("99.5 % (98.4, 100.3)", True),
        ("1,224", True),
        ("6.9e-07", True),
        ("95.5%", True),
        ("digits", False),
        ("8 bits", False),
    ],
)
def test_cells_of_numbers_are_not_broken(cell: str, number: bool) -> None:
    assert bool(loaded(DOCS / "directives.py")._NUMBER.fullmatch(cell)) == number


def comparison() -> Comparison:
    arms = (
        Arm("learned", 10, (0.5, 0.75), 20),
        Arm("linear", 10, (0.25, 0.25), 20),
        Arm("learned", 30, (0.5, 0.5), 60),
        Arm("linear", 30, (0.75, 0.5), 60),
    )
    return Comparison((7, 8), arms, ("learned",))


def test_a_table_of_results_is_that_of_the_comparison(tmp_path: Path) -> None:
    made = {"command": "metasched train x.yaml", "versions": {"torch": "2.15", "numpy": "2.4"}, "hardware": "2 cores"}
    (tmp_path / "digits.json").write_text(json.dumps(comparison().to_dict() | made))
    (tmp_path / "surrogate_trust.json").write_text('{"rows": []}')
    written = loaded(ROOT / "scripts" / "results_tables.py").tables(tmp_path)
    assert list(written) == ["results_digits.md"]
    lines = written["results_digits.md"].splitlines()
    assert lines[0] == "### digits" and "- No verdict: training without a schedule was not among the arms." in lines
    assert lines[-3] == "Made by `metasched train x.yaml` with numpy 2.4, torch 2.15 on 2 cores."
    rows = [line for line in lines if line.startswith("| l")]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| learned", "0.6250", "0.1768", "2"],
        ["| linear", "0.2500", "0.0000", "2"],
        ["| linear", "0.6250", "0.1768", "2"],
        ["| learned", "0.5000", "0.0000", "2"],
    ]
    assert "+0.3750 [-1.2133, +1.9633]" in rows[1]  # 0.125 * t(0.975, 1) = 0.125 * 12.7062


def test_the_tables_of_results_are_up_to_date() -> None:
    wanted = loaded(ROOT / "scripts" / "results_tables.py").tables(ROOT / "experiments" / "results")
    found = {path.name: path.read_text("utf-8") for path in (DOCS / "tables").glob("results_*.md")}
    assert found == wanted  # if not: python scripts/results_tables.py
    overviews = loaded(ROOT / "scripts" / "results_tables.py").overviews(ROOT / "experiments" / "results")
    assert {name: (DOCS / "tables" / name).read_text("utf-8") for name in overviews} == overviews
    floors = loaded(ROOT / "scripts" / "results_tables.py").floors(ROOT / "experiments" / "results")
    assert (DOCS / "tables" / "floors.md").read_text("utf-8") == floors
    searches = loaded(ROOT / "scripts" / "results_tables.py").searches(ROOT / "experiments" / "results")
    assert (DOCS / "tables" / "searches.md").read_text("utf-8") == searches


def test_the_table_of_searches_has_comparisons_of_what_was_learned_with_a_search(tmp_path: Path) -> None:
    arms = (
        Arm("learned", 10, (0.5, 0.75), 20),
        Arm("lsq", 10, (0.25, 0.5), 20),
        Arm("ste", 10, (0.0, 0.0), 20),
        Arm("tpe", 10, (0.75, 0.75), 20),
        Arm("random", 10, (0.25, 0.75), 20),
    )
    for name, kept in (("text", arms), ("digits", arms[:3])):
        (tmp_path / f"{name}.json").write_text(json.dumps(Comparison((7, 8), kept, ("learned", "tpe")).to_dict()))
    (line,) = loaded(ROOT / "scripts" / "results_tables.py").searches(tmp_path).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["text", "10", "2", "lsq 0.3750", "0.6250"] and cells[5].startswith("+0.2500 [")
    assert cells[6].startswith("-0.1250 [-1.7133, ") and cells[7] == "" and cells[8].startswith("+0.1250 [")


def test_the_overview_has_a_line_for_each_horizon_with_the_best_arm_and_its_verdict(tmp_path: Path) -> None:
    arms = (*comparison().arms, Arm("float", 30, (1.0, 1.0), 60))
    at_10 = (Arm("ste", 10, (0.25, 0.5), 20), Arm("float", 10, (1.0, 1.0), 20))
    both = Comparison((7, 8), (*arms, *at_10), ("learned",)).to_dict()
    best = Comparison((7, 8), (Arm("ste", 10, (1.0, 0.5), 20), *comparison().arms[:2]), ("learned",)).to_dict()
    made = {"command": "metasched train x.yaml", "versions": {}, "hardware": "2 cores"}
    (tmp_path / "digits_a.json").write_text(json.dumps(both | made))
    (tmp_path / "digits_b.json").write_text(json.dumps(best | made))
    written = loaded(ROOT / "scripts" / "results_tables.py").overviews(tmp_path)
    first, second = written["overview.md"].splitlines()[2:]
    assert first.startswith("| [digits_a](#digits-a) | 10 | level | +0.2500 [") and first.endswith(
        "| learned | 0.6250 |"
    )
    assert second == "| [digits_b](#digits-b) | 10 | none is better |  | ste | 0.7500 |"
    assert written["overview_without_floor.md"].splitlines()[2:] == ["| [digits_a](#digits-a) | 30 | linear | 0.6250 |"]


def test_the_table_of_floors_has_a_line_for_each_horizon_with_a_floor(tmp_path: Path) -> None:
    arms = (
        Arm("learned", 10, (0.5, 0.75), 20),
        Arm("ste", 10, (0.25, 0.5), 20),
        Arm("float", 10, (1.0, 0.5), 20),
        Arm("ana_linear", 10, (0.0, 0.25), 20),
        Arm("ana_constant_085", 10, (0.25, 0.75), 20),
        Arm("learned", 30, (0.5, 0.5), 60),
    )
    made = {"command": "metasched train x.yaml", "versions": {}, "hardware": "2 cores"}
    (tmp_path / "digits.json").write_text(json.dumps(Comparison((7, 8), arms, ("learned",)).to_dict() | made))
    (line,) = loaded(ROOT / "scripts" / "results_tables.py").floors(tmp_path).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["digits", "10", "2", "0.3750", "", "0.6250"] and cells[6].startswith("+0.2500 [")
    assert cells[7].startswith("-0.2500 [") and cells[8].startswith("+0.1250 [") and cells[9] == "0.7500"
    with_lsq = Comparison((7, 8), (*arms, Arm("lsq", 10, (0.5, 0.5), 20)), ("learned",))  # the better floor
    (tmp_path / "digits.json").write_text(json.dumps(with_lsq.to_dict() | made))
    (line,) = loaded(ROOT / "scripts" / "results_tables.py").floors(tmp_path).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:6] == ["0.3750", "0.5000", "0.6250"] and cells[6].startswith("+0.1250 [")
