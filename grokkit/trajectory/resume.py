"""The full state of a run in two alternating slots, without pickle: a JSON tree that refers to packed tensors."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokkit.errors import TrajectoryError
from grokkit.trajectory import sealed, snapshot

SLOTS = ("0.h5", "1.h5")


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; tensors and arrays go to `tensors` under a number. Raises TypeError for anything else."""
    if isinstance(value, Tensor | np.ndarray):
        key = str(len(tensors))
        tensors[key] = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        return {"$": "array" if isinstance(value, np.ndarray) else "tensor", "key": key}
    if isinstance(value, dict):
        return {"$": "dict", "items": [[encode(k, tensors), encode(v, tensors)] for k, v in value.items()]}
    if type(value) in (tuple, list, torch.Size):  # a named tuple would come back without its names
        return {"$": "list" if isinstance(value, list) else "tuple", "items": [encode(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a resume slot cannot hold {type(value).__name__}: {value!r}")


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if not isinstance(tree, dict):
        return tree
    kind = tree["$"]
    if kind == "tensor":
        return tensors[tree["key"]]
    if kind == "array":
        return tensors[tree["key"]].numpy()
    if kind == "dict":
        return {decode(k, tensors): decode(v, tensors) for k, v in tree["items"]}
    items = [decode(item, tensors) for item in tree["items"]]
    return tuple(items) if kind == "tuple" else items


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` into the slot that does not hold the newest valid state, so that one good slot is always left."""
    count, newest = max(_valid(folder), default=(0, folder / SLOTS[1]))
    name = SLOTS[1] if newest.name == SLOTS[0] else SLOTS[0]
    tensors: dict[str, Tensor] = {}
    tree = encode(state, tensors)
    arrays, layout = snapshot.pack(tensors)
    meta = {"step": step, "save": count + 1, "layout": layout, "tree": tree}
    sealed.write(folder / name, "resume", arrays, meta, replace=True)


def load(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest slot whose digest holds; None where there is none."""
    _, newest = max(_valid(folder), default=(0, None))
    if newest is None:
        if any((folder / name).exists() for name in SLOTS):
            warnings.warn(f"both resume slots in {folder} are damaged; the run starts again at step 0", stacklevel=2)
        return None
    arrays, meta = sealed.read(newest, "resume")
    return meta["step"], decode(meta["tree"], snapshot.unpack(arrays, meta["layout"], newest))


def _valid(folder: Path) -> list[tuple[int, Path]]:
    """Ordinal of the save and path of every slot whose digest holds; a step may be saved twice, an ordinal may not."""
    found = []
    for name in SLOTS:
        try:
            found.append((sealed.read(folder / name, "resume")[1]["save"], folder / name))
        except TrajectoryError:
            continue
    return found
