"""Compare a run with its manifest: configuration that was edited, and missing, truncated or foreign files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from grokkit.errors import DamagedError, TrajectoryError
from grokkit.trajectory import checksummed, manifest
from grokkit.trajectory.manifest import Manifest, Record


def find_modifications(run: Path, manifest_lines: Manifest | None = None) -> list[str]:
    """Return the changes of configuration, environment and probe sets since the start of the run, by field."""
    began = manifest_lines.began if manifest_lines else manifest.read_beginning(run)
    if not began:
        return []
    found = []
    for name, before, now in _iter_values(run, began):
        if now is not None and not _is_same(before, now):  # its reader reports one that cannot be read
            found += [f"{run / name} was changed: {change}" for change in _iter_differences(before, now)]
    for name, digest in (began.get("probes") or {}).items():
        path = run / "probes" / f"{name}.h5"
        if not os.path.exists(path):
            found.append(f"{path} is missing")
        elif _has_other_digest(path, digest):
            found.append(f"{path} was changed: it holds other images than at the start")
    return found


def _has_other_digest(path: Path, digest: Any) -> bool:
    """Return whether a file claims another digest or is damaged; False if unreadable, which its reader reports."""
    try:
        return bool(checksummed.read_claimed_digest(path) != digest)
    except DamagedError:
        return True
    except TrajectoryError:
        return False


def find_missing(run: Path, manifest_lines: Manifest) -> list[str]:
    """Return the listed files that do not exist, by their path below the run."""
    return [name for name in manifest_lines.files if manifest_lines.find(name) and not os.path.exists(run / name)]


def find_other_changes(run: Path, manifest_lines: Manifest) -> list[str]:
    """Return all other differences: missing files, edited text files, changed or truncated logs."""
    found = [f"{run / name} is missing" for name in find_missing(run, manifest_lines)]
    changed = {
        name
        for name, before, now in _iter_values(run, manifest_lines.began)
        if now is None or not _is_same(before, now)
    }
    for name, sha256 in (manifest_lines.began.get("sha256") or {}).items():
        if not os.path.exists(run / name):
            found.append(f"{run / name} is missing")
        elif name not in changed:
            found += _or_error_message(partial(_check_text, run / name, sha256))
    for name, before in manifest_lines.logs.items():
        found += _or_error_message(partial(_check_log, run / name, before))
    return found


def _or_error_message(check: Callable[[], list[str]]) -> list[str]:
    """Return the result of a check, or the message of its TrajectoryError."""
    try:
        return check()
    except TrajectoryError as error:
        return [str(error)]


def _check_text(path: Path, sha256: Any) -> list[str]:
    return (
        [f"{path} was edited: its text differs from the start of the run"] if manifest.hash_file(path) != sha256 else []
    )


def describe_lost_lines(run: Path, manifest_lines: Manifest) -> list[str]:
    """Return messages about lines of the manifest that were missing when the run was resumed."""
    losses = [
        f"had {record['bytes']} of its {record['had']} bytes" if record["bytes"] else "was missing"
        for record in manifest_lines.lost
    ]
    return [
        f"{run / manifest.MANIFEST_FILE} {loss} when the run was resumed: the files found then were added to it"
        for loss in losses
    ]


def find_unlisted_snapshots(run: Path, manifest_lines: Manifest, names: Iterable[str]) -> list[str]:
    """Return messages about unlisted snapshots among `names`, if the manifest is complete; readings may be added by
    anyone.

    Args:
        run: its folder.
        manifest_lines: its manifest.
        names: files that existed before the manifest was read.
    """
    if not manifest_lines.is_complete:
        return []
    return [
        describe_unlisted_snapshot(run / name)
        for name in names
        if name.startswith("snapshots/") and manifest_lines.find(name) is None
    ]


def describe_unlisted_snapshot(path: Path) -> str:
    """Return the message about a snapshot that did not exist when the run ended."""
    return f"{path} did not exist when the run ended: the manifest does not list it"


def _iter_values(run: Path, began: Record) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, first and present content of the documents that are tables; None for one that cannot be read."""
    for name, read in (
        ("config.toml", manifest.read_plain_config),
        ("environment.json", manifest.read_plain_environment),
    ):
        before = began.get(name.partition(".")[0])
        if isinstance(before, dict):
            yield name, before, read(run)


def _check_log(path: Path, before: Record) -> list[str]:
    now = manifest.hash_log(path, before["bytes"])
    if message := manifest.describe_truncation(path, before["bytes"]):
        return [message]
    return (
        []
        if now["sha256"] == before["sha256"]
        else [f"{path} was changed: its content differs from the end of the run"]
    )


def _iter_differences(before: Any, now: Any, field: str = "") -> Iterable[str]:
    """Yield `batch_size was 50 and is 51` for every value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            old, new = before.get(key, _MISSING), now.get(key, _MISSING)
            if not _is_same(old, new):
                yield from _iter_differences(old, new, f"{field}.{key}" if field else str(key))
    else:
        yield f"{field or 'it'} was {_shorten(before)} and is {_shorten(now)}"


_MISSING = object()
"""Marks a missing value; null is a value."""


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal, with 1, 1.0 and true different from each other."""
    if one is _MISSING or other is _MISSING:
        return one is other
    return checksummed.canonical_json(one) == checksummed.canonical_json(other)


def _shorten(value: Any) -> str:
    text = "missing" if value is _MISSING else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
