"""What belongs to a run: its choices as they were at its start, and every file that was published since, line by line.

    {"kind": "began", "run": id, "config": {...}, "environment": {...}, "sha256": {file: ...}, "probes": {name: digest}}
    {"kind": "snapshot", "name": "snapshots/000000000012.h5", "step": 12, "digest": ...}
    {"kind": "resume", "name": "resume/0.h5", "step": 12, "save": 3, "digest": ...}
    {"kind": "aside", "name": ..., "to": "quarantine/..."}
    {"kind": "gone", "name": ...}
    {"kind": "ended", "state": "done", "logs": {"metrics.jsonl": {"bytes": ..., "sha256": ...}}}
    {"kind": "resumed", "attempt": 2}
    {"kind": "lost", "bytes": 0, "had": 4096}

A line follows its file, so that a listed file that is not there was removed. What was published in the last moment
before a kill has no line until the run is gone on with; runs of older versions have no manifest until then.
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
from grokkit.trajectory import checksummed, hdf5, log, store
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
CHOICES = ("config.toml", "environment.json", "experiment.py")
"""What was chosen at the start; a change of the first two makes another run of it."""
PUBLISHED = ("snapshot", "resume", "reading", "attribution")
"""Kinds of lines that speak of a file that is there."""
ORDERLY_ENDS = ("done", "interrupted")
"""Ends at which every snapshot had its line."""

_BLOCK = 1 << 20
_LONGEST_NAME = 300

Record = dict[str, Any]


@dataclass
class Manifest:
    """What is known of the files of a run.

    Args:
        began: the first line; empty where the run was made by an older version and was not gone on with.
        files: the newest line of every file, by its path below the run.
        digests: of all files that were ever published.
        ended: the newest line about an end; empty while the run goes on.
        logs: bytes and hash of what the logs said at the newest end, by name; nothing of it is ever taken back.
        lost: lines about lines that were gone when the run was gone on with.
        damaged: how many lines are none; what they spoke of is there all the same.
        foreign: whether another run's beginning is among the lines; what follows it counts for nothing.
    """

    began: Record = field(default_factory=dict)
    files: dict[str, Record] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    ended: Record = field(default_factory=dict)
    logs: dict[str, Record] = field(default_factory=dict)
    lost: list[Record] = field(default_factory=list)
    damaged: int = 0
    foreign: bool = False

    @property
    def adopted(self) -> bool:
        """Whether files were there before the first line was."""
        return bool(self.began.get("adopted"))

    @property
    def is_complete(self) -> bool:
        """Whether a snapshot without a line is none of the run's: it began with its manifest, all of which can
        be read, and ended in order."""
        return not self.adopted and not self.damaged and not self.foreign and self.ended.get("state") in ORDERLY_ENDS

    def find(self, name: str) -> Record | None:
        """The newest line of a file that is to be there; None where no line speaks of it, or one of its end."""
        record = self.files.get(name)
        return record if record and record["kind"] in PUBLISHED else None

    def add(self, record: Record) -> None:
        """Learn from the next line."""
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
    """A line's JSON as a record, each field of which is what it has to be; None where it is none."""
    record = parse_record(parsed)
    if record is None:
        return None
    kind = record.get("kind")
    if kind == "began":
        return record if _is_beginning(record) else None
    if kind == "ended":
        return record if record.get("state") in STATES and _are_lengths(record.get("logs")) else None
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
    is_file = kind in PUBLISHED and is_count(record.get("step")) and isinstance(record.get("digest"), str)
    return record if is_file and is_count(record.get("save", 0)) else None


def _is_beginning(record: Record) -> bool:
    choices = all(record.get(name) is None or isinstance(record[name], dict) for name in ("config", "environment"))
    names = [record.get(name, {}) for name in ("sha256", "probes")]
    is_run = isinstance(record.get("run"), str) and choices and all(isinstance(table, dict) for table in names)
    return is_run and all(_is_path(name) for table in names for name in table)


def _are_lengths(logs: Any) -> bool:
    return isinstance(logs, dict) and all(
        name in LOGS and isinstance(each, dict) and is_count(each.get("bytes")) and isinstance(each.get("sha256"), str)
        for name, each in logs.items()
    )


