"""Schedule files of earlier versions: a control that had another name then.

Until weights and activations had a noise each, ANA had one control, ``noise_scale``, for both. The rows of the methods
say what became of a name (``MethodSpec.former``); a file that has it sets each of its successors to the same curves.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from metasched.core.errors import MetaschedError
from metasched.exchange.format import ScheduleFile
from metasched.methods import METHODS


def successors(method: str) -> dict[str, tuple[str, ...]]:
    """{former name of a control of a method: its names now}; empty for a method that is not in the table.

    >>> successors("ana")
    {'noise_scale': ('weight_noise', 'activation_noise')}
    """
    return dict(METHODS[method].former) if method in METHODS else {}


def predecessors(method: str, control: str) -> tuple[str, ...]:
    """The former names of a control of a method.

    >>> predecessors("joint", "activation_noise"), predecessors("joint", "noise_mean")
    (('noise_scale',), ())
    """
    return tuple(name for name, now in successors(method).items() if control in now)


def renamed(file: ScheduleFile) -> ScheduleFile:
    """The file with the names that controls have now; one that has them, or is of version 2, is returned as it is.

    Raises:
        MetaschedError: it has a control under both names, or would have more controls than a file may.
    """
    former = successors(file.method.name)
    names = [control.name for control in file.controls]
    if file.version != 1 or not former.keys() & set(names):
        return file
    for i, name in enumerate(names):
        if both := [now for now in former.get(name, ()) if now in names]:
            problem = f"{name!r} is the former name of {both[0]}, which is in the file too"
            raise MetaschedError(f"controls[{i}].name", problem, "remove one of them")
    controls = tuple(replace(c, name=now) for c in file.controls for now in former.get(c.name, (c.name,)))
    values = {now: curves for name, curves in file.values.items() for now in former.get(name, (name,))}
    try:
        return replace(file, controls=controls, values=values)
    except ValidationError:
        problem = f"are {len(controls)} with the names of this version, which is too many"
        raise MetaschedError("controls", problem, "remove those that the method does not have") from None
