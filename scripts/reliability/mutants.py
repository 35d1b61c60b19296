"""Mutation testing: small faults, one at a time, in what the numbers come from; which test notices?

    pip install "mutmut==3.8.1"
    python scripts/reliability/mutants.py --folder /tmp/mutants --json experiments/results/reliability_mutants.json

mutmut changes the bodies of functions in a copy of the repository, and runs on each change the tests that reach it, in
a fork of one process. It switches to a mutant when all is imported, and so does not reach what runs on import: tables,
types of fields, and the functions that make the table of schedules. Changes of these are made here, and each is
imported anew in a fork of a process that has imported torch.

``--module metasched/training/step.py --sample 0.2`` tries a fifth of the mutants of one module; give it a folder of its
own. A run that was stopped goes on in the same folder. With ``--again`` the survivors are tried again, after tests were
added. ``reason`` in the result is written by hand, and kept where the change is the same.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_ESTIMATORS = """
    auto diagnosis es forward mixed nres particles perturbation pes reverse smoothed verdict
""".split()
MODULES = {  # -> the tests of what runs on import
    "metasched/schedules/base.py": [],
    "metasched/schedules/cooling.py": ["tests/schedules/test_cooling.py", "tests/schedules/test_published.py"],
    "metasched/schedules/curves.py": ["tests/schedules/test_curves.py", "tests/schedules/test_published.py"],
    "metasched/schedules/family.py": ["tests/schedules/test_family.py"],
    "metasched/schedules/interpolation.py": [],
    "metasched/schedules/learnable.py": [],
    "metasched/schedules/network.py": ["tests/schedules/test_network.py"],
    "metasched/schedules/published.py": ["tests/schedules/test_published.py"],
    "metasched/schedules/table.py": ["tests/schedules/test_published.py"],
    "metasched/exchange/export.py": ["tests/exchange/test_rejects.py", "tests/exchange/test_schedule_file.py"],
    "metasched/meta/checkpoint.py": ["tests/meta/test_checkpoint.py", "tests/formats/test_formats.py"],
    "metasched/evaluation/statistics.py": ["tests/evaluation/test_statistics.py"],
    **{f"metasched/training/{name}.py": [] for name in ("state", "loss", "step")},
    **{f"metasched/network/{name}.py": [] for name in ("sites", "quantize")},
    "metasched/meta/outer.py": [],
    **{f"metasched/estimators/{name}.py": [] for name in _ESTIMATORS},
}
ON_IMPORT = {
    *("ana", "inq", "_ana_2022", "_ana", "_equal_shares", "_portions", "_same_ramp", "_with_other"),
    *("gxnor", "metropolis", "_ramps", "_cooled"),
}
TESTS = {  # folder or module -> the tests that mutmut chooses from
    "metasched/schedules/": ["tests/schedules", "tests/exchange"],
    "metasched/exchange/": ["tests/exchange", "tests/formats"],
    "metasched/evaluation/": ["tests/evaluation/test_statistics.py"],
    "metasched/meta/checkpoint.py": ["tests/meta/test_checkpoint.py", "tests/formats"],
    "metasched/meta/outer.py": [
        *("tests/estimators/test_contract.py", "tests/meta/test_guards.py", "tests/meta/test_resume.py"),
        *("tests/meta/test_bad_numbers.py", "tests/meta/test_outer.py", "tests/engines/test_memory.py"),
    ],
    "metasched/training/": [
        "tests/training",
        "tests/methods/test_contract.py",
        "tests/methods/test_frozen.py",
        "tests/golden",
    ],
    "metasched/network/": ["tests/network", "tests/methods", "tests/training/test_step.py", "tests/golden"],
    "metasched/estimators/": ["tests/estimators", "tests/meta/test_bad_numbers.py", "tests/golden"],
}
PRELOADED = ("torch", "scipy.stats", "pydantic", "pytest", "yaml", "matplotlib", "sklearn")
OPTIONS = ["--import-mode=importlib", "--strict-markers", "-m=not slow"]
SECONDS = 300  # the time limit of a mutant of what runs on import
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
OUTCOMES = {1: "killed", 3: "killed", 33: "no tests", 0: "survived", None: "not tried"}  # mutmut's exit codes


def tests_of(modules: Sequence[str]) -> list[str]:
    """The tests that are near to some modules."""
    near = [tests for place, tests in TESTS.items() if any(module.startswith(place) for module in modules)]
    return list(dict.fromkeys(test for tests in near for test in tests))


def copied(folder: Path, modules: Sequence[str]) -> None:
    """A copy of the working tree, whose tests run in one process."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            (folder / name).write_bytes((ROOT / name).read_bytes())
    project = folder / "pyproject.toml"
    text = re.sub(r"addopts = \[.*?\n\]", f"addopts = {json.dumps(OPTIONS)}", project.read_text("utf-8"), flags=re.S)
    project.write_text(
        f"""{text}
[tool.mutmut]
source_paths = ["metasched"]
only_mutate = {json.dumps([*modules])}
also_copy = ["experiments", "docs", "scripts", "README.md", "CHANGELOG.md"]
pytest_add_cli_args = ["-p", "no:xdist", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {json.dumps(tests_of(modules))}
""",
        "utf-8",
    )


