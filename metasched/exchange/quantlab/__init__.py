"""Schedules of QuantLab (pulp-platform/quantlab), both ways."""
