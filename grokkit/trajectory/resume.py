"""The full state of a run in two alternating slots, without pickle: a JSON tree that refers to packed tensors."""

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

FILES = ("0.h5", "1.h5")

_DICTS: dict[str, type[dict[Any, Any]]] = {each.__name__: each for each in (dict, OrderedDict, Counter)}
"""Schedulers count their milestones in a Counter and miss its methods in a plain dict."""


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; tensors and arrays go to `tensors` under a number. Raises TypeError for anything else."""
    if isinstance(value, Tensor | np.ndarray):
        key = str(len(tensors))
        tensors[key] = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        return {"$": "array" if isinstance(value, np.ndarray) else "tensor", "key": key}
    if type(value) in _DICTS.values():
        return {
            "$": type(value).__name__,
            "items": [[encode(k, tensors), encode(v, tensors)] for k, v in value.items()],
        }
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
        return tensors[tree["key"]].clone()  # at an address of its own: some kernels round by how memory is aligned
    if kind == "array":
        return tensors[tree["key"]].numpy()
    if kind in _DICTS:
        return _DICTS[kind]({decode(k, tensors): decode(v, tensors) for k, v in tree["items"]})
    items = [decode(item, tensors) for item in tree["items"]]
    return tuple(items) if kind == "tuple" else items


class ResumeState(NamedTuple):
    """A state that is ready to be written; see `hold`."""

    step: int
    tree: Any
    packed: snapshot.Packed


def stage(step: int, state: dict[str, Any], staging: snapshot.Staging) -> ResumeState:
    """Copy `state` as it is now: its tensors into `staging`, the rest into a tree of JSON values.

    Raises:
        TypeError: something in it that a slot cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(state, tensors)
    return ResumeState(step, tree, staging.stage(tensors))


class ResumeStore:
    """The two slots of a run; of both the newest one whose digest holds counts.

    Args:
        folder: `resume` of the run, whose id its states carry; those of another run are none of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._run = folder, manifest.read_run_id(folder.parent)
        self._newest: tuple[int, str] | None = None
        self.seconds = 0.0
        """That all saves so far have taken."""

    def save(self, slot: ResumeState, **options: Any) -> None:
        """Write into the slot that does not hold the newest valid state, so that one good slot is always left, and list
        it in the manifest; `options` are those of `checksummed.write`."""
        start = time.perf_counter()
        count, newest = self._newest or max(self._valid(), default=(0, FILES[1]))
        name = FILES[1] if newest == FILES[0] else FILES[0]
        arrays, attributes = slot.packed.file_content()
        meta = {"step": slot.step, "save": count + 1, "tree": slot.tree}
        meta |= {"run": self._run} if self._run else {}
        path = self._folder / name
        digest = checksummed.write(path, "resume", arrays, meta, attributes=attributes, replace=True, **options)
        manifest.add_file(self._folder.parent, path, "resume", slot.step, digest, save=count + 1)
        self._newest = count + 1, name
        self.seconds += time.perf_counter() - start

    def has_any(self) -> bool:
        """Whether a state was ever saved."""
        return any((self._folder / name).exists() for name in FILES)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest slot whose digest holds; None where there is none."""
        _, newest = max(self._valid(), default=(0, None))
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
            raise DamagedError(f"{path} is damaged: its tree is none ({type(error).__name__}: {error})") from error

    def _valid(self) -> list[tuple[int, str]]:
        """Ordinal of the save and name of every slot whose digest holds; a step may be saved twice, an ordinal may
        not."""
        found = []
        for name in FILES:
            if not (self._folder / name).exists():
                continue
            try:
                note = checksummed.read(self._folder / name, "resume")[1]
            except (DamagedError, MisplacedError):
                continue
            if note.get("run", self._run) == self._run:
                found.append((note.get("save", 0), name))
        return found
