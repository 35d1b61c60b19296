"""``metasched export`` as a script: see ``python scripts/export_schedule.py --help``."""

from __future__ import annotations

import sys

from metasched.cli import main

sys.exit(main(["export", *sys.argv[1:]]))
