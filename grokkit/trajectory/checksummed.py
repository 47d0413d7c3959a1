"""One kind of HDF5 file for everything that is written once: named arrays, a JSON note, a digest over both.

    attributes  format = "grokkit", version, kind; others of the kind
    /meta       JSON as uint8, padded with spaces
    /digest     sha256 over kind, meta and every array, 64 hex digits
    /data/...   contiguous, uncompressed arrays

HDF5 builds what lies around the arrays in memory, once for every combination of shapes; this module writes the bytes
(temporary file, fsync, rename, directory fsync), so that a full disk or a killed process leaves either the whole file
or none, and no HDF5 call touches the disk.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from grokkit.errors import DamagedError, MisplacedError, TrajectoryError
from grokkit.trajectory import hdf5
from grokkit.trajectory.documents import is_count
from grokkit.trajectory.hdf5 import UntrustedFile

FORMAT, VERSION = "grokkit", 2

ALIGNED = 64
"""Bytes; arrays of at least this size begin at a multiple of it, so that a file can be mapped into memory."""

RESERVE = 1 << 20
"""Bytes that a write leaves free on the disk: the logs and status.json are to be written yet."""

_AT_ONCE = 1000
"""Buffers in one `pwritev`; Linux takes 1024."""

_OF_STEP = re.compile(r"([0-9]{12}|[1-9][0-9]{12,})\.h5")

_proven: set[tuple[Any, ...]] = set()
"""Forms of which one file was read back before it was published."""

FileForm = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype and shape of every array, in the order in which they lie in the file."""


def canonical_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces; NumPy numbers become plain ones."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_to_plain).encode()


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def pad_metadata(note: bytes) -> bytes:
    """The note with spaces behind, so that files of one form differ in no offset although their notes do in length."""
    return note + b" " * (-len(note) % (64 if len(note) < 1024 else 4096))


