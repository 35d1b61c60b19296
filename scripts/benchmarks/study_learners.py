"""What the learners of a study find at equal compute, on the plain loop of examples/study.py.

    python scripts/benchmarks/study_learners.py --json experiments/results/study_learners.json

Each learner does several studies that differ in their seed only; what each of them found, and no schedule, are then
trained from fresh seeds, the same for all, and scored on the test part. The unit of the intervals is a study, not a
run: the mean of a study's runs is one number, paired over learners by the study's seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from metasched.evaluation.statistics import paired_difference, summarize
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.study.judging import Job
from metasched.study.work import COMPARE, seed_of

ROOT = Path(__file__).parents[2]


def example() -> ModuleType:
    """The module ``examples/study.py``."""
    spec = importlib.util.spec_from_file_location("study_example", ROOT / "examples" / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_example"] = module
    spec.loader.exec_module(module)
    return module


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
                study.optimize(learner, budget=arguments.budget)
                jobs = [Job(study.work.method, study.best(), s, learner) for s in fresh]
                scores[learner].append(summarize(study._judge.scores(jobs)).mean)
                print(f"{learner} {seed}: {study.found()[-1].name} {scores[learner][-1]:.4f}", flush=True)
        start = study._start.schedule
        floor = summarize(study._judge.scores([Job(study.work.method, start, s, "floor") for s in fresh])).mean
    result = {"floor": floor, "budget": arguments.budget, "runs": arguments.runs, "scores": scores, "differences": {}}
    print(f"floor {floor:.4f}")
    for name, own in scores.items():
        over = {"floor": [floor] * len(own), **{other: theirs for other, theirs in scores.items() if other != name}}
        for other, theirs in over.items():
            d = paired_difference(own, theirs)
            result["differences"][f"{name} - {other}"] = d._asdict()
            print(f"{name} - {other}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}], n = {d.n} studies, p = {d.p:.2g}")
    if arguments.json is not None:
        write_atomic(arguments.json, json_text({**result, "environment": environment()}, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
