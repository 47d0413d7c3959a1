"""Read a checksummed file as untrusted bytes: HDF5 locates the arrays, and everything it reports is checked.

HDF5 never opens the path. It reads through one open descriptor, so that neither a program that has the file open, nor a
lock, nor the write flag that a killed program left in the superblock prevents reading; the arrays are then read from
their offsets. A file whose arrays are stored outside of it (external, virtual, linked), are compressed, or are larger
than the file is rejected before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from grokkit.errors import DamagedError, TrajectoryError

MAX_METADATA_BYTES = 1 << 26
"""Bytes of `/meta`: 64 MB. Resume states have the longest metadata, some kilobytes."""

MAX_ARRAYS, MAX_ATTRIBUTES, MAX_TEXT_BYTES = 10_000, 32, 256
"""Number of arrays and groups in a file, number of its attributes, and bytes of a text attribute."""

NUMERIC_KINDS = "biufc"
"""Numeric dtypes by `numpy.dtype.kind`: booleans, integers, floats, complex numbers."""

_CONTENT_ERRORS = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)
"""Errors that h5py, json and torch raise on bytes that are not what was written."""


class ArrayLocation(NamedTuple):
    """Offset, dtype and shape of an array in a file."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class UntrustedFile:
    """A checksummed file, open for reading.

    Args:
        path: of the file.
        handle: an open descriptor of it; the caller that opened it closes it.
        size: of the file, in bytes.
    """

    def __init__(self, path: Path, handle: int, size: int) -> None:
        self.path, self._handle, self.size = path, handle, size
        self._source = _Source(handle, size)
        self.attributes: dict[str, str | int] = {}
        self.locations: dict[str, ArrayLocation] = {}

    @property
    def is_in_use(self) -> bool:
        """Whether a program has the file open for writing, or was killed while it had."""
        return self._source.has_write_flags

    @property
    def failure(self) -> OSError | None:
        """The error of the disk during HDF5's last failed read, if there was one."""
        return self._source.failure

    def index_arrays(self) -> None:
        """Read the attributes, and locate the arrays by HDF5.

        Raises:
            Exception: whatever h5py raises on bytes that it cannot parse; ValueError for arrays that a checksummed file
                cannot have.
        """
        with h5py.File(self._source, "r") as file:
            root = h5py.h5g.open(file.id, b"/")
            self.attributes = dict(_read_attributes(root))
            self.locations = dict(self._find_arrays(root, "", iter(range(MAX_ARRAYS))))
        total = sum(location.nbytes for location in self.locations.values())
        if total > self.size:
            raise ValueError(f"its arrays have {total} bytes, but the file has {self.size}")

    def _find_arrays(
        self, group: h5py.h5g.GroupID, prefix: str, left: Iterator[int]
    ) -> Iterator[tuple[str, ArrayLocation]]:
        """Yield every array below a group with its path; `left` limits their number if groups contain each other."""
        for key in group:
            if next(left, None) is None:
                raise ValueError(f"it has more than {MAX_ARRAYS} arrays, or groups that contain each other")
            name = prefix + key.decode()
            if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                raise ValueError(f"{name!r} is a link, perhaps to another file")
            child = h5py.h5o.open(group, key)
            if isinstance(child, h5py.h5g.GroupID):
                yield from self._find_arrays(child, f"{name}/", left)
            else:
                yield name, self._locate_array(child, name)

    def _locate_array(self, array: h5py.h5d.DatasetID, name: str) -> ArrayLocation:
        """Locate one array. Raises ValueError unless it is stored in this file, complete and uncompressed."""
        creation = array.get_create_plist()
        if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_nfilters() or creation.get_external_count():
            raise ValueError(f"{name!r} is compressed, or stored outside of the file")
        if array.dtype.kind not in NUMERIC_KINDS:
            raise ValueError(f"{name!r} holds {array.dtype}; expected numbers")
        location = ArrayLocation(array.get_offset() or 0, array.dtype, tuple(map(int, array.shape)))
        if location.nbytes and not 0 < location.offset <= self.size - location.nbytes:
            raise ValueError(f"{name!r} has {location.nbytes} bytes, which are not all in the file")
        return location

    def read_array(self, name: str) -> np.ndarray:
        """Read a whole array into new memory."""
        location = self.locations[name]
        return self.read_range(name, 0, math.prod(location.shape)).reshape(location.shape)

    def read_range(self, name: str, start: int, count: int) -> np.ndarray:
        """Read `count` elements from element `start` on, in storage order."""
        location = self.locations[name]
        if not 0 <= start <= start + count <= math.prod(location.shape):
            raise ValueError(f"{name!r} has no elements {start} to {start + count}")
        values = np.empty(count, location.dtype)
        read_into(self._handle, values.view(np.uint8), location.offset + start * location.dtype.itemsize, self.path)
        return values

    def map_array(self, name: str) -> np.ndarray:
        """Map an array into memory; pages are read when they are used, and writes stay in memory."""
        location = self.locations[name]
        if not location.nbytes or location.offset % location.dtype.itemsize:
            return self.read_array(name)
        with open(self._handle, "rb", closefd=False) as file:
            return np.memmap(file, location.dtype, "c", location.offset, location.shape).view(np.ndarray)

    def read_head(self, length: int) -> bytes:
        """Read the first bytes of the file."""
        return os.pread(self._handle, length, 0)

    def read_metadata(self) -> bytes:
        """Read the bytes of `/meta`. Raises ValueError if they are too long."""
        if self.locations["meta"].nbytes > MAX_METADATA_BYTES:
            raise ValueError(
                f"its metadata has {self.locations['meta'].nbytes} bytes; expected at most {MAX_METADATA_BYTES}"
            )
        return self.read_array("meta").tobytes()

    def read_claimed_digest(self) -> str:
        """Read the stored digest without verifying it."""
        if self.locations["digest"].nbytes != 64:
            raise ValueError("its digest does not have 64 digits")
        return self.read_array("digest").tobytes().decode()


