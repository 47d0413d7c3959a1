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
from grokkit.trajectory import checksummed, hdf5, snapshot


class _Place(NamedTuple):
    """Where a tensor lies in every snapshot of one form.

    Args:
        head: first bytes of such a file. The layout's hash is among them and so are the addresses of the datasets.
        length: of head and note together; the note begins with the step.
        size: of such a file.
        entry: of the tensor in the layout.
        start: of the tensor.
        crc: of its checksum.
    """

    head: bytes
    length: int
    size: int
    entry: Mapping[str, Any]
    start: int
    crc: int


THREADS, WORTH_THREADS = 2, 1 << 23
"""Files that are read at a time where all rows together have so many bytes: fresh pages cost more than the reading."""


def read_series(
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
    place = _locate(files[0], name)
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
    handle, size = hdf5.open_descriptor(file)
    try:
        if size != place.size or not _has_form(os.pread(handle, place.length, 0), place, file):
            known, place = place, _locate(file, name)
            if any(known.entry[key] != place.entry[key] for key in ("shape", "dtype")):
                raise TrajectoryError(
                    f"{name!r} of {file} is {_form_of(place)}, that of the first one {_form_of(known)}"
                )
        row = raw.size // max(1, len(rows)) if rows is not None else raw.size
        if rows is None or rows.step == 1:
            hdf5.read_into(handle, raw, place.start + (rows.start * row if rows else 0), file)
        else:
            for number, wanted in enumerate(rows):
                hdf5.read_into(handle, raw[number * row : (number + 1) * row], place.start + wanted * row, file)
        if verify and rows is None:
            expected = int.from_bytes(os.pread(handle, 4, place.crc), "little")
            if snapshot.checksum(place.entry, raw) != expected:
                raise TrajectoryError(f"{file} is damaged: tensor {name!r} does not match its checksum")
    except OSError as error:
        raise hdf5.unreadable_error(file, os.strerror(error.errno or 0)) from error
    finally:
        os.close(handle)
    return place


def _has_form(begin: bytes, place: _Place, file: Path) -> bool:
    """Whether a file that begins so is of this form and says the step that its name says."""
    step = file.name[:-3]
    return begin.startswith(place.head + b'{"step":%d}' % int(step) if step.isdecimal() else place.head)


def _form_of(place: _Place) -> str:
    return f"{place.entry['dtype']} {place.entry['shape']}"


def _locate(file: Path, name: str) -> _Place:
    """Ask HDF5 where the tensor lies in one file."""
    with checksummed.open_h5(file, "snapshot") as opened:
        checksummed.check_metadata(file, "snapshot", hdf5.parse_metadata(opened.metadata()))
        entries = snapshot.read_layout_only(opened)
        entry = snapshot.find_entry(entries, name, file)
        meta, array = opened.places["meta"], opened.places[f"data/{entry['array']}"]
        if "data/crc" not in opened.places:
            raise TrajectoryError(
                f"{file} has format version 1, whose tensors are read one by one: `load(step, [name])`"
            )
        start = array.offset + entry["offset"] * array.dtype.itemsize
        crc = opened.places["data/crc"].offset + 4 * [each["name"] for each in entries].index(name)
        return _Place(opened.read_head(meta.offset), meta.offset + meta.nbytes, opened.size, entry, start, crc)


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
