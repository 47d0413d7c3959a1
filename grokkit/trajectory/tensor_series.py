"""Read one tensor through many snapshots, directly from its offset in each file: as fast as a time-major file."""

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


class _TensorLocation(NamedTuple):
    """Location of a tensor in every snapshot of one form.

    Args:
        head: first bytes of such a file. They include the layout's hash and the addresses of the datasets.
        length: of head and metadata together; the metadata starts with the step.
        size: of such a file.
        entry: of the tensor in the layout.
        start: offset of the tensor.
        crc: offset of its checksum.
    """

    head: bytes
    length: int
    size: int
    entry: Mapping[str, Any]
    start: int
    crc: int


THREADS, MIN_PARALLEL_BYTES = 2, 1 << 23
"""Number of files read at a time if all rows together have this many bytes: fresh pages cost more than the reading."""


def read_series(
    files: Sequence[Path],
    name: str,
    index: int | slice | None = None,
    *,
    out: Tensor | None = None,
    verify: bool = True,
) -> Tensor:
    """Read the tensor `name` from every one of `files`.

    Args:
        files: one or more snapshots in which it has one shape and dtype; their layouts may differ otherwise.
        name: of the tensor.
        index: only these of its first dimension.
        out: memory to read into, of the shape and dtype of the result, contiguous; reused memory saves most of the time
            of a large tensor.
        verify: check each tensor against its checksum, if all of it is read.

    Returns:
        (files, *shape), on the CPU.

    Raises:
        TrajectoryError: a file that is missing or damaged, or a tensor that is missing or changes its shape.
        UsageError: an index that the tensor does not have, or an `out` that does not fit.

    Cost: one `open` and, if files have one form, two small reads per file; 4 reads with `verify`.
    """
    location = _locate(files[0], name)
    rows = _resolve_rows(location.entry["shape"], index)
    shape = list(location.entry["shape"]) if rows is None else [len(rows), *location.entry["shape"][1:]]
    shape = [len(files), *shape[1 if isinstance(index, int) else 0 :]]
    dtype = getattr(torch, location.entry["dtype"])
    if out is None:
        out = torch.empty(shape, dtype=dtype)
    elif list(out.shape) != shape or out.dtype != dtype or not out.is_contiguous():
        raise UsageError(f"`out` must be contiguous, {dtype} and of shape {shape}; got {out.dtype} {list(out.shape)}")
    raw = out.view(len(files), -1).view(torch.uint8).numpy() if out.numel() else np.empty((len(files), 0), np.uint8)
    threads = THREADS if raw.size >= MIN_PARALLEL_BYTES else 1

    def read_every(first: int) -> None:
        current = location
        for row in range(first, len(files), threads):
            current = _read(files[row], name, current, raw[row], rows, verify)

    if threads == 1:
        read_every(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read_every, range(threads)))
    return out


def _read(
    file: Path, name: str, location: _TensorLocation, raw: np.ndarray, rows: range | None, verify: bool
) -> _TensorLocation:
    """Fill the bytes `raw` from one file; return the location of the tensor, to be tried first in the next file."""
    handle, size = hdf5.open_descriptor(file)
    try:
        if size != location.size or not _has_form(os.pread(handle, location.length, 0), location, file):
            previous, location = location, _locate(file, name)
            if any(previous.entry[key] != location.entry[key] for key in ("shape", "dtype")):
                raise TrajectoryError(
                    f"{name!r} of {file} is {_describe_form(location)}; the first file has {_describe_form(previous)}"
                )
        row = raw.size // max(1, len(rows)) if rows is not None else raw.size
        if rows is None or rows.step == 1:
            hdf5.read_into(handle, raw, location.start + (rows.start * row if rows else 0), file)
        else:
            for number, index in enumerate(rows):
                hdf5.read_into(handle, raw[number * row : (number + 1) * row], location.start + index * row, file)
        if verify and rows is None:
            expected = int.from_bytes(os.pread(handle, 4, location.crc), "little")
            if snapshot.checksum(location.entry, raw) != expected:
                raise TrajectoryError(f"{file} is damaged: tensor {name!r} does not match its checksum")
    except OSError as error:
        raise hdf5.unreadable_error(file, os.strerror(error.errno or 0)) from error
    finally:
        os.close(handle)
    return location


def _has_form(head: bytes, location: _TensorLocation, file: Path) -> bool:
    """Return whether a file with these first bytes has the form of `location` and the step of its name."""
    step = file.name[:-3]
    return head.startswith(location.head + b'{"step":%d}' % int(step) if step.isdecimal() else location.head)


def _describe_form(location: _TensorLocation) -> str:
    return f"{location.entry['dtype']} {location.entry['shape']}"


def _locate(file: Path, name: str) -> _TensorLocation:
    """Locate the tensor in one file through HDF5."""
    with checksummed.open_h5(file, "snapshot") as h5:
        checksummed.check_metadata(file, "snapshot", hdf5.parse_metadata(h5.read_metadata()))
        entries = snapshot.read_layout_only(h5)
        entry = snapshot.find_entry(entries, name, file)
        meta, array = h5.locations["meta"], h5.locations[f"data/{entry['array']}"]
        if "data/crc" not in h5.locations:
            raise TrajectoryError(
                f"{file} has format version 1, whose tensors can only be read one by one: `load(step, [name])`"
            )
        start = array.offset + entry["offset"] * array.dtype.itemsize
        crc = h5.locations["data/crc"].offset + 4 * [item["name"] for item in entries].index(name)
        return _TensorLocation(h5.read_head(meta.offset), meta.offset + meta.nbytes, h5.size, entry, start, crc)


def _resolve_rows(shape: Sequence[int], index: int | slice | None) -> range | None:
    if index is None:
        return None
    if not shape:
        raise UsageError("`index` selects along the first dimension, but this tensor is a single number")
    if isinstance(index, slice):
        return range(shape[0])[index]
    if not -shape[0] <= index < shape[0]:
        raise UsageError(f"`index` must be in {-shape[0]}..{shape[0] - 1}; got {index}")
    return range(index % shape[0], index % shape[0] + 1)
