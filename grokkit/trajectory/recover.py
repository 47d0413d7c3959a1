"""What a writer does with what an earlier one has left behind: damaged files are put aside, never deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from grokkit.trajectory import sealed, store
from grokkit.trajectory.resume import SLOTS

QUARANTINE = "quarantine"


def recover(run: Path) -> list[str]:
    """Make a run that was killed fit to be gone on with; the caller holds its lock.

    Unfinished temporary files are removed. Both slots, the newest snapshot and the newest file of every measure and
    attribution are checked by their digests; damaged ones are moved to `quarantine/`.

    Returns:
        One sentence for each file that was put aside.
    """
    for temporary in run.rglob(".*.tmp"):
        temporary.unlink()
    return [set_aside(run, path) for path, kind in _suspects(run) if path.exists() and not sealed.is_whole(path, kind)]


def _suspects(run: Path) -> Iterator[tuple[Path, str]]:
    yield from ((run / "resume" / name, "resume") for name in SLOTS)
    folders = [(run / "snapshots", "snapshot")]
    folders += [(folder, "reading") for folder in (run / "measures").glob("*")]
    folders += [(folder, "attribution") for folder in (run / "attributions").glob("*")]
    for folder, kind in folders:
        for step in store.steps_in(folder)[-1:]:
            yield folder / store.file_name(step), kind


def set_aside(run: Path, path: Path) -> str:
    """Move a damaged file to `quarantine/` under a name that is free; say so."""
    sealed.make_folder(run / QUARANTINE)
    name, count = "-".join(path.relative_to(run).parts), 0
    while (run / QUARANTINE / f"{name}.{count}").exists():
        count += 1
    kept = run / QUARANTINE / f"{name}.{count}"
    os.rename(path, kept)
    sealed.sync_folder(kept.parent)
    sealed.sync_folder(path.parent)
    return f"{path} is damaged and was moved to {kept}"
