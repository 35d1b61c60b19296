"""Bits by layer under a budget: one row of the table a search."""

from __future__ import annotations

from metasched.search.bits.table import BIT_SEARCHES, BitSearchSpec, register_bit_search

__all__ = ["BIT_SEARCHES", "BitSearchSpec", "register_bit_search"]
