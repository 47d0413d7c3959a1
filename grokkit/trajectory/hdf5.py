"""A sealed file as untrusted bytes: HDF5 says where its arrays lie, and nothing that it says is believed unchecked.

HDF5 never opens the path. It reads through one open descriptor, so that neither a program that has the file open, nor a
lock, nor the mark that a killed one left in the superblock stands between a reader and the bytes; the arrays are then
read from their places. A file whose arrays lie elsewhere than in itself (external, virtual, linked), are packed, or are
larger than the file is refused before anything is allocated.
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
"""Bytes of `/meta`: 64 MB. A resume state has the longest ones, of some kilobytes."""

MOST_ARRAYS, MOST_ATTRIBUTES, LONGEST_TEXT = 10_000, 32, 256
"""Arrays and groups of a file, its attributes, and bytes of one that is text."""

KINDS = "biufc"
"""Of numbers, as `numpy.dtype.kind` has them: booleans, integers, floats, complex ones."""

_CONTENT = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)
"""What h5py, json and torch raise on bytes that are not what was written."""


class ArrayPlace(NamedTuple):
    """Where an array lies in a file, and as what."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class UntrustedFile:
    """A sealed file, open for reading.

    Args:
        path: of the file.
        handle: an open descriptor of it; whoever opened it closes it.
        size: of the file, in bytes.
    """

    def __init__(self, path: Path, handle: int, size: int) -> None:
        self.path, self._handle, self.size = path, handle, size
        self._source = _Source(handle, size)
        self.attributes: dict[str, str | int] = {}
        self.places: dict[str, ArrayPlace] = {}

    @property
    def is_in_use(self) -> bool:
        """Whether a program has it open for writing, or had when it was killed."""
        return self._source.marked

    @property
    def failure(self) -> OSError | None:
        """What the disk answered to HDF5's reading, if not bytes."""
        return self._source.failure

    def index_arrays(self) -> None:
        """Learn from HDF5 which attributes there are and where the arrays lie.

        Raises:
            Exception: whatever h5py raises on bytes that it does not understand; ValueError for arrays that a sealed
                file does not have.
        """
        with h5py.File(self._source, "r") as file:
            root = h5py.h5g.open(file.id, b"/")
            self.attributes = dict(_attributes(root))
            self.places = dict(self._places(root, "", iter(range(MOST_ARRAYS))))
        total = sum(place.nbytes for place in self.places.values())
        if total > self.size:
            raise ValueError(f"its arrays have {total} bytes, and the file has {self.size}")

    def _places(self, group: h5py.h5g.GroupID, prefix: str, left: Iterator[int]) -> Iterator[tuple[str, ArrayPlace]]:
        """Every array below a group by its path; `left` ends where a file leads round in circles."""
        for key in group:
            if next(left, None) is None:
                raise ValueError(f"it has more than {MOST_ARRAYS} arrays, or groups that hold each other")
            name = prefix + key.decode()
            if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                raise ValueError(f"{name!r} is a link, perhaps to another file")
            found = h5py.h5o.open(group, key)
            if isinstance(found, h5py.h5g.GroupID):
                yield from self._places(found, f"{name}/", left)
            else:
                yield name, self._place(found, name)

    def _place(self, array: h5py.h5d.DatasetID, name: str) -> ArrayPlace:
        """Where one array lies. Raises ValueError unless it lies in this file, whole and as it is."""
        how = array.get_create_plist()
        if how.get_layout() != h5py.h5d.CONTIGUOUS or how.get_nfilters() or how.get_external_count():
            raise ValueError(f"{name!r} is packed, or lies outside of the file")
        if array.dtype.kind not in KINDS:
            raise ValueError(f"{name!r} holds {array.dtype}, which are no numbers")
        place = ArrayPlace(array.get_offset() or 0, array.dtype, tuple(map(int, array.shape)))
        if place.nbytes and not 0 < place.offset <= self.size - place.nbytes:
            raise ValueError(f"{name!r} has {place.nbytes} bytes, which are not in the file")
        return place

    def read_array(self, name: str) -> np.ndarray:
        """A whole array, in memory of its own."""
        place = self.places[name]
        return self.read_part(name, 0, math.prod(place.shape)).reshape(place.shape)

    def read_part(self, name: str, start: int, count: int) -> np.ndarray:
        """`count` numbers from number `start` on, in the order in which they lie."""
        place = self.places[name]
        if not 0 <= start <= start + count <= math.prod(place.shape):
            raise ValueError(f"{name!r} has no numbers {start} to {start + count}")
        found = np.empty(count, place.dtype)
        read_into(self._handle, found.view(np.uint8), place.offset + start * place.dtype.itemsize, self.path)
        return found

    def map_array(self, name: str) -> np.ndarray:
        """The array in memory that the file is read into page by page when it is used; writes to it stay in memory."""
        place = self.places[name]
        if not place.nbytes or place.offset % place.dtype.itemsize:
            return self.read_array(name)
        with open(self._handle, "rb", closefd=False) as file:
            return np.memmap(file, place.dtype, "c", place.offset, place.shape).view(np.ndarray)

    def read_head(self, length: int) -> bytes:
        """The first bytes of the file, as they are."""
        return os.pread(self._handle, length, 0)

    def metadata(self) -> bytes:
        """`/meta` as it lies there. Raises ValueError for one that is too long."""
        if self.places["meta"].nbytes > MAX_METADATA_BYTES:
            raise ValueError(f"its note has {self.places['meta'].nbytes} bytes, more than {MAX_METADATA_BYTES}")
        return self.read_array("meta").tobytes()

    def claimed_digest(self) -> str:
        """The digest that the file claims."""
        if self.places["digest"].nbytes != 64:
            raise ValueError("its digest has not 64 digits")
        return self.read_array("digest").tobytes().decode()


