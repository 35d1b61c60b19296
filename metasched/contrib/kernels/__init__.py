"""Kernels for discrete weights: torch operators, in Triton on a GPU and in torch elsewhere, with the same bits."""
