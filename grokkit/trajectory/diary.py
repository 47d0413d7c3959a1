"""The diary of a run: notes that a person adds during the run or later; append-only, independent of the lock."""

from __future__ import annotations

import os
import subprocess
import time

from grokkit.errors import TrajectoryError, UsageError
from grokkit.trajectory import documents, log
from grokkit.trajectory.run import Run

DIARY_FILE = "diary.md"


def add_note(run: Run, text: str) -> str:
    """Append `text` to diary.md under the time, the step, the newest metrics and the git commit of the working folder.

    Args:
        run: live or finished; its writer is not affected.
        text: one paragraph or several.

    Returns:
        The entry as written.

    Raises:
        UsageError: `text` is empty.
        TrajectoryError: the folder cannot be written, or the status of the run cannot be read.
    """
    if not text.strip():
        raise UsageError('the text of a note is empty; expected, for example: grokkit note RUN "accuracy jumped"')
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in run.newest_metrics().items())
    header = [time.strftime("%Y-%m-%d %H:%M:%S"), f"step {newest_step(run)}", numbers, _describe_commit()]
    body = "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())
    entry = f"- {', '.join(filter(None, header))}\n{body}\n"
    documents.require_regular_file(run.path / DIARY_FILE)
    try:
        # One write to a file opened for appending: concurrent notes never interleave.
        handle = os.open(run.path / DIARY_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            os.write(handle, entry.encode(errors="backslashreplace"))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise TrajectoryError(f"could not write {run.path / DIARY_FILE}: {error.strerror or error}") from error
    return entry


def read_diary(run: Run) -> str:
    """Read the whole diary; empty if there are no notes. Raises TrajectoryError if diary.md is not a regular file."""
    return documents.read_text(run.path / DIARY_FILE)


def newest_step(run: Run) -> int:
    """Return the newest step in status.json and the metrics: the status of a live run may be some steps old."""
    logged = (record["step"] for record in log.read_log(run.path / "metrics.jsonl", documents.parse_metric))
    newest: int = max([run.status.get("step", 0), *logged])
    return newest


def _describe_commit() -> str:
    """Return `commit 1a2b3c4`, with `-dirty` if files differ from it; empty without git or outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"commit {result.stdout.strip()}" if result.returncode == 0 else ""
