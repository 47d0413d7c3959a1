"""The run folder: snapshots, resume slots, logs, readings, probes; written once, read from anywhere."""

from grokkit.trajectory.run import Run, find_runs, open_run, to_path

__all__ = ["Run", "find_runs", "open_run", "to_path"]