# --- what runs when it is called: mutmut ---


def found_by_mutmut(folder: Path, modules: Sequence[str]) -> dict[str, dict[str, str]]:
    """{module: {name of a mutant: outcome}}, without those that run on import."""
    found = {}
    for module in modules:
        codes = json.loads((folder / "mutants" / f"{module}.meta").read_text("utf-8"))["exit_code_by_key"]
        called = {
            n: code for n, code in codes.items() if n.partition("__mutmut_")[0].rpartition(".x_")[2] not in ON_IMPORT
        }
        found[module] = {name: OUTCOMES.get(code, "time limit") for name, code in called.items()}
    return found


def named(folder: Path, share: float, modules: Sequence[str]) -> list[str]:
    """Names of the mutants that are to be tried and have not been, a sample by a fixed seed of those of each module."""
    if not (folder / "mutants").exists():
        first = modules[0].removesuffix(".py").replace("/", ".")
        mutmut(folder, "run", "--max-children", "1", f"{first}.*")  # makes the others too
    chosen = []
    for module, outcomes in found_by_mutmut(folder, modules).items():
        names = sorted(outcomes)
        if share < 1:
            names = random.Random(f"0 {module}").sample(names, math.ceil(share * len(names)))
        chosen += [name for name in names if outcomes[name] == "not tried"]
    return chosen


def mutmut(folder: Path, *arguments: str) -> str:
    """What mutmut says."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_quiet()).stdout


def _quiet() -> dict[str, str]:
    """CI: hypothesis draws the same examples in each run."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}


# --- what runs on import ---


def import_mutants(module: str) -> Iterator[tuple[str, str]]:
    """(what changes, the text of the module with that change)."""
    source = (ROOT / module).read_text("utf-8")
    for place in range(len(list(_changes(ast.parse(source))))):
        tree = ast.parse(source)
        change, edit = list(_changes(tree))[place]
        edit()
        yield change, ast.unparse(tree)


def _changes(tree: ast.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """(what it is, a function that makes it): numbers and words changed, operators swapped, members left out."""
    for node in _run_on_import(tree):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            yield f"{line}: {node.value} -> {node.value + 1}", partial(setattr, node, "value", node.value + 1)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w. ]{1,30}", node.value)
        ):
            yield f"{line}: {node.value!r} -> 'XX{node.value}'", partial(setattr, node, "value", "XX" + node.value)
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
            swapped = SWAPPED[type(node.op)]()
            change = f"{line}: {ast.unparse(node)} -> {ast.unparse(ast.BinOp(node.left, swapped, node.right))}"
            yield change, partial(setattr, node, "op", swapped)
        members = getattr(node, "elts", None) or getattr(node, "keywords", None) or getattr(node, "values", [])
        for i, member in enumerate(members):
            change = f"{line}: without {' '.join(ast.unparse(member).split())[:100]}"
            yield change, partial(_leave_out, node, members, i)


