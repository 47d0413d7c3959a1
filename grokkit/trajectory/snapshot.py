"""Store tensors in a checksummed file: all tensors of one dtype in one flat array, located through a layout.

One dataset per tensor would cost 0.2-1 ms each; flat arrays make a snapshot as fast to write as a raw file.

    /data/layout     JSON as uint8: lists of name, dtype, array, offset and shape; its hash is the attribute `layout`
    /data/crc        uint32, of each tensor
    /data/f4, ...    all tensors of one dtype, concatenated

A snapshot holds the weights and buffers of a recorded step; papers call it a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grokkit.errors import DamagedError, TrajectoryError, UsageError
from grokkit.registry import did_you_mean
from grokkit.trajectory import checksummed, hdf5
from grokkit.trajectory.hdf5 import UntrustedFile

CARRIER_DTYPES = {torch.bfloat16: torch.int16} | dict.fromkeys(
    (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz), torch.uint8
)
"""HDF5 and NumPy have no bfloat16 and no float8: their bits are stored as integers, and the layout keeps the real
dtype."""

_ALIGNMENT = 64
"""Bytes; alignment of each array in a staging buffer."""

Layout = list[dict[str, Any]]
Sizes = Mapping[str, tuple[np.dtype, int]]
"""Dtype and length of every array."""


class PackedTensors(NamedTuple):
    """Concatenated tensors, ready to be written.

    Args:
        arrays: one flat array for each dtype.
        layout: the location of each tensor in the arrays.
        text: the layout as JSON, column by column.
    """

    arrays: dict[str, np.ndarray]
    layout: Layout
    text: bytes

    def file_content(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the arrays, with the checksums, and the attributes of the file."""
        crc = np.array([checksum(entry, _slice_entry(self.arrays, entry)) for entry in self.layout], np.uint32)
        arrays = {**self.arrays, "layout": np.frombuffer(self.text, np.uint8), "crc": crc}
        return arrays, {"layout": hash_layout(self.text)}


class Staging:
    """Host memory that tensors are copied to before they are written, allocated once and reused: fresh pages cost more
    than the copy itself (`python -m bench through-time` shows it for reading)."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._known: dict[tuple[Any, ...], tuple[PackedTensors, list[Tensor]]] = {}

    def stage(self, tensors: Mapping[str, Tensor]) -> PackedTensors:
        """Copy `tensors`; the result is valid until the next call.

        Cost: one copy of the bytes, and of the layout once for each set of names, dtypes and shapes.
        """
        for name, value in tensors.items():
            if not torch.is_tensor(value):
                raise UsageError(f"{name!r} cannot be stored: expected a tensor, got {type(value).__name__}")
        key = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        if key not in self._known:
            self._known[key] = self._plan(tensors)
        packed, views = self._known[key]
        for view, tensor in zip(views, tensors.values(), strict=True):
            view.copy_(tensor.detach())
        return packed

    def _plan(self, tensors: Mapping[str, Tensor]) -> tuple[PackedTensors, list[Tensor]]:
        layout, filled, dtypes = _plan_layout(tensors)
        sizes = {key: filled[key] * np.dtype(key).itemsize for key in filled}
        starts, end = dict[str, int](), 0
        for key, size in sizes.items():
            starts[key] = end
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        if end > len(self._memory):
            on_gpu = any(tensor.is_cuda for tensor in tensors.values())
            self._memory = torch.empty(end, dtype=torch.uint8, pin_memory=on_gpu)
            self._known.clear()
        flat = {key: self._memory[starts[key] : starts[key] + size] for key, size in sizes.items()}
        views = [
            flat[entry["array"]].view(dtype)[entry["offset"] : entry["offset"] + tensor.numel()].view(tensor.shape)
            for entry, dtype, tensor in zip(layout, dtypes, tensors.values(), strict=True)
        ]
        arrays = {key: piece.numpy().view(key) for key, piece in flat.items()}
        columns = {key: [entry[key] for entry in layout] for key in layout[0]} if layout else {}
        return PackedTensors(arrays, layout, checksummed.canonical_json(columns)), views


def _plan_layout(tensors: Mapping[str, Tensor]) -> tuple[Layout, dict[str, int], list[torch.dtype]]:
    """Return the entries, the length of each array, and the dtype in which each tensor is copied."""
    layout, filled, dtypes = Layout(), dict[str, int](), []
    for name, tensor in tensors.items():
        key = _carrier_name(name, tensor)
        layout.append(
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "array": key,
                "offset": filled.get(key, 0),
                "shape": list(tensor.shape),
            }
        )
        filled[key] = filled.get(key, 0) + tensor.numel()
        dtypes.append(tensor.dtype)
    return layout, filled, dtypes


def _carrier_name(name: str, tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_meta:
        raise UsageError(
            f"{name!r} cannot be stored: it is {tensor.layout} on {tensor.device}; expected a dense tensor with data"
        )
    try:
        return torch.empty(0, dtype=CARRIER_DTYPES.get(tensor.dtype, tensor.dtype)).numpy().dtype.str[1:]
    except TypeError as error:
        raise UsageError(f"{name!r} cannot be stored: NumPy has no array of {tensor.dtype}") from error


def hash_layout(text: bytes) -> str:
    """Compute the hash of a layout that is stored in the attribute `layout`."""
    return hashlib.sha256(text).hexdigest()[:16]


def _slice_entry(arrays: Mapping[str, np.ndarray], entry: Mapping[str, Any]) -> np.ndarray:
    return arrays[entry["array"]][entry["offset"] : entry["offset"] + math.prod(entry["shape"])]


def checksum(entry: Mapping[str, Any], array: np.ndarray) -> int:
    """Compute the crc32 over a tensor's name, dtype, shape and bytes: one flipped bit can turn `layers.1` into
    `layers.3`."""
    return zlib.crc32(array.data, zlib.crc32(f"{entry['name']} {entry['dtype']} {entry['shape']}".encode()))


def unpack(arrays: Mapping[str, np.ndarray], layout: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the tensors that `layout` lists, sharing the memory of `arrays`."""
    return {entry["name"]: decode_tensor(_slice_entry(arrays, entry), entry) for entry in layout}


