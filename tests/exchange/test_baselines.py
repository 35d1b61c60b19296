"""The checked-in baselines: the hand-coded schedules, and close to them between the knots."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from metasched.core.layer import Layer
from metasched.exchange.baselines import TOLERANCE, vgg8_layers, write_baselines
from metasched.exchange.player import PlayedSchedule, check_method
from metasched.exchange.schedule_file import read_schedule
from metasched.methods import build_method
from metasched.methods.adaround import CONTROLS as ROUNDING_CONTROLS
from metasched.methods.admm import RHO
from metasched.methods.ana import ACTIVATION_NOISE, NOISE_MEAN, WEIGHT_NOISE
from metasched.methods.blend import ACTIVATION_BLEND, WEIGHT_BLEND
from metasched.methods.config import MethodConfig
from metasched.methods.dpq import HARD
from metasched.methods.gxnor import STEP_TEMPERATURE
from metasched.methods.inq import FREEZE_FRACTION
from metasched.methods.metropolis import TEMPERATURE
from metasched.methods.oscillation import FREEZE_THRESHOLD
from metasched.methods.parq import INVERSE_SLOPE
from metasched.methods.pruning import SPARSITY
from metasched.methods.quant_noise import ACTIVATION_SHARE, WEIGHT_SHARE
from metasched.methods.rounding import ACTIVATION_RANDOMNESS, WEIGHT_RANDOMNESS
from metasched.schedules.base import progress_of_steps
from metasched.schedules.table import hand_coded

FOLDER = Path(__file__).parents[2] / "experiments" / "baselines"
REGENERATE = (
    "regenerate it: python -c "
    "\"from metasched.exchange.baselines import write_baselines; write_baselines('experiments/baselines')\""
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
CONTROLS = {
    "ana": [WEIGHT_NOISE, ACTIVATION_NOISE, NOISE_MEAN],
    "blend": [WEIGHT_BLEND, ACTIVATION_BLEND],
    "widths": build_method(MethodConfig(name="widths")).controls,
    "inq": [FREEZE_FRACTION],
    "temperature": build_method(MethodConfig(name="temperature")).controls,
    "parq": [INVERSE_SLOPE],
    "oscillation": [FREEZE_THRESHOLD],
    "pruning": [SPARSITY],
    "quant_noise": [WEIGHT_SHARE, ACTIVATION_SHARE],
    "rounding": [WEIGHT_RANDOMNESS, ACTIVATION_RANDOMNESS],
    "admm": [RHO, SPARSITY, WEIGHT_BLEND],
    "joint": [WEIGHT_NOISE, ACTIVATION_NOISE, NOISE_MEAN, FREEZE_FRACTION],
    "gxnor": [STEP_TEMPERATURE],
    "metropolis": [TEMPERATURE],
    "dpq": [HARD],
    "bayesian_bits": build_method(MethodConfig(name="bayesian_bits")).controls,
    "adaround": list(ROUNDING_CONTROLS),
}
RAMPS = ["linear", "cosine", "cubic", "input_first", "output_first"]
EXPECTED = {
    **hand_coded("ana"),
    **hand_coded("blend"),
    **hand_coded("widths"),
    **hand_coded("inq"),
    **hand_coded("temperature"),
    **hand_coded("parq"),
    **hand_coded("oscillation"),
    **hand_coded("pruning"),
    **hand_coded("quant_noise"),
    **hand_coded("rounding"),
    **hand_coded("admm"),
    **hand_coded("gxnor"),
    **hand_coded("metropolis"),
    **hand_coded("dpq"),
    **hand_coded("bayesian_bits"),
    **hand_coded("adaround"),
    **{f"joint_{ramp}": hand_coded("joint")[f"joint_{ramp}"] for ramp in RAMPS},
}
PIECEWISE_LINEAR = {"ana_2019", *(f"{m}_{r}" for m in CONTROLS for r in ("linear", "input_first", "output_first"))}


def test_checked_in_baselines_are_the_generated_ones(tmp_path: Path) -> None:
    paths = write_baselines(tmp_path)
    assert {path.name for path in paths} == {path.name for path in FOLDER.glob("*.json")}
    for path in paths:
        made, kept = path.read_text("utf-8"), (FOLDER / path.name).read_text("utf-8")
        assert NUMBER.sub("#", made) == NUMBER.sub("#", kept), f"{path.name} has changed; {REGENERATE}"
        # cosines and powers differ between processors in their last bits
        numbers = [torch.tensor([float(x) for x in NUMBER.findall(text)]) for text in (made, kept)]
        torch.testing.assert_close(*numbers, rtol=1e-12, atol=1e-12, msg=f"{path.name} has changed; {REGENERATE}")
        assert path.stat().st_size < 100_000


@pytest.mark.parametrize("name", EXPECTED)
def test_a_baseline_plays_its_hand_coded_schedule(name: str) -> None:
    schedule = EXPECTED[name]
    file = read_schedule(FOLDER / f"{name}.json")
    check_method(file, schedule.family, CONTROLS[schedule.family], name)
    assert (file.provenance.kind, file.provenance.name) == ("hand-coded", name)
    assert file.provenance.citation == schedule.citation
    exact = schedule.interpolation == "previous"
    off = 0.0 if exact else 1e-12 if name in PIECEWISE_LINEAR else TOLERANCE
    for num_steps in (1, 2, 7, 500, 4001):
        progress = progress_of_steps(num_steps)
        played = PlayedSchedule(file)(progress, vgg8_layers())
        for control, values in schedule(progress, vgg8_layers()).items():
            assert (played[control] - values).abs().max() <= off, (control, num_steps)


def test_layers_are_those_of_the_paper() -> None:
    """128-256-256-512-512 channels of 3x3 convolutions, then 512 * 4 * 4 - 1024 - 1024 units; all ternary."""
    shapes = [
        ("conv1", 3 * 9, 128),
        ("conv2", 128 * 9, 256),
        ("conv3", 256 * 9, 256),
        ("conv4", 256 * 9, 512),
        ("conv5", 512 * 9, 512),
        ("linear6", 512 * 16, 1024),
        ("linear7", 1024, 1024),
    ]
    assert vgg8_layers() == tuple(
        Layer(
            name,
            i / 6,
            "conv" if name.startswith("conv") else "linear",
            "weight+activation",
            fan_in,
            fan_in * units,
            math.log2(3),
        )
        for i, (name, fan_in, units) in enumerate(shapes)
    )


def test_another_network_plays_a_baseline() -> None:
    layers = [Layer(f"l{i}", i / 2, "conv", "weight", 9, 9, 1.0) for i in range(2)]
    file = read_schedule(FOLDER / "ana_same_start_homogeneous_static.json")
    values = PlayedSchedule(file)(torch.tensor([0.0, 0.05, 1.0], dtype=torch.float64), layers)["weight_noise"]
    # At progress 0.05 layer l of 7 has 0.5 (1 - 0.05 / (0.1 (l + 1)))^2; depth 0 is l = 0 and depth 1 / 2 is l = 3.
    assert values[1].tolist() == pytest.approx([0.5 * 0.5**2, 0.5 * 0.875**2], abs=TOLERANCE)
    assert values[0].tolist() == [0.5, 0.5] and values[2].tolist() == [0.0, 0.0]
