"""What is not as the manifest of a run says: choices that were edited, files that are gone, cut or another's."""

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


def find_modifications(run: Path, known: Manifest | None = None) -> list[str]:
    """What was changed in the choices, the environment and the probe sets since the run began, field by field."""
    began = known.began if known else manifest.read_beginning(run)
    if not began:
        return []
    found = []
    for name, then, now in _values(run, began):
        if now is not None and not _is_same(then, now):  # one that cannot be read is told by whoever reads it
            found += [f"{run / name} was changed: {told}" for told in _differences(then, now)]
    for name, digest in (began.get("probes") or {}).items():
        path = run / "probes" / f"{name}.h5"
        if not os.path.exists(path):
            found.append(f"{path} is missing")
        elif _holds_another(path, digest):
            found.append(f"{path} was changed: it holds other images than at the start")
    return found


def _holds_another(path: Path, digest: Any) -> bool:
    """Whether a file claims another digest, or a damaged one none; one that cannot be read just now is told by whoever
    reads it."""
    try:
        return checksummed.read_claimed_digest(path) != digest
    except DamagedError:
        return True
    except TrajectoryError:
        return False


def find_missing(run: Path, known: Manifest) -> list[str]:
    """Files that a line says are there, and that are not, by their path below the run."""
    return [name for name in known.files if known.find(name) and not os.path.exists(run / name)]


def find_remarks(run: Path, known: Manifest) -> list[str]:
    """What else is not as a writer left it: files that are gone, texts that were edited, logs that were cut."""
    found = [f"{run / name} is missing" for name in find_missing(run, known)]
    told = {name for name, then, now in _values(run, known.began) if now is None or not _is_same(then, now)}
    for name, sha256 in (known.began.get("sha256") or {}).items():
        if not os.path.exists(run / name):
            found.append(f"{run / name} is missing")
        elif name not in told:
            found += _or_reason(partial(_edited, run / name, sha256))
    for name, then in known.logs.items():
        found += _or_reason(partial(_cut, run / name, then))
    return found


def _or_reason(look: Callable[[], list[str]]) -> list[str]:
    """What was found, or why it could not be looked for."""
    try:
        return look()
    except TrajectoryError as error:
        return [str(error)]


def _edited(path: Path, sha256: Any) -> list[str]:
    return [f"{path} is not the text that the run began with"] if manifest.hash_file(path) != sha256 else []


def find_lost(run: Path, known: Manifest) -> list[str]:
    """Where lines of the manifest were gone when the run was gone on with."""
    had = [f"had {each['bytes']} of its {each['had']} bytes" if each["bytes"] else "was gone" for each in known.lost]
    return [
        f"{run / manifest.MANIFEST_FILE} {each} when the run was resumed: what was there then was taken" for each in had
    ]


def find_foreign(run: Path, known: Manifest, names: Iterable[str]) -> list[str]:
    """Those of the snapshots among `names`, which were there before the manifest was read, of which it says nothing
    although it knows all; readings may be added by anyone."""
    if not known.is_complete:
        return []
    return [is_foreign(run / name) for name in names if name.startswith("snapshots/") and known.find(name) is None]


def is_foreign(path: Path) -> str:
    """The sentence about a snapshot that was not there when the run ended."""
    return f"{path} was not there when the run ended: the manifest does not list it"


def _values(run: Path, began: Record) -> Iterator[tuple[str, Any, Any]]:
    """Name, first and present values of the documents that are tables; None for one that cannot be read."""
    for name, read_it in (
        ("config.toml", manifest.read_plain_config),
        ("environment.json", manifest.read_plain_environment),
    ):
        then = began.get(name.partition(".")[0])
        if isinstance(then, dict):
            yield name, then, read_it(run)


def _cut(path: Path, then: Record) -> list[str]:
    now = manifest.measure_log(path, then["bytes"])
    if told := manifest.describe_shortening(path, then["bytes"]):
        return [told]
    return [] if now["sha256"] == then["sha256"] else [f"{path} was changed: it says other things than at the end"]


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
    return checksummed.canonical_json(one) == checksummed.canonical_json(other)


def _short(value: Any) -> str:
    told = "not there" if value is _ABSENT else json.dumps(value)
    return told if len(told) <= 80 else f"{told[:77]}..."