def decode_tensor(array: np.ndarray, entry: Mapping[str, Any]) -> Tensor:
    """Convert the flat array of one tensor to the tensor."""
    return torch.from_numpy(array).view(getattr(torch, entry["dtype"])).reshape(entry["shape"])


def read_layout(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Layout:
    """Return the entries of a file, each with its `crc`; version 1 stored them in the metadata.

    Raises:
        ValueError: an entry that is invalid, or that exceeds its array.
    """
    return _parse_layout(arrays, metadata, {name: (array.dtype, array.size) for name, array in arrays.items()})


def _parse_layout(texts: Mapping[str, np.ndarray], metadata: Mapping[str, Any], sizes: Sizes) -> Layout:
    if "layout" in metadata:
        return _check_entries([dict(entry) for entry in metadata["layout"]], sizes)
    columns = json.loads(texts["layout"].tobytes()) | {"crc": texts["crc"].tolist()}
    return _check_entries([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], sizes)


def _check_entries(layout: Layout, sizes: Sizes) -> Layout:
    """Check the untrusted entries: each has a known dtype, lies in its array, and has a unique name."""
    for entry in layout:
        key, shape, offset = _carrier_name_of_dtype(entry["dtype"]), entry["shape"], entry["offset"]
        stored, size = sizes.get(key, (None, 0))
        if stored is None or entry["array"] != key or stored.str[1:] != key or not stored.isnative:
            raise ValueError(f"its layout has a tensor of {entry['dtype']!r} in {entry['array']!r}")
        if not (type(offset) is int and type(entry["name"]) is str and all(type(n) is int and n >= 0 for n in shape)):
            raise ValueError("its layout has an invalid entry")
        if not 0 <= offset <= size - math.prod(shape):
            raise ValueError(f"its layout has a tensor, {entry['name']!r}, that exceeds the array {key!r}")
    if len({entry["name"] for entry in layout}) != len(layout):
        raise ValueError("its layout has two tensors of the same name")
    return layout


@cache
def _carrier_name_of_dtype(dtype: str) -> str:
    """Return the array that stores tensors of a dtype. Raises ValueError for an unknown dtype, or one that cannot be
    stored."""
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"its layout has a tensor of {dtype!r}")
    try:
        return _carrier_name("", torch.empty(0, dtype=torch_dtype))
    except UsageError as error:
        raise ValueError(f"its layout has a tensor of {dtype!r}") from error


