"""The run folder: snapshots, resume slots, logs, readings, probes; written once, read from anywhere."""

from grokkit.trajectory.run import Run, as_path, find_runs, open_run

__all__ = ["Run", "as_path", "find_runs", "open_run"]
