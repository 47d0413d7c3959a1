"""What a writer does with what an earlier one has left behind: damaged files are put aside, never deleted."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from grokkit.errors import DamagedError, MisplacedError, TrajectoryError
from grokkit.trajectory import checksummed, manifest, modifications, store
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.manifest import Manifest
from grokkit.trajectory.resume import FILES

QUARANTINE = "quarantine"

_LEFT_BEHIND = re.compile(r"\.(\d{12}\.h5\.[0-9a-f]+|.+\.[0-9a-f]{8})\.tmp")
"""Names that `checksummed.write_atomic`, an export or a pack gives to what is not finished."""


def recover(run: Path, known: Manifest | None = None) -> list[str]:
    """Make a run that was killed fit to be gone on with; the caller holds its lock.

    Unfinished files and folders of grokkit's own are removed, unless a living process still fills them. Both resume
    states, the newest snapshot, the newest file of every measure and attribution, and all files of which the manifest
    does not speak yet are checked by their digests and names; those that are damaged or another's are moved to
    `quarantine/`, whole ones are listed.

    Args:
        run: its folder.
        known: its manifest, where it was read.

    Returns:
        One sentence for each file that was put aside.

    Raises:
        TrajectoryError: a file that is in use or cannot be read; it stays where it is.
    """
    for path in run.rglob(".*.tmp"):
        if _LEFT_BEHIND.fullmatch(path.name):
            _remove(path)
    said, known = [], known or manifest.read_manifest(run)
    for name, kind in _find_suspects(run, known):
        try:
            _, note, digest = checksummed.read_whole(run / name, kind)
            _check_owner(run / name, note, digest, known, name)
        except (DamagedError, MisplacedError) as error:
            if not _is_copy(error, kind, known.find(name)):
                said.append(quarantine(run, run / name, error))
        else:
            _add_to_manifest(run, name, kind, note, digest, known)
    return said


def _is_copy(error: Exception, kind: str, record: Mapping[str, Any] | None) -> bool:
    """Whether a whole reading or map lies in a folder of another name, where no writer has put one: a person's copy of
    the folder. `verify` names it, and it stays."""
    return isinstance(error, MisplacedError) and kind in ("reading", "attribution") and record is None


def _remove(path: Path) -> None:
    """Remove what nobody fills any more: whoever fills a folder or a file for long holds a lock on it."""
    with suppress(OSError):
        if path.is_symlink():
            path.unlink()
            return
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            os.close(handle)


def _find_suspects(run: Path, known: Manifest) -> Iterator[tuple[str, str]]:
    """The last file of everything, which a kill or a dying machine may have met, and files without a line."""
    wanted = {f"resume/{name}" for name in FILES}
    rooms = (run / "measures", run / "attributions")
    folders = [run / "snapshots", *(room / name for room in rooms for name in store.list_identities(room))]
    for folder in folders:
        wanted |= {
            str((folder / store.step_file_name(step)).relative_to(run)) for step in store.list_steps(folder)[-1:]
        }
    if known.began and not known.adopted:
        wanted |= {name for name, _ in store.result_folders(run) if known.find(name) is None}
    yield from ((name, kind) for name, kind in store.result_folders(run) if name in wanted)


def _check_owner(path: Path, note: Mapping[str, Any], digest: str, known: Manifest, name: str) -> None:
    """Raise MisplacedError for a whole file that this run has not written."""
    owner = note.get("run")
    if owner is not None and known.began and owner != known.began.get("run"):
        raise MisplacedError(f"{path} is the state of another run")
    record = known.find(name)
    if record is None and known.is_complete and name.startswith("snapshots/"):
        raise MisplacedError(modifications.is_foreign(path))
    if record and not (digest in known.digests or manifest.is_listed(record, digest, note, known.digests)):
        raise MisplacedError(f"{path} is whole, and not the file that this run has written under its name")


def _add_to_manifest(run: Path, name: str, kind: str, note: Mapping[str, Any], digest: str, known: Manifest) -> None:
    """Note a whole file of which the manifest says nothing, or not yet what it holds."""
    record = known.find(name)
    if record is None or record["digest"] != digest:
        more = {"save": note["save"]} if "save" in note else {}
        manifest.add_file(run, run / name, kind, int(note.get("step", 0)), digest, found=True, **more)


def quarantined_states(run: Path) -> list[Path]:
    """Resume states that lie in quarantine."""
    return sorted((run / QUARANTINE).glob("resume-*"))


def quarantine(run: Path, path: Path, fault: Exception | None = None) -> str:
    """Move a damaged or misplaced file to `quarantine/` under a name that is free; say so. Raises TrajectoryError where
    it cannot be moved."""
    name, count = "-".join(path.relative_to(run).parts), 0
    while os.path.lexists(kept := run / QUARANTINE / f"{name}.{count}"):
        count += 1
    try:
        checksummed.mkdir_durable(kept.parent)
        os.rename(path, kept)
    except OSError as error:
        raise TrajectoryError(f"{path} could not be moved to {kept.parent}: {error.strerror or error}") from error
    checksummed.fsync_dir(kept.parent)
    checksummed.fsync_dir(path.parent)
    manifest.add_quarantined(run, path, kept)
    if isinstance(fault, MisplacedError):
        return f"{fault}; it was moved to {kept}"
    return f"{path} is damaged and was moved to {kept}"


def quarantine_if_wrong(run: Path, path: Path, kind: str) -> str | None:
    """`quarantine` for a file that is damaged or another's; None where it is whole."""
    try:
        checksummed.read(path, kind)
    except (DamagedError, MisplacedError) as error:
        return quarantine(run, path, error)
    return None


def move_aside(path: Path) -> Path | None:
    """Give the run at `path` another name, `.<name>.replaced-<number>`, under which no list shows it; None where there
    is none.

    Raises:
        TrajectoryError: a writer holds it, or what lies there is no run.
    """
    if not os.path.lexists(path):
        return None
    if not (path / "status.json").is_file():
        raise TrajectoryError(f"{path} is not a run folder, and nothing else is moved aside; choose another name")
    with RunLock(path):
        number = 1
        while os.path.lexists(kept := path.with_name(f".{path.name}.replaced-{number}")):
            number += 1
        try:
            os.rename(path, kept)
        except OSError as error:
            raise TrajectoryError(f"{path} could not be moved aside: {error.strerror or error}") from error
        checksummed.fsync_dir(path.parent)
    return kept
