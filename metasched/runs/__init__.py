"""Where inner runs are done: in this process, in worker processes, or on the ranks of torchrun."""
