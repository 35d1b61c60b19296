"""Kernels for discrete weights as torch operators: Triton on GPUs and torch elsewhere, with equal bits."""