def _is_path(name: Any) -> bool:
    """Whether a name is a path below the run that leads nowhere else."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _LONGEST_NAME
        or "\0" in name
        or escape_surrogates(name) != name
    ):
        return False
    return not {"", ".", ".."} & set(name.split("/"))


def begin_record(run: Path, *, adopted: bool = False) -> bytes:
    """The first line, for the folder as it is now."""
    record = {
        "kind": "began",
        "run": _read_state_id(run) or uuid.uuid4().hex,
        "config": read_plain_config(run),
        "environment": read_plain_environment(run),
        "sha256": {name: hash_file(run / name) for name in CHOICES if (run / name).exists()},
        "probes": {path.stem: checksummed.read_digest(path) for path in store.list_probe_files(run / "probes")},
    }
    return log.encode_line(checksummed.canonical_json(record | ({"adopted": True} if adopted else {})))


def read_state_ids(run: Path) -> set[str]:
    """The ids of runs that the resume states claim; their digests are not checked."""
    found = set()
    for path in sorted((run / "resume").glob("[01].h5")):
        with suppress(TrajectoryError), checksummed.open_h5(path, "resume") as file:
            found |= {hdf5.parse_metadata(file.metadata()).get("run")}
    return {each for each in found if isinstance(each, str)}


def _read_state_id(run: Path) -> str | None:
    """The id of a run whose manifest was lost. Raises TrajectoryError where its states are of two."""
    ids = read_state_ids(run)
    if len(ids) > 1:
        raise TrajectoryError(
            f"{run / 'resume'} holds states of two runs, and no {MANIFEST_FILE} says whose run this is: put it "
            "back, or remove "
            "the state that is not this run's"
        )
    return ids.pop() if ids else None


def repair(run: Path, durable: int) -> list[str]:
    """Make the manifest fit to be gone on with where a machine died; begin that of a run that has none, with what is
    there.

    Args:
        run: its folder.
        durable: bytes that are known to have been on the disk; of those nothing is cut.

    Returns:
        A sentence where there was one, and it is gone.
    """
    path = run / MANIFEST_FILE
    if path.exists():
        _cut_torn(path, durable)
        return []
    told = describe_shortening(path, durable)
    lost = log.encode_line(checksummed.canonical_json({"kind": "lost", "bytes": 0, "had": durable})) if told else b""
    checksummed.write_atomic(path, begin_record(run, adopted=True) + lost)
    return [told] if told else []


def add_cut(run: Path, known: Manifest, durable: int) -> list[str]:
    """Note that lines are gone, if they are, also in what is `known`; a sentence about it."""
    told = describe_shortening(run / MANIFEST_FILE, durable)
    if told is None or (known.adopted and known.lost):
        return []
    record = {"kind": "lost", "bytes": (run / MANIFEST_FILE).stat().st_size, "had": durable}
    _append(run, record)
    known.add(record)
    return [told]


def describe_shortening(path: Path, had: int) -> str | None:
    """The sentence about a file that has fewer bytes than it had; None where it has not."""
    if not path.exists():
        return f"{path} is missing" if had else None
    size = path.stat().st_size
    return f"{path} was cut: it has {size} bytes and had {had}" if size < had else None


def _cut_torn(path: Path, durable: int) -> None:
    """Cut off what a machine that died has left of the newest lines."""
    at = 0
    for line in read_bytes(path, log.MAX_LOG_BYTES).splitlines(keepends=True):
        if at >= durable and log.parse_line(line) is None:
            os.truncate(path, at)
            return
        at += len(line)


def add_file(run: Path, path: Path, kind: str, step: int, digest: str, **more: Any) -> None:
    """Note a file that was published; nothing where the run has no manifest. Durable after `sync`."""
    _append(run, {"kind": kind, "name": str(path.relative_to(run)), "step": step, "digest": digest, **more})


def add_gone(run: Path, name: str) -> None:
    """Note that a file is not there any more, and that this was told."""
    _append(run, {"kind": "gone", "name": name})


def add_resumed(run: Path, attempt: int) -> None:
    """Note that the run goes on: what comes now has no line before it is written."""
    _append(run, {"kind": "resumed", "attempt": attempt})


def add_quarantined(run: Path, path: Path, kept: Path) -> None:
    """Note that a file lies in quarantine now."""
    _append(run, {"kind": "aside", "name": str(path.relative_to(run)), "to": str(kept.relative_to(run))})


def add_end(run: Path, state: str) -> None:
    """Note how long the logs are at the end of an attempt."""
    _append(run, {"kind": "ended", "state": state, "logs": {name: measure_log(run / name) for name in LOGS}})


def sync_manifest(run: Path) -> int | None:
    """Make all lines durable; their bytes, None where the run has no manifest.

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
    """One line in one write, behind whole lines."""
    try:
        handle = os.open(run / MANIFEST_FILE, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrajectoryError(f"could not write {run / MANIFEST_FILE}: {error.strerror or error}") from error
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # torn by a kill or a full disk
            os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)
        line = log.encode_line(checksummed.canonical_json(record))
        if os.write(handle, line) != len(line):
            raise OSError(28, "No space left on device")
    except OSError as error:
        raise TrajectoryError(f"could not write {run / MANIFEST_FILE}: {error.strerror or error}") from error
    finally:
        os.close(handle)


