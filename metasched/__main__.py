"""``python -m metasched`` is the command ``metasched``."""

from __future__ import annotations

import sys

from metasched.cli import main

sys.exit(main())
