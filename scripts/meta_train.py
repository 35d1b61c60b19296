"""``metasched train`` as a script: see ``python scripts/meta_train.py --help``."""

from __future__ import annotations

import sys

from metasched.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
