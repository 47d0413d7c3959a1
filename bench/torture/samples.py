"""Small runs that are made once and copied for every trial, and how each of their files is read."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

import grokkit as gk
from grokkit.callbacks.base import BaseCallback
from grokkit.errors import Interrupted
from grokkit.training import loop
from grokkit.trajectory import Run, resume, snapshot

CONFIG = gk.RunConfig(
    experiment="torture",
    data=gk.spec("digits", size=8, train=120, test=60),
    model=gk.spec("mlp", widths=(12,)),
    batch_size=50,
    steps=24,
    records=5,
    probes={"train": 16, "test": 16, "random": 8},
    policy=gk.spec("constant"),
    measures=(gk.spec("accuracy"), gk.spec("weight_norm")),
    attributions=(gk.spec("saliency", images=2),),
)
"""A run of about a fifth of a second."""

STOPPED_AT = 14
LIMIT_SECONDS = 10.0
"""Longer than this nothing may take that is done to one of these runs."""


class Samples(NamedTuple):
    """Runs to copy from; nobody writes to them.

    Args:
        done: a finished one.
        other: a finished one of another seed.
        stopped: one of the first seed that was interrupted half way.
        other_stopped: one of the other seed that was interrupted half way.
    """

    done: Run
    other: Run
    stopped: Run
    other_stopped: Run


class _Stops(BaseCallback):
    """An observer that stops its run before a step."""

    def report(self, step: int, values: Any) -> None:
        if step == STOPPED_AT - 1:
            os.kill(os.getpid(), signal.SIGINT)


def make_samples(folder: Path) -> Samples:
    """Train the four runs below `folder`, with both resume states of each."""
    made = []
    before = loop.SAVE_INTERVAL, loop.SAVE_SHARE
    loop.SAVE_INTERVAL, loop.SAVE_SHARE = 0.0, 1e9
    try:
        for root in ("done", "stopped"):
            for seed in (0, 1):
                config = CONFIG.replace(seed=seed)
                callback = _Stops() if root == "stopped" else BaseCallback()
                with suppress(Interrupted):
                    gk.train(config, runs=folder / root, device="cpu", callback=callback)
                made.append(gk.open_run(folder / root / config.run_name))
    finally:
        loop.SAVE_INTERVAL, loop.SAVE_SHARE = before
    if [run.status["state"] for run in made] != ["done", "done", "interrupted", "interrupted"] or any(
        len(list((run.path / "resume").glob("*.h5"))) != 2 for run in made
    ):
        raise AssertionError(f"the runs to copy from ended as {[run.status for run in made]}")
    return Samples(*made)


@contextmanager
def copied(run: Run, folder: Path) -> Iterator[Run]:
    """A copy of a run that can be harmed; it is gone afterwards."""
    path = folder / "trial" / run.path.name
    shutil.copytree(run.path, path)
    try:
        yield gk.open_run(path)
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


@contextmanager
def time_limit(seconds: float = LIMIT_SECONDS) -> Iterator[None]:
    """Raise TimeoutError in whatever takes longer, such as a reader that waits for a pipe."""

    def expire(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def list_files(run: Run) -> list[Path]:
    """Every HDF5 file of a run."""
    return sorted(run.path.rglob("*.h5"))


def kind_of(path: Path) -> str:
    """What a file of a run is, by its folder."""
    rooms = {"snapshots": "snapshot", "resume": "resume", "probes": "probes"}
    if path.parent.name in rooms:
        return rooms[path.parent.name]
    return {"measures": "reading", "attributions": "attribution"}[path.parent.parent.name]


def read_file(run: Run, path: Path) -> dict[str, bytes]:
    """What a file of a run says, by the reader that a user has for it: bytes by name, the note among them.

    Raises:
        GrokkitError: it cannot be read, or is not what its name says.
    """
    return {name: value if isinstance(value, bytes) else raw(value) for name, value in contents(run, path).items()}


def contents(run: Run, path: Path) -> dict[str, Any]:
    """As `read_file`: arrays and tensors as they come, everything else as bytes."""
    match kind_of(path):
        case "snapshot":
            state = run.load(int(path.stem))
            return {**state, "through time": run.trajectory(next(iter(state)), [int(path.stem)])}
        case "probes":
            return {name: getattr(run.probes[path.stem], name) for name in ("images", "labels", "indices")}
        case "reading":
            found = run.reading(path.parent.name, int(path.stem))
            bounds = {name: getattr(found, name) for name in ("low", "high") if getattr(found, name) is not None}
            note = [found.measure, found.dims, found.coords, found.unit, found.n, found.settings]
            return {"values": found.values, **bounds, "note": repr(note).encode()}
        case "attribution":
            values, labels, told = run.attribution(path.parent.name, int(path.stem))
            return {"values": values, "labels": labels, "note": repr(told).encode()}
    loaded = resume.ResumeStore(path.parent).load()
    return {"step": b"none"} if loaded is None else flatten(*loaded)


def state_in(path: Path) -> dict[str, bytes]:
    """What one resume state says, as `read_file` gives the newest of two."""
    arrays, layout, note, _ = snapshot.read_checked(path, "resume")
    told = flatten(note["step"], resume.decode(note["tree"], snapshot.unpack(arrays, layout)))
    return {name: value if isinstance(value, bytes) else raw(value) for name, value in told.items()}


def flatten(step: int, state: Any) -> dict[str, Any]:
    """A resume state by the paths of its leaves, with its step."""
    return {"step": str(step).encode(), **dict(leaves(state))}


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor, array and number of a nested state by its path."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, f"{name}/{key}")
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            yield from leaves(value, f"{name}/{number}")
    else:
        yield name, state if isinstance(state, torch.Tensor | np.ndarray) else repr(state).encode()


def raw(array: torch.Tensor | np.ndarray) -> bytes:
    """The bytes of an array, in order."""
    if isinstance(array, torch.Tensor):
        array = array.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return array.tobytes()


def results(run: Run) -> dict[str, dict[str, bytes]]:
    """What the probes, readings, maps and snapshots of a run say, which a resumed run and a straight one have alike."""
    wanted = [path for path in list_files(run) if path.parent.name not in ("resume", "quarantine")]
    return {str(path.relative_to(run.path)): read_file(run, path) for path in wanted}


def go_on(run: Run, straight: Run) -> list[str]:
    """Resume a run to its end; what differs from the straight one."""
    done = gk.resume(run.path, device="cpu", callback=BaseCallback())
    mine, other = results(done), results(straight)
    found = [
        f"{name} is another than in a straight run"
        for name in sorted(mine.keys() | other.keys())
        if mine.get(name) != other.get(name)
    ]
    if not done.metrics.equals(straight.metrics.assign(run=done.name)):
        found.append("the metrics are others than those of a straight run")
    return found


def quarantined(run: Run) -> list[str]:
    """Names of what was put aside."""
    folder = run.path / "quarantine"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
