"""Export snapshots for other tools: one state as safetensors, or all of them as one time-major HDF5 file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from grokkit.errors import UsageError
from grokkit.trajectory.durable import fsync_dir
from grokkit.trajectory.snapshot import CARRIER_DTYPES

if TYPE_CHECKING:
    from torch import Tensor

    from grokkit.trajectory.run import Run

CHUNK_BYTES = 1 << 20
"""Approximate bytes of a chunk."""


def to_safetensors(run: Run, step: int, path: Path) -> None:
    """Write the state at `step` to `path`, which must not exist; run, seed and step become its metadata."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise UsageError(
            "exporting to safetensors needs the package safetensors: pip install 'grokkit[safetensors]'"
        ) from error
    _require_new(path)
    state = {name: tensor.contiguous() for name, tensor in run.load(step).items()}
    metadata = {"run": run.name, "seed": str(run.config.get("seed", 0)), "step": str(step)}
    save_file(state, path, metadata=metadata)


def pack(run: Run, path: Path, steps: Iterable[int] | None = None) -> None:
    """Write the snapshots of a run to one HDF5 file with time as the first dimension, for archives and other programs.

    `/steps` (T,) and `/state/<name>` (T, *shape), shuffled, compressed by gzip and with a Fletcher checksum; bfloat16
    and float8 become float32, which holds all of their values. Attribute `run`. The snapshots are not changed.

    Args:
        run: the run.
        path: must not exist.
        steps: only these.

    Cost: all snapshots are read once for each tensor; memory: one tensor through all of them.
    """
    _require_new(path)
    selected = list(run.steps() if steps is None else steps)
    if not selected:
        raise UsageError(f"{run.path} has no snapshots to pack")
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with h5py.File(draft, "w", libver=("v110", "v110")) as file:
            file.attrs["run"] = run.name
            file["steps"] = np.array(selected)
            for name in run.load(selected[0]):
                _write_dataset(file, f"state/{name}", run.trajectory(name, selected))
        os.link(draft, path)  # unlike a rename, a link never replaces a file created meanwhile
    except FileExistsError:
        _require_new(path)
        raise
    finally:
        draft.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _write_dataset(file: h5py.File, name: str, tensor: Tensor) -> None:
    array = (tensor.float() if tensor.dtype in CARRIER_DTYPES else tensor).numpy()
    rows = max(1, min(len(array), CHUNK_BYTES // max(1, array[0].nbytes)))
    chunk = (rows, *array.shape[1:])
    if array.size == 0:
        file.create_dataset(name, data=array)
    else:
        file.create_dataset(
            name, data=array, chunks=chunk, shuffle=True, compression="gzip", compression_opts=1, fletcher32=True
        )


def _require_new(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} already exists and is not overwritten. Choose another name, or remove it")
