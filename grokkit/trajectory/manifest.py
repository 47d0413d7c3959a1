"""The manifest of a run: its configuration at the start, and one line for every file that was completed since.

    {"kind": "began", "run": id, "config": {...}, "environment": {...}, "sha256": {file: ...}, "probes": {name: digest}}
    {"kind": "snapshot", "name": "snapshots/000000000012.h5", "step": 12, "digest": ...}
    {"kind": "resume", "name": "resume/0.h5", "step": 12, "save": 3, "digest": ...}
    {"kind": "aside", "name": ..., "to": "quarantine/..."}
    {"kind": "gone", "name": ...}
    {"kind": "ended", "state": "done", "logs": {"metrics.jsonl": {"bytes": ..., "sha256": ...}}}
    {"kind": "resumed", "attempt": 2}
    {"kind": "lost", "bytes": 0, "had": 4096}

The kinds mean:

* began: the first line, what the run began with. `"adopted": true` in it: files existed before the manifest, as in a
  run of an older version or after the manifest was lost.
* snapshot, resume, reading, attribution: this file was written completely and moved to its name. `save` counts the
  resume states.
* aside: the file was moved to quarantine.
* gone: a listed file is missing, which was reported.
* ended: an attempt ended in this state, with logs of this length and hash.
* resumed: a further attempt began.
* lost: the manifest was truncated: it has `bytes` bytes and had `had`.

A line is written after its file, so a listed file that is missing was removed. A file completed just before a kill has
no line until the run is resumed; runs of older versions have no manifest until then.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grokkit.errors import TrajectoryError
from grokkit.trajectory import checksummed, durable, hdf5, log, store
from grokkit.trajectory.documents import (
    STATES,
    escape_surrogates,
    is_count,
    open_regular,
    parse_record,
    read_bytes,
    read_config,
    read_environment,
)

MANIFEST_FILE = "MANIFEST"
LOGS = ("metrics.jsonl", "events.jsonl")
START_FILES = ("config.toml", "environment.json", "experiment.py")
"""Files that are fixed at the start of a run; a change of the first two makes it another run."""
FILE_KINDS = ("snapshot", "resume", "reading", "attribution")
"""Kinds of lines that list a file."""
CLEAN_END_STATES = ("done", "interrupted")
"""States of a run that ended with a line for every snapshot."""

_BLOCK_BYTES = 1 << 20
_MAX_NAME_LENGTH = 300

Record = dict[str, Any]


@dataclass
class Manifest:
    """The content of a manifest.

    Args:
        began: the first line; empty if the run was made by an older version and never resumed.
        files: the newest line of every file, by its path below the run.
        digests: of all files that were ever listed.
        ended: the newest line about an end; empty while the run is being written.
        logs: bytes and hash of each log at the newest end, by name; entries are never removed.
        lost: lines that record that other lines were missing when the run was resumed.
        damaged: number of invalid lines; the files that they listed may exist.
        has_foreign_lines: whether the first line of another run is among the lines; lines after it are ignored.
    """

    began: Record = field(default_factory=dict)
    files: dict[str, Record] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    ended: Record = field(default_factory=dict)
    logs: dict[str, Record] = field(default_factory=dict)
    lost: list[Record] = field(default_factory=list)
    damaged: int = 0
    has_foreign_lines: bool = False

    @property
    def has_preexisting_files(self) -> bool:
        """Whether files existed before the first line was written."""
        return bool(self.began.get("adopted"))

    @property
    def is_complete(self) -> bool:
        """Whether a snapshot without a line cannot belong to the run: the manifest was written from the start, is fully
        readable, and the run ended cleanly."""
        return (
            not self.has_preexisting_files
            and not self.damaged
            and not self.has_foreign_lines
            and self.ended.get("state") in CLEAN_END_STATES
        )

    def find(self, name: str) -> Record | None:
        """Return the newest line of a file that should exist; None if no line lists it, or the newest one records its
        removal."""
        record = self.files.get(name)
        return record if record and record["kind"] in FILE_KINDS else None

    def add(self, record: Record) -> None:
        """Apply the next line."""
        kind = record["kind"]
        if kind == "began":
            self.began = record
        elif kind == "ended":
            self.ended = record
            self.logs |= record["logs"]
        elif kind == "lost":
            self.lost.append(record)
        elif kind != "resumed":
            self.files[record["name"]] = record
            self.digests |= {record["digest"]} if "digest" in record else set()
        if kind in ("snapshot", "resume", "resumed", "lost"):
            self.ended = {}


def parse_entry(parsed: Any) -> Record | None:
    """Convert the JSON of a line to a record with valid fields; None if it is not one."""
    record = parse_record(parsed)
    if record is None:
        return None
    kind = record.get("kind")
    if kind == "began":
        return record if _is_beginning(record) else None
    if kind == "ended":
        return record if record.get("state") in STATES and _is_log_table(record.get("logs")) else None
    if kind == "resumed":
        return record if is_count(record.get("attempt")) else None
    if kind == "lost":
        return record if is_count(record.get("bytes")) and is_count(record.get("had")) else None
    if not _is_path(record.get("name")):
        return None
    if kind == "aside":
        return record if _is_path(record.get("to")) else None
    if kind == "gone":
        return record
    is_file = kind in FILE_KINDS and is_count(record.get("step")) and isinstance(record.get("digest"), str)
    return record if is_file and is_count(record.get("save", 0)) else None


def _is_beginning(record: Record) -> bool:
    has_tables = all(record.get(name) is None or isinstance(record[name], dict) for name in ("config", "environment"))
    tables = [record.get(name, {}) for name in ("sha256", "probes")]
    is_run = isinstance(record.get("run"), str) and has_tables and all(isinstance(table, dict) for table in tables)
    return is_run and all(_is_path(name) for table in tables for name in table)


def _is_log_table(logs: Any) -> bool:
    return isinstance(logs, dict) and all(
        name in LOGS
        and isinstance(entry, dict)
        and is_count(entry.get("bytes"))
        and isinstance(entry.get("sha256"), str)
        for name, entry in logs.items()
    )


def _is_path(name: Any) -> bool:
    """Return whether a name is a path that stays below the run folder."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _MAX_NAME_LENGTH
        or "\0" in name
        or escape_surrogates(name) != name
    ):
        return False
    return not {"", ".", ".."} & set(name.split("/"))


