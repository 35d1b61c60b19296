"""A schedule of the joint method for a network of two quantized layers, and that network for any training loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from metasched import MethodConfig, QuantizedModule, build_method, export, hand_coded, quantize, write_schedule
from metasched.exchange.format import Provenance
from metasched.exchange.integrations.driven import DrivenModule
from metasched.exchange.player import SchedulePlayer
from metasched.network.quantized import QuantizedNetwork

METHOD = MethodConfig(name="joint", scale="max", forward="expectation")


def network() -> QuantizedNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(), nn.Linear(8, 8), nn.Hardtanh(), nn.Linear(8, 1))
    return quantize(model, build_method(METHOD), torch.zeros(1, 4))


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    """A schedule file; its two layers move at different times."""
    base = hand_coded("joint")["joint_input_first"]
    quantized = network()
    file = export(
        base,
        method_name="joint",
        method_parameters={},
        controls=quantized.method.controls,
        layers=quantized.layers,
        knots=base.knots(5),
        interpolation=base.interpolation,
        provenance=Provenance(kind="hand-coded", name=base.name, citation=base.citation),
    )
    write_schedule(tmp_path / "schedule.json", file)
    return tmp_path / "schedule.json"


@pytest.fixture
def driven(schedule: Path) -> DrivenModule:
    """The network, in float32 as trainers have it."""
    torch.set_default_dtype(torch.float32)
    quantized = network()
    first = SchedulePlayer(schedule, 6, quantized.layers).at(0)
    return DrivenModule(QuantizedModule(quantized, first, seed=0), first)
