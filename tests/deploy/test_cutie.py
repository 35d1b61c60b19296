from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metasched.deploy.cutie import cutie_files
from metasched.methods.config import MethodConfig
from metasched.models import build_model

RNG = np.random.default_rng(0)
TERNARY = MethodConfig(name="ana")


def accelerator(files: dict[str, bytes]) -> list[np.ndarray]:
    """What CUTIE would put out for each layer, from the files alone: sums, pooled sums, two strict comparisons."""

    def array(name: str) -> torch.Tensor:
        return torch.from_numpy(np.load(io.BytesIO(files[f"{name}.npy"]))).long()

    y, outputs, i = array("input"), [], 0
    while f"network_l{i}_config.json" in files:
        config = json.loads(files[f"network_l{i}_config.json"])
        y = F.conv2d(y if y.dim() == 4 else y[:, :, None, None], array(f"network_l{i}_weights"), None,
                     config["conv_stride"], config["conv_padding"], config["dilation"])  # fmt: skip
        if config["pooling"]:
            kernel = config["pool_k"]
            if config["pool_type"] == "max":
                y = F.max_pool2d(y.double(), kernel).long()
            else:
                y = F.avg_pool2d(y.double(), kernel, divisor_override=1).long()
        if f"network_l{i}_thresh_lo.npy" in files:
            low, high = (array(f"network_l{i}_thresh_{key}")[:, None, None] for key in ("lo", "hi"))
            y = (y > high).long() - (y < low).long()
        outputs.append(y.numpy())
        i += 1
    return outputs


def check(trained: Any) -> tuple[str, ...]:
    integer = trained.integer()
    files, problems = cutie_files(integer, RNG.integers(-60, 60, (4, *integer.image)))
    ours = accelerator(files)
    assert ours
    for i, y in enumerate(ours):
        golden = np.load(io.BytesIO(files[f"network_l{i}_output.npy"]))
        assert np.array_equal(y.reshape(golden.shape), golden)
    limits = json.loads(files["limits.json"])
    assert limits["problems"] == list(problems) and limits["fits"] is not bool(problems)
    return problems


@pytest.mark.parametrize("depth", [3, 5])
def test_a_network_that_fits_runs_from_its_files(as_trained: Any, depth: int) -> None:
    model = build_model("convnet", (1, 8, 8), 10, 8, depth)
    assert check(as_trained(model, TERNARY, torch.zeros(1, 1, 8, 8), depth)) == ()


@pytest.mark.parametrize(("shape", "width"), [((1, 8, 8), 96), ((1, 28, 28), 16), ((3, 32, 32), 5), ((3, 64, 64), 3)])
def test_the_network_made_for_it_runs_there_as_a_whole(
    as_trained: Any, shape: tuple[int, int, int], width: int
) -> None:
    trained = as_trained(build_model("cutie", shape, 10, width), TERNARY, torch.zeros(1, *shape), 1)
    assert check(trained) == ()
    integer = trained.integer()
    files, _ = cutie_files(integer, RNG.integers(-60, 60, (1, *integer.image)))
    limits = json.loads(files["limits.json"])
    assert limits["host"] == "encoding" and limits["largest"]["layers"] == len(integer.weighted) == 8
    assert set(limits["largest"]) == set(limits["limits"])
    assert all(limits["largest"][name] <= limit for name, limit in limits["limits"].items())
    assert set(np.unique(np.load(io.BytesIO(files["input.npy"])))) <= {-1, 0, 1}


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_pooling_moves_before_the_thresholds(as_trained: Any, pool: nn.Module, place: int) -> None:
    second: list[nn.Module] = [nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    second.insert(place, pool)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *second, nn.Flatten(), nn.Linear(6 * 9, 3))
    trained = as_trained(model, TERNARY, torch.zeros(1, 1, 8, 8), 1)
    if isinstance(pool, nn.MaxPool2d) and place == 1:
        trained.params["5.weight"].abs_()
    if isinstance(pool, nn.AvgPool2d) and place == 3:
        integer = trained.integer()
        _, problems = cutie_files(integer, RNG.integers(-60, 60, (1, *integer.image)))
        assert problems[0] == "layer 0: a pooling that is not between the sums and the thresholds"
    else:
        assert check(trained) == ()


def check_problems(trained: Any) -> tuple[str, ...]:
    integer = trained.integer()
    return cutie_files(integer, RNG.integers(-60, 60, (1, *integer.image)))[1]


def test_max_pooling_before_a_negative_gamma_is_reported(as_trained: Any) -> None:
    second = (nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *second, nn.Flatten(), nn.Linear(6 * 9, 3))
    trained = as_trained(model, TERNARY, torch.zeros(1, 1, 8, 8), 1)
    trained.params["4.weight"][0] = -1.0
    integer = trained.integer()
    _, problems = cutie_files(integer, RNG.integers(-60, 60, (1, *integer.image)))
    assert "layer 0: max pooling before a normalization of negative gamma" in problems


def test_what_exceeds_the_limits_is_reported(as_trained: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 97, 1), nn.ReLU(), nn.Conv2d(97, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 3)
    )
    trained = as_trained(model, MethodConfig(name="ste", levels="int3", scale="max"), torch.zeros(1, 1, 8, 8), 1, False)
    assert check_problems(trained) == (
        "layer 0: 97 to 4 channels, at most 96",
        "layer 0: a 5x5 kernel, at most 3x3 and square",
        "layer 0: weights that are not ternary",
        "layer 1: weights left in float; set quantize.last",
        "layer 1: a 4x4 kernel, at most 3x3 and square",
        "layer 1: weights that are not ternary",
    )


def test_a_single_layer_leaves_nothing_for_the_accelerator(as_trained: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    trained = as_trained(model, TERNARY, torch.zeros(1, 1, 4, 4), 1)
    assert check_problems(trained) == ("0 layers after those of the host, must be 1 to 8",)
