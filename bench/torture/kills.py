"""Writers killed by SIGKILL at random moments; two writers of one folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bench.torture import workload
from grokkit.errors import TrajectoryError
from grokkit.trajectory.lock import RunLock


def forked(work: Callable[[], object]) -> int:
    """`work` in a child process that ends with it; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def killed_writers(count: int, folder: Path, seed: int = 0) -> list[str]:
    """Kill `count` writers between their first moment and half a second later; what was lost or is wrong."""
    chance, found = random.Random(seed), list[str]()
    for number in range(count):
        path = folder / f"killed-{number}"
        text = _killed(path, chance.uniform(0.0, 0.5))
        found += [f"kill {number}: {fault}" for fault in workload.faults(path, workload.heard(text))]
        shutil.rmtree(path, ignore_errors=True)
    return found


def _killed(path: Path, after: float) -> str:
    """All that a writer acknowledged before it was killed."""
    hear, say = os.pipe()
    child = forked(lambda: workload.write(path, workload.by_pipe(say)))
    os.close(say)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(hear) as pipe:
        return pipe.read()


def second_writers(count: int, folder: Path) -> list[str]:
    """While one process holds a run, `count` others try to write it; each must be refused, and nothing may change."""
    path = folder / "two"
    workload.write(path, lambda name, step: None, last=4)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}
    found = []
    with RunLock(path):
        for number in range(count):
            child = forked(lambda: _must_be_refused(path))
            if os.waitpid(child, 0)[1]:
                found.append(f"writer {number} was not refused")
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}
    return found + ([] if before == after else ["a refused writer changed the run"])


def _must_be_refused(path: Path) -> None:
    try:
        workload.opened(path, workload.Net(), resume=True)
    except TrajectoryError as error:
        if "is being written by process" in str(error):
            return
    raise AssertionError("not refused")
