"""Deployment of a hardened network in integers: thresholds, packed weights, ONNX, and a simulator as the oracle."""
