"""From a hardened network to integers: thresholds, packed weights, ONNX, and a simulator that is the oracle of all."""
