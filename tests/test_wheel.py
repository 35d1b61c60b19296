"""What pip brings: the wheel alone, in another folder, and the core dependencies without any extra."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MODULE_OF = {  # distributions whose module has another name
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "pytorch-lightning": "pytorch_lightning",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "wandb-workspaces": "wandb_workspaces",
}
CORE = {"numpy", "pydantic", "pyyaml", "rich", "torch"}

BLOCK = "import sys; sys.modules.update(dict.fromkeys({names!r})); "
PLAY = """
import metasched
from torch import nn
import torch

for shipped in metasched.list_schedules():
    metasched.load(shipped.name)
schedule = metasched.load("digits")
inputs = torch.randn(8, 1, 8, 8)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
network = metasched.quantize(model, metasched.build_method(schedule.method), inputs)
player = metasched.SchedulePlayer(schedule, 3, network.layers)
module = metasched.QuantizedModule(network, player.at(0))
optimizer = torch.optim.SGD(module.parameters(), 0.1)
for step in range(3):
    optimizer.zero_grad()
    module(inputs, player.step(), step).square().mean().backward()
    optimizer.step()
    module.settle()
print(sorted(set(module.hardened()["2.weight"].flatten().tolist())))
print(metasched.__file__)
"""
EVERY_MODULE = """
import pkgutil, importlib, metasched
refused = {}
for module in pkgutil.walk_packages(metasched.__path__, "metasched."):
    if module.name != "metasched.__main__":
        try:
            importlib.import_module(module.name)
        except metasched.MetaschedError as error:
            refused[module.name] = str(error)
import json
print(json.dumps(refused))
"""
NEEDS = {  # an attempt -> the line that it ends with
    "metasched.paired_difference([1.0, 2.0], [0.0, 0.5])": "scipy: is not installed; pip install 'metasched[train]'",
    "metasched.find_unroll('higher')": "higher: is not installed; pip install 'metasched[train]'",
    "metasched.build_problem(metasched.Experiment().problem)": "scikit-learn: is not installed; pip install",
    "__import__('metasched.tracking.opening').tracking.opening.require_report()": "scipy: is not installed; pip",
}


def name_of(requirement: str) -> str:
    found = re.match(r"[\w-]+", requirement)
    assert found is not None
    return found[0]


def optional() -> list[str]:
    extras = {name_of(each) for extra in PROJECT["optional-dependencies"].values() for each in extra}
    return sorted(MODULE_OF.get(name, name) for name in extras)


def python(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment})


def without_extras(program: str, folder: Path, source: Path = ROOT) -> str:
    done = python(BLOCK.format(names=optional()) + program, folder, PYTHONPATH=str(source))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_is_what_a_player_needs() -> None:
    assert {name_of(each) for each in PROJECT["dependencies"]} == CORE
    assert not {MODULE_OF.get(name, name) for name in CORE} & {*optional()}


def test_a_plain_loop_needs_the_core_only(tmp_path: Path) -> None:
    levels, file = without_extras(PLAY, tmp_path).splitlines()
    assert levels == "[-1.0, 0.0, 1.0]" and Path(file) == ROOT / "metasched" / "__init__.py"


def test_every_module_is_imported_without_the_extras_but_the_bridge_to_higher(tmp_path: Path) -> None:
    line = "higher: is not installed; pip install 'metasched[train]'"
    bridge = ("metasched.engines.higher_optimizers", "metasched.engines.higher_unroll")
    assert json.loads(without_extras(EVERY_MODULE, tmp_path)) == dict.fromkeys(bridge, line)


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    attempts = "".join(
        f"try:\n    {attempt}\nexcept metasched.MetaschedError as error:\n    print(error)\n" for attempt in NEEDS
    )
    said = without_extras(f"import metasched\n{attempts}", tmp_path).splitlines()
    assert len(said) == len(NEEDS)
    assert all(line.startswith(wanted) for line, wanted in zip(said, NEEDS.values(), strict=True)), said


def test_a_command_that_needs_an_extra_leaves_no_folder(tmp_path: Path) -> None:
    program = "from metasched.cli import main; sys.exit(main({words!r}))"
    words = ["train", str(ROOT / "experiments" / "digits.yaml"), "--folder", "run"]
    done = python(BLOCK.format(names=["scipy"]) + program.format(words=words), tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr.splitlines() == ["metasched: error: scipy: is not installed; pip install 'metasched[train]'"]


@pytest.mark.slow
def test_the_wheel_alone_in_another_folder(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv, which builds and installs the wheel, is not installed")
    build = [uv, "build", "--wheel", "--offline", "--quiet", "--out-dir", str(tmp_path / "dist"), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode != 0:
        pytest.skip(f"the wheel cannot be built offline: {built.stderr.strip()[-200:]}")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 2**20
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [uv, "pip", "install", "--offline", "--no-deps", "--quiet", "--python", sys.executable]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    levels, file = without_extras(PLAY, elsewhere, site).splitlines()
    assert levels == "[-1.0, 0.0, 1.0]" and Path(file) == site / "metasched" / "__init__.py"
    listing = "import metasched; print(*(shipped.name for shipped in metasched.list_schedules()))"
    assert without_extras(listing, elsewhere, site) == without_extras(listing, elsewhere)
    for words in (["list", "--json"], ["show", "digits_inq"], ["export", "ana_linear", "-o", "ramp.json"]):
        without_extras(f"from metasched.cli import main; assert main({words!r}) == 0", elsewhere, site)
    kept = ROOT / "experiments" / "baselines" / "ana_linear.json"
    assert (elsewhere / "ramp.json").read_bytes() == kept.read_bytes()
