"""Full disks and disks that fail amid a write, and files that were damaged later."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.torture import workload
from bench.torture.workload import same
from grokkit.errors import TrajectoryError
from grokkit.trajectory import Run, checksummed, durable, resume, store

DISK = 3 << 20
"""Bytes of the small disk."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 3 MB in memory; needs the right to mount."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def full_disks(count: int, folder: Path, seed: int = 0) -> list[str]:
    """`count` writers whose disk fills up, every other one amid a write; then there is room again, and each goes on."""
    chance, found = random.Random(seed), list[str]()
    with small_disk(folder) as disk:
        for number in range(count):
            found += [f"disk {number}: {fault}" for fault in _filled(disk, chance, foresees=number % 2 == 0)]
            for path in disk.iterdir():
                shutil.rmtree(path, ignore_errors=True)
                path.unlink() if path.is_file() else None
    return found


def _filled(disk: Path, chance: random.Random, foresees: bool) -> list[str]:
    """One writer; `foresees`: it asks for the room before it writes, as it does where it is not prevented."""
    ballast, path, said = disk / "ballast", disk / "run", dict[str, int]()
    ballast.write_bytes(bytes(int(chance.uniform(0.5, 0.8) * DISK)))
    reserve, durable.RESERVE_BYTES = durable.RESERVE_BYTES, durable.RESERVE_BYTES if foresees else -DISK
    submit = workload.Writer.submit
    try:
        workload.write(path, lambda name, step: said.update({name: step}), last=40)
        return ["the disk never filled"]
    except (TrajectoryError, OSError) as error:
        if "No space left" not in str(error):
            return [f"an error that does not name the cause: {error}"]
    finally:
        durable.RESERVE_BYTES, workload.Writer.submit = reserve, submit  # type: ignore[method-assign]
    ballast.unlink()
    return workload.faults(path, said)


def damaged_files(count: int, folder: Path, seed: int = 0) -> tuple[int, list[str]]:
    """`count` times a snapshot, a slot or a reading that is cut short, has a bit flipped or 4 KB of zeros in it: each
    read is an error or gives what was written. How many were errors, and what was wrong without one."""
    chance, found, errors = random.Random(seed), list[str](), 0
    path = folder / "damaged"
    workload.write(path, lambda name, step: None, last=6)
    run = workload.gk.open_run(path)
    (measure,) = run.measures()
    reading = run.reading(measure, 3)
    subjects = [
        path / "snapshots" / store.step_file_name(3),
        path / "resume" / "1.h5",
        path / "measures" / measure / store.step_file_name(3),
    ]
    for number in range(count):
        file = subjects[number % len(subjects)]
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, chance))
        try:
            right = _reads_right(file, run, measure, reading)
        except TrajectoryError:
            errors += 1
        except Exception as error:
            found.append(f"damage {number} of {file.name}: {type(error).__name__}: {error}")
        else:
            found += [] if right else [f"damage {number} of {file.name} gave other numbers without an error"]
        file.write_bytes(whole)
    return errors, found


def _reads_right(file: Path, run: Run, measure: str, reading: object) -> bool:
    if file.parent.name == "snapshots":
        one = run.trajectory("layers.7", [3])[0]
        return same(run.load(3), workload.content(3)) and torch.equal(one, workload.content(3)["layers.7"])
    if file.parent.name == "resume":
        _, state = checksummed.read(file, "resume")[1]["step"], resume.ResumeStore(file.parent).load()
        return state is not None and same(state[1]["model"], workload.content(state[0]))
    again = run.reading(measure, 3)
    return bool((again.values == reading.values).all()) and again.coords == reading.coords  # type: ignore[attr-defined]


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Cut short, one bit flipped, or 4 KB of zeros; half of it in the part where HDF5 keeps its own notes."""
    content = bytearray(whole)
    at = chance.randrange(min(len(whole), 4000) if chance.random() < 0.5 else len(whole))
    kind = chance.randrange(3)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        content[at] ^= 1 << chance.randrange(8)
    else:
        content[at : at + 4096] = bytes(len(content[at : at + 4096]))
    return bytes(content)
