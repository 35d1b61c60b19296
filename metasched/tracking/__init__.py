"""Tracking of metrics, curves and tables."""
