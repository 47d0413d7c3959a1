"""What belongs to a run: its choices as they were at its start, and every file that was published since, line by line.

    {"kind": "began", "run": id, "config": {...}, "environment": {...}, "sha256": {file: ...}, "probes": {name: digest}}
    {"kind": "snapshot", "name": "snapshots/000000000012.h5", "step": 12, "digest": ...}
    {"kind": "resume", "name": "resume/0.h5", "step": 12, "save": 3, "digest": ...}
    {"kind": "aside", "name": ..., "to": "quarantine/..."}
    {"kind": "ended", "state": "done", "logs": {"metrics.jsonl": {"bytes": ..., "sha256": ...}}}

A line follows its file, so that a listed file that is not there was removed. What was published in the last moment
before a kill has no line until the run is gone on with; runs of older versions have no manifest until then.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grokkit.errors import DamagedError, TrajectoryError
from grokkit.trajectory import log, sealed
from grokkit.trajectory.documents import open_regular, read_bytes, read_config, read_environment

FILE = "MANIFEST"
LOGS = ("metrics.jsonl", "events.jsonl")
CHOICES = ("config.toml", "environment.json", "experiment.py")
"""What was chosen at the start; a change of the first two makes another run of it."""

_BLOCK = 1 << 20

Record = dict[str, Any]


@dataclass
class Manifest:
    """What is known of the files of a run.

    Args:
        began: the first line; empty where the run was made by an older version and was not gone on with.
        files: the newest line of every file, by its path below the run.
        digests: of all files that were ever published.
        ended: the newest line about an end; empty while the run goes on.
    """

    began: Record = field(default_factory=dict)
    files: dict[str, Record] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    ended: Record = field(default_factory=dict)

    @property
    def adopted(self) -> bool:
        """Whether files were there before the first line was."""
        return bool(self.began.get("adopted"))


def began(run: Path, *, adopted: bool = False) -> bytes:
    """The first line, for the folder as it is now."""
    record = {
        "kind": "began", "run": _id_of_states(run) or uuid.uuid4().hex,
        "config": _config(run), "environment": _environment(run),
        "sha256": {name: _sha256(run / name) for name in CHOICES if (run / name).exists()},
        "probes": {path.stem: sealed.read_digest(path) for path in sorted((run / "probes").glob("*.h5"))},
    }  # fmt: skip
    return log.as_line(sealed.as_json(record | ({"adopted": True} if adopted else {})))


def _id_of_states(run: Path) -> str | None:
    """The id that the resume states of a run carry whose manifest was lost."""
    for path in sorted((run / "resume").glob("[01].h5")):
        with suppress(TrajectoryError):
            found = sealed.read(path, "resume")[1].get("run")
            if isinstance(found, str):
                return found
    return None


def adopt(run: Path) -> None:
    """Begin the manifest of a run that has none: what is there is taken as it is."""
    if not (run / FILE).exists():
        sealed.publish(run / FILE, began(run, adopted=True))


def add(run: Path, path: Path, kind: str, step: int, digest: str, **more: Any) -> None:
    """Note a file that was published; nothing where the run has no manifest. Durable after `sync`."""
    _append(run, {"kind": kind, "name": str(path.relative_to(run)), "step": step, "digest": digest, **more})


def put_aside(run: Path, path: Path, kept: Path) -> None:
    """Note that a file lies in quarantine now."""
    _append(run, {"kind": "aside", "name": str(path.relative_to(run)), "to": str(kept.relative_to(run))})


def end(run: Path, state: str) -> None:
    """Note how long the logs are at the end of an attempt."""
    _append(run, {"kind": "ended", "state": state, "logs": {name: _measured(run / name) for name in LOGS}})


def sync(run: Path) -> int | None:
    """Make all lines durable; their bytes, None where the run has no manifest.

    Raises:
        TrajectoryError: the disk does not confirm it.
    """
    try:
        with open(run / FILE, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrajectoryError(f"the disk did not confirm {run / FILE}: {error.strerror or error}") from error


def _append(run: Path, record: Record) -> None:
    """One line in one write, behind whole lines."""
    try:
        handle = os.open(run / FILE, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrajectoryError(f"could not write {run / FILE}: {error.strerror or error}") from error
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # torn by a kill or a full disk
            os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)
        line = log.as_line(sealed.as_json(record))
        if os.write(handle, line) != len(line):
            raise OSError(28, "No space left on device")
    except OSError as error:
        raise TrajectoryError(f"could not write {run / FILE}: {error.strerror or error}") from error
    finally:
        os.close(handle)


def mend(run: Path, durable: int) -> None:
    """Cut off what a machine that died has left of the newest lines.

    Args:
        run: its folder.
        durable: bytes that are known to be on the disk; of those nothing is cut.
    """
    try:
        content = read_bytes(run / FILE)
    except FileNotFoundError:
        return
    at = 0
    for line in content.splitlines(keepends=True):
        if at >= durable and log.parsed(line) is None:
            os.truncate(run / FILE, at)
            return
        at += len(line)


def read(run: Path) -> Manifest:
    """All lines that are whole; see `damaged_lines` for others."""
    found = Manifest()
    for record in log.read_from(run / FILE, 0)[0]:
        kind = record.get("kind")
        if kind == "began":
            found.began = record
        elif kind == "ended":
            found.ended = record
        elif isinstance(record.get("name"), str):
            found.files[record["name"]] = record
            found.digests.add(str(record.get("digest")))
            found.ended = found.ended if kind in ("reading", "attribution", "aside") else {}
    return found


def run_id(run: Path) -> str | None:
    """The run's own id, which its resume states carry; None where its manifest does not say it."""
    try:
        found = read(run).began.get("run")
    except TrajectoryError:
        return None
    return found if isinstance(found, str) else None