def encode_beginning(run: Path, *, has_preexisting_files: bool = False) -> bytes:
    """Encode the first line, for the present content of the folder."""
    record = {
        "kind": "began",
        "run": _read_state_id(run) or uuid.uuid4().hex,
        "config": read_plain_config(run),
        "environment": read_plain_environment(run),
        "sha256": {name: hash_file(run / name) for name in START_FILES if (run / name).exists()},
        "probes": {path.stem: checksummed.try_read_digest(path) for path in store.list_probe_files(run / "probes")},
    }
    return log.encode_line(checksummed.canonical_json(record | ({"adopted": True} if has_preexisting_files else {})))


def read_state_ids(run: Path) -> set[str]:
    """Read the run ids in the resume states, without verifying their digests."""
    found = set()
    for path in sorted((run / "resume").glob("[01].h5")):
        with suppress(TrajectoryError), checksummed.open_h5(path, "resume") as file:
            found |= {hdf5.parse_metadata(file.read_metadata()).get("run")}
    return {value for value in found if isinstance(value, str)}


def _read_state_id(run: Path) -> str | None:
    """Read the id of a run whose manifest was lost. Raises TrajectoryError if its states have two ids."""
    ids = read_state_ids(run)
    if len(ids) > 1:
        raise TrajectoryError(
            f"{run / 'resume'} holds states of two runs, and without {MANIFEST_FILE} it is unknown which one is this "
            "run: restore the manifest, or remove the state of the other run"
        )
    return ids.pop() if ids else None


