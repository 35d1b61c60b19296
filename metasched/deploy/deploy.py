"""From an experiment and a schedule to a deployed network, in one go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from metasched.config import Experiment
from metasched.deploy import simulator
from metasched.deploy.agreement import agreement, float_twin
from metasched.deploy.cutie import cutie_files
from metasched.deploy.files import check_new, network_files, write_folder
from metasched.deploy.integer import input_step, integer_network
from metasched.deploy.onnx_export import installed, onnx_model, run_onnx, session
from metasched.deploy.packing import LayerSize, account, compression
from metasched.deploy.stages import Array, IntegerNetwork
from metasched.errors import MetaschedError
from metasched.evaluation.cells import played
from metasched.evaluation.compare import read_playable
from metasched.network import QuantizedNetwork, rows
from metasched.randomness import derive_seed
from metasched.schedules.base import Schedule
from metasched.schedules.table import hand_coded
from metasched.tracking.console import Console
from metasched.training.faults import broken
from metasched.training.loop import harden, hardened_score, train
from metasched.training.problem import build_problem

_BATCH = 100
_GOLDEN = 4  # images


def deploy(experiment: Experiment, schedule: str, folder: Path, console: Console) -> dict[str, Any]:
    """Train under a schedule, harden, fold, compare on the whole test set, and write the files.

    Args:
        experiment: task, method and horizon; the network is trained from one fresh seed.
        schedule: name of a hand-coded schedule, or a schedule file; played over the whole horizon.
        folder: is made; nothing is left of it if anything fails.
        console: where the account is shown.

    Returns:
        scores on the test set, the agreement, the compression.

    Raises:
        MetaschedError: the folder is there, the network has no integer form, training went to numbers that are not
            finite, or a runtime does not agree.
    """
    check_new(folder)
    problem = build_problem(experiment).with_seed(derive_seed(experiment.seed, "deploy"))
    network, task = problem.network, problem.task
    like, example, step = next(network.module.parameters()), task.train.x[:1], input_step(task.train.x)
    playable = _schedule(experiment, schedule, network)
    controls = {name: v.to(like) for name, v in played(experiment, playable, problem.steps).items()}
    fresh = problem.initial(rows(controls, 0))
    # what has no integer form is refused before the training
    integer_network(network, fresh.params, fresh.method, fresh.buffers, example, step)
    state = train(problem, controls).state
    if broken(state):
        raise MetaschedError("deploy", "training went to numbers that are not finite", "try another schedule or seed")
    _, buffers = harden(problem, state)
    integer = integer_network(network, state.params, state.method, buffers, example, step)
    codes = integer.encode(task.test.x.cpu().numpy())
    twin = float_twin(network, integer, state.params, buffers)
    found = agreement(twin, integer, _batches(codes))
    if not found.complete:
        raise MetaschedError("deploy", f"the integer network and PyTorch differ: {found}", "report it as a bug")
    logits = np.concatenate([simulator.run(integer, part) for part in _batches(codes)])
    result: dict[str, Any] = {
        "score": float((logits.argmax(1) == task.test.y.cpu().numpy()).mean()),
        "score_float_input": hardened_score(problem, state, task.test),
        "images": found.images,
        "integers_compared": found.integers,
        "integers_differing": found.other_integers,
        "classes_differing": found.other_classes,
    }
    files: dict[str, bytes] = {}
    if installed():
        files["network.onnx"] = _onnx(integer, codes, logits)
        result["onnx_bytes"] = len(files["network.onnx"])
    else:
        console.note("network.onnx is not written: pip install 'metasched[deploy]'")
    accelerator, problems = cutie_files(integer, codes[:_GOLDEN])
    for problem in problems:
        console.note(f"cutie: {problem}")
    result["fits_cutie"] = not problems
    files |= {f"cutie/{name}": data for name, data in accelerator.items()}
    write_folder(folder, {**network_files(integer, codes[:_GOLDEN], result), **files})
    sizes = account(integer)
    columns = ("layer", "weights", "bits", "zeros", "entropy", "bytes", "5 in a byte", "float32")
    console.table("weights", columns, [_row(size) for size in sizes])
    return {**result, "compression": compression(sizes)}


def _schedule(experiment: Experiment, named: str, network: QuantizedNetwork) -> Schedule:
    family = hand_coded(experiment.method.name)
    if named in family:
        return family[named]
    if Path(named).suffix != ".json" and not os.path.exists(named):
        problem = f"{named!r} is neither a hand-coded schedule of {experiment.method.name} nor a file"
        raise MetaschedError("--schedule", problem, f"use a file, or one of {', '.join(family)}")
    return read_playable(Path(named), experiment, network)


def _batches(codes: Array) -> Iterator[Array]:
    for start in range(0, len(codes), _BATCH):
        yield codes[start : start + _BATCH]


def _onnx(integer: IntegerNetwork, codes: Array, logits: Array) -> bytes:
    """The model as a file, once onnxruntime has put out the simulator's logits for all of the codes."""
    model = onnx_model(integer)
    runtime = session(model)
    theirs = [run_onnx(runtime, part * float(integer.step))[0] for part in _batches(codes)]
    if not np.array_equal(np.concatenate(theirs), logits):
        raise MetaschedError("deploy", "onnxruntime and the simulator differ", "report it as a bug")
    return model.SerializeToString()


def _row(size: LayerSize) -> tuple[str | float | int, ...]:
    trits = "-" if size.trits is None else size.trits
    return size.name, size.weights, size.bits, size.sparsity, size.entropy, size.packed, trits, size.float32
