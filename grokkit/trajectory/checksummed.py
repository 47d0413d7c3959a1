"""The HDF5 format of every file that is written once: named arrays, JSON metadata, and a digest over both.

    attributes  format = "grokkit", version, kind; others that depend on the kind
    /meta       JSON as uint8, padded with spaces
    /digest     sha256 over kind, meta and every array, 64 hex digits
    /data/...   contiguous, uncompressed arrays

HDF5 builds the bytes around the arrays in memory, once per combination of shapes, and `durable` writes the file, so no
HDF5 call touches the disk.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from grokkit.errors import DamagedError, MisplacedError, TrajectoryError
from grokkit.trajectory import durable, hdf5
from grokkit.trajectory.documents import is_count
from grokkit.trajectory.hdf5 import UntrustedFile

FORMAT, VERSION = "grokkit", 2

ALIGNMENT = 64
"""Bytes. Arrays of at least this size start at a multiple of it, so that a file can be mapped into memory."""

_STEP_FILE_NAME = re.compile(r"([0-9]{12}|[1-9][0-9]{12,})\.h5")

_verified_forms: set[tuple[Any, ...]] = set()
"""Forms of which one file was read back before it was published."""

FileForm = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of every array, in file order."""


def canonical_json(value: Any) -> bytes:
    """Encode `value` as canonical JSON: sorted keys, no spaces; NumPy scalars become plain numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_to_plain).encode()


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def pad_metadata(metadata: bytes) -> bytes:
    """Pad the metadata with spaces, so that files of one form share all offsets although their metadata differs in
    length."""
    return metadata + b" " * (-len(metadata) % (64 if len(metadata) < 1024 else 4096))


def compute_digest(kind: str, meta: bytes, arrays: Mapping[str, np.ndarray]) -> str:
    """Compute the sha256 over the whole content of a file, in a fixed order."""
    digest = hashlib.sha256(kind.encode() + meta)
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        digest.update(_raw_bytes(arrays[name]))
    return digest.hexdigest()


def _raw_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@lru_cache(maxsize=64)
def _build_skeleton(
    kind: str, attributes: tuple[tuple[str, str], ...], metadata_length: int, form: FileForm
) -> tuple[bytes | str, ...]:
    """Build the constant bytes of a file of this form, as HDF5 lays it out in memory.

    Args:
        kind, attributes: as in `write`.
        metadata_length: in bytes.
        form: the arrays.

    Returns:
        From the first byte of the file on: constant bytes, and the names (`meta`, `digest`, `data/<name>`) of the
        datasets between them.
    """
    buffer, extents = io.BytesIO(), dict[str, tuple[int, int]]()
    aligned = {"alignment_threshold": ALIGNMENT, "alignment_interval": ALIGNMENT}
    with h5py.File(buffer, "w", libver=("v110", "v110"), **aligned) as file:
        # Fixed length: text of variable length is stored in a heap without checksum, and HDF5 hangs on a damaged heap.
        for name, value in (("format", FORMAT), ("kind", kind), *attributes):
            file.attrs[name] = np.bytes_(value)
        file.attrs["version"] = VERSION
        first: FileForm = (("meta", "|u1", (metadata_length,)), ("digest", "|u1", (64,)))
        for name, dtype, shape in (*first, *((f"data/{name}", dtype, shape) for name, dtype, shape in form)):
            offset, length = _allocate_dataset(file, name, np.dtype(dtype), shape)
            if length:
                extents[name] = offset, length
        file.flush()
        size = file.id.get_filesize()
    image = buffer.getvalue().ljust(size, b"\0")
    pieces, at = list[bytes | str](), 0
    for name, (offset, length) in sorted(extents.items(), key=lambda item: item[1]):
        pieces += [image[at:offset], name]
        at = offset + length
    return (*pieces, image[at:size])


def _allocate_dataset(file: h5py.File, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
    """Create a contiguous dataset that has space but no content yet, and return its offset and length in bytes."""
    creation, links = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5_type = h5py.h5t.py_create(dtype, logical=True)
    dataset = h5py.h5d.create(file.id, name.encode(), h5_type, space, creation, links)
    return dataset.get_offset(), dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def write(
    path: Path,
    kind: str,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    attributes: Mapping[str, str] | None = None,
    digest: str | None = None,
    replace: bool = False,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Write one file atomically: afterwards it is either complete or missing.

    Args:
        path: of the file; missing folders are created.
        kind: `snapshot`, `resume`, `reading`, `attribution` or `probes`.
        arrays: name -> array.
        meta: JSON-serialisable metadata.
        attributes: further text attributes of the file; the digest does not cover them.
        digest: of the content, if already known.
        replace: overwrite an existing file (resume states). Otherwise an existing file with the same digest is kept,
            and one with another digest is an error.
        check: called after everything is written and before the file becomes visible; if it raises, no file is left.

    Returns:
        The digest.

    Raises:
        TrajectoryError: `path` exists with other content, or the disk is full.
    """
    metadata = pad_metadata(canonical_json(meta))
    digest = digest or compute_digest(kind, metadata, arrays)
    if not replace and path.exists():
        if _has_other_digest(path, digest):
            raise TrajectoryError(f"{path} already exists with other content; written files are never changed")
        if matches_digest(path, kind):
            return digest
        replace = True  # the same content, damaged since: repair it
    # Largest array last, so that all of HDF5's own metadata precedes it.
    order = sorted(arrays, key=lambda name: (arrays[name].nbytes, name))
    form = tuple((name, arrays[name].dtype.str, arrays[name].shape) for name in order)
    key = kind, tuple((attributes or {}).items()), len(metadata), form
    content: dict[str, bytes | memoryview]
    content = {
        "meta": metadata,
        "digest": digest.encode(),
        **{f"data/{name}": _raw_bytes(arrays[name]) for name in arrays},
    }
    pieces = [piece if isinstance(piece, bytes) else content[piece] for piece in _build_skeleton(*key)]

    def verify_temporary(temporary: Path) -> None:
        if key not in _verified_forms:  # let HDF5 itself read the first file of each form
            if not matches_digest(temporary, kind):
                raise OSError(errno.EIO, "the file does not read back as it was written")
            _verified_forms.add(key)
        check()

    durable.write_pieces_atomic(path, pieces, replace, verify_temporary)
    return digest


