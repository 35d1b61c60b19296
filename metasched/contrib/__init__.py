"""Rarely needed parts: packed discrete weights and kernels, data-parallel single runs, reading of deployed files."""
