"""Quantization of an nn.Module: the pure core, and a module for your own training loop."""