def _has_other_digest(path: Path, digest: str) -> bool:
    """Return whether an existing file has another digest, or is damaged. Raises TrajectoryError if it cannot be read
    now."""
    try:
        return read_claimed_digest(path) != digest
    except DamagedError:
        return True


@contextmanager
def open_h5(path: Path, kind: str) -> Iterator[UntrustedFile]:
    """Open a checksummed file of this kind for reading.

    Raises:
        DamagedError: its bytes are not those that were written.
        MisplacedError: it is of another kind.
        TrajectoryError: missing, in use, unreadable or of a newer version.
    """
    with hdf5.open_untrusted(path) as file:
        header = file.attributes.get("format"), file.attributes.get("kind")
        if header != (FORMAT, kind):
            raise MisplacedError(
                f"{path} is not a grokkit {kind} file: expected format and kind {(FORMAT, kind)}, got {header}"
            )
        version = file.attributes.get("version")
        if not isinstance(version, int):
            raise DamagedError(f"{path} is damaged: it has no format version")
        if version > VERSION:
            raise TrajectoryError(f"{path} has format version {version}, newer than {VERSION}: update grokkit")
        yield file


def read(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata of a file; verify the digest, and check the metadata against the file name.

    Raises:
        TrajectoryError: as `open_h5` and `check_metadata`.
    """
    return read_with_digest(path, kind)[:2]


def read_with_digest(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Read as `read`, and return the digest too."""
    arrays, metadata, digest = _read_content(path, kind)
    check_metadata(path, kind, metadata)
    return arrays, metadata, digest


def _read_content(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Read arrays, metadata and digest, whatever the name of the file."""
    with open_h5(path, kind) as file:
        metadata, digest = file.read_metadata(), file.read_claimed_digest()
        arrays = {name[5:]: file.read_array(name) for name in file.locations if name.startswith("data/")}
        if compute_digest(kind, metadata, arrays) != digest:
            raise DamagedError(f"{path} is damaged: its content does not match its digest")
        return arrays, hdf5.parse_metadata(metadata), digest


def check_metadata(path: Path, kind: str, metadata: Mapping[str, Any]) -> None:
    """Check the metadata of a file against its name.

    Raises:
        DamagedError: its step or save count is not a whole number.
        MisplacedError: it belongs to another name: the file was copied or renamed.
    """
    for key in ("step", "save"):
        if key in metadata and not is_count(metadata[key]):
            raise DamagedError(f"{path} is damaged: `{key}` must be a whole number, got {metadata[key]!r:.80}")
    for key, value in _expected_from_name(path, kind).items():
        if metadata.get(key, value) != value:
            raise MisplacedError(
                f"{path} holds {key} {metadata[key]!r}, but its name requires {value!r}: another file was copied to "
                "its name"
            )


def _expected_from_name(path: Path, kind: str) -> dict[str, Any]:
    """Return the metadata fields that the name of a file implies; empty for a name that grokkit does not give."""
    expected: dict[str, Any] = {}
    step = parse_step(path.name)
    if kind in ("snapshot", "reading", "attribution") and step is not None:
        expected["step"] = step
    if kind in ("reading", "attribution"):
        expected["identity"] = path.parent.name
    if kind == "attribution":  # older files store nothing else
        expected["method"] = path.parent.name.rpartition("-")[0] or path.parent.name
    if kind == "probes":
        expected["name"] = path.stem
    return expected


def parse_step(name: str) -> int | None:
    """Return the step of a file with this name, such as `000000012000.h5`; None if no writer gives such a name."""
    return int(name[:-3]) if _STEP_FILE_NAME.fullmatch(name) else None


def matches_digest(path: Path, kind: str) -> bool:
    """Return whether the file exists and matches its digest, whatever its name.

    Raises:
        TrajectoryError: it cannot be read, so its content is unknown, or it is of a newer version.
    """
    if not path.exists():
        return False
    try:
        _read_content(path, kind)
    except (DamagedError, MisplacedError):
        return False
    return True


def read_claimed_digest(path: Path) -> str:
    """Read the digest stored in a file without verifying it. Raises TrajectoryError as `hdf5.open_untrusted`."""
    with hdf5.open_untrusted(path) as file:
        return file.read_claimed_digest()


def try_read_digest(path: Path) -> str | None:
    """Read the digest like `read_claimed_digest`; return None if the file cannot be read."""
    try:
        return read_claimed_digest(path)
    except TrajectoryError:
        return None
