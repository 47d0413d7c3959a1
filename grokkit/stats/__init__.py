"""Intervals, paired tests and trends: NumPy and SciPy only, one place to review."""
