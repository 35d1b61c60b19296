"""From Python, on a task of one's own: ``learn``, ``compare`` and ``tune``.

>>> import inspect, metasched
>>> list(inspect.signature(metasched.compare).parameters)[:3]
['task', 'arms', 'recipe']
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasched.commands.compare import compare_arms
from metasched.commands.folders import begun
from metasched.commands.train import train
from metasched.commands.train_many import train_many
from metasched.commands.tune import tune as tune_family
from metasched.config.load import experiment_of, load_experiment, require_learnable, require_one_task
from metasched.config.schema import Experiment
from metasched.config.writing import differing, to_dict
from metasched.core.errors import MetaschedError
from metasched.core.imports import allow
from metasched.core.shown import Printed
from metasched.evaluation.comparison import Comparison, comparison_of
from metasched.evaluation.contenders import described_arm, schedule_arm
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule
from metasched.io.run_folder import RunFolder
from metasched.meta.resume import keep_fingerprint
from metasched.methods.config import MethodConfig
from metasched.network.recipe import Recipe
from metasched.runs.ranks import launched
from metasched.schedules.base import Schedule
from metasched.tasks.base import Task
from metasched.tasks.live import register_live
from metasched.tracking.console import open_console
from metasched.training.problem import build_problem

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]: an extra

TaskSource = Task | Callable[..., Task] | str
ArmSource = str | Path | Schedule | tuple[str, Sequence[str]]


@dataclass(frozen=True)
class Result(Printed):
    """What a run has left in its folder; printed, it is the verdicts and the scores.

    Attributes:
        folder: the run folder.
        experiment: what ran.
    """

    folder: Path
    experiment: Experiment

    def __repr__(self) -> str:
        return f"Result(folder={str(self.folder)!r}, name={self.experiment.name!r})"

    def __str__(self) -> str:
        run, lines = RunFolder(self.folder), [repr(self)]
        lines += [f"schedule: {self.schedule!r}"] if run.schedule.exists() else []
        lines += [str(self.comparison)] if run.comparison.exists() else []
        return "\n".join([*lines, f"report: {run.report}"] if run.report.exists() else lines)

    @property
    def schedule(self) -> PlayedSchedule:
        """The schedule that was found; it can be played, and its ``file`` written.

        Raises:
            MetaschedError: a comparison finds none.
        """
        path = RunFolder(self.folder).schedule
        if not path.exists():
            raise MetaschedError(str(self.folder), "holds no schedule: a comparison finds none", "use learn or tune")
        return PlayedSchedule(read_schedule(path))

    @property
    def comparison(self) -> Comparison:
        """All arms on the same seeds, on the test part, floors and ceiling included."""
        return comparison_of(json.loads(RunFolder(self.folder).comparison.read_text("utf-8")))

    def to_dataframe(self) -> pandas.DataFrame:
        """The scores, as ``comparison.to_dataframe()`` gives them."""
        return self.comparison.to_dataframe()

    def report(self, path: str | Path) -> Path:
        """Copies the report, a page that needs nothing else, and gives its path."""
        return Path(shutil.copyfile(RunFolder(self.folder).report, path))


def learn(
    task: TaskSource,
    recipe: Recipe | MethodConfig | str | None = None,
    *,
    steps: int,
    args: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    **sections: Any,
) -> Result:
    """Learns a schedule for a task and compares it with hand-coded ones, floors and ceiling: ``metasched train``.

    Args:
        task: a Task, which is trained in this process; or a module-level function that makes one, or
            ``"package.module:function"``, which worker processes call too.
        recipe: how the model is quantized; a method, or its name, is a recipe without rules. Default: ``joint``.
        steps: T, training steps of an inner run.
        args: keyword arguments of the function.
        folder: the run folder; where it holds a stopped run of this, that goes on, and where it holds a finished one,
            nothing is done again. Default: a temporary one.
        sections: of the experiment, as mappings or configurations (``optimizer``, ``schedule``, ``meta``, ``tune``,
            ``compare``, ``run``, ``tracking``), and ``name`` and ``seed``. With ``tasks``, whose entries change
            ``task.args`` or ``task.steps``, one schedule is learned over all of them.

    Raises:
        MetaschedError: whatever does not fit.
    """
    experiment = _experiment(task, recipe, steps, args, sections)
    require_learnable(experiment.method, experiment.schedule.learn)
    with _working("train", experiment, folder) as (run, done):
        if not done:
            console = open_console(sys.stdout)
            if experiment.tasks.entries:
                train_many(experiment, run, console)
                return Result(run.path, experiment)
            name = build_problem(experiment.problem).task.name
            console.note(f"{experiment.name}: {experiment.method.name} on {name}, {steps} steps")
            train(experiment, run, console)
    return Result(run.path, experiment)


def tune(
    task: TaskSource,
    recipe: Recipe | MethodConfig | str | None = None,
    *,
    steps: int,
    args: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    **sections: Any,
) -> Result:
    """Tunes a hand-coded family by search, as ``metasched tune``; arguments as for ``learn``."""
    experiment = _experiment(task, recipe, steps, args, sections)
    require_one_task(experiment, "tune")
    require_learnable(experiment.method, experiment.schedule.learn)
    with _working("tune", experiment, folder) as (run, done):
        if not done:
            tune_family(experiment, run, open_console(sys.stdout))
    return Result(run.path, experiment)


def compare(
    task: TaskSource,
    arms: Mapping[str, ArmSource],
    recipe: Recipe | MethodConfig | str | None = None,
    *,
    steps: int,
    args: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    **sections: Any,
) -> Result:
    """Plays schedules on the same seeds, beside hand-coded ones, floors and ceiling: ``metasched compare``.

    Args:
        task, recipe, steps, args, folder, sections: as for ``learn``.
        arms: by name, each a schedule; the name of a hand-coded one or the path of a schedule file; or a pair of such a
            name and fields of the experiment that differ, ``("inq_linear", ["optimizer.lr=0.1"])``.
    """
    experiment = _experiment(task, recipe, steps, args, sections)
    require_one_task(experiment, "compare")
    with _working("compare", experiment, folder) as (run, done):
        if not done:
            named = [
                described_arm(experiment, [name, *_words(arm)])
                if isinstance(arm, str | Path | tuple)
                else (name, schedule_arm(experiment.problem, arm))
                for name, arm in arms.items()
            ]
            compare_arms(experiment, named, list(arms), run, open_console(sys.stdout))
    return Result(run.path, experiment)


def _words(arm: str | Path | tuple[str, Sequence[str]]) -> list[str]:
    return [str(arm[0]), *arm[1]] if isinstance(arm, tuple) else [str(arm)]


def _experiment(
    task: TaskSource,
    recipe: Recipe | MethodConfig | str | None,
    steps: int,
    args: Mapping[str, Any] | None,
    sections: Mapping[str, Any],
) -> Experiment:
    if launched():
        fix = "give the task as task.factory in a YAML file, and use `torchrun ... -m metasched train`"
        raise MetaschedError("torchrun", "works with the command line only", fix)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    if not isinstance(recipe.method, MethodConfig):
        raise MetaschedError("recipe", "has a method that is built already", "give it a MethodConfig")
    factory, given, live = _factory(task, dict(args or {}))
    document: dict[str, Any] = {
        "tracking": {"wandb": "disabled"},
        **sections,
        "task": {"factory": factory, "args": given, "steps": steps},
        "method": recipe.method,
        "quantize": {"first": recipe.first, "last": recipe.last, "rules": recipe.rules, **_redrawn(recipe)},
    }
    if live and "run" not in sections:
        document["run"] = {"workers": 1}
    experiment = experiment_of(document)
    if live and (experiment.run.workers != 1 or experiment.run.where == "ray"):
        problem = "more than one process needs a function that makes the task, and this is an object"
        raise MetaschedError("run.workers", problem, "give a module-level function, or set it to 1")
    return experiment


def _redrawn(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says about new weights; a task without pretrained ones has new ones anyway."""
    return {"redraw": True} if recipe.redraw else {}


