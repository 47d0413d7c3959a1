"""One tensor through many snapshots, read from its place in each file: as fast as if time were its first dimension."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grokkit.errors import TrajectoryError, UsageError
from grokkit.trajectory import sealed, snapshot


class _Place(NamedTuple):
    """Where a tensor lies in every snapshot of one form.

    Args:
        head: first bytes of such a file. The layout's hash is among them and so are the addresses of the datasets.
        size: of such a file.
        entry: of the tensor in the layout.
        start: of the tensor.
        crc: of its checksum.
    """

    head: bytes
    size: int
    entry: Mapping[str, Any]
    start: int
    crc: int


THREADS, WORTH_THREADS = 2, 1 << 23
"""Files that are read at a time where all rows together have so many bytes: fresh pages cost more than the reading."""


def read(
    files: Sequence[Path],
    name: str,
    index: int | slice | None = None,
    *,
    out: Tensor | None = None,
    verify: bool = True,
) -> Tensor:
    """`name` in every one of `files`.

    Args:
        files: one or more snapshots in which it has one shape and dtype; their layouts may differ otherwise.
        name: of the tensor.
        index: only these of its first dimension.
        out: where to, of the shape and dtype of what is returned, contiguous; memory that is used again saves most of
            the time of a large tensor.
        verify: hold each tensor against its checksum, where all of it is read.

    Returns:
        (files, *shape), on the CPU.

    Raises:
        TrajectoryError: a file that is missing or damaged, or a tensor that is missing or changes its shape.
        UsageError: an index that the tensor does not have, or an `out` that does not fit.

    Cost: one `open` and, where files have one form, two small reads a file; 4 reads where `verify`.
    """
    place = _place(files[0], name)
    rows = _rows(place.entry["shape"], index)
    shape = list(place.entry["shape"]) if rows is None else [len(rows), *place.entry["shape"][1:]]
    shape = [len(files), *shape[1 if isinstance(index, int) else 0 :]]
    dtype = getattr(torch, place.entry["dtype"])
    if out is None:
        out = torch.empty(shape, dtype=dtype)
    elif list(out.shape) != shape or out.dtype != dtype or not out.is_contiguous():
        raise UsageError(f"`out` must be contiguous, {dtype} and of shape {shape}; got {out.dtype} {list(out.shape)}")
    raw = out.view(len(files), -1).view(torch.uint8).numpy() if out.numel() else np.empty((len(files), 0), np.uint8)
    threads = THREADS if raw.size >= WORTH_THREADS else 1

    def every(first: int) -> None:
        found = place
        for row in range(first, len(files), threads):
            found = _read(files[row], name, found, raw[row], rows, verify)

    if threads == 1:
        every(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(every, range(threads)))
    return out


def _read(file: Path, name: str, place: _Place, raw: np.ndarray, rows: range | None, verify: bool) -> _Place:
    """Fill the bytes `raw` from one file; the place it was found at, to try first in the next one."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TrajectoryError(f"{file} cannot be read: {error.strerror}") from error
    try:
        if os.fstat(handle).st_size != place.size or os.pread(handle, len(place.head), 0) != place.head:
            known, place = place, _place(file, name)
            if any(known.entry[key] != place.entry[key] for key in ("shape", "dtype")):
                raise TrajectoryError(f"{name!r} of {file} is {_form(place)}, that of the first one {_form(known)}")
        row = raw.size // max(1, len(rows)) if rows is not None else raw.size
        if rows is None or rows.step == 1:
            _fill(handle, raw, place.start + (rows.start * row if rows else 0), file)
        else:
            for number, wanted in enumerate(rows):
                _fill(handle, raw[number * row : (number + 1) * row], place.start + wanted * row, file)
        if verify and rows is None:
            expected = int.from_bytes(os.pread(handle, 4, place.crc), "little")
            if snapshot.checksum(place.entry, raw) != expected:
                raise TrajectoryError(f"{file} is damaged: tensor {name!r} does not match its checksum")
    finally:
        os.close(handle)
    return place


def _form(place: _Place) -> str:
    return f"{place.entry['dtype']} {place.entry['shape']}"


def _fill(handle: int, raw: np.ndarray, start: int, file: Path) -> None:
    done = 0
    while done < raw.size:
        count = os.preadv(handle, [raw[done:].data], start + done)
        if count == 0:
            raise TrajectoryError(f"{file} is damaged: it ends too early")
        done += count


def _place(file: Path, name: str) -> _Place:
    """Ask HDF5 where the tensor lies in one file."""
    with sealed.opened(file, "snapshot") as opened:
        entries = snapshot.layout_in(opened, file)
        entry = snapshot.entry_of(entries, name, file)
        first, array = opened["meta"].id.get_offset(), opened["data"][entry["array"]]
        if "crc" not in opened["data"]:
            raise TrajectoryError(
                f"{file} has format version 1, whose tensors are read one by one: `load(step, [name])`"
            )
        start = (array.id.get_offset() or 0) + entry["offset"] * array.dtype.itemsize
        crc = opened["data/crc"].id.get_offset() + 4 * [each["name"] for each in entries].index(name)
    with open(file, "rb") as raw:
        head = raw.read(first)
        return _Place(head, os.fstat(raw.fileno()).st_size, entry, start, crc)


def _rows(shape: Sequence[int], index: int | slice | None) -> range | None:
    if index is None:
        return None
    if not shape:
        raise UsageError("`index` is for the first dimension, and this tensor is a single number")
    if isinstance(index, slice):
        return range(shape[0])[index]
    if not -shape[0] <= index < shape[0]:
        raise UsageError(f"`index` must be in {-shape[0]}..{shape[0] - 1}; got {index}")
    return range(index % shape[0], index % shape[0] + 1)
