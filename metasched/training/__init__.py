"""The inner loop: one step, the optimizers, a whole run and its hardened network."""
