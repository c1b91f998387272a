"""Measurements: ratios of two sides in one run, alternating, medians, JSON."""
