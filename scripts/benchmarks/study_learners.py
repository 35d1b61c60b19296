"""What the learners of a study find at equal compute, on the plain loop of examples/study.py.

    python scripts/benchmarks/study_learners.py --json experiments/results/study_learners.json

Each learner does several studies that differ in their seed only. What each of them found, no schedule (``ste`` with
fixed scales, ``lsq`` with learned ones), a constant, and float are then trained from fresh seeds, the same for all, and
scored on the test part. No schedule and float have the best of five learning rates by the validation part, in about as
many runs as a study; learners and the constant have that of the example. The unit of the intervals is a study, not a
run: the mean of a study's runs is one number, paired over learners by its seed; what needs no study is one number.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from metasched.evaluation.statistics import paired_difference, summarize
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.methods.config import MethodConfig
from metasched.schedules.base import Schedule
from metasched.schedules.table import hand_coded
from metasched.study.judging import Job
from metasched.study.schedules import references
from metasched.study.study import Study
from metasched.study.work import COMPARE, SELECT, seed_of
from metasched.training.optimizers.config import RATE_FACTORS

ROOT = Path(__file__).parents[2]


def example() -> ModuleType:
    """The module ``examples/study.py``."""
    spec = importlib.util.spec_from_file_location("study_example", ROOT / "examples" / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_example"] = module
    spec.loader.exec_module(module)
    return module


def without_a_study(loop: Any, folder: Path, fresh: Sequence[int], budget: int) -> dict[str, dict[str, float]]:
    """{arm: its learning rate, and its mean test score} of no schedule, float and a constant."""
    tuning = [seed_of(-1, SELECT, i) for i in range(budget // len(RATE_FACTORS))]
    own, found = loop.RATE, dict[str, dict[str, float]]()
    studies = dict[float, Study]()
    for rate in sorted(
        (own * by for by in RATE_FACTORS), key=lambda rate: abs(rate - own)
    ):  # of equal ones the nearest
        loop.RATE = rate
        studies[rate] = loop.study(folder / f"rate {rate}", quiet=True)
        for name, (method, schedule) in references(studies[rate].work.method).items():
            score = mean(studies[rate], method, schedule, tuning, name)
            if name not in found or score > found[name]["validation"]:
                found[name] = {"rate": rate, "validation": score}
                found[name]["score"] = mean(studies[rate], method, schedule, fresh, name)
    loop.RATE = own
    constant = hand_coded("widths")["widths_constant_100"]
    score = mean(studies[own], studies[own].work.method, constant, fresh, constant.name)
    found[constant.name] = {"rate": own, "score": score}
    for name, row in found.items():
        print(f"{name}: learning rate {row['rate']:.3g}, {row['score']:.4f}", flush=True)
    return found


def mean(study: Study, method: MethodConfig, schedule: Schedule, seeds: Sequence[int], label: str) -> float:
    """The mean score of a schedule over seeds."""
    return summarize(study._setup.judge.scores([Job(method, schedule, seed, label) for seed in seeds])).mean


def main(argv: Sequence[str] | None = None) -> None:
    """Prints, and writes, the mean test score of each study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--learners", nargs="+", default=["es", "tpe", "random"])
    parser.add_argument("--studies", type=int, default=5, help="of each learner")
    parser.add_argument("--budget", type=int, default=72, help="runs of fit of each study")
    parser.add_argument("--runs", type=int, default=8, help="fresh runs that a study's schedule is scored in")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    loop = example()
    fresh = [seed_of(-1, COMPARE, i) for i in range(arguments.runs)]
    scores: dict[str, list[float]] = {name: [] for name in arguments.learners}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.studies):
            for learner in arguments.learners:
                study = loop.study(Path(folder) / f"{learner}{seed}", seed=seed, quiet=True)
                study.optimize(learner, runs=arguments.budget)
                scores[learner].append(mean(study, study.work.method, study.best, fresh, learner))
                print(f"{learner} {seed}: {study.found[-1].name} {scores[learner][-1]:.4f}", flush=True)
        fixed = without_a_study(loop, Path(folder), fresh, arguments.budget)
    result = {"budget": arguments.budget, "runs": arguments.runs, "scores": scores, "fixed": fixed, "differences": {}}
    for name, own in scores.items():
        over = {other: [row["score"]] * len(own) for other, row in fixed.items()}
        for other, theirs in (over | {other: theirs for other, theirs in scores.items() if other != name}).items():
            d = paired_difference(own, theirs)
            result["differences"][f"{name} - {other}"] = d._asdict()
            print(f"{name} - {other}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}], n = {d.n} studies, p = {d.p:.2g}")
    if arguments.json is not None:
        write_atomic(arguments.json, json_text({**result, "environment": environment()}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
