"""The command line: one file per command. Heavy modules are imported in the functions that need them."""

from __future__ import annotations

from metasched.cli.entry import main

__all__ = ["main"]