def prepare_for_resume(run: Path, synced_bytes: int) -> list[str]:
    """Prepare the manifest for resuming after a crash; write one for a run without a manifest, from the present files.

    Args:
        run: its folder.
        synced_bytes: number of bytes that were confirmed on the disk; those are never truncated.

    Returns:
        A message if the manifest existed and is missing now.
    """
    path = run / MANIFEST_FILE
    if path.exists():
        _truncate_incomplete_lines(path, synced_bytes)
        return []
    message = describe_truncation(path, synced_bytes)
    lost = (
        log.encode_line(checksummed.canonical_json({"kind": "lost", "bytes": 0, "had": synced_bytes}))
        if message
        else b""
    )
    durable.write_atomic(path, encode_beginning(run, has_preexisting_files=True) + lost)
    return [message] if message else []


def add_lost_lines(run: Path, manifest_lines: Manifest, synced_bytes: int) -> list[str]:
    """Record missing lines, if there are any, in the file and in `manifest_lines`; return a message about them."""
    message = describe_truncation(run / MANIFEST_FILE, synced_bytes)
    if message is None or (manifest_lines.has_preexisting_files and manifest_lines.lost):
        return []
    record = {"kind": "lost", "bytes": (run / MANIFEST_FILE).stat().st_size, "had": synced_bytes}
    _append(run, record)
    manifest_lines.add(record)
    return [message]


def describe_truncation(path: Path, had: int) -> str | None:
    """Return a message if a file has fewer than the `had` bytes that it had; None otherwise."""
    if not path.exists():
        return f"{path} is missing" if had else None
    size = path.stat().st_size
    return f"{path} was truncated: it has {size} bytes and had {had}" if size < had else None


def _truncate_incomplete_lines(path: Path, synced_bytes: int) -> None:
    """Truncate the incomplete lines at the end that a crash of the machine has left, after the first `synced_bytes`."""
    at = 0
    for line in read_bytes(path, log.MAX_LOG_BYTES).splitlines(keepends=True):
        if at >= synced_bytes and log.parse_line(line) is None:
            os.truncate(path, at)
            return
        at += len(line)


def add_file(run: Path, path: Path, kind: str, step: int, digest: str, **more: Any) -> None:
    """Record a completed file; nothing if the run has no manifest. The line is on the disk after `sync_manifest`."""
    _append(run, {"kind": kind, "name": str(path.relative_to(run)), "step": step, "digest": digest, **more})


def add_missing(run: Path, name: str) -> None:
    """Record that a listed file is missing and that this was reported."""
    _append(run, {"kind": "gone", "name": name})


def add_resumed(run: Path, attempt: int) -> None:
    """Record that the run is resumed: from here on, files are written before their lines."""
    _append(run, {"kind": "resumed", "attempt": attempt})


def add_quarantined(run: Path, path: Path, target: Path) -> None:
    """Record that a file was moved to quarantine."""
    _append(run, {"kind": "aside", "name": str(path.relative_to(run)), "to": str(target.relative_to(run))})


def add_end(run: Path, state: str) -> None:
    """Record the length and hash of the logs at the end of an attempt."""
    _append(run, {"kind": "ended", "state": state, "logs": {name: hash_log(run / name) for name in LOGS}})


