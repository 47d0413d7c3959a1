"""The resume state of a run in two alternating files, without pickle: a JSON tree that refers to packed tensors."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grokkit.errors import DamagedError, MisplacedError
from grokkit.trajectory import checksummed, manifest, snapshot

RESUME_FILES = ("0.h5", "1.h5")

_DICT_TYPES: dict[str, type[dict[Any, Any]]] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}
"""Schedulers count their milestones in a Counter and fail with a plain dict."""


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Encode `value` as JSON; tensors and arrays are added to `tensors` under a number. Raises TypeError for other
    types."""
    if isinstance(value, Tensor | np.ndarray):
        key = str(len(tensors))
        tensors[key] = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        return {"$": "array" if isinstance(value, np.ndarray) else "tensor", "key": key}
    if type(value) in _DICT_TYPES.values():
        return {
            "$": type(value).__name__,
            "items": [[encode(k, tensors), encode(v, tensors)] for k, v in value.items()],
        }
    if type(value) in (tuple, list, torch.Size):  # a named tuple would lose its names
        return {"$": "list" if isinstance(value, list) else "tuple", "items": [encode(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a resume state cannot hold {type(value).__name__}: {value!r}")


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Decode a tree, the inverse of `encode`."""
    if not isinstance(tree, dict):
        return tree
    kind = tree["$"]
    if kind == "tensor":
        return tensors[tree["key"]].clone()  # into aligned memory: rounding of some kernels depends on alignment
    if kind == "array":
        return tensors[tree["key"]].numpy()
    if kind in _DICT_TYPES:
        return _DICT_TYPES[kind]({decode(k, tensors): decode(v, tensors) for k, v in tree["items"]})
    items = [decode(item, tensors) for item in tree["items"]]
    return tuple(items) if kind == "tuple" else items


class ResumeState(NamedTuple):
    """A resume state that is ready to be written; see `stage`."""

    step: int
    tree: Any
    packed: snapshot.PackedTensors


def stage(step: int, state: dict[str, Any], staging: snapshot.Staging) -> ResumeState:
    """Copy the present `state`: its tensors to `staging`, everything else to a tree of JSON values.

    Raises:
        TypeError: it contains a type that a resume state cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(state, tensors)
    return ResumeState(step, tree, staging.stage(tensors))


class ResumeStore:
    """The two resume files of a run; the newest one with a valid digest is loaded.

    Args:
        folder: `resume` of the run. States carry the id of their run; those of another run are ignored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._run = folder, manifest.read_run_id(folder.parent)
        self._newest: tuple[int, str] | None = None
        self.seconds = 0.0
        """Total duration of all saves so far."""

    def save(self, state: ResumeState, **options: Any) -> None:
        """Write to the file that does not hold the newest valid state, so that one valid state always remains, and list
        it in the manifest; `options` are those of `checksummed.write`."""
        start = time.perf_counter()
        ordinal, newest = self._newest or max(self._find_valid(), default=(0, RESUME_FILES[1]))
        name = RESUME_FILES[1] if newest == RESUME_FILES[0] else RESUME_FILES[0]
        arrays, attributes = state.packed.file_content()
        meta = {"step": state.step, "save": ordinal + 1, "tree": state.tree}
        meta |= {"run": self._run} if self._run else {}
        path = self._folder / name
        digest = checksummed.write(path, "resume", arrays, meta, attributes=attributes, replace=True, **options)
        manifest.add_file(self._folder.parent, path, "resume", state.step, digest, save=ordinal + 1)
        self._newest = ordinal + 1, name
        self.seconds += time.perf_counter() - start

    def has_any(self) -> bool:
        """Return whether a state was ever saved."""
        return any((self._folder / name).exists() for name in RESUME_FILES)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Load step and state of the newest file with a valid digest; None if there is none."""
        _, newest = max(self._find_valid(), default=(0, None))
        if newest is None:
            return None
        path = self._folder / newest
        arrays, layout, meta, _ = snapshot.read_checked(path, "resume")
        try:
            step, state = meta["step"], decode(meta["tree"], snapshot.unpack(arrays, layout))
            if not isinstance(state, dict):
                raise TypeError(f"it holds {type(state).__name__}")
            return step, state
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: its tree is invalid ({type(error).__name__}: {error})") from error

    def _find_valid(self) -> list[tuple[int, str]]:
        """Return save ordinal and name of every file with a valid digest; a step may be saved twice, an ordinal may
        not."""
        states = []
        for name in RESUME_FILES:
            if not (self._folder / name).exists():
                continue
            try:
                metadata = checksummed.read(self._folder / name, "resume")[1]
            except (DamagedError, MisplacedError):
                continue
            if metadata.get("run", self._run) == self._run:
                states.append((metadata.get("save", 0), name))
        return states