def read_manifest(run: Path) -> Manifest:
    """All lines that are whole; see `find_damaged_lines` for others."""
    records, _, damaged = log.read_log_from(run / MANIFEST_FILE, 0, parse_entry)
    found = Manifest(damaged=damaged)
    for record in records:
        if record["kind"] == "began" and found.began not in ({}, record):
            found.foreign = True
            break
        found.add(record)
    return found


def read_beginning(run: Path) -> Record:
    """The line about the run's start alone, which is the first unless somebody moved it; empty where there is none.
    Raises TrajectoryError where it cannot be read."""
    if not os.path.lexists(run / MANIFEST_FILE):
        return {}
    handle, _ = hdf5.open_descriptor(run / MANIFEST_FILE)
    try:
        with os.fdopen(handle, "rb") as file:
            found = (record for line in file if (record := log.parse_line(line)) and record.get("kind") == "began")
            return next(filter(parse_entry, found), {})
    except OSError as error:
        raise hdf5.unreadable_error(run / MANIFEST_FILE, error.strerror or str(error)) from error


def read_run_id(run: Path) -> str | None:
    """The run's own id, which its resume states carry; None where its manifest does not say it."""
    with suppress(TrajectoryError):
        return read_beginning(run).get("run")
    return None


def find_unlisted(run: Path) -> list[str]:
    """Files that no line speaks of: published just before a kill, by an older version, or put there."""
    names = [
        name for name, _ in store.result_folders(run)
    ]  # before the lines are read: those of a run that is written follow
    known = read_manifest(run)
    return [name for name in names if known.find(name) is None]


def is_listed(record: Mapping[str, Any], digest: str, note: Mapping[str, Any], digests: set[str]) -> bool:
    """Whether a whole file is the one that its newest line speaks of, or a state that was published after that line, of
    which none of the lines (`digests`) speaks."""
    if record.get("digest") == digest:
        return True
    later = note.get("save")
    is_later = isinstance(later, int) and later > int(record.get("save", 0))
    return record["kind"] == "resume" and is_later and digest not in digests


def measure_log(path: Path, length: int | None = None) -> Record:
    """Bytes of a text and their hash: of the first `length`, or of all whole lines."""
    found, count, torn = hashlib.sha256(), 0, b""
    try:
        with suppress(FileNotFoundError), open_regular(path) as file:
            while block := file.read(_BLOCK if length is None else min(length - count, _BLOCK)):
                block = torn + block
                whole = block.rfind(b"\n") + 1 if length is None else len(block)
                torn = block[whole:]
                found.update(block[:whole])
                count += whole
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    return {"bytes": count, "sha256": found.hexdigest()}


def hash_file(path: Path) -> str:
    """Hash of a whole file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_plain_config(run: Path) -> Any:
    """The choices as JSON values; None where they cannot be read."""
    with suppress(TrajectoryError):
        return _to_plain(read_config(run / "config.toml"))
    return None


def read_plain_environment(run: Path) -> Any:
    """What environment.json says, in the same way."""
    with suppress(TrajectoryError):
        return _to_plain(read_environment(run / "environment.json"))
    return None


def _to_plain(value: Any) -> Any:
    """The value as it comes back from a line, with words for numbers that JSON does not know."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)
