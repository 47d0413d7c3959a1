"""Intervals, paired tests and trends, in NumPy and SciPy only."""
