"""Import and export of schedules of QuantLab (pulp-platform/quantlab)."""