def compute_digest(kind: str, meta: bytes, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over everything that a file says, in a fixed order."""
    digest = hashlib.sha256(kind.encode() + meta)
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        digest.update(_raw_bytes(arrays[name]))
    return digest.hexdigest()


def _raw_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@lru_cache(maxsize=64)
def _build_skeleton(
    kind: str, attributes: tuple[tuple[str, str], ...], note: int, form: FileForm
) -> tuple[bytes | str, ...]:
    """A file of this form, laid out by HDF5 in memory, from its first byte on: the bytes that are always the same, and
    the names (`meta`, `digest`, `data/<name>`) of what comes in between. `note`: length of the note."""
    buffer, places = io.BytesIO(), dict[str, tuple[int, int]]()
    aligned = {"alignment_threshold": ALIGNED, "alignment_interval": ALIGNED}
    with h5py.File(buffer, "w", libver=("v110", "v110"), **aligned) as file:
        # Fixed length: text of variable length lies in a heap without checksum, and HDF5 hangs on a damaged heap.
        for name, value in (("format", FORMAT), ("kind", kind), *attributes):
            file.attrs[name] = np.bytes_(value)
        file.attrs["version"] = VERSION
        first: FileForm = (("meta", "|u1", (note,)), ("digest", "|u1", (64,)))
        for name, dtype, shape in (*first, *((f"data/{name}", dtype, shape) for name, dtype, shape in form)):
            offset, length = _reserve(file, name, np.dtype(dtype), shape)
            if length:
                places[name] = offset, length
        file.flush()
        size = file.id.get_filesize()
    image = buffer.getvalue().ljust(size, b"\0")
    pieces, at = list[bytes | str](), 0
    for name, (offset, length) in sorted(places.items(), key=lambda item: item[1]):
        pieces += [image[at:offset], name]
        at = offset + length
    return (*pieces, image[at:size])


def _reserve(file: h5py.File, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
    """Offset and length of a new contiguous dataset that has its place and no content yet."""
    how, groups = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    groups.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(dtype, logical=True)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, how, groups)
    return made.get_offset(), dtype.itemsize * int(np.prod(shape, dtype=np.int64))


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
    """Write one file so that it is either there and whole, or not there.

    Args:
        path: where it goes; its folder is made.
        kind: what it is: `snapshot`, `resume`, `reading`, `attribution` or `probes`.
        arrays: name -> array.
        meta: JSON-able note.
        attributes: further text attributes of the file; the digest does not cover them.
        digest: that of the content, where it is known already.
        replace: overwrite an existing file (resume slots); otherwise an existing file with the same digest is left
            alone and another one is an error.
        check: called when all is written and before anything can be seen; what it raises leaves nothing behind.

    Returns:
        The digest.

    Raises:
        TrajectoryError: `path` exists with other content, or the disk is full.
    """
    note = pad_metadata(canonical_json(meta))
    digest = digest or compute_digest(kind, note, arrays)
    if not replace and path.exists():
        if _claims_another(path, digest):
            raise TrajectoryError(f"{path} exists with other content; written files are never changed")
        if matches_digest(path, kind):
            return digest
        replace = True  # the same content, damaged since: made good
    # The largest array last, so that all of HDF5's own metadata lies in front of it.
    order = sorted(arrays, key=lambda name: (arrays[name].nbytes, name))
    form = tuple((name, arrays[name].dtype.str, arrays[name].shape) for name in order)
    key = kind, tuple((attributes or {}).items()), len(note), form
    content: dict[str, bytes | memoryview]
    content = {"meta": note, "digest": digest.encode(), **{f"data/{name}": _raw_bytes(arrays[name]) for name in arrays}}
    pieces = [each if isinstance(each, bytes) else content[each] for each in _build_skeleton(*key)]

    def verified(temporary: Path) -> None:
        if key not in _proven:  # HDF5's own word on the first file of each form
            if not matches_digest(temporary, kind):
                raise OSError(errno.EIO, "what was written does not read back")
            _proven.add(key)
        check()

    _write_atomic(path, pieces, replace, verified)
    return digest


def _claims_another(path: Path, digest: str) -> bool:
    """Whether a file that is there has another digest or, damaged, none. Raises TrajectoryError where it cannot be read
    just now."""
    try:
        return read_claimed_digest(path) != digest
    except DamagedError:
        return True


def write_atomic(path: Path, content: bytes | memoryview, *, replace: bool = True, make: bool = True) -> None:
    """Put `content` at `path`: temporary file, fsync, rename (or link, which never replaces), fsync of the folder;
    `make`: the folder, where it is missing."""
    _write_atomic(path, [content], replace, lambda temporary: None, reserve=0, make=make)


def _write_atomic(
    path: Path,
    pieces: Sequence[bytes | memoryview],
    replace: bool,
    check: Callable[[Path], None],
    reserve: int | None = None,
    make: bool = True,
) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if make:
            mkdir_durable(path.parent)
        _write_durably(temporary, pieces, RESERVE if reserve is None else reserve)
        check(temporary)
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except OSError as error:
        why = _NO_LINKS if error.errno in _UNLINKABLE and not replace else error.strerror or error
        raise TrajectoryError(f"could not write {path}: {why}; nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _link(temporary: Path, path: Path) -> None:
    """Give a finished file its name, which nobody must have. A network disk may have done it and answer that the name
    is there, because its first answer was lost: then both names are of one file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not os.path.samefile(temporary, path):
            raise


_UNLINKABLE = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_NO_LINKS = "the file system knows no hard links; write runs to a local disk and copy finished ones here"


def _write_durably(path: Path, pieces: Sequence[bytes | memoryview], reserve: int) -> None:
    """All pieces, one behind the other, in a new file; it is on the disk when this returns."""
    waiting = [memoryview(piece) for piece in pieces if len(piece)]
    disk = os.statvfs(path.parent)
    if sum(map(len, waiting)) + reserve > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        at = 0
        while waiting:
            written = os.pwritev(handle, waiting[:_AT_ONCE], at)
            at += written
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if waiting:
                waiting[0] = waiting[0][written:]
        os.fsync(handle)
    finally:
        os.close(handle)


def mkdir_durable(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably: a file is not safe in a folder whose name is not."""
    if not folder.is_dir():
        mkdir_durable(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_dir(folder.parent)


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        why = error.strerror or error
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP):
            why = "the file system cannot make folders durable; write runs to a local disk and copy finished ones here"
        raise TrajectoryError(f"the disk did not confirm a new name in {folder}: {why}") from error
    finally:
        os.close(handle)


@contextmanager
def open_h5(path: Path, kind: str) -> Iterator[UntrustedFile]:
    """A sealed file of this kind, open for reading; whatever is wrong with it becomes one sentence.

    Raises:
        DamagedError: its bytes are not those that were written.
        MisplacedError: it is of another kind.
        TrajectoryError: missing, in use, unreadable or of a newer version.
    """
    with hdf5.open_untrusted(path) as file:
        found = file.attributes.get("format"), file.attributes.get("kind")
        if found != (FORMAT, kind):
            raise MisplacedError(f"{path} is not a grokkit {kind} file (it says {found})")
        version = file.attributes.get("version")
        if not isinstance(version, int):
            raise DamagedError(f"{path} is damaged: it has no format version")
        if version > VERSION:
            raise TrajectoryError(f"{path} has format version {version}, newer than {VERSION}: update grokkit")
        yield file


def read(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the note of a file, after its digest was checked, and its note against its name.

    Raises:
        TrajectoryError: as `opened` and `check_metadata`.
    """
    return read_whole(path, kind)[:2]


def read_whole(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """As `read`, with the digest."""
    arrays, note, digest = _read_content(path, kind)
    check_metadata(path, kind, note)
    return arrays, note, digest


def _read_content(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Arrays, note and digest, under whatever name."""
    with open_h5(path, kind) as file:
        note, digest = file.metadata(), file.claimed_digest()
        arrays = {name[5:]: file.read_array(name) for name in file.places if name.startswith("data/")}
        if compute_digest(kind, note, arrays) != digest:
            raise DamagedError(f"{path} is damaged: its content does not match its digest")
        return arrays, hdf5.parse_metadata(note), digest


def check_metadata(path: Path, kind: str, note: Mapping[str, Any]) -> None:
    """Hold what a file says of itself against its name.

    Raises:
        DamagedError: its step is no number.
        MisplacedError: the file is another one's, copied or renamed.
    """
    for key in ("step", "save"):
        if key in note and not is_count(note[key]):
            raise DamagedError(f"{path} is damaged: its {key} is {note[key]!r:.80}, and must be a whole number")
    for key, told in _expected_of_name(path, kind).items():
        if note.get(key, told) != told:
            raise MisplacedError(
                f"{path} holds {key} {note[key]!r}, and its name says {told!r}: another file was copied to its name"
            )


def _expected_of_name(path: Path, kind: str) -> dict[str, Any]:
    """What the note of a file must say by the file's name; a name that grokkit does not give says nothing."""
    told: dict[str, Any] = {}
    step = parse_step(path.name)
    if kind in ("snapshot", "reading", "attribution") and step is not None:
        told["step"] = step
    if kind in ("reading", "attribution"):
        told["identity"] = path.parent.name
    if kind == "attribution":  # older files say no more than this
        told["method"] = path.parent.name.rpartition("-")[0] or path.parent.name
    if kind == "probes":
        told["name"] = path.stem
    return told


def parse_step(name: str) -> int | None:
    """The step whose file has this name, `000000012000.h5`; None for a name that no writer gives."""
    return int(name[:-3]) if _OF_STEP.fullmatch(name) else None


def matches_digest(path: Path, kind: str) -> bool:
    """Whether the file is there and matches its digest, under whatever name.

    Raises:
        TrajectoryError: it cannot be read, which says nothing of its content, or is of a newer version.
    """
    if not path.exists():
        return False
    try:
        _read_content(path, kind)
    except (DamagedError, MisplacedError):
        return False
    return True


def read_claimed_digest(path: Path) -> str:
    """The digest that a file claims, of which nothing is checked. Raises TrajectoryError as `hdf5.open_untrusted`."""
    with hdf5.open_untrusted(path) as file:
        return file.claimed_digest()


def read_digest(path: Path) -> str | None:
    """As `read_claimed_digest`; None where it cannot be read."""
    try:
        return read_claimed_digest(path)
    except TrajectoryError:
        return None