def read_layout_only(file: UntrustedFile) -> Layout:
    """Return the entries of an open file without verifying its digest. Raises DamagedError if they do not match their
    hash."""
    texts = {name: file.read_array(f"data/{name}") for name in ("layout", "crc") if f"data/{name}" in file.locations}
    if "layout" in file.attributes and hash_layout(texts["layout"].tobytes()) != file.attributes["layout"]:
        raise DamagedError(f"{file.path} is damaged: its layout does not match its hash")
    sizes = {name[5:]: (location.dtype, math.prod(location.shape)) for name, location in file.locations.items()}
    return _parse_layout(texts, hdf5.parse_metadata(file.read_metadata()), sizes)


def write_snapshot(path: Path, step: int, state: Mapping[str, Tensor]) -> str:
    """Write weights and buffers as an immutable snapshot and return its digest. See `checksummed.write` for errors."""
    return write_packed(path, step, Staging().stage(state))


def write_packed(path: Path, step: int, packed: PackedTensors, **options: Any) -> str:
    """Write staged tensors as `write_snapshot` does; `options` are those of `checksummed.write`."""
    arrays, attributes = packed.file_content()
    return checksummed.write(path, "snapshot", arrays, {"step": step}, attributes=attributes, **options)


def read_snapshot(path: Path, names: Iterable[str] | None = None, *, verify: bool = True) -> dict[str, Tensor]:
    """Read a snapshot: name -> CPU tensor.

    The whole file is verified by its digest; with `names` only those tensors are read, each verified by its crc;
    without `verify` nothing is verified.

    Raises:
        TrajectoryError: missing or damaged file, or a name that is not in it.
    """
    if names is None and verify:
        return unpack(*read_checked(path, "snapshot")[:2])
    with checksummed.open_h5(path, "snapshot") as file:
        checksummed.check_metadata(path, "snapshot", hdf5.parse_metadata(file.read_metadata()))
        entries = read_layout_only(file)
        if names is None:
            return unpack({key: file.map_array(f"data/{key}") for key in {e["array"] for e in entries}}, entries)
        selected = [find_entry(entries, name, path) for name in names]
        arrays = {
            entry["name"]: file.read_range(f"data/{entry['array']}", entry["offset"], math.prod(entry["shape"]))
            for entry in selected
        }
        for entry in selected if verify else ():
            if checksum(entry, arrays[entry["name"]]) != entry["crc"]:
                raise TrajectoryError(f"{path} is damaged: tensor {entry['name']!r} does not match its checksum")
        return {entry["name"]: decode_tensor(arrays[entry["name"]], entry) for entry in selected}


def read_checked(path: Path, kind: str) -> tuple[dict[str, np.ndarray], Layout, dict[str, Any], str]:
    """Read arrays, layout, metadata and digest of a file of packed tensors, verified; see `checksummed.read` for
    errors."""
    arrays, metadata, digest = checksummed.read_with_digest(path, kind)
    try:
        return arrays, read_layout(arrays, metadata), metadata, digest
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def has_state(path: Path, state: Mapping[str, Tensor]) -> bool:
    """Return whether the snapshot is bitwise equal to this state."""
    stored = read_snapshot(path)
    return stored.keys() == state.keys() and all(_has_same_bits(stored[name], state[name]) for name in stored)


def _has_same_bits(stored: Tensor, other: Tensor) -> bool:
    if stored.dtype != other.dtype or stored.shape != other.shape:
        return False
    other = other.detach().cpu().contiguous()
    return stored.numel() == 0 or torch.equal(stored.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


def find_entry(layout: Sequence[Mapping[str, Any]], name: str, source: Path) -> Mapping[str, Any]:
    """Find the entry called `name`. Raises TrajectoryError with the most similar name if there is none."""
    entries = {entry["name"]: entry for entry in layout}
    if name not in entries:
        raise TrajectoryError(f"{source} holds no tensor {name!r}.{did_you_mean(name, list(entries))}")
    return entries[name]