def sync_manifest(run: Path) -> int | None:
    """Flush all lines to the disk and return the number of their bytes; None if the run has no manifest.

    Raises:
        TrajectoryError: the disk does not confirm it.
    """
    try:
        with open(run / MANIFEST_FILE, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrajectoryError(f"the disk did not confirm {run / MANIFEST_FILE}: {error.strerror or error}") from error


def _append(run: Path, record: Record) -> None:
    """Append one line in one write, after complete lines."""
    try:
        handle = os.open(run / MANIFEST_FILE, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrajectoryError(f"could not write {run / MANIFEST_FILE}: {error.strerror or error}") from error
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # incomplete after a kill or a full disk
            os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)
        line = log.encode_line(checksummed.canonical_json(record))
        if os.write(handle, line) != len(line):
            raise OSError(28, "No space left on device")
    except OSError as error:
        raise TrajectoryError(f"could not write {run / MANIFEST_FILE}: {error.strerror or error}") from error
    finally:
        os.close(handle)


def read_manifest(run: Path) -> Manifest:
    """Read all valid lines; see `log.find_damaged_lines` for the others."""
    records, _, damaged = log.read_log_from(run / MANIFEST_FILE, 0, parse_entry)
    manifest = Manifest(damaged=damaged)
    for record in records:
        if record["kind"] == "began" and manifest.began not in ({}, record):
            manifest.has_foreign_lines = True
            break
        manifest.add(record)
    return manifest


def read_beginning(run: Path) -> Record:
    """Read the line of kind `began` only, which is the first unless the file was edited; empty if there is none. Raises
    TrajectoryError if the manifest cannot be read."""
    if not os.path.lexists(run / MANIFEST_FILE):
        return {}
    handle, _ = hdf5.open_descriptor(run / MANIFEST_FILE)
    try:
        with os.fdopen(handle, "rb") as file:
            entries = (record for line in file if (record := log.parse_line(line)) and record.get("kind") == "began")
            return next(filter(parse_entry, entries), {})
    except OSError as error:
        raise hdf5.unreadable_error(run / MANIFEST_FILE, error.strerror or str(error)) from error


def read_run_id(run: Path) -> str | None:
    """Read the id of the run, which its resume states carry too; None if the manifest does not hold it."""
    with suppress(TrajectoryError):
        return read_beginning(run).get("run")
    return None


def find_unlisted(run: Path) -> list[str]:
    """Return the files without a line: completed just before a kill, written by an older version, or added by hand."""
    # Before the lines are read: in a live run, lines are written after their files.
    names = [name for name, _ in store.iter_result_files(run)]
    manifest_lines = read_manifest(run)
    return [name for name in names if manifest_lines.find(name) is None]


def is_listed(record: Mapping[str, Any], digest: str, metadata: Mapping[str, Any], digests: set[str]) -> bool:
    """Return whether an intact file is the one in its newest line, or a resume state saved after that line, whose
    digest is in none of the lines (`digests`)."""
    if record.get("digest") == digest:
        return True
    later = metadata.get("save")
    is_later = isinstance(later, int) and later > int(record.get("save", 0))
    return record["kind"] == "resume" and is_later and digest not in digests


def hash_log(path: Path, length: int | None = None) -> Record:
    """Return the number of bytes and the hash of a log: of its first `length` bytes, or of all complete lines."""
    digest, count, incomplete = hashlib.sha256(), 0, b""
    try:
        with suppress(FileNotFoundError), open_regular(path) as file:
            while block := file.read(_BLOCK_BYTES if length is None else min(length - count, _BLOCK_BYTES)):
                block = incomplete + block
                complete = block.rfind(b"\n") + 1 if length is None else len(block)
                incomplete = block[complete:]
                digest.update(block[:complete])
                count += complete
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    return {"bytes": count, "sha256": digest.hexdigest()}


def hash_file(path: Path) -> str:
    """Compute the hash of a whole file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_plain_config(run: Path) -> Any:
    """Read the configuration as JSON values; None if it cannot be read."""
    with suppress(TrajectoryError):
        return _to_plain(read_config(run / "config.toml"))
    return None


def read_plain_environment(run: Path) -> Any:
    """Read environment.json as JSON values; None if it cannot be read."""
    with suppress(TrajectoryError):
        return _to_plain(read_environment(run / "environment.json"))
    return None


def _to_plain(value: Any) -> Any:
    """Convert a value to the form it has when read from a line, with text for numbers that JSON cannot represent."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)
