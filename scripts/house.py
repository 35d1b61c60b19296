"""Counts the state of the code base: size, call depth, coupling, and what docstrings say.

    python scripts/house.py                    # a table of this checkout
    python scripts/house.py ../other --json    # JSON of another one
    python scripts/house.py --missing-shapes   # functions whose docstring names neither a shape nor a dtype

Static figures are read from the Python files that git tracks under metasched/ and tests/:

- ``source_lines``, ``test_lines``, ``modules``: lines as ``wc -l`` counts them, and files under metasched/.
- ``experiment_functions``: functions and methods with a parameter whose annotation names ``Experiment``.
- ``tensor_functions``: public functions and methods with a parameter whose annotation names ``Tensor``, or an alias of
  a type that contains it (``Tensors``, ``State``); a parameter that is a function, ``Callable[...]``, does not count.
  Public means: no local function, and neither its name nor that of its class starts with an underscore.
- ``tensor_functions_with_shapes``: those of them whose docstring names a shape (``[T, L]``, ``[N, ...]``, ``0-d``,
  scalar) or a dtype (float64, bool); one size at least is a capital or ``...``, and any shape is ``[...]``. "Of the
  shape of x" names none. A method also counts by the docstring of the same method in a base class, or in a Protocol all
  of whose members its class has.
- ``files_for_a_method``: files under metasched/ that a method needs, probed with an existing one, ``gxnor``: it has
  parameters and published schedules of its own and no special place in the package. A file counts if it is called
  gxnor.py, has a string (no docstring) with the word gxnor, or imports a module of that name.
- ``longest_file``, ``files_over_250_lines``, ``functions_over_50_lines``: under metasched/; a function from its ``def``
  to its last line, docstring included.

Dynamic figures are measured in one ``metasched train`` of a few steps, in a process of its own with one worker, the
default method and estimator (joint, sweep), and wandb off:

- ``modules_imported``: modules of metasched that are imported at the end.
- ``modules_run``: those of which a function was called; the code of a module or of a class body is no function.
- ``frames_to_inner_step``, ``most_frames_to_inner_step``: frames of metasched on the stack from ``meta_train`` down to
  ``inner_step``, both included, in the shortest and in the longest such stack. A list comprehension is a frame in
  Python 3.11, and none from 3.12 on, so only figures of the same version of Python compare.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

PACKAGE = "metasched"
PROBE = "gxnor"
OUTER, INNER = "meta_train", "inner_step"
EXPERIMENT = """
task: {name: digits, model: mlp, width: 3, steps: 3, batch: 16, train: 64, validation: 32, test: 32}
schedule: {start: joint_linear, knots: 4, hidden: 4}
meta: {steps: 1, runs: 1}
compare: {seeds: 2, baselines: [joint_linear]}
tracking: {wandb: disabled}
run: {workers: 1}
"""
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_IS_FUNCTION = 1  # CO_OPTIMIZED of a code object: functions have it, modules and class bodies do not
_SIZE = r"(?:\.\.\.|(?!None\b)\w+(?: ?[-+*/] ?\w+)*)"
_SHAPE = re.compile(
    rf"(?<![\w\]])\[(?=[^\]]*(?:\.\.\.|\b[A-Z]))(?:{_SIZE}(?:, *{_SIZE})*)?\](?!\()"  # [T, L], [N, ...], [L]
    r"|\b[0-4]-[dD]\b|\bscalars?\b"
    r"|\b(?:b?float(?:16|32|64)|u?int(?:8|16|32|64)|complex(?:64|128)|bool)\b"
)


class Source(NamedTuple):
    """A tracked Python file: path relative to the root, dotted name, content."""

    path: str
    module: str
    lines: int
    tree: ast.Module


class Function(NamedTuple):
    """A function or method: the file, its classes from the outside in, whether it is local to another function."""

    source: Source
    node: ast.FunctionDef | ast.AsyncFunctionDef
    classes: tuple[ast.ClassDef, ...]
    local: bool

    @property
    def name(self) -> str:
        """Its name with those of its classes."""
        return ".".join([*(c.name for c in self.classes), self.node.name])

    @property
    def public(self) -> bool:
        """Whether others may call it by its name."""
        return not self.local and not any(part.startswith("_") for part in self.name.split("."))

    @property
    def annotations(self) -> list[ast.expr]:
        """Those of its parameters."""
        of = self.node.args
        every = [*of.posonlyargs, *of.args, of.vararg, *of.kwonlyargs, of.kwarg]
        return [a.annotation for a in every if a is not None and a.annotation is not None]


def tracked(root: Path, folder: str) -> list[Path]:
    """The Python files under a folder that git tracks and that exist, in order."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--", f"{folder}/*.py"], capture_output=True)
    if listed.returncode:
        raise SystemExit(f"{root}: git lists no files: {os.fsdecode(listed.stderr).strip()}")
    return [root / name for name in sorted(os.fsdecode(listed.stdout).split("\0")) if name and (root / name).is_file()]


