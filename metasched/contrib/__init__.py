"""What few need: packed discrete weights and their kernels, one run on several processes, deployed files read back."""
