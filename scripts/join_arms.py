"""Adds the floors, the ceiling and hand-coded schedules to a result file, with its seeds, without repeating its runs.

    python scripts/join_arms.py experiments/results/digits.json experiments/digits_joint.yaml \
        --compare.baselines [joint_ana_constant_085]

The configuration and its overrides must be those of the result's own command: the seeds are checked against the file.
``ste`` and ``lsq`` (no schedule) and ``float`` (no quantization) are always added, and so are the named hand-coded
schedules that the file lacks. Scores are saved next to the file, so that the same command continues after a stop. Added
arms may have run on another processor than the old ones: seeds, data and initial weights are the same, the last bits
may differ.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from metasched.config.load import load_experiment
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.evaluation.compare import compare, plan_of
from metasched.evaluation.comparison import Comparison, comparison_of
from metasched.evaluation.contenders import fresh_seeds, hand_coded_arms, joined
from metasched.evaluation.floors import with_tuned_rates
from metasched.evaluation.references import reference_arms
from metasched.evaluation.verdict import verdicts
from metasched.io.atomic import write_atomic
from metasched.io.environment import cpu_model, environment
from metasched.io.json_text import json_text
from metasched.runs.cells import CachedPool
from metasched.runs.pool import Pool
from metasched.tracking.console import open_console
from metasched.tracking.tracker import Memory


def at_its_own(experiment: Experiment, comparison: Comparison) -> Experiment:
    """The experiment at the horizons and with the number of seeds of a comparison.

    Raises:
        MetaschedError: it has other seeds, or horizons that are no multiples of its steps.
    """
    steps = experiment.task.steps
    if any(horizon % steps for horizon in comparison.horizons):
        problem = f"has {steps} steps, and the result the horizons {comparison.horizons}"
        raise MetaschedError("task.steps", problem, "give the configuration of the result's command")
    horizons = tuple(horizon // steps for horizon in comparison.horizons)
    own = replace(experiment.compare, seeds=len(comparison.seeds), horizons=horizons)
    experiment = replace(experiment, compare=own)
    if tuple(fresh_seeds(experiment.seed, experiment.compare.seeds)) != comparison.seeds:
        raise MetaschedError("seed", "gives other seeds than the result's", "give the seed of the result's command")
    return experiment


def main(argv: Sequence[str]) -> int:
    """Join the arms; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="a file of experiments/results")
    parser.add_argument("config", type=Path, help="the experiment of its command")
    arguments, overrides = parser.parse_known_args(argv)
    console = open_console(sys.stdout)
    try:
        result = json.loads(arguments.result.read_text("utf-8"))
        old = comparison_of(result)
        experiment = at_its_own(load_experiment(arguments.config, overrides), old)
        named = (
            hand_coded_arms(experiment.problem, experiment.compare.baselines)
            if experiment.compare.baselines is not None
            else []
        )
        arms = joined(*reference_arms(experiment.problem), *named)
        missing = {name: arm for name, arm in arms.items() if all(name not in old.at(h) for h in old.horizons)}
        cells = arguments.result.with_suffix(".cells.jsonl")
        with Pool(experiment.run.workers) as pool, closing(CachedPool(pool, cells)) as remembered:
            missing = with_tuned_rates(experiment, missing, remembered, Memory(), console)
            new = compare(plan_of(experiment), missing, [], remembered, Memory(), console)
    except MetaschedError as error:
        print(error)
        return error.exit_code
    both = Comparison(old.seeds, (*old.arms, *new.arms), old.learned)
    for verdict in verdicts(both):
        console.note(str(verdict))
    shown = ["--task.root=DATA" if word.startswith("--task.root=") else word for word in argv[2:]]  # not your folders
    command = shlex.join(["python", "scripts/join_arms.py", str(arguments.result), str(arguments.config), *shown])
    ran_on = environment()
    hardware = f"{cpu_model()}, {ran_on['cpu_count']} cores, one thread a run, device {ran_on['device']}"
    versions = {name: ran_on[name] for name in ("metasched", "python", "torch", "numpy", "higher")}
    added = {"arms": list(missing), "command": command, "versions": versions, "hardware": hardware}
    kept = {**result, **both.to_dict(), "joined": [*result.get("joined", []), added]}
    write_atomic(arguments.result, (json_text(kept, indent=1) + "\n").encode())
    cells.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
