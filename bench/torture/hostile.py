"""HDF5 files of a hostile structure, in the place of every kind of file of a run, each read in a process of its own."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.torture import samples
from bench.torture.hostile_bytes import bend, reseal
from bench.torture.hostile_layouts import write_layout
from bench.torture.hostile_structures import SECRET, write_structure
from bench.torture.kills import forked
from grokkit.errors import TrajectoryError
from grokkit.trajectory import Run, checksummed

MEMORY = 64 << 20
"""Bytes that a reader may take beyond those of the file."""

ADDRESSES = 2 << 30
"""Bytes of addresses beyond those of the process: what asks for more ends with an error and not with the machine."""

Make = Callable[[Path, str, random.Random], str]
"""Puts a hostile file in the place of a good one of a kind; in words, what is wrong with it."""


def hostile_files(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """`count` hostile files: reading and verifying each ends with an error of ours or with bytes of the file itself,
    within 10 s and 64 MB, and never with a signal. How it ended, and what was wrong."""
    chance, ends, found = random.Random(seed), Counter[str](), list[str]()
    whole = samples.make_samples(folder)
    for number in range(count):
        with samples.copied(whole.done, folder) as run, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path, make = chance.choice(samples.list_files(run)), chance.choice(MAKERS)
            if path.parent.name == "resume":  # of two states the whole one is read
                (path.parent / ("1.h5" if path.name == "0.h5" else "0.h5")).unlink()
            what = make(path, samples.kind_of(path), chance)
            end, faults = _read_elsewhere(run, path, chance.random() < 0.5)
        ends[end] += 1
        name = f"hostile {number}, {path.relative_to(run.path)}, {make.__name__}, {what}"
        found += [f"{name}: {fault}" for fault in faults]
    return ends, found


def _read_elsewhere(run: Run, path: Path, reseals: bool) -> tuple[str, list[str]]:
    """How a child that reads the file ends, in a word, and what is wrong with that."""
    hear, say = os.pipe()
    child = forked(lambda: _tell(run, path, say, reseals))
    os.close(say)
    told, end = b"", time.monotonic() + samples.LIMIT_SECONDS
    with os.fdopen(hear, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0] and (some := pipe.read(1 << 16)):
            told += some
        is_late = time.monotonic() >= end
    if is_late:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if is_late:
        return "late", [f"it took longer than {samples.LIMIT_SECONDS:g} s"]
    if code:
        return "crashed", [f"its reader ended with {code}; the file is kept as {_kept(path)}"]
    answer = json.loads(told)
    return str(answer["end"]), list(answer["faults"])


def _kept(path: Path) -> str:
    """A copy of a file that ended its reader, to be looked at."""
    with tempfile.NamedTemporaryFile(prefix=f"hostile-{samples.kind_of(path)}-", suffix=".h5", delete=False) as file:
        file.write(path.read_bytes())
        return file.name


def _tell(run: Run, path: Path, say: int, reseals: bool) -> None:
    end, faults, before = "refused", list[str](), _peak_memory()
    soft = _addresses() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    if reseals:
        with suppress(TrajectoryError):
            reseal(path, samples.kind_of(path))
    raw = path.read_bytes() if path.stat().st_size < MEMORY else b""
    for name, look in _looks(run, path).items():
        try:
            found = look()
        except TrajectoryError as error:
            faults += [f"{name} asks for memory: {error}"] if "not enough memory" in str(error) else []
            continue
        except BaseException as error:
            faults.append(f"{name} raises {type(error).__name__}: {error} at {_line(error)}")
            continue
        end = "read" if name != "verify" and found else end
        faults += [f"{name} gives {fault}" for fault in _foreign(found, raw)[:1]]
    more = _peak_memory() - before - path.stat().st_size
    if more > MEMORY:
        faults.append(f"it took {more >> 20} MB beyond the file")
    os.write(say, json.dumps({"end": end, "faults": faults}).encode())


def _line(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _looks(run: Run, path: Path) -> dict[str, Callable[[], Any]]:
    """Every way in which somebody reads the file."""
    kind = samples.kind_of(path)
    looks: dict[str, Callable[[], Any]] = {
        "reading": lambda: samples.contents(run, path),
        "the sealed reader": lambda: checksummed.read(path, kind),
        "its digest": lambda: checksummed.try_read_digest(path),
        "verify": lambda: [run.verify(), None][1],
    }
    if kind == "snapshot":
        step = int(path.stem)
        names = [*_claimed_names(path), "net.net.1.weight"]
        looks |= {
            "the mapped state": lambda: run.load(step, verify=False),
            "single tensors": lambda: [run.load(step, [name]) for name in names],
            "unchecked tensors": lambda: [run.load(step, [name], verify=False) for name in names],
            "a trajectory": lambda: [run.trajectory(name, [step]) for name in names],
            "a row of one": lambda: [run.trajectory(name, [step], 0, verify=False) for name in names],
        }
    return looks


def _claimed_names(path: Path) -> list[str]:
    """Names of tensors that stand somewhere in the file."""
    raw = path.read_bytes()[: 1 << 20]
    begin = raw.find(b'"name":[')
    with suppress(ValueError):
        return [str(name) for name in json.loads(raw[begin + 7 : raw.find(b"]", begin) + 1])][:3] if begin > 0 else []
    return []


def _foreign(found: Any, raw: bytes) -> list[str]:
    """Arrays that are not the file's own bytes."""
    faults = []
    for name, leaf in samples.leaves(found):
        is_array = isinstance(leaf, np.ndarray | torch.Tensor)
        content = samples.raw(leaf) if is_array else leaf
        if SECRET[:16] in content:
            faults.append(f"the bytes of another file as {name or 'all'}")
        elif is_array and raw and content not in raw:
            faults.append(f"bytes as {name} that are not in the file")
    return faults


def _addresses() -> int:
    return _status("VmSize")


def _peak_memory() -> int:
    """Most memory of this process so far; what its parent took before it was forked is forgotten."""
    if not _forgot:
        Path("/proc/self/clear_refs").write_text("5")
        _forgot.append(True)
    return _status("VmHWM")


_forgot: list[bool] = []


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


MAKERS: tuple[Make, ...] = (write_structure, write_structure, write_layout, bend, bend)
