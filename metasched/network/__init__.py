"""From a module to a quantized one: the pure core, and the shell for loops of your own."""
