"""Every file of a run held against its digest, its name and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grokkit.errors import TrajectoryError
from grokkit.trajectory import log, manifest, sealed
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
    found = _of_manifest(run, status)
    try:
        known = manifest.read(run)
    except TrajectoryError as error:
        return [*found, str(error)]
    found += manifest.changes(run, known) + manifest.remarks(run, known) + manifest.strangers(run, known)
    probes = [(f"probes/{path.name}", "probes") for path in sorted((run / "probes").glob("[!.]*.h5"))]
    for name, kind in [*probes, *manifest.rooms(run)]:
        problem = _of_file(run / name, kind, known.files.get(name), known)
        found += [problem] if problem and problem not in found else []
    return list(dict.fromkeys(found))


def _of_manifest(run: Path, status: Mapping[str, Any]) -> list[str]:
    """The manifest itself: its lines, and whether it is as long as the status says."""
    path = run / manifest.FILE
    try:
        content = read_bytes(path) if path.exists() else b""
        damaged = log.damaged_lines(path)
    except TrajectoryError:  # said by whoever reads it
        return []
    known = status.get("manifest")
    if not isinstance(known, int):
        return [f"line {number} of {path} is damaged" for number in damaged]
    # What was written since is not said to be on the disk: a machine that died may have left half of it.
    found = [f"line {number} of {path} is damaged" for number in damaged if number <= content[:known].count(b"\n")]
    if len(content) < known:
        found.append(
            f"{path} was cut: it has {len(content)} bytes and had {known}" if content else f"{path} is missing"
        )
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
        return str(error) if path.exists() else None  # one that went meanwhile is missing, if anything
    if note.get("run") is not None and known.began and note["run"] != known.began.get("run"):
        return f"{path} is the state of another run"
    if record is None or record["kind"] == "aside" or manifest.is_listed(record, digest, note, known.digests):
        return None
    return f"{path} is whole, and not the file that this run has written under its name"


def _whole(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Note and digest of a file, all of which is checked."""
    if kind in PACKED:
        from grokkit.trajectory import snapshot  # brings torch, which knows the dtypes of a layout

        return snapshot.whole(path, kind)[2:]
    return sealed.read_whole(path, kind)[1:]
