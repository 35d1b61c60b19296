"""From an experiment and a schedule to a deployed network, in one go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.deploy import simulator
from metasched.deploy.agreement import Agreement, Twin, agreement, float_twin, runtime_agreement
from metasched.deploy.cutie import cutie_files
from metasched.deploy.files import check_new, network_files, write_folder
from metasched.deploy.integer import input_step, integer_network
from metasched.deploy.onnx_export import installed, onnx_model, qonnx_installed, run_onnx, run_qonnx, session
from metasched.deploy.packing import LayerSize, account, compression
from metasched.deploy.stages import Array, IntegerNetwork
from metasched.evaluation.contenders import named_schedule
from metasched.methods.tensors import LEARNED
from metasched.runs.cells import played
from metasched.tasks.base import Task
from metasched.tasks.supervised import Split, Stored, SupervisedTask
from metasched.tracking.console import Console
from metasched.training.faults import broken
from metasched.training.loop import harden, hardened_score, train
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

if TYPE_CHECKING:
    from onnx import ModelProto

_BATCH = 100
_QONNX_BATCH = 1000  # its executor takes its time for each node, however many images there are
_GOLDEN = 4  # images


def check(config: ProblemConfig, folder: Path) -> None:
    """What shows before any training.

    Raises:
        MetaschedError: the folder is there, or the network has no integer form.
    """
    check_new(folder)
    _require_integers(build_problem(config))


def deploy(
    config: ProblemConfig, seed: int, schedule: str, folder: Path, console: Console, *, horizon: int = 1
) -> dict[str, Any]:
    """Train under a schedule, harden, fold, compare on the whole test set, and write the files.

    Args:
        config: task and method.
        seed: of the experiment; the network is trained from a fresh one that follows from it.
        schedule: name of a hand-coded schedule, or a schedule file; played over all of the training.
        folder: is made; nothing is left of it if anything fails.
        console: where the account is shown.
        horizon: multiple of ``task.steps`` that is trained.

    Returns:
        scores on the test set, the agreement, the compression.

    Raises:
        MetaschedError: as ``check``; and training went to numbers that are not finite, or a runtime does not agree.
    """
    check_new(folder)
    steps = horizon * config.task.steps
    problem = build_problem(config, steps=steps).with_seed(derive_seed(seed, "deploy"))
    _require_integers(problem)
    network, (examples, test) = problem.network, _in_memory(problem.task)
    like = next(network.module.parameters())
    controls = played(config, named_schedule(config, schedule, "--schedule"), steps)
    state = train(problem, {name: v.to(like) for name, v in controls.items()}).state
    if broken(state):
        raise MetaschedError("deploy", "training went to numbers that are not finite", "try another schedule or seed")
    _, buffers = harden(problem, state)
    step = input_step(examples.x)
    integer = integer_network(network, state.params, state.method, buffers, examples.x[:1], step)
    codes = integer.encode(test.x.cpu().numpy())
    model = onnx_model(integer) if installed() else None
    found = _compared(integer, codes, float_twin(network, integer, state.params, buffers), model)
    columns = ("with", "images", "integers", "differing", "classes differing")
    console.table("the integer network compared", columns, [(name, *vars(a).values()) for name, a in found.items()])
    for name, one in found.items():
        if not one.complete:
            raise MetaschedError("deploy", f"the integer network and {name} differ: {one}", "report it as a bug")
    logits = np.concatenate([simulator.run(integer, part) for part in _batches(codes)])
    result: dict[str, Any] = {
        "score": float((logits.argmax(1) == test.y.cpu().numpy()).mean()),
        "score_float_input": hardened_score(problem, state, "test"),
        "agreement": {name: asdict(one) for name, one in found.items()},
    }
    files: dict[str, bytes] = {}
    if model is not None:
        files["network.onnx"] = model.SerializeToString()
        result["onnx_bytes"] = len(files["network.onnx"])
    else:
        console.note("network.onnx is not written: pip install 'metasched[deploy]'")
    accelerator, problems = cutie_files(integer, codes[:_GOLDEN])
    for line in problems or ("every limit is met",):
        console.note(f"cutie: {line}")
    result["fits_cutie"] = not problems
    files |= {f"cutie/{name}": data for name, data in accelerator.items()}
    write_folder(folder, {**network_files(integer, codes[:_GOLDEN], result), **files})
    sizes = account(integer)
    columns = ("layer", "weights", "bits", "zeros", "entropy", "bytes", "5 in a byte", "float32")
    console.table("weights", columns, [_row(size) for size in sizes])
    return {**result, "compression": compression(sizes)}


def _require_integers(problem: InnerProblem) -> None:
    network, (examples, _) = problem.network, _in_memory(problem.task)
    quantizer = getattr(network.method, "quantizer", None)  # the float network has none
    for field in ("scale", "activation_scale"):
        if getattr(quantizer, field, None) in LEARNED:
            what = "is learned, and only fixed scales are folded into integers so far"
            raise MetaschedError(f"method.{field}", what, "set it to a fixed one, such as least_squares or 1.0")
    like = next(network.module.parameters())
    fresh = problem.initial({c.name: like.new_full((len(network.layers),), c.low) for c in network.method.controls})
    step = input_step(examples.x)
    integer_network(network, fresh.params, fresh.method, fresh.buffers, examples.x[:1], step)


def _in_memory(task: Task) -> tuple[Split, Split]:
    """The training and the test part."""
    if not isinstance(task, SupervisedTask):
        what = f"{task.name} is a task of its own, and images of one tensor are coded"
        raise MetaschedError("task", what, "deploy from a built-in data set")
    if isinstance(task.train, Stored) or isinstance(task.test, Stored):
        what = f"{task.name} stays on disk, and all of its images are coded at once"
        raise MetaschedError("task.name", what, "deploy from a data set that fits into memory")
    if task.train.x.ndim != 4:
        what = f"{task.name} has no images, which are what is coded"
        raise MetaschedError("task.name", what, "deploy from a data set of images")
    return task.train, task.test


def _compared(integer: IntegerNetwork, codes: Array, twin: Twin, model: ModelProto | None) -> dict[str, Agreement]:
    """The simulator and whatever else is there to run the network, on all of the codes."""
    found = {"PyTorch": agreement(twin, integer, _batches(codes))}
    if model is not None:
        runtime = session(model)
        found["onnxruntime"] = runtime_agreement(partial(run_onnx, runtime), integer, _batches(codes))
        if qonnx_installed():
            nodes = onnx_model(integer, all_outputs=True, qonnx=True)
            found["qonnx"] = runtime_agreement(partial(run_qonnx, nodes), integer, _batches(codes, _QONNX_BATCH))
    return found


def _batches(codes: Array, size: int = _BATCH) -> Iterator[Array]:
    for start in range(0, len(codes), size):
        yield codes[start : start + size]


def _row(size: LayerSize) -> tuple[str | float | int, ...]:
    trits = "-" if size.trits is None else size.trits
    return size.name, size.weights, size.bits, size.sparsity, size.entropy, size.packed, trits, size.float32