def count_lines(path: Path) -> int:
    """As ``wc -l``."""
    return path.read_bytes().count(b"\n")


def read_sources(root: Path) -> list[Source]:
    """The modules of the package."""
    found = []
    for path in tracked(root, PACKAGE):
        relative = path.relative_to(root)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        found.append(Source(str(relative), module, count_lines(path), ast.parse(path.read_bytes(), path)))
    if not found:
        raise SystemExit(f"{root}: git tracks no Python file under {PACKAGE}/: give the root of a checkout")
    return found


def functions(source: Source) -> Iterator[Function]:
    """All functions of a file, local ones and methods included."""

    def within(node: ast.AST, classes: tuple[ast.ClassDef, ...], local: bool) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Function(source, child, classes, local)
                yield from within(child, (), True)
            elif isinstance(child, ast.ClassDef):
                yield from within(child, (*classes, child), local)
            else:
                yield from within(child, classes, local)

    return within(source.tree, (), False)


def type_names(annotation: ast.AST) -> set[str]:
    """Last parts of the names in a type; what is inside of Callable[...] and Literal[...] does not count."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return set(re.findall(r"\w+", annotation.value))
    if isinstance(annotation, ast.Attribute):
        return {annotation.attr}
    if isinstance(annotation, ast.Name):
        return {annotation.id}
    if isinstance(annotation, ast.Subscript) and (of := type_names(annotation.value)) & {"Callable", "Literal"}:
        return of
    return set().union(*(type_names(child) for child in ast.iter_child_nodes(annotation)))


def tensor_types(sources: Sequence[Source]) -> dict[str, set[str]]:
    """Module -> names that stand in it for a tensor or a collection of tensors."""
    names = {s.module: {"Tensor"} for s in sources}
    grown = True
    while grown:  # an alias may be one of another, from another module
        before = sum(map(len, names.values()))
        for source in sources:
            own = names[source.module]
            for node in ast.walk(source.tree):
                if isinstance(node, ast.ImportFrom):
                    of = names.get(node.module or "", set())
                    own |= {alias.asname or alias.name for alias in node.names if alias.name in of}
            own |= {name for name, value in _aliases(source.tree) if type_names(value) & own}
        grown = sum(map(len, names.values())) > before
    return names


def _aliases(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in module.body:
        if isinstance(node, ast.Assign):
            if isinstance(node.value, ast.Subscript | ast.Attribute | ast.Name | ast.BinOp):  # no call, no table
                yield from ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and node.value and type_names(node.annotation) == {"TypeAlias"}:
            yield from ((t.id, node.value) for t in [node.target] if isinstance(t, ast.Name))
        elif type(node).__name__ == "TypeAlias":  # `type X = ...`, from Python 3.12 on
            alias: Any = node
            yield alias.name.id, alias.value


class Classes:
    """The classes of the package by name: finds the docstrings that a method inherits."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._named: dict[str, list[ast.ClassDef]] = {}
        for source in sources:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.ClassDef):
                    self._named.setdefault(node.name, []).append(node)
        every = [c for of_name in self._named.values() for c in of_name]
        self._protocols = [c for c in every if any("Protocol" in type_names(b) for b in c.bases)]

    def lineage(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        """The class and all its bases in the package."""
        found = [node]
        for one in found:
            bases = [c for b in one.bases for name in sorted(type_names(b)) for c in self._named.get(name, [])]
            found += [c for c in bases if c not in found]
        return found

    def members(self, node: ast.ClassDef) -> set[str]:
        """Names of the public methods and attributes of a class and its bases."""
        found = set()
        for statement in (s for c in self.lineage(node) for s in c.body):
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(statement.name)
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found.add(statement.target.id)
            elif isinstance(statement, ast.Assign):
                found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
        return {name for name in found if not name.startswith("_")}

    def docstrings(self, function: Function) -> Iterator[str]:
        """Its own docstring and those of the hooks that it implements."""
        yield ast.get_docstring(function.node) or ""
        if function.classes:
            own = function.classes[-1]
            has = self.members(own)
            implemented = [p for p in self._protocols if self.members(p) <= has]
            for statement in (s for c in [*self.lineage(own), *implemented] for s in c.body):
                if isinstance(statement, ast.FunctionDef) and statement.name == function.node.name:
                    yield ast.get_docstring(statement) or ""


def names_shape(docstring: str) -> bool:
    """Whether a text names a shape or a dtype."""
    return _SHAPE.search(docstring) is not None


def tensor_functions(sources: Sequence[Source]) -> list[tuple[Function, bool]]:
    """The public functions with tensors, and whether a docstring names their shapes or dtypes."""
    types, classes = tensor_types(sources), Classes(sources)
    return [
        (f, any(map(names_shape, classes.docstrings(f))))
        for source in sources
        for f in functions(source)
        if f.public and any(type_names(a) & types[source.module] for a in f.annotations)
    ]


def needs_method(source: Source, method: str) -> bool:
    """Whether a file is a method's own, or names it in a string or an import."""
    if Path(source.path).stem == method:
        return True
    texts = {id(n.value) for n in ast.walk(source.tree) if isinstance(n, ast.Expr)}  # docstrings of all kinds
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            if method in re.findall(r"\w+", node.value):
                return True
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if any(name.split(".")[-1] == method for name in imported):
                return True
    return False


def static_figures(root: Path) -> dict[str, Any]:
    """What the files say."""
    sources = read_sources(root)
    every = [f for source in sources for f in functions(source)]
    tensors = tensor_functions(sources)
    longest = max(sources, key=lambda s: s.lines)
    return {
        "source_lines": sum(s.lines for s in sources),
        "test_lines": sum(count_lines(path) for path in tracked(root, "tests")),
        "modules": len(sources),
        "experiment_functions": sum(any("Experiment" in type_names(a) for a in f.annotations) for f in every),
        "tensor_functions": len(tensors),
        "tensor_functions_with_shapes": sum(named for _, named in tensors),
        "files_for_a_method": sum(needs_method(s, PROBE) for s in sources),
        "longest_file": f"{longest.path}: {longest.lines}",
        "files_over_250_lines": sum(s.lines > 250 for s in sources),
        "functions_over_50_lines": sum((f.node.end_lineno or 0) - f.node.lineno + 1 > 50 for f in every),
    }


def trace_run(root: Path) -> dict[str, Any]:
    """What one run does, in this process; metasched must be that of the root."""
    package = str(root / PACKAGE) + os.sep
    files: set[str] = set()
    depths: set[int] = set()

    def on_call(frame: FrameType, *_: object) -> None:  # None: no events of the lines of this frame
        code = frame.f_code
        if not code.co_flags & _IS_FUNCTION or not code.co_filename.startswith(package):
            return
        if code.co_name not in _COMPREHENSIONS:
            files.add(code.co_filename)
        if code.co_name == INNER:
            depth, above = 0, frame
            while above is not None:
                depth += above.f_code.co_filename.startswith(package)
                if above.f_code.co_name == OUTER:
                    depths.add(depth)
                    break
                above = above.f_back

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "experiment.yaml")
        config.write_text(EXPERIMENT)
        sys.argv = [PACKAGE, "train", str(config), "--folder", str(Path(folder, "run"))]
        threading.settrace(on_call)
        sys.settrace(on_call)
        try:
            with redirect_stdout(sys.stderr):
                runpy.run_module(PACKAGE, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.settrace(None)
            threading.settrace(None)  # pyright: ignore[reportArgumentType]
    paths = [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
    if not depths:
        raise SystemExit(f"{root}: no {INNER} under {OUTER} was seen: were they renamed?")
    return {
        "modules_imported": len({p for p in paths if p.startswith(package)}),
        "modules_run": len(files),
        "frames_to_inner_step": min(depths),
        "most_frames_to_inner_step": max(depths),
    }


def dynamic_figures(root: Path) -> dict[str, Any]:
    """What one run of the checkout does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, __file__, "--trace", str(root)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{root}: the run failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures; the exit code is 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).parents[1], help="root of a checkout")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument("--missing-shapes", action="store_true", help="list functions without shapes or dtypes")
    shown.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)  # in the process of dynamic_figures
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    if given.trace:
        print(json.dumps(trace_run(root)))
    elif given.missing_shapes:
        for f, named in tensor_functions(read_sources(root)):
            if not named:
                print(f"{f.source.path}:{f.node.lineno} {f.name}")
    else:
        figures = {**static_figures(root), **dynamic_figures(root)}
        if given.json:
            print(json.dumps(figures, indent=2))
        else:
            print("\n".join(f"{name:28} {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
