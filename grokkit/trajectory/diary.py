"""A run's diary: lines that a person adds, while it goes on or later; append-only, beside the writer's lock."""

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
        run: live or over; its writer is not disturbed.
        text: one paragraph or several.

    Returns:
        The entry, as it is written.

    Raises:
        UsageError: an empty text.
        TrajectoryError: the folder cannot be written, or the status of the run not be read.
    """
    if not text.strip():
        raise UsageError('a note needs words, such as: grokkit note RUN "accuracy jumped"')
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in run.newest_metrics().items())
    facts = [time.strftime("%Y-%m-%d %H:%M:%S"), f"step {newest_step(run)}", numbers, _commit()]
    body = "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())
    entry = f"- {', '.join(filter(None, facts))}\n{body}\n"
    documents.refuse_irregular(run.path / DIARY_FILE)
    try:
        # One write to a file opened for appending: two people's notes never mix.
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
    """The whole diary; empty if nobody has written. Raises TrajectoryError if something else than a file is there."""
    return documents.read_text(run.path / DIARY_FILE)


def newest_step(run: Run) -> int:
    """The last step of which status.json or a metric tells: a live run's status may be some steps old."""
    logged = (record["step"] for record in log.read_log(run.path / "metrics.jsonl", documents.parse_metric))
    return max([run.status.get("step", 0), *logged])


def _commit() -> str:
    """`commit 1a2b3c4`, with `-dirty` where files differ from it; empty where there is no git, or no repository."""
    words = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"commit {said.stdout.strip()}" if said.returncode == 0 else ""