def unlisted(run: Path, manifest: Manifest) -> list[str]:
    """Files that no line speaks of: published just before a kill, by an older version, or put there."""
    return [name for name, _ in rooms(run) if manifest.files.get(name, {"kind": "aside"})["kind"] == "aside"]


def rooms(run: Path) -> Iterator[tuple[str, str]]:
    """Path below the run and kind of every file that its writers publish, but the probes."""
    folders = [("resume", "resume"), ("snapshots", "snapshot")]
    for room, kind in (("measures", "reading"), ("attributions", "attribution")):
        folders += [(f"{room}/{path.name}", kind) for path in sorted((run / room).glob("*")) if path.is_dir()]
    for folder, kind in folders:
        for path in sorted((run / folder).glob("[!.]*.h5")):
            if path.stem.isdecimal():  # others are a person's own
                yield f"{folder}/{path.name}", kind


def changes(run: Path, manifest: Manifest | None = None) -> list[str]:
    """What was changed in the choices, the environment and the probe sets since the run began, field by field."""
    began = (manifest or read(run)).began
    if not began:
        return []
    found = []
    for name, then, now in _values(run, began):
        if now is not None and not _is_same(then, now):  # one that cannot be read is told by whoever reads it
            found += [f"{run / name} was changed: {told}" for told in _differences(then, now)]
    probes = began.get("probes")
    for name, digest in probes.items() if isinstance(probes, dict) else ():
        path = run / "probes" / f"{name}.h5"
        if not path.exists():
            found.append(f"{path} is missing")
        elif _holds_another(path, digest):
            found.append(f"{path} was changed: it holds other images than at the start")
    return found


def _holds_another(path: Path, digest: Any) -> bool:
    """Whether a file claims another digest, or a damaged one none; one that cannot be read just now is told by whoever
    reads it."""
    try:
        return sealed.claimed_digest(path) != digest
    except DamagedError:
        return True
    except TrajectoryError:
        return False


