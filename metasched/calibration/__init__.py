"""Procedures after training: a trained network is quantized from a few unlabelled batches, unit by unit."""
