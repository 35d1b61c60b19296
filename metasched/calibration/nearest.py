"""Round to nearest: each weight goes to the level that is nearest, at the scale that the recipe says.

By default that is the scale of the smallest squared error of the weights. This is the baseline of all procedures.
"""

from __future__ import annotations

import torch

from metasched.calibration.table import Options
from metasched.calibration.unit import Rounded, Unit
from metasched.core.randomness import Draw


@torch.no_grad()
def nearest(unit: Unit, options: Options | None = None) -> list[Rounded]:
    """Each layer of the unit on its nearest levels."""
    found = []
    for i, method in enumerate(unit.methods):
        w, _, state = method.initialize(unit.weight(i), {}, Draw(unit.seed, 0, i))
        found.append(Rounded(method, method.harden(w, state, 0.5), state, {}))
    return found
