"""One kind of HDF5 file for everything that is written once: named arrays, a JSON note, a digest over both.

    attributes  format = "grokkit", version, kind
    /meta       JSON as uint8
    /digest     sha256 over kind, meta and every array, 64 hex digits
    /data/...   contiguous, uncompressed arrays

HDF5 builds the file in memory; this module writes the bytes (temporary file, fsync, rename, directory fsync), so
a full disk or a killed process leaves either the whole file or none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from grokkit.errors import TrajectoryError

FORMAT, VERSION = "grokkit", 1

_DAMAGE = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)
"""What h5py, json and torch raise on a damaged file."""


def as_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces; NumPy numbers become plain ones."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def digest_of(kind: str, meta: bytes, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over everything that a file says, in a fixed order."""
    digest = hashlib.sha256(kind.encode() + meta)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write(
    path: Path, kind: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, replace: bool = False
) -> str:
    """Write one file so that it is either there and whole, or not there.

    Args:
        path: where it goes; its folder is made.
        kind: what it is: `snapshot`, `resume`, `reading`, `attribution` or `probes`.
        arrays: name -> array.
        meta: JSON-able note.
        replace: overwrite an existing file (resume slots); otherwise an existing file with the same digest is left
            alone and another one is an error.

    Returns:
        The digest.

    Raises:
        TrajectoryError: `path` exists with other content, or the disk is full.
    """
    note = as_json(meta)
    digest = digest_of(kind, note, arrays)
    if not replace and path.exists():
        if read_digest(path) != digest:
            raise TrajectoryError(f"{path} exists with other content; written files are never changed")
        if _is_whole(path, kind):
            return digest
        replace = True  # the same content, damaged since: made good
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110")) as file:
        # Fixed length: text of variable length lies in a heap without checksum, and HDF5 hangs on a damaged heap.
        file.attrs["format"], file.attrs["kind"], file.attrs["version"] = np.bytes_(FORMAT), np.bytes_(kind), VERSION
        file.create_dataset("meta", data=np.frombuffer(note, np.uint8), track_times=False)
        file.create_dataset("digest", data=np.frombuffer(digest.encode(), np.uint8), track_times=False)
        # The largest array last, so that all of HDF5's own metadata lies in front of it.
        for name in sorted(arrays, key=lambda name: (arrays[name].nbytes, name)):
            file.create_dataset(f"data/{name}", data=arrays[name], track_times=False)
    publish(path, buffer.getbuffer(), replace=replace)
    return digest


def publish(path: Path, content: bytes | memoryview, *, replace: bool = True) -> None:
    """Put `content` at `path`: temporary file, fsync, rename (or link, which never replaces), fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except OSError as error:
        raise TrajectoryError(f"could not write {path}: {error.strerror or error}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise TrajectoryError(f"the disk did not confirm a new name in {folder}: {error.strerror or error}") from error
    finally:
        os.close(handle)


@contextmanager
def opened(path: Path, kind: str) -> Iterator[h5py.File]:
    """A sealed file of this kind, open for reading; whatever HDF5 says of a damaged one becomes one sentence."""
    if not path.exists():
        raise TrajectoryError(f"{path} is missing")
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file.attrs.get("format"), file.attrs.get("kind")
            if found != (FORMAT.encode(), kind.encode()):
                raise TrajectoryError(f"{path} is not a grokkit {kind} file (it says {found})")
            if file.attrs["version"] > VERSION:
                raise TrajectoryError(
                    f"{path} has format version {file.attrs['version']}, newer than {VERSION}: update grokkit"
                )
            yield file
    except _DAMAGE as error:
        raise TrajectoryError(f"{path} is damaged: {error}") from error


def read(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the note of a file, after its digest was checked.

    Raises:
        TrajectoryError: missing, damaged, of another kind or of a newer version.
    """
    with opened(path, kind) as file:
        note = file["meta"][()].tobytes()
        digest = file["digest"][()].tobytes().decode()
        arrays: dict[str, np.ndarray] = {}
        if "data" in file:
            file["data"].visititems(
                lambda name, item: arrays.update({name: np.asarray(item[()])}) if hasattr(item, "dtype") else None
            )
        if digest_of(kind, note, arrays) != digest:
            raise TrajectoryError(f"{path} is damaged: its content does not match its digest")
        return arrays, json.loads(note)


def _is_whole(path: Path, kind: str) -> bool:
    try:
        read(path, kind)
    except TrajectoryError:
        return False
    return True


def read_digest(path: Path) -> str | None:
    """The digest that a file claims; None where it cannot be read."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file["digest"][()].tobytes().decode()
    except _DAMAGE:
        return None
