"""Every file of a run held against its digest, its name and the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grokkit.errors import TrajectoryError
from grokkit.trajectory import checksummed, log, manifest, modifications, store
from grokkit.trajectory.documents import read_bytes
from grokkit.trajectory.manifest import Manifest

PACKED = ("snapshot", "resume")
ENDED_ORDERLY = ("done", "failed", "interrupted")
"""States of a run whose manifest says how its newest attempt ended."""


def find_problems(run: Path, status: Mapping[str, Any]) -> list[str]:
    """One sentence for everything that is damaged, changed, gone or another's. Also of a run that is being written.

    Args:
        run: its folder.
        status: its status, read before: the manifest has grown since, if at all.
    """
    known, found = Manifest(), list[str]()
    rooms = list(
        store.result_folders(run, found)
    )  # before the manifest, whose lines follow the files of a run being written
    with _collect_error(found):
        known = manifest.read_manifest(run)
    with _collect_error(found):
        found += _check_manifest(run, status, known)
    for look in (modifications.find_modifications, modifications.find_remarks, modifications.find_lost):
        with _collect_error(found):
            found += look(run, known)
    had = status.get("manifest")  # None: a version without manifests has written since, and its files have no lines
    if had is not None and manifest.describe_shortening(run / manifest.MANIFEST_FILE, had) is None:
        with _collect_error(found):
            found += modifications.find_foreign(run, known, (name for name, _ in rooms))
    with _collect_error(found):
        rooms = [(f"probes/{name}.h5", "probes") for name in _probes(run, known)] + rooms
    listed = {name: str(record["kind"]) for name, record in known.files.items() if known.find(name)}
    for name, kind in dict.fromkeys([*rooms, *listed.items()]):
        problem = _check_file(run / name, kind, known.find(name), known)
        found += [problem] if problem else []
    return list(dict.fromkeys(found))


@contextmanager
def _collect_error(found: list[str]) -> Iterator[None]:
    """Put an error among what was `found`: whatever one part meets, the others are looked at."""
    try:
        yield
    except TrajectoryError as error:
        found.append(str(error))


def _probes(run: Path, known: Manifest) -> list[str]:
    """Names of the probe sets: those that the run began with, or of all files where nothing says which."""
    names = known.began.get("probes")
    return [path.stem for path in store.list_probe_files(run / "probes")] if names is None else list(names)


def _check_manifest(run: Path, status: Mapping[str, Any], read: Manifest) -> list[str]:
    """The manifest itself: its lines, and whether it is as long as the status says."""
    path = run / manifest.MANIFEST_FILE
    content = read_bytes(path, log.MAX_LOG_BYTES) if path.exists() else b""
    damaged, known = log.find_damaged_lines(path, manifest.parse_entry), status.get("manifest")
    foreign = [f"{path} holds the beginning of another run"] if read.foreign else []
    if known is None:
        return foreign + [f"line {number} of {path} is damaged" for number in damaged]
    # What a run that goes on has written since is not said to be on the disk: a machine that died may have left half.
    durable = content[: None if status.get("state") in ENDED_ORDERLY else known].count(b"\n")
    found = foreign + [f"line {number} of {path} is damaged" for number in damaged if number <= durable]
    if told := manifest.describe_shortening(path, known):
        found.append(told)
    elif status.get("state") in ENDED_ORDERLY and not _is_end(content[:known]):
        found.append(f"{path} was changed: its first {known} bytes do not end with the run's end")
    return found


def _is_end(content: bytes) -> bool:
    """Whether the last line is the one that an attempt writes when it ends."""
    record = log.parse_line(content[content.rfind(b"\n", 0, -1) + 1 :])
    return content.endswith(b"\n") and record is not None and record.get("kind") == "ended"


def _check_file(path: Path, kind: str, record: Mapping[str, Any] | None, known: Manifest) -> str | None:
    try:
        note, digest = _read_checked(path, kind)
    except TrajectoryError as error:
        return str(error) if os.path.lexists(path) else None  # one that went meanwhile is missing, if anything
    if note.get("run") is not None and known.began and note["run"] != known.began.get("run"):
        return f"{path} is the state of another run"
    if record is None or manifest.is_listed(record, digest, note, known.digests):
        return None
    return f"{path} is whole, and not the file that this run has written under its name"


def _read_checked(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Note and digest of a file, all of which is checked."""
    if kind in PACKED:
        from grokkit.trajectory import snapshot  # brings torch, which knows the dtypes of a layout

        return snapshot.read_checked(path, kind)[2:]
    return checksummed.read_whole(path, kind)[1:]
