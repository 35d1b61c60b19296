"""Tests that pass in any order: a shuffled handful, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    "tests/schedules/test_network.py",
    "tests/methods/test_ana.py",
    "tests/estimators/test_diagnosis.py",
    "tests/training/test_loop.py",
    "tests/tasks/test_batches.py",
    "tests/evaluation/test_compare.py",
]
SHUFFLED = """
import random, sys, pytest

class Shuffle:
    def pytest_collection_modifyitems(self, items):
        random.Random(3).shuffle(items)

sys.exit(pytest.main(["-q", "--numprocesses=0", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Shuffle()]))
"""


@pytest.mark.slow
def test_shuffled_tests_pass() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SHUFFLED, *FILES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
