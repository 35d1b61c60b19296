"""Black-box search over a family of hand-coded schedules: one row of the table a search."""

from __future__ import annotations

from metasched.search.table import SEARCHES, SearchSpec, register_search

__all__ = ["SEARCHES", "SearchSpec", "register_search"]
