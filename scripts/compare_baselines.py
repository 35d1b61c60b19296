"""``metasched compare`` as a script: see ``python scripts/compare_baselines.py --help``."""

from __future__ import annotations

import sys

from metasched.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