def _leave_out(node: ast.AST, members: list[ast.AST], i: int) -> None:
    members.pop(i)
    if isinstance(node, ast.Dict):
        node.keys.pop(i)


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that have a value on import: no bodies of functions, annotations, docstrings or parts of f-strings."""
    if isinstance(node, ast.FunctionDef):
        inside: list[ast.AST] = [*node.body] if node.name in ON_IMPORT else []
    elif isinstance(node, ast.AnnAssign):
        inside = [node.value] if node.value else []
    elif isinstance(node, ast.Subscript):
        inside = [] if ast.unparse(node.value) in ("Literal", "Callable", "dict") else [node.slice]
    elif isinstance(node, ast.Assign):
        inside = [] if ast.unparse(node.targets[0]) == "__all__" else [*node.targets, node.value]
    else:
        inside = [*ast.iter_child_nodes(node)]
    for child in inside:
        text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if not text and not isinstance(child, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.If):
            if not isinstance(child, ast.Tuple) or isinstance(child.ctx, ast.Load):
                yield child
            yield from _run_on_import(child)


def outcome(folder: Path, module: str, text: str) -> str:
    """Whether a test fails on a module with this text."""
    path = folder / module
    good = path.read_bytes()
    path.write_text(text, "utf-8")
    child = os.fork()
    if child == 0:
        _die_with_the_verdict(folder, MODULES[module])
    try:
        _, status = os.waitpid(child, 0)
    finally:
        path.write_bytes(good)
    if os.WIFSIGNALED(status):
        return "time limit" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _die_with_the_verdict(folder: Path, tests: list[str]) -> None:
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    signal.alarm(SECONDS)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 1
    try:
        code = pytest.main(["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests])
    finally:
        os._exit(int(code))


def import_anew() -> None:
    """What the forks find imported: everything that is slow, and nothing of ours."""
    sys.dont_write_bytecode = True
    os.environ.update(_quiet())
    for name in PRELOADED:
        importlib.import_module(name)
    assert not any(name.startswith("metasched") for name in sys.modules)


# --- the result ---


def counted(outcomes: list[str], mutants: int) -> dict[str, Any]:
    """How many were caught; of a sample, with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    by_outcome = dict(sorted(Counter(outcomes).items()))
    caught = sum(n for name, n in by_outcome.items() if name in ("killed", "time limit"))
    row: dict[str, Any] = {"mutants": mutants, "tried": len(outcomes), **by_outcome}
    if outcomes:
        row["score"] = round(caught / len(outcomes), 4)
    if 0 < len(outcomes) < mutants:
        interval = binomtest(caught, len(outcomes)).proportion_ci(method="wilson")
        row["interval"] = [round(float(end), 4) for end in interval]
    return row


def main() -> None:
    """Make, try and count mutants; print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the copy; outside of the repository")
    parser.add_argument("--json", type=Path, required=True, help="the result")
    parser.add_argument("--sample", type=float, default=1.0, help="share of each module's mutants to try")
    parser.add_argument("--module", action="append", choices=[*MODULES], metavar="FILE", help="only this one (repeat)")
    parser.add_argument("--again", action="store_true", help="try the survivors in the result once more")
    args = parser.parse_args()
    old = json.loads(args.json.read_text("utf-8")) if args.json.is_file() else {"survivors": []}
    reasons = {(s["module"], s["change"]): s.get("reason", "") for s in old["survivors"]}
    modules: list[str] = args.module or [*MODULES]
    copied(args.folder, modules)

    import_anew()
    state = args.folder / "on_import.json"  # what mutmut has in its own files
    on_import: dict[str, dict[str, str]] = json.loads(state.read_text("utf-8")) if state.is_file() else {}
    for module, change, text in ((m, *mutant) for m in modules if MODULES[m] for mutant in import_mutants(m)):
        if module not in on_import and outcome(args.folder, module, (ROOT / module).read_text("utf-8")) != "survived":
            sys.exit(f"{module}: its tests fail without a change")
        here = on_import.setdefault(module, {})
        if change not in here or (args.again and here[change] == "survived"):
            here[change] = outcome(args.folder, module, text)
            state.write_text(json.dumps(on_import), "utf-8")
            print(f"{here[change]}: {module} {change}", file=sys.stderr, flush=True)

    chosen = (
        [s["name"] for s in old["survivors"] if "name" in s] if args.again else named(args.folder, args.sample, modules)
    )
    if chosen:
        mutmut(args.folder, "run", "--max-children", "1", *chosen)

    counts: dict[str, Any] = {}
    survivors: list[dict[str, str]] = []
    called = found_by_mutmut(args.folder, modules)
    for module in modules:
        here = on_import.get(module, {})
        tried = {name: found for name, found in called[module].items() if found != "not tried"}
        counts[module] = {
            "called": counted([*tried.values()], len(called[module])),
            "on import": counted([*here.values()], len(here)),
        }
        survivors += [{"module": module, "change": c} for c, found in here.items() if found == "survived"]
        for name in (n for n, found in tried.items() if found in ("survived", "no tests")):
            lines = [line for line in mutmut(args.folder, "show", name).splitlines() if re.match(r"[-+](?![-+])", line)]
            change = " -> ".join(" ".join(line[1:].split()) for line in lines)
            survivors.append({"module": module, "name": name, "change": change})
    for survivor in survivors:
        survivor["reason"] = reasons.get((survivor["module"], survivor["change"]), "")
    total = [found for names in called.values() for found in names.values()]
    total += [found for changes in on_import.values() for found in changes.values()]
    result = {
        "versions": {name: importlib.metadata.version(name) for name in ("mutmut", "torch", "pytest", "hypothesis")},
        "sample": args.sample,
        "total": counted([found for found in total if found != "not tried"], len(total)),
        "modules": counts,
        "survivors": survivors,
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result["total"]), *(f"{m}: {row}" for m, row in counts.items()), sep="\n")


if __name__ == "__main__":
    main()