@contextmanager
def open_untrusted(path: Path) -> Iterator[UntrustedFile]:
    """Open a file and locate its arrays; every failure becomes an error of one sentence.

    Raises:
        DamagedError: its bytes are not those that were written.
        TrajectoryError: it is missing, in use or unreadable, so its content is unknown.
    """
    (handle, size), file = open_descriptor(path), None
    try:
        file = UntrustedFile(path, handle, size)
        file.index_arrays()
        yield file
    except MemoryError as error:
        raise unreadable_error(path, "there is not enough memory") from error
    except _CONTENT_ERRORS as error:
        failure = (file.failure if file else None) or error
        if isinstance(failure, OSError) and failure.errno:  # a failing disk, too many open files
            raise unreadable_error(path, os.strerror(failure.errno)) from error
        if file and file.is_in_use:
            raise unreadable_error(path, "a program has it open for writing, or was killed while it had") from error
        raise DamagedError(f"{path} is damaged: {error}") from error
    finally:
        os.close(handle)


def open_descriptor(path: Path) -> tuple[int, int]:
    """Open a regular file and return its descriptor and size; opening never blocks on a pipe or a device.

    Raises:
        TrajectoryError: it is missing, unreadable or not a regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise unreadable_error(path, "it is a broken symbolic link") from None
        raise TrajectoryError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable_error(path, os.strerror(error.errno or 0)) from error
    try:
        status = os.fstat(handle)
    except OSError as error:
        os.close(handle)
        raise unreadable_error(path, os.strerror(error.errno or 0)) from error
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise unreadable_error(path, "it is not a regular file")
    return handle, status.st_size


def unreadable_error(path: Path, reason: str) -> TrajectoryError:
    """Return the error for a file whose content is unknown."""
    return TrajectoryError(
        f"{path} cannot be read, it is in use or unreadable: {reason}. The file was not changed or moved"
    )


def parse_metadata(metadata: bytes) -> dict[str, Any]:
    """Parse the metadata as a table. Raises ValueError for anything else."""
    parsed = json.loads(metadata)
    if not isinstance(parsed, dict):
        raise ValueError(f"its metadata is {type(parsed).__name__}; expected a table")
    return parsed


def read_into(handle: int, raw: np.ndarray, start: int, path: Path) -> None:
    """Fill the bytes `raw` from offset `start` on. Raises DamagedError if the file ends before."""
    done = 0
    while done < raw.size:
        count = os.preadv(handle, [raw[done:].data], start + done)
        if count == 0:
            raise DamagedError(f"{path} is damaged: it ends too early")
        done += count


def _read_attributes(root: h5py.h5g.GroupID) -> Iterator[tuple[str, str | int]]:
    """Yield the attributes that are short text or an integer; grokkit writes no others."""
    for index in range(min(h5py.h5a.get_num_attrs(root), MAX_ATTRIBUTES)):
        attribute = h5py.h5a.open(root, index=index)
        kind, shape = attribute.get_type(), attribute.shape
        is_text = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
        if shape != () or not (is_text or kind.get_class() == h5py.h5t.INTEGER) or kind.get_size() > MAX_TEXT_BYTES:
            continue
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        item = value.item()
        yield attribute.name.decode(), item.decode() if isinstance(item, bytes) else int(item)


# --- the superblock: whether a program has the file open for writing --------------------------------------------------

_SIGNATURE, _VERSION_OFFSET, _FLAGS_OFFSET, _SUPERBLOCK_BYTES = b"\x89HDF\r\n\x1a\n", 8, 11, 48
_WRITE_FLAGS = 0x01 | 0x04
"""Flags of a file that is open for writing, in normal or SWMR mode."""


class _Source:
    """File object for h5py over an open descriptor that hides the write flags of the superblock."""

    def __init__(self, handle: int, size: int) -> None:
        self._handle, self._size, self._at = handle, size, 0
        self._head, self.has_write_flags = _clear_write_flags(os.pread(handle, _SUPERBLOCK_BYTES, 0))
        self.failure: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        try:
            count = os.preadv(self._handle, [buffer], self._at)
        except OSError as error:
            # A new error without this traceback: its frames would keep HDF5's file object alive, which would then be
            # freed after the interpreter has shut down.
            self.failure = OSError(error.errno, error.strerror)
            raise
        if self._at < len(self._head):
            head = self._head[self._at : self._at + count]
            memoryview(buffer).cast("B")[: len(head)] = head
        self._at += count
        return count

    def read(self, size: int = -1) -> bytes:  # h5py requires it but calls `readinto`
        return os.pread(self._handle, self._size if size < 0 else size, self._at)

    def write(self, _: bytes) -> int:
        raise OSError("open for reading only")

    def truncate(self, _: int | None = None) -> int:
        raise OSError("open for reading only")

    def flush(self) -> None:
        """Do nothing: nothing is written."""


def _clear_write_flags(head: bytes) -> tuple[bytes, bool]:
    """Return the superblock without its write flags, and whether they were set; one that does not match its own
    checksum is returned unchanged."""
    if (
        len(head) < _SUPERBLOCK_BYTES
        or not head.startswith(_SIGNATURE)
        or head[_VERSION_OFFSET] != 3
        or not head[_FLAGS_OFFSET] & _WRITE_FLAGS
    ):
        return head, False
    if lookup3(head[:-4]) != int.from_bytes(head[-4:], "little"):
        return head, False
    clean = bytearray(head[:-4])
    clean[_FLAGS_OFFSET] &= ~_WRITE_FLAGS
    return bytes(clean) + lookup3(bytes(clean)).to_bytes(4, "little"), True


def lookup3(data: bytes) -> int:
    """Compute Bob Jenkins' hash of 2006, HDF5's metadata checksum (`H5_checksum_lookup3`, initial value 0)."""
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    while len(data) > 12:
        a, b, c = (x + y & 0xFFFFFFFF for x, y in zip((a, b, c), _words(data[:12]), strict=True))
        a, b, c = _mix(a, b, c)
        data = data[12:]
    if not data:
        return c
    a, b, c = (x + y & 0xFFFFFFFF for x, y in zip((a, b, c), _words(data.ljust(12, b"\0")), strict=True))
    return _finalize(a, b, c)


def _words(data: bytes) -> tuple[int, int, int]:
    return tuple(int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8))  # type: ignore[return-value]


def _rotate(value: int, by: int) -> int:
    return (value << by | value >> 32 - by) & 0xFFFFFFFF


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for turn in (4, 6, 8, 16, 19, 4):
        a = (a - c & 0xFFFFFFFF) ^ _rotate(c, turn)
        c = c + b & 0xFFFFFFFF
        a, b, c = b, c, a
    return a, b, c


def _finalize(a: int, b: int, c: int) -> int:
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotate(b, turn) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b
