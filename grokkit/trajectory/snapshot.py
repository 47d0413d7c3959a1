"""Tensors in a sealed file: all tensors of one dtype in one flat array, found again through the layout in the note.

One dataset per tensor would cost 0.2-1 ms each; flat arrays make a snapshot as fast to write as a raw file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokkit.errors import TrajectoryError
from grokkit.registry import nearest
from grokkit.trajectory import sealed

_CARRIED_AS = {torch.bfloat16: torch.int16}
"""HDF5 and NumPy know no bfloat16: its bits travel as int16, the layout keeps the real dtype."""


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Flat arrays by NumPy dtype (`f4`, `i8`, ...) and the layout: name, dtype, array, offset, shape, crc of each."""
    parts: dict[str, list[np.ndarray]] = {}
    filled: dict[str, int] = {}
    layout = []
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        array = flat.view(_CARRIED_AS.get(flat.dtype, flat.dtype)).numpy()
        key = array.dtype.str[1:]
        entry = {
            "name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "array": key,
            "offset": filled.get(key, 0), "shape": list(tensor.shape),
        }  # fmt: skip
        layout.append(entry | {"crc": _checksum(entry, array)})
        parts.setdefault(key, []).append(array)
        filled[key] = filled.get(key, 0) + array.size
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}, layout


def _checksum(entry: Mapping[str, Any], array: np.ndarray) -> int:
    """crc32 over a tensor's name, dtype, shape and bytes: one flipped bit can turn `layers.1` into `layers.3`."""
    return zlib.crc32(array.tobytes(), zlib.crc32(f"{entry['name']} {entry['dtype']} {entry['shape']}".encode()))


def unpack(arrays: Mapping[str, Any], layout: Iterable[Mapping[str, Any]], source: Path) -> dict[str, Tensor]:
    """The tensors that `layout` lists; `arrays` may be open HDF5 datasets, of which only the wanted parts are read.

    Raises:
        TrajectoryError: a tensor's bytes do not match its checksum.
    """
    tensors = {}
    for entry in layout:
        count = int(np.prod(entry["shape"], dtype=np.int64))
        array = np.array(arrays[entry["array"]][entry["offset"] : entry["offset"] + count])
        if _checksum(entry, array) != entry["crc"]:
            raise TrajectoryError(f"{source} is damaged: tensor {entry['name']!r} does not match its checksum")
        dtype = getattr(torch, entry["dtype"])
        tensors[entry["name"]] = torch.from_numpy(array).view(dtype).reshape(entry["shape"])
    return tensors


def write(path: Path, step: int, state: Mapping[str, Tensor]) -> str:
    """Write weights and buffers as an immutable snapshot; returns its digest. See `sealed.write` for errors."""
    arrays, layout = pack(state)
    return sealed.write(path, "snapshot", arrays, {"step": step, "layout": layout})


def read(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Name -> CPU tensor. The whole file is checked by its digest; with `names` only those are read, each by its crc.

    Raises:
        TrajectoryError: missing or damaged file, or a name that is not in it.
    """
    if names is None:
        arrays, meta = sealed.read(path, "snapshot")
        return unpack(arrays, meta["layout"], path)
    names = list(names)
    with sealed.opened(path, "snapshot") as file:
        layout = {entry["name"]: entry for entry in json.loads(file["meta"][()].tobytes())["layout"]}
        for name in names:
            if name not in layout:
                raise TrajectoryError(f"{path} holds no tensor {name!r}.{nearest(name, list(layout))}")
        return unpack(file["data"], [layout[name] for name in names], path)
