"""Decisions about the whole package: its public names, what a bare import costs, who may import whom, clean files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import metasched

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metasched"
SOURCES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = """
    Allocation Control DataTask Experiment HandCoded Inspection Layer METHODS MetaschedError MetaschedWarning
    MethodConfig MethodSpec ModelSpec OptimizerSpec PlayedSchedule QuantizedModule QuantizedNetwork Recipe Result Rule
    ScheduleNetwork SchedulePlayer Study Task TaskFamily TaskSpec allocate build_method build_problem calibrate compare
    convert export find_unroll hand_coded hardened_score hessian_traces inspect learn list_schedules load
    load_experiment meta_train portfolio paired_difference prepare progress_of_steps published quantize read_schedule
    register_method register_model register_optimizer register_task train tune write_schedule
""".split()

LAYERS = """
    core errors io quantizers methods models
    training.optimizers.table training.optimizers.decays training.optimizers.config tasks.table tasks.config
    families.config network.config schedules.config estimators.table meta.config search.table search.bits.table
    search.config arena.table arena.config evaluation.config tracking.config runs.config config
    tasks network schedules training config.ignored config.load engines tracking exchange network.prepare calibration
    runs families estimators evaluation search meta study arena deploy commands api contrib cli __main__
""".split()  # each imports from those before it only

FOR_TYPES = ("table.py", "decays.py")

IMPORTED_IN = {  # libraries with one door
    "higher": {"engines/higher_optimizers.py"},
    "wandb": {"tracking/wandb_tracker.py"},
}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it; ``from metasched import x`` counts as ``metasched.x``.

    Those for type checkers alone do not count in tables: a row names the types of what it builds.
    """
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and path.name in FOR_TYPES:
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: relative import"
            if node.module == "metasched":
                yield from (f"metasched.{alias.name}" for alias in node.names)
            else:
                yield node.module


def project_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_public_names_are_pinned() -> None:
    assert sorted(metasched.MODULES) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(metasched))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_what_its_module_defines(name: str) -> None:
    module = import_module(metasched.MODULES[name])
    assert getattr(metasched, name) is getattr(module, name)  # and not a module of the same name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == metasched.MODULES


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = metasched.nothing_like_it  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("module", ["metasched", "metasched.cli"])
def test_import_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*{{'torch', 'numpy', 'wandb', 'pydantic'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_configuration_does_not_import_torch() -> None:
    program = "import sys, metasched.config.fields; print(*{'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def layer_of(module: str) -> str:
    """The entry of LAYERS that a module, without ``metasched.``, belongs to: the longest one that it lies in."""
    return max((layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")), key=len, default="")


def test_every_part_has_its_place_among_the_layers() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in SOURCES} - {"__init__"}
    assert {layer_of(module) for module in modules} == set(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = layer_of(".".join(relative.with_suffix("").parts))
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top in IMPORTED_IN:
            assert relative.as_posix() in IMPORTED_IN[top]
        if top == "metasched" and relative.as_posix() != "__init__.py":
            assert rest, f"{relative} imports the package itself"
            other = layer_of(rest)
            assert other == own or LAYERS.index(other) < LAYERS.index(own), f"{relative} imports {module}"


def test_no_file_is_large() -> None:
    assert [path.name for path in project_files() if path.stat().st_size > 2**20] == []


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    absolute = re.compile(rb"(?<![\w.*])/(?:work|root|home|Users)/\w")
    found = [path.relative_to(ROOT).as_posix() for path in project_files() if absolute.search(path.read_bytes())]
    assert found == []
