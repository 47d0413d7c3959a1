"""Repair what an earlier writer has left behind; damaged files are moved to quarantine, never deleted."""

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
from grokkit.trajectory import checksummed, durable, manifest, modifications, store
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.manifest import Manifest
from grokkit.trajectory.resume import RESUME_FILES

QUARANTINE = "quarantine"

_TEMPORARY_NAME = re.compile(r"\.(\d{12}\.h5\.[0-9a-f]+|.+\.[0-9a-f]{8})\.tmp")
"""Names that `durable.write_atomic`, an export or a pack gives to unfinished files."""


def recover(run: Path, manifest_lines: Manifest | None = None) -> list[str]:
    """Prepare a run that was killed for resuming; the caller holds its lock.

    Unfinished files and folders of grokkit are removed, unless a live process still writes them. Both resume states,
    the newest snapshot, the newest file of every measure and attribution, and all files without a line in the manifest
    are checked by their digests and names; damaged files and files of another run are moved to `quarantine/`, intact
    ones are listed.

    Args:
        run: its folder.
        manifest_lines: its manifest, if already read.

    Returns:
        One message for each file that was quarantined.

    Raises:
        TrajectoryError: a file is in use or cannot be read; it is not moved.
    """
    for path in run.rglob(".*.tmp"):
        if _TEMPORARY_NAME.fullmatch(path.name):
            _remove_if_unlocked(path)
    messages, manifest_lines = [], manifest_lines or manifest.read_manifest(run)
    for name, kind in _iter_files_to_check(run, manifest_lines):
        try:
            _, metadata, digest = checksummed.read_with_digest(run / name, kind)
            _check_owner(run / name, metadata, digest, manifest_lines, name)
        except (DamagedError, MisplacedError) as error:
            if not _is_copy(error, kind, manifest_lines.find(name)):
                messages.append(quarantine(run, run / name, error))
        else:
            _add_to_manifest(run, name, kind, metadata, digest, manifest_lines)
    return messages


def _is_copy(error: Exception, kind: str, record: Mapping[str, Any] | None) -> bool:
    """Return whether an intact reading or map is in a folder of another name, to which no writer has written: a copy of
    the folder made by hand. `verify` reports it, and it is kept."""
    return isinstance(error, MisplacedError) and kind in ("reading", "attribution") and record is None


def _remove_if_unlocked(path: Path) -> None:
    """Remove a temporary file or folder unless a process holds a lock on it, as long-running writers do."""
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


def _iter_files_to_check(run: Path, manifest_lines: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the newest file of everything, which a kill or a crash may have damaged, and all files without a line."""
    selected = {f"resume/{name}" for name in RESUME_FILES}
    parents = (run / "measures", run / "attributions")
    folders = [run / "snapshots", *(parent / name for parent in parents for name in store.list_identities(parent))]
    for folder in folders:
        selected |= {
            str((folder / store.step_file_name(step)).relative_to(run)) for step in store.list_steps(folder)[-1:]
        }
    if manifest_lines.began and not manifest_lines.has_preexisting_files:
        selected |= {name for name, _ in store.iter_result_files(run) if manifest_lines.find(name) is None}
    yield from ((name, kind) for name, kind in store.iter_result_files(run) if name in selected)


def _check_owner(path: Path, metadata: Mapping[str, Any], digest: str, manifest_lines: Manifest, name: str) -> None:
    """Raise MisplacedError for an intact file that this run has not written."""
    owner = metadata.get("run")
    if owner is not None and manifest_lines.began and owner != manifest_lines.began.get("run"):
        raise MisplacedError(f"{path} is the state of another run")
    record = manifest_lines.find(name)
    if record is None and manifest_lines.is_complete and name.startswith("snapshots/"):
        raise MisplacedError(modifications.describe_unlisted_snapshot(path))
    if record and not (
        digest in manifest_lines.digests or manifest.is_listed(record, digest, metadata, manifest_lines.digests)
    ):
        raise MisplacedError(f"{path} is intact, but not the file that this run wrote under this name")


def _add_to_manifest(
    run: Path, name: str, kind: str, metadata: Mapping[str, Any], digest: str, manifest_lines: Manifest
) -> None:
    """List an intact file that the manifest does not list, or lists with older content."""
    record = manifest_lines.find(name)
    if record is None or record["digest"] != digest:
        more = {"save": metadata["save"]} if "save" in metadata else {}
        manifest.add_file(run, run / name, kind, int(metadata.get("step", 0)), digest, found=True, **more)


def list_quarantined_states(run: Path) -> list[Path]:
    """Return the resume states in quarantine."""
    return sorted((run / QUARANTINE).glob("resume-*"))


def quarantine(run: Path, path: Path, fault: Exception | None = None) -> str:
    """Move a damaged or misplaced file to `quarantine/` under a free name and return a message. Raises TrajectoryError
    if it cannot be moved."""
    name, count = "-".join(path.relative_to(run).parts), 0
    while os.path.lexists(target := run / QUARANTINE / f"{name}.{count}"):
        count += 1
    try:
        durable.mkdir_durable(target.parent)
        os.rename(path, target)
    except OSError as error:
        raise TrajectoryError(f"{path} could not be moved to {target.parent}: {error.strerror or error}") from error
    durable.fsync_dir(target.parent)
    durable.fsync_dir(path.parent)
    manifest.add_quarantined(run, path, target)
    if isinstance(fault, MisplacedError):
        return f"{fault}; it was moved to {target}"
    return f"{path} is damaged and was moved to {target}"


def quarantine_if_invalid(run: Path, path: Path, kind: str) -> str | None:
    """Quarantine a file that is damaged or misplaced and return a message; None if it is intact."""
    try:
        checksummed.read(path, kind)
    except (DamagedError, MisplacedError) as error:
        return quarantine(run, path, error)
    return None


def rename_existing_run(path: Path) -> Path | None:
    """Rename the run at `path` to `.<name>.replaced-<number>`, which no list of runs shows; None if there is no run.

    Returns:
        The new path.

    Raises:
        TrajectoryError: a writer holds it, or it is not a run folder.
    """
    if not os.path.lexists(path):
        return None
    if not (path / "status.json").is_file():
        raise TrajectoryError(f"{path} is not a run folder, and only run folders are renamed; choose another name")
    with RunLock(path):
        number = 1
        while os.path.lexists(target := path.with_name(f".{path.name}.replaced-{number}")):
            number += 1
        try:
            os.rename(path, target)
        except OSError as error:
            raise TrajectoryError(f"{path} could not be renamed: {error.strerror or error}") from error
        durable.fsync_dir(path.parent)
    return target
