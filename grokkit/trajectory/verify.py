"""Every file of a run held against its digest, its name and the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grokkit.errors import TrajectoryError
from grokkit.trajectory import changes, log, manifest, sealed, store
from grokkit.trajectory.documents import read_bytes
from grokkit.trajectory.manifest import Manifest

PACKED = ("snapshot", "resume")
ENDED = ("done", "failed", "interrupted")
"""States of a run whose manifest says how its newest attempt ended."""


def problems(run: Path, status: Mapping[str, Any]) -> list[str]:
    """One sentence for everything that is damaged, changed, gone or another's. Also of a run that is being written.

    Args:
        run: its folder.
        status: its status, read before: the manifest has grown since, if at all.
    """
    known, found = Manifest(), list[str]()
    with _told(found):
        known = manifest.read(run)
    with _told(found):
        found += _of_manifest(run, status)
    for look in (changes.changes, changes.remarks, changes.lost):
        with _told(found):
            found += look(run, known)
    if manifest.shorter(run / manifest.FILE, status.get("manifest") or 0) is None:
        with _told(found):
            found += changes.strangers(run, known)
    for name, kind in _rooms(run, known, found):
        problem = _of_file(run / name, kind, known.of(name), known)
        found += [problem] if problem else []
    return list(dict.fromkeys(found))


@contextmanager
def _told(found: list[str]) -> Iterator[None]:
    """Put an error among what was `found`: whatever one part meets, the others are looked at."""
    try:
        yield
    except TrajectoryError as error:
        found.append(str(error))


def _rooms(run: Path, known: Manifest, found: list[str]) -> list[tuple[str, str]]:
    """Path and kind of every file, or what stands in the way of knowing."""
    probes, others = list[str](), list[tuple[str, str]]()
    with _told(found):
        names = known.began.get("probes")
        probes = [path.stem for path in store.probe_files(run / "probes")] if names is None else list(names)
    with _told(found):
        others = list(manifest.rooms(run))
    return [*((f"probes/{name}.h5", "probes") for name in probes), *others]


def _of_manifest(run: Path, status: Mapping[str, Any]) -> list[str]:
    """The manifest itself: its lines, and whether it is as long as the status says."""
    path = run / manifest.FILE
    content = read_bytes(path, log.MAX_BYTES) if path.exists() else b""
    damaged, known = log.damaged_lines(path, manifest.as_entry), status.get("manifest")
    if known is None:
        return [f"line {number} of {path} is damaged" for number in damaged]
    # What was written since is not said to be on the disk: a machine that died may have left half of it.
    found = [f"line {number} of {path} is damaged" for number in damaged if number <= content[:known].count(b"\n")]
    if told := manifest.shorter(path, known):
        found.append(told)
    elif status.get("state") in ENDED and not _is_end(content[:known]):
        found.append(f"{path} was changed: its first {known} bytes do not end with the run's end")
    return found


def _is_end(content: bytes) -> bool:
    """Whether the last line is the one that an attempt writes when it ends."""
    record = log.parsed(content[content.rfind(b"\n", 0, -1) + 1 :])
    return content.endswith(b"\n") and record is not None and record.get("kind") == "ended"


def _of_file(path: Path, kind: str, record: Mapping[str, Any] | None, known: Manifest) -> str | None:
    try:
        note, digest = _whole(path, kind)
    except TrajectoryError as error:
        return str(error) if os.path.exists(path) else None  # one that went meanwhile is missing, if anything
    if note.get("run") is not None and known.began and note["run"] != known.began.get("run"):
        return f"{path} is the state of another run"
    if record is None or manifest.is_listed(record, digest, note, known.digests):
        return None
    return f"{path} is whole, and not the file that this run has written under its name"


def _whole(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Note and digest of a file, all of which is checked."""
    if kind in PACKED:
        from grokkit.trajectory import snapshot  # brings torch, which knows the dtypes of a layout

        return snapshot.whole(path, kind)[2:]
    return sealed.read_whole(path, kind)[1:]
