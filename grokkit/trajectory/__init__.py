"""Write and read run folders: snapshots, resume states, logs, readings and probe sets, each file written once."""

from grokkit.trajectory.run import Run, find_runs, open_run, to_path

__all__ = ["Run", "find_runs", "open_run", "to_path"]
