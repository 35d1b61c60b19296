"""scripts/house.py on a small package whose figures are counted by hand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from loading import loaded

ROOT = Path(__file__).parents[2]
FILES = {
    "metasched/__init__.py": "",
    "metasched/__main__.py": """
        import sys
        from metasched.outer import meta_train, silent
        assert sys.argv[1] == "train" and sys.argv[3] == "--folder"
        print("output of the run")
        meta_train(2)
        silent()
        sys.exit(0)
        """,
    "metasched/unused.py": """
        def never() -> None: ...
        """,
    "metasched/table.py": """
        class Row:
            ...

        ROWS = {"gxnor": Row(), "gxnor_mnist": Row()}
        """,
    "metasched/inner.py": """
        def inner_step(times):
            return times
        """,
    "metasched/outer.py": """
        import heapq

        from metasched import table, unused
        from metasched.inner import inner_step

        def meta_train(times):
            inner_step(times)  # 2 frames
            return list(again(times) for _ in range(1))

        def again(times):
            return heapq.nsmallest(1, [times], key=inner_step)  # 4 frames with the generator's; heapq's is not ours

        def silent():
            inner_step(0)  # not below meta_train
        """,
    "metasched/methods/gxnor.py": """
        '''The method itself.'''
        """,
    "metasched/methods/rows.py": """
        from metasched.methods import gxnor
        """,
    "metasched/methods/other.py": """
        '''Not gxnor.'''
        CONTROLS = {"gxnor_mnist": 1}
        half: float = 0.5
        '''not of gxnor'''
        """,
    "metasched/types.py": """
        from collections.abc import Callable, Mapping
        from torch import Tensor
        State = Mapping[str, Tensor]
        Call = Callable[[Tensor], Tensor]
        COUNT = max(1, 2)
        """,
    "metasched/hooks.py": """
        from typing import Literal, Protocol
        import torch
        from metasched.config.schema import Experiment
        from metasched.types import Call, State as S

        Pair = tuple[S, S]

        class Hook(Protocol):
            size: int

            def apply(self, w: torch.Tensor) -> None:
                '''Weights [C_out, ...].'''

            def other(self, w: torch.Tensor) -> None:
                '''Weights within [0, 1], of the shape of w.'''

        class Full:
            size: int

            def apply(self, w: torch.Tensor) -> None: ...
            def other(self, w: torch.Tensor) -> None: ...

        class Half:
            size: int

            def apply(self, w: torch.Tensor) -> None:
                '''Lacks the method other.'''

        class Child(Full):
            def own(self, pair: Pair) -> None:
                '''A scalar.'''

            def _hidden(self, w: torch.Tensor) -> None: ...

        class Base:
            def go(self, w: torch.Tensor) -> None:
                '''In float64.'''

        class Derived(Base):
            def go(self, w: torch.Tensor) -> None: ...

        class _Private:
            def apply(self, w: torch.Tensor) -> None: ...

        def documented(*states: S | None) -> None:
            '''One value, 0-d, each.'''

        def called(call: Call, name: Literal["Tensor"], w: int = 3) -> torch.Tensor:
            '''No parameter is a tensor.'''
            def local(w: torch.Tensor, experiment: Experiment) -> None: ...

        def whole(w: "torch.Tensor", *, experiment: "Experiment | None") -> None:
            '''Values[None] in [-1, 1] of [a-z], and [a link](T).'''
        """,
    "metasched/config/schema.py": "class Experiment: ...\ndef longest(e: Experiment) -> int:\n"
    + "    e\n" * 300
    + "    # end",
    "tests/test_any.py": "one = 1\ntwo = 2\n",
}


@pytest.fixture(scope="module")
def house() -> ModuleType:
    return loaded(ROOT / "scripts" / "house.py")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.split("\n")
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines) if lines[0] == "" else text)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    (root / "metasched" / "untracked.py").write_text("GXNOR = 'gxnor'\n")
    return root


STATIC = {
    "source_lines": 8 + 2 + 5 + 3 + 15 + 2 + 2 + 5 + 6 + 54 + 302,
    "test_lines": 2,
    "modules": 12,
    "experiment_functions": 3,  # local, whole, longest
    "tensor_functions": 10,
    "tensor_functions_with_shapes": 6,  # Hook.apply, Full.apply, Child.own, Base.go, Derived.go, documented
    "files_for_a_method": 3,  # gxnor, rows, table
    "longest_file": "metasched/config/schema.py: 302",
    "files_over_250_lines": 1,
    "functions_over_50_lines": 1,
}
DYNAMIC = {
    "modules_imported": 5,  # the package, outer, table, unused, inner
    "modules_run": 2,  # outer, inner
    "frames_to_inner_step": 2,
    "most_frames_to_inner_step": 4,
}


def test_static_figures(house: ModuleType, checkout: Path) -> None:
    assert house.static_figures(checkout) == STATIC


def test_all_figures_as_json(house: ModuleType, checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert house.main([str(checkout), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {**STATIC, **DYNAMIC}


def test_functions_without_shapes_are_listed(
    house: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert house.main([str(checkout), "--missing-shapes"]) == 0
    names = ["Hook.other", "Full.other", "Half.apply", "whole"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == names
    place, hooks = lines[-1].split()[0], FILES["metasched/hooks.py"].split("\n")
    assert place.startswith("metasched/hooks.py:") and "def whole" in hooks[int(place.split(":")[1]) - 1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("of shape [T, L]", True),
        ("values [L]", True),
        ("[N, ...]", True),
        ("any shape: [...]", True),
        ("[N, C, H / stride, 3]", True),
        ("a 0-d tensor", True),
        ("a scalar", True),
        ("in float64", True),
        ("a range [0, 1], [-1, 1]", False),
        ("of the shape and dtype of x", False),
        ("dict[str, Tensor]", False),
        ("w[None]", False),
        ("[None]", False),
    ],
)
def test_what_names_a_shape(house: ModuleType, text: str, named: bool) -> None:
    assert house.names_shape(text) is named


def test_a_folder_without_the_package_is_refused(house: ModuleType, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    with pytest.raises(SystemExit, match="git tracks no Python file under metasched/"):
        house.main([str(tmp_path)])


def test_a_run_without_an_inner_step_is_an_error(house: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "metasched").mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / "metasched" / f"{name}.py").write_text("")
    with pytest.raises(SystemExit, match="no inner_step under meta_train"):
        house.dynamic_figures(tmp_path)
