"""Sweeps: train many runs from one TOML file, on this machine or on a Ray cluster, and report their results."""
