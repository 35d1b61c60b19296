"""A network that is read from its files computes what was written; what is not of their form is refused on one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metasched.contrib.deployed_reading import read_network
from metasched.core.errors import MetaschedError
from metasched.deploy import simulator
from metasched.deploy.files import network_files
from metasched.methods.config import MethodConfig
from metasched.models import build_model

RNG = np.random.default_rng(0)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name in ("network.json", "weights.bin"):
        (folder / name).write_bytes(files[name])
    return folder / "network.json"


@given(st.data())
@settings(max_examples=20)
def test_random_networks_come_back(
    random_networks: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    integer = data.draw(random_networks).integer()
    codes = RNG.integers(-128, 128, (3, *integer.image))
    files = network_files(integer, codes, {})
    read = read_network(write(tmp_path_factory.mktemp("network"), files))
    for ours, theirs in zip(simulator.outputs(integer, codes), simulator.outputs(read, codes), strict=True):
        assert np.array_equal(ours, theirs)
    again = network_files(read, codes, {})
    assert [again[name] for name in ("network.json", "weights.bin")] == [
        files[name] for name in ("network.json", "weights.bin")
    ]


@pytest.fixture(scope="module")
def files(request: pytest.FixtureRequest) -> dict[str, bytes]:
    """Of a network with a thermometer, pools and flips; its stages are conv, flip, thresholds, conv, flip, ..."""
    as_trained = request.getfixturevalue("as_trained")
    trained = as_trained(build_model("cutie", (1, 8, 8), 10, 3), MethodConfig(name="ana"), torch.zeros(1, 1, 8, 8), 1)
    return network_files(trained.integer(), RNG.integers(-9, 9, (1, 1, 8, 8)), {})


Change = Callable[[dict[str, Any]], object]


def of(kind: str, **fields: Any) -> Change:
    """Sets fields of the first stage of a kind."""
    return lambda tree: next(s for s in tree["stages"] if s["stage"] == kind).update(fields)


def weight(**fields: Any) -> Change:
    return lambda tree: tree["stages"][1]["weight"].update(fields)


REFUSED: dict[str, tuple[Change, str]] = {
    "another format": (lambda t: t.update(format=2), "format: must be 1, got 2"),
    "true for a format": (lambda t: t.update(format=True), "format: must be 1, got True"),
    "no image": (lambda t: t.pop("image"), "image: missing"),
    "a flat image": (lambda t: t.update(image=[1, 8]), "image: must be an array of 3 integers, got [1, 8]"),
    "a huge image": (lambda t: t.update(image=[1, 10**9, 10**9]), "image: must have 1 to 16777216 elements"),
    "an unknown key": (lambda t: t.update(weights="other.bin"), "unknown name 'weights'"),
    "a step of zero": (lambda t: t.update(step="0/5"), "step: must be a positive fraction"),
    "a step by zero": (lambda t: t.update(step="1/0"), "step: must be a positive fraction"),
    "a step in floats": (lambda t: t.update(step=0.5), "step: must be a positive fraction, such as '1/32', got 0.5"),
    "an unknown stage": (of("flip", stage="flipp"), "stages[2].stage: unknown name 'flipp'; did you mean 'flip'?"),
    "no stages": (lambda t: t.update(stages=[]), "weights.bin: holds"),
    "no logits": (lambda t: t["stages"].pop(), "stages: do not end with logits"),
    "logits first": (lambda t: t["stages"].insert(0, t["stages"][-1]), "stages[0].stage: is logits before the end"),
    "encoded twice": (lambda t: t["stages"].insert(1, t["stages"][0]), "stages[1].stage: is an encoding, but not the"),
    "a field too many": (of("flip", step="1"), "stages[2]: unknown name 'step'"),
    "a field too few": (lambda t: t["stages"][1].pop("groups"), "stages[1].groups: missing"),
    "a name that steers": (of("convolution", name="\x1b[2J"), "stages[1].name: must be a printable name"),
    "no stride": (of("convolution", stride=[0, 1]), "stages[1].stride: must be at least 1"),
    "a padding beyond": (of("convolution", padding=[9, 9]), "stages[1].padding: must be from 0 to the size of"),
    "true for a count": (of("convolution", groups=True), "stages[1].groups: must be an integer, got True"),
    "groups that divide nothing": (of("convolution", groups=2), "stages[1].groups: do not divide the outputs"),
    "a reach that hides an overflow": (of("convolution", reach=1), "stages[1].reach: must be 4"),
    "fewer steps than channels": (of("convolution", steps=["1", "1/3"]), "stages[1].steps: must be one, or 3"),
    "a weight elsewhere": (weight(offset=7), "stages[1].weight.offset: must be 0, got 7"),
    "a weight too long": (weight(bytes=8), "stages[1].weight.bytes: must be 54, got 8"),
    "weights of three bits": (weight(bits=3), "stages[1].weight.bits: must be 2, 4, 8 or 32, got 3"),
    "weights beyond the file": (weight(shape=[3, 8, 900, 900], bytes=4860000), "stages[1].weight: ends after the end"),
    "weights for other channels": (weight(shape=[6, 4, 3, 3]), "stages[1].weight: is for 4 channels, not 8"),
    "weights without outputs": (weight(shape=[0, 8, 3, 3]), "stages[1].weight.shape: must be 2 or 4 counts"),
    "a sign of 2": (of("flip", sign=[1, 2, 1]), "stages[2].sign: must be 3 signs"),
    "falling thresholds": (
        of("thresholds", values=[[3, -3]] * 3),
        "stages[3].values: must be 2 for each of 3",
    ),
    "ragged thresholds": (of("thresholds", values=[[0, 1], [0]]), "stages[3].values[1]: must be an array of 2"),
    "levels that fall": (of("thresholds", levels=[1, 0, -1]), "stages[3].levels: must rise"),
    "an encoding upside down": (lambda t: t["stages"][0].update(low=[99] * 8), "stages[0].low: must not be above high"),
    "too few scores": (of("logits", offset=[0]), "stages[23].multiplier: must, as the offsets, be one for each of 10"),
    "scores beyond doubles": (of("logits", multiplier=[2**60] * 10), "stages[23].stage: has integers that doubles"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_is_one_line(case: str, files: dict[str, bytes], tmp_path: Path) -> None:
    change, says = REFUSED[case]
    tree = json.loads(files["network.json"])
    change(tree)
    path = write(tmp_path, {**files, "network.json": json.dumps(tree).encode()})
    with pytest.raises(MetaschedError) as error:
        read_network(path)
    message = str(error.value)
    assert message.startswith(f"{path}: {says}") and message.isprintable(), message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda w: w[:-1], "stages[22].weight: ends after the end of weights.bin"),
        (lambda w: w + b"\0", "weights.bin: holds"),
        (lambda w: b"", "stages[1].weight: ends after the end of weights.bin, 0 bytes"),
    ],
)
def test_weights_of_another_length(
    data: Callable[[bytes], bytes], says: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = write(tmp_path, {**files, "weights.bin": data(files["weights.bin"])})
    with pytest.raises(MetaschedError) as error:
        read_network(path)
    assert str(error.value).startswith(f"{path}: {says}")


def test_weights_that_are_missing(files: dict[str, bytes], tmp_path: Path) -> None:
    path = write(tmp_path, files)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(MetaschedError, match=r"weights\.bin: cannot be read: No such file"):
        read_network(path)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Each container of the tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


OTHERS = [-1, 0, 1, 2, 7, 2**40, -(2**63), 2**63 - 1, True, None, 1.5, "", "1/3", [], [1], [[1, 2]], {}]


@given(st.data())
@settings(max_examples=100)
def test_a_changed_file_is_refused_or_runs(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tree = copy.deepcopy(json.loads(files["network.json"]))
    holder, key = data.draw(st.sampled_from(places(tree)))
    holder[key] = data.draw(st.sampled_from(OTHERS))
    path = write(tmp_path_factory.mktemp("changed"), {**files, "network.json": json.dumps(tree).encode()})
    try:
        network = read_network(path)
    except MetaschedError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert simulator.run(network, np.zeros((1, *network.image), np.int64)).dtype == np.int64
