"""Check every file of a run against its digest, its name and the manifest."""

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

PACKED_KINDS = ("snapshot", "resume")
STATES_WITH_END_RECORD = ("done", "failed", "interrupted")
"""States of a run whose manifest has a line about the end of its newest attempt."""


def find_problems(run: Path, status: Mapping[str, Any]) -> list[str]:
    """Return one message for everything that is damaged, changed, missing or not the run's own; works on a live run
    too.

    Args:
        run: its folder.
        status: its status, read before the manifest, which may only have grown since.
    """
    manifest_lines, found = Manifest(), list[str]()
    # Before the manifest: in a live run, lines are written after their files.
    files = list(store.iter_result_files(run, found))
    with _collect_error(found):
        manifest_lines = manifest.read_manifest(run)
    with _collect_error(found):
        found += _check_manifest(run, status, manifest_lines)
    for check in (
        modifications.find_modifications,
        modifications.find_other_changes,
        modifications.describe_lost_lines,
    ):
        with _collect_error(found):
            found += check(run, manifest_lines)
    length = status.get("manifest")  # None: a version without manifests wrote since, and its files are not listed
    if length is not None and manifest.describe_truncation(run / manifest.MANIFEST_FILE, length) is None:
        with _collect_error(found):
            found += modifications.find_unlisted_snapshots(run, manifest_lines, (name for name, _ in files))
    with _collect_error(found):
        files = [(f"probes/{name}.h5", "probes") for name in _list_probes(run, manifest_lines)] + files
    listed = {name: str(record["kind"]) for name, record in manifest_lines.files.items() if manifest_lines.find(name)}
    for name, kind in dict.fromkeys([*files, *listed.items()]):
        problem = _check_file(run / name, kind, manifest_lines.find(name), manifest_lines)
        found += [problem] if problem else []
    return list(dict.fromkeys(found))


@contextmanager
def _collect_error(found: list[str]) -> Iterator[None]:
    """Append an error to `found`, so that the remaining checks still run."""
    try:
        yield
    except TrajectoryError as error:
        found.append(str(error))


def _list_probes(run: Path, manifest_lines: Manifest) -> list[str]:
    """Return the names of the probe sets: those of the start of the run, or of all files if the manifest does not list
    them."""
    names = manifest_lines.began.get("probes")
    return [path.stem for path in store.list_probe_files(run / "probes")] if names is None else list(names)


def _check_manifest(run: Path, status: Mapping[str, Any], lines: Manifest) -> list[str]:
    """Check the lines of the manifest, and its length against the status."""
    path = run / manifest.MANIFEST_FILE
    content = read_bytes(path, log.MAX_LOG_BYTES) if path.exists() else b""
    damaged, length = log.find_damaged_lines(path, manifest.parse_entry), status.get("manifest")
    foreign_lines = [f"{path} contains the first line of another run"] if lines.has_foreign_lines else []
    if length is None:
        return foreign_lines + [f"line {number} of {path} is damaged" for number in damaged]
    # Lines after the length in status.json are not confirmed on the disk: a crash may have left half of one.
    synced_lines = content[: None if status.get("state") in STATES_WITH_END_RECORD else length].count(b"\n")
    found = foreign_lines + [f"line {number} of {path} is damaged" for number in damaged if number <= synced_lines]
    if message := manifest.describe_truncation(path, length):
        found.append(message)
    elif status.get("state") in STATES_WITH_END_RECORD and not _is_end(content[:length]):
        found.append(f"{path} was changed: its first {length} bytes do not end with the line of the run's end")
    return found


def _is_end(content: bytes) -> bool:
    """Return whether the last line is the one that an attempt writes when it ends."""
    record = log.parse_line(content[content.rfind(b"\n", 0, -1) + 1 :])
    return content.endswith(b"\n") and record is not None and record.get("kind") == "ended"


def _check_file(path: Path, kind: str, record: Mapping[str, Any] | None, manifest_lines: Manifest) -> str | None:
    try:
        metadata, digest = _read_checked(path, kind)
    except TrajectoryError as error:
        return str(error) if os.path.lexists(path) else None  # one removed meanwhile counts as missing, if at all
    if metadata.get("run") is not None and manifest_lines.began and metadata["run"] != manifest_lines.began.get("run"):
        return f"{path} is the state of another run"
    if record is None or manifest.is_listed(record, digest, metadata, manifest_lines.digests):
        return None
    return f"{path} is intact, but not the file that this run wrote under this name"


def _read_checked(path: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Read metadata and digest of a file, and verify all of it."""
    if kind in PACKED_KINDS:
        from grokkit.trajectory import snapshot  # imports torch, which knows the dtypes of a layout

        return snapshot.read_checked(path, kind)[2:]
    return checksummed.read_with_digest(path, kind)[1:]