def _factory(task: TaskSource, args: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """Name of the factory, its arguments, and whether it is an object of this process."""
    if isinstance(task, str):
        allow([task.partition(":")[0]])
        return task, args, False
    if not isinstance(task, Task):
        where = _importable(task)
        if where is not None:
            return where, args, False
        task = task(**args)
    elif args:
        raise MetaschedError("args", "are of a function that makes a task, and this is a Task", "leave them out")
    if not isinstance(task, Task):
        raise MetaschedError("task", f"is a {type(task).__name__}, not a Task", "see metasched.Task and DataTask")
    return register_live(task), {}, True


def _importable(function: Callable[..., Task]) -> str | None:
    """``module:function``, where another process can import it; None for local functions and interactive ones."""
    module, name = function.__module__, function.__qualname__
    if "." in name or "<" in name:
        return None
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        if file is None or "__main__" not in Path(file).read_text("utf-8"):  # importing it would run it once more
            return None
        module = Path(file).stem
    try:
        allow([module])
    except MetaschedError:
        return None
    found = getattr(sys.modules[module], name, None)
    return f"{module}:{name}" if getattr(found, "__code__", None) == getattr(function, "__code__", 0) else None


@contextmanager
def _working(command: str, experiment: Experiment, path: str | Path | None) -> Iterator[tuple[RunFolder, bool]]:
    """A run folder to work in, and whether what is asked for is done in it already."""
    build_problem(experiment.problem)  # what is wrong with the task shows before there is a folder
    if path is None:
        run, made = RunFolder.claim(tempfile.mkdtemp(prefix="metasched-"), command), []
    elif RunFolder(Path(path)).config.exists():
        task = build_problem(experiment.problem).fingerprint
        with _resumed(command, to_dict(experiment), task, RunFolder(Path(path))) as found:
            yield found
        return
    else:
        made = [p for p in (Path(path), *Path(path).parents) if not p.exists()]
        run = RunFolder.claim(path, command)
    with begun(run, to_dict(experiment), made):
        yield run, False


@contextmanager
def _resumed(
    command: str, config: Mapping[str, Any], fingerprint: str, run: RunFolder
) -> Iterator[tuple[RunFolder, bool]]:
    differ = differing(config, to_dict(load_experiment(run.config)))
    if differ:
        problem = f"holds a run with another {', '.join(differ[:3])}"
        raise MetaschedError(str(run.path), problem, "give another folder, or the settings of that run")
    keep_fingerprint(run, fingerprint)
    if run.done.exists():
        yield run, True
        return
    run = RunFolder.resume(run.path, command)
    try:
        yield run, False
        run.finish()
    finally:
        run.release()