def remarks(run: Path, manifest: Manifest, *, states: bool = True) -> list[str]:
    """What else is not as a writer left it: files that are gone, texts that were edited, logs that were cut; `states`:
    resume states among the files."""
    found = [
        f"{run / name} is missing"
        for name, record in manifest.files.items()
        if record["kind"] not in ("aside", "" if states else "resume") and not (run / name).exists()
    ]
    texts = manifest.began.get("sha256")
    told = {name for name, then, now in _values(run, manifest.began) if now is None or not _is_same(then, now)}
    for name, sha256 in texts.items() if isinstance(texts, dict) else ():
        if not (run / name).exists():
            found.append(f"{run / name} is missing")
        elif name not in told and _sha256(run / name) != sha256:
            found.append(f"{run / name} is not the text that the run began with")
    logs = manifest.ended.get("logs")
    for name, then in logs.items() if isinstance(logs, dict) else ():
        found += _cut(run / name, then)
    return found


def strangers(run: Path, manifest: Manifest) -> list[str]:
    """Snapshots that no writer of a run that is done has written; readings may be added by anyone."""
    if manifest.adopted or manifest.ended.get("state") != "done":
        return []
    return [
        f"{run / name} was written by no writer of this run" for name in unlisted(run, manifest)
        if name.startswith("snapshots/")
    ]  # fmt: skip


def is_listed(record: Mapping[str, Any], digest: str, note: Mapping[str, Any], digests: set[str]) -> bool:
    """Whether a whole file is the one that its newest line speaks of, or a state that was published after that line, of
    which none of the lines (`digests`) speaks."""
    if record.get("digest") == digest:
        return True
    later = note.get("save")
    is_later = isinstance(later, int) and later > int(record.get("save", 0))
    return record["kind"] == "resume" and is_later and digest not in digests


def _values(run: Path, began: Record) -> Iterator[tuple[str, Any, Any]]:
    """Name, first and present values of the documents that are tables; None for one that cannot be read."""
    for name, read_it in (("config.toml", _config), ("environment.json", _environment)):
        then = began.get(name.partition(".")[0])
        if isinstance(then, dict):
            yield name, then, read_it(run)


def _cut(path: Path, then: Any) -> list[str]:
    if not isinstance(then, dict) or not isinstance(then.get("bytes"), int):
        return []
    if not path.exists():
        return [f"{path} is missing"] if then["bytes"] else []
    now = _measured(path, then["bytes"])
    if now["bytes"] < then["bytes"]:
        return [f"{path} was cut: it has {now['bytes']} bytes and had {then['bytes']}"]
    return [] if now["sha256"] == then.get("sha256") else [f"{path} was changed: it says other things than at the end"]


def _measured(path: Path, length: int | None = None) -> Record:
    """Bytes of a log and their hash; of the first `length` alone where they are given."""
    found, left = hashlib.sha256(), length
    count = 0
    with suppress(FileNotFoundError), open_regular(path) as file:
        while block := file.read(_BLOCK if left is None else min(left - count, _BLOCK)):
            found.update(block)
            count += len(block)
    return {"bytes": count, "sha256": found.hexdigest()}


def _sha256(path: Path) -> str:
    return str(_measured(path)["sha256"])


def _config(run: Path) -> Any:
    """The choices as JSON values; None where they cannot be read."""
    with suppress(TrajectoryError):
        return _plain(read_config(run / "config.toml"))
    return None


def _environment(run: Path) -> Any:
    with suppress(TrajectoryError):
        return _plain(read_environment(run / "environment.json"))
    return None


def _plain(value: Any) -> Any:
    """The value as it comes back from a line, with words for numbers that JSON does not know."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)


def _differences(then: Any, now: Any, where: str = "") -> Iterable[str]:
    """`batch_size was 50 and is 51`, for every value that is another one."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            one, other = then.get(key, _ABSENT), now.get(key, _ABSENT)
            if not _is_same(one, other):
                yield from _differences(one, other, f"{where}.{key}" if where else str(key))
    else:
        yield f"{where or 'it'} was {_short(then)} and is {_short(now)}"


_ABSENT = object()
"""In the place of a value that is not there; null is a value."""


def _is_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are one: 1, 1.0 and true are three."""
    if one is _ABSENT or other is _ABSENT:
        return one is other
    return sealed.as_json(one) == sealed.as_json(other)


def _short(value: Any) -> str:
    told = "not there" if value is _ABSENT else json.dumps(value)
    return told if len(told) <= 80 else f"{told[:77]}..."