@contextmanager
def open_untrusted(path: Path) -> Iterator[UntrustedFile]:
    """A file, open and surveyed; whatever is wrong with it becomes one sentence.

    Raises:
        DamagedError: its bytes are not those that were written.
        TrajectoryError: it is missing, in use or unreadable: nothing is known of its content then.
    """
    (handle, size), file = open_descriptor(path), None
    try:
        file = UntrustedFile(path, handle, size)
        file.index_arrays()
        yield file
    except MemoryError as error:
        raise unreadable_error(path, "there is not enough memory") from error
    except _CONTENT as error:
        failure = (file.failure if file else None) or error
        if isinstance(failure, OSError) and failure.errno:  # a disk that fails, too many files
            raise unreadable_error(path, os.strerror(failure.errno)) from error
        if file and file.is_in_use:
            raise unreadable_error(path, "a program has it open for writing, or was killed when it had") from error
        raise DamagedError(f"{path} is damaged: {error}") from error
    finally:
        os.close(handle)


def open_descriptor(path: Path) -> tuple[int, int]:
    """A descriptor of a regular file and its size; a pipe or a device is not waited for.

    Raises:
        TrajectoryError: it is missing, unreadable or another thing than a file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise unreadable_error(path, "it is a link that leads nowhere") from None
        raise TrajectoryError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable_error(path, os.strerror(error.errno or 0)) from error
    try:
        found = os.fstat(handle)
    except OSError as error:
        os.close(handle)
        raise unreadable_error(path, os.strerror(error.errno or 0)) from error
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise unreadable_error(path, "it is no regular file")
    return handle, found.st_size


def unreadable_error(path: Path, why: str) -> TrajectoryError:
    """The error for a file of whose content nothing is known."""
    return TrajectoryError(f"{path} cannot be read, it is in use or unreadable: {why}. It was left where it is")


def parse_metadata(note: bytes) -> dict[str, Any]:
    """The note as a table. Raises ValueError for anything else."""
    found = json.loads(note)
    if not isinstance(found, dict):
        raise ValueError(f"its note is no table but {type(found).__name__}")
    return found


def read_into(handle: int, raw: np.ndarray, start: int, path: Path) -> None:
    """Read into the bytes `raw` what lies from `start` on. Raises DamagedError where the file ends before."""
    done = 0
    while done < raw.size:
        count = os.preadv(handle, [raw[done:].data], start + done)
        if count == 0:
            raise DamagedError(f"{path} is damaged: it ends too early")
        done += count


def _attributes(root: h5py.h5g.GroupID) -> Iterator[tuple[str, str | int]]:
    """Attributes that are short text or an integer; others are none of ours."""
    for index in range(min(h5py.h5a.get_num_attrs(root), MOST_ATTRIBUTES)):
        attribute = h5py.h5a.open(root, index=index)
        kind, shape = attribute.get_type(), attribute.shape
        is_text = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
        if shape != () or not (is_text or kind.get_class() == h5py.h5t.INTEGER) or kind.get_size() > LONGEST_TEXT:
            continue
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        text = value.item()
        yield attribute.name.decode(), text.decode() if isinstance(text, bytes) else int(text)


# --- the superblock: who has the file open for writing ---------------------------------------------------------------

_SIGNATURE, _VERSION, _MARKS, _LENGTH = b"\x89HDF\r\n\x1a\n", 8, 11, 48
_WRITING = 0x01 | 0x04
"""Marks of a file that is open for writing, plainly or for readers beside (SWMR)."""


class _Source:
    """A file as h5py reads it, through an open descriptor, without the mark of one that is open for writing."""

    def __init__(self, handle: int, size: int) -> None:
        self._handle, self._size, self._at = handle, size, 0
        self._head, self.marked = _clear_write_mark(os.pread(handle, _LENGTH, 0))
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
            # A new one, without the frames of this call: HDF5 keeps this object until those are gone, and would free it
            # after the interpreter.
            self.failure = OSError(error.errno, error.strerror)
            raise
        if self._at < len(self._head):
            head = self._head[self._at : self._at + count]
            memoryview(buffer).cast("B")[: len(head)] = head
        self._at += count
        return count

    def read(self, size: int = -1) -> bytes:  # h5py asks for one; it calls `readinto`
        return os.pread(self._handle, self._size if size < 0 else size, self._at)

    def write(self, _: bytes) -> int:
        raise OSError("open for reading only")

    def truncate(self, _: int | None = None) -> int:
        raise OSError("open for reading only")

    def flush(self) -> None:
        """Nothing is written."""


def _clear_write_mark(head: bytes) -> tuple[bytes, bool]:
    """The superblock as it is when nobody has the file open, and whether somebody has; one that does not match its own
    checksum stays as it is."""
    if len(head) < _LENGTH or not head.startswith(_SIGNATURE) or head[_VERSION] != 3 or not head[_MARKS] & _WRITING:
        return head, False
    if lookup3(head[:-4]) != int.from_bytes(head[-4:], "little"):
        return head, False
    clean = bytearray(head[:-4])
    clean[_MARKS] &= ~_WRITING
    return bytes(clean) + lookup3(bytes(clean)).to_bytes(4, "little"), True


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of 2006, HDF5's checksum of its own notes (`H5_checksum_lookup3`, initial value 0)."""
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
