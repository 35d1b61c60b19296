"""Values of the host for recorded steps: draws as outside of a recording, in tensors that are filled again."""

from __future__ import annotations

import pytest
import torch

from metasched.core.randomness import Draw
from metasched.core.recording import HostValues, recorded, recording

SEEDS = [3, 2**63 - 1]


def drawn(step: int) -> torch.Tensor:
    """Numbers of each seed at a step, under torch.vmap."""
    like = torch.zeros(2, 3)

    def one(seed: torch.Tensor) -> torch.Tensor:
        return Draw(seed, step, 1).uniform("weight", like)  # pyright: ignore[reportArgumentType]

    return torch.vmap(one)(torch.tensor(SEEDS))


def test_draws_of_a_recorded_step_are_filled_for_any_step() -> None:
    values = HostValues(SEEDS)
    with recording(values):
        kept = drawn(5)
        assert torch.equal(drawn(99), kept)  # the step in the program is that of the recording
    assert torch.equal(kept, drawn(5)) and not torch.equal(kept[0], kept[1])
    values.fill(6)
    assert torch.equal(kept, drawn(6)) and not torch.equal(kept, drawn(5))


def test_recording_ends_with_its_block() -> None:
    assert not recorded()
    with pytest.raises(KeyError), recording(HostValues([])):
        assert recorded()
        raise KeyError
    assert not recorded()
