"""Files of a stopped run that somebody has open, marked or locked, or that cannot be read for a moment."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

import grokkit as gk
from bench.torture import samples
from bench.torture.kills import forked
from bench.torture.samples import Samples
from grokkit.callbacks.base import BaseCallback
from grokkit.errors import DamagedError, MisplacedError, TrajectoryError
from grokkit.trajectory import Run

Holding = Callable[[Path, random.Random], Any]

UNREADABLE = "in use or unreadable: "
"""What an error says of a file of whose content nothing is known."""

NUMBERS = (errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EPERM)


def busy_files(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """`count` times a file that is held or cannot be read: it is read right or refused as such, nothing is moved, and
    the run goes on to the bits of a straight one. How often each was done, and what was wrong."""
    chance, ways, found = random.Random(seed), Counter[str](), list[str]()
    whole = samples.make_samples(folder)
    for number in range(count):
        way = chance.choice([*HELD, *HIDDEN, FAILING, FAILING])
        ways["held" if way in HELD else "hidden"] += 1
        with samples.copied(whole.stopped, folder) as run:
            path = chance.choice(samples.list_files(run))
            try:
                with samples.time_limit():
                    faults = _faults(run, path, way, chance, whole)
            except Exception as error:
                faults = [f"{type(error).__name__}: {error}"]
            name = path.relative_to(run.path)
            found += [f"busy {number}, {name}, {way}: {fault}" for fault in faults]
    return ways, found


def _faults(run: Run, path: Path, way: str, chance: random.Random, whole: Samples) -> list[str]:
    wanted = samples.read_file(run, path)
    if way in HELD:
        with HELD[way](path, chance):
            right = samples.read_file(run, path) == wanted
            found = [] if right else ["what was read is another"]
            found += run.verify() + samples.go_on(run, whole.done)
    else:
        found = _look_at_hidden(run, path, HIDDEN[way], chance, wanted)
        found += samples.go_on(run, whole.done)
    if moved := samples.quarantined(run):
        found.append(f"{moved} were put aside")
    return found + run.verify()


def _look_at_hidden(run: Run, path: Path, hide: Holding, chance: random.Random, wanted: dict[str, bytes]) -> list[str]:
    """Read, verify and resume a run, each while a file of it cannot be read."""
    found = []
    with hide(path, chance):
        try:
            if samples.read_file(run, path) != wanted:
                found.append("what was read is another")
        except TrajectoryError as error:
            found += _wrong_refusal(error)
    with hide(path, chance):
        found += [f"verify says {problem}" for problem in run.verify() if UNREADABLE not in problem]
    with hide(path, chance), suppress(TrajectoryError):
        gk.resume(run.path, device="cpu", callback=BaseCallback())
    return found


def _wrong_refusal(error: TrajectoryError) -> list[str]:
    right = UNREADABLE in str(error) and not isinstance(error, DamagedError | MisplacedError)
    return [] if right else [f"refused as {type(error).__name__}: {error}"]


# --- files that somebody holds: their content is to be had -----------------------------------------------------------


@contextmanager
def _open_here(path: Path, chance: random.Random) -> Iterator[None]:
    with h5py.File(path, chance.choice(("r", "r+")), libver=chance.choice(("latest", None))):
        yield


@contextmanager
def _swmr_here(path: Path, _: random.Random) -> Iterator[None]:
    with h5py.File(path, "r+", libver="latest") as file:
        file.swmr_mode = True
        yield


@contextmanager
def _open_elsewhere(path: Path, chance: random.Random) -> Iterator[None]:
    child = _opened_by_a_child(path, chance.choice(("r", "r+")))
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@contextmanager
def _opened_by_a_killed_one(path: Path, _: random.Random) -> Iterator[None]:
    child = _opened_by_a_child(path, "r+")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    yield


def _opened_by_a_child(path: Path, mode: str) -> int:
    """A process that has the file open and sleeps; its number."""
    hear, say = os.pipe()

    def hold() -> None:
        with h5py.File(path, mode, libver="latest"):
            os.write(say, b"open")
            time.sleep(60)

    child = forked(hold)
    os.close(say)
    with os.fdopen(hear, "rb") as told:
        if told.read(4) != b"open":
            raise AssertionError(f"a child could not open {path}")
    return child


@contextmanager
def _locked(path: Path, chance: random.Random) -> Iterator[None]:
    with open(path, "rb") as file:
        fcntl.flock(file, chance.choice((fcntl.LOCK_SH, fcntl.LOCK_EX)))
        if chance.random() < 0.5:
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
        yield


HELD: dict[str, Holding] = {
    "open here": _open_here,
    "open for readers beside": _swmr_here,
    "open elsewhere": _open_elsewhere,
    "opened by a killed process": _opened_by_a_killed_one,
    "locked": _locked,
}

# --- files that cannot be read for a moment ---------------------------------------------------------------------------


@contextmanager
def _failing(path: Path, chance: random.Random) -> Iterator[None]:
    """The disk refuses some calls that concern this file, from a random one on and for a random number of them."""
    number, first, many = chance.choice(NUMBERS), chance.randrange(6), chance.choice((1, 2, 1000))
    calls, before = iter(range(1 << 30)), {name: getattr(os, name) for name in ("open", "pread", "preadv", "fstat")}

    def concerns(subject: Any) -> bool:
        with suppress(OSError):
            return (os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else str(subject)) == str(path)
        return False

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(subject: Any, *arguments: Any, **options: Any) -> Any:
            if concerns(subject) and first <= next(calls) < first + many:
                raise OSError(number, os.strerror(number))
            return call(subject, *arguments, **options)

        return refuse

    for name, call in before.items():
        setattr(os, name, refusing(call))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(os, name, call)


@contextmanager
def _replaced(path: Path, make: Callable[[Path], object]) -> Iterator[None]:
    kept = path.with_suffix(".kept")
    path.rename(kept)
    make(path)
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)


FAILING = "the disk fails"
HIDDEN: dict[str, Holding] = {
    FAILING: _failing,
    "a pipe in its place": lambda path, _: _replaced(path, os.mkfifo),
    "a folder in its place": lambda path, _: _replaced(path, Path.mkdir),
    "a device in its place": lambda path, _: _replaced(path, lambda there: there.symlink_to("/dev/zero")),
}
