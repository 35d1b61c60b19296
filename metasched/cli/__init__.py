"""The command line: one file a command. Heavy modules are imported within the functions that need them."""

from __future__ import annotations

from metasched.cli.entry import main

__all__ = ["main"]
