"""Recorders whose process forks at random moments, amid whatever it does; the fork is a stranger to the run."""

from __future__ import annotations

import gc
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import thread
from pathlib import Path
from types import FrameType

from bench.torture import workload
from bench.torture.kills import forked
from grokkit.errors import UsageError
from grokkit.recording.recorder import Recorder
from grokkit.trajectory import open_run
from grokkit.trajectory.lock import is_held

FIRST, LAST = 0.002, 0.2
"""Seconds after the recorder is open between which its process forks."""

STEPS = 50
WAIT = 20.0
"""Seconds that a fork has for what it does."""

RIGHT = b"right\n"


def forked_recorders(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """`count` recorders that fork; the fork writes, closes, exits, drops the recorder or lives on, and some of them are
    killed then. What the forks did, and what was lost or wrong."""
    chance, ways, found = random.Random(seed), Counter[str](), list[str]()
    for number in range(count):
        path, way, is_killed = folder / f"forks-{number}", chance.choice(sorted(WAYS)), chance.random() < 0.5
        is_killed = is_killed or way == "lives on"
        ways[way] += 1
        faults = _run(path, way, chance.uniform(FIRST, LAST), is_killed)
        found += [f"fork {number}, {way}, {'killed' if is_killed else 'to its end'}: {fault}" for fault in faults]
        shutil.rmtree(path, ignore_errors=True)
    return ways, found


def _run(path: Path, way: str, after: float, is_killed: bool) -> list[str]:
    """One recorder, its fork, its end, and its run afterwards."""
    hear, say = os.pipe()
    hear_fork, say_fork = os.pipe()
    parent = forked(lambda: _record(path, say, say_fork, way, after))
    os.close(say)
    os.close(say_fork)
    told = _heard_from(hear_fork)
    pid, _, said = told.partition(b"\n")
    found = [] if said == RIGHT else [f"in the fork: {said.decode() or 'it ended without a word'}"]
    found += _faults_of_living(path, parent)
    if is_killed:
        os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    if is_held(path):
        found.append("the lock is held though its process is gone")
    with os.fdopen(hear) as pipe:
        text = pipe.read()
    found += workload.faults(path, workload.heard(text))
    if way == "lives on" and pid:
        os.kill(int(pid), signal.SIGKILL)
    os.close(hear_fork)
    return found


def _heard_from(pipe: int) -> bytes:
    """Number of a fork and what it says of itself, as far as it comes in time."""
    told, end = b"", time.monotonic() + WAIT
    while told.count(b"\n") < 2 and select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        some = os.read(pipe, 1 << 16)
        if not some:
            break
        told += some
    return told


def _faults_of_living(path: Path, parent: int) -> list[str]:
    """What the folder says while the recorder's process is known to live: looked at before and after."""
    held, state = is_held(path), open_run(path).status["state"]
    if os.waitid(os.P_PID, parent, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None or _is_ending(path, state):
        return []
    found = [] if held else ["the lock of a living run is free"]
    return found if state in ("starting", "running") else [*found, f"a living run is said to be {state}"]


def _is_ending(path: Path, state: str) -> bool:
    """Whether the process may have closed its recorder by itself since."""
    return state == "done" and len(open_run(path).steps()) > STEPS


def _record(path: Path, say: int, say_fork: int, way: str, after: float) -> None:
    """As `workload.write`, with an alarm amid it at which the process forks."""
    holder: list[Recorder] = []

    def fork(_: int, __: FrameType | None) -> None:
        if thread._global_shutdown_lock.locked():  # Python takes it for a fork, and its holder is what was interrupted
            signal.setitimer(signal.ITIMER_REAL, 0.0003)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads may fork; so do data loaders
            child = os.fork()
        if child:
            holder.clear()
            return
        os.close(say)
        os.write(say_fork, f"{os.getpid()}\n".encode())
        _end(WAYS[way], holder, say_fork)

    workload._acknowledging(workload.by_pipe(say))
    net, part = workload.Net().at(0), workload.Counter()
    signal.signal(signal.SIGALRM, fork)
    with workload.opened(path, net) as recorder:
        holder.append(recorder)
        signal.setitimer(signal.ITIMER_REAL, after)
        for step in range(1, STEPS + 1):
            workload.advance(recorder, net, part, step)
        while holder:  # until it has forked
            time.sleep(0.01)


def _end(work: Callable[[list[Recorder]], None], holder: list[Recorder], say: int) -> None:
    """Do as a fork does, and end with it, saying whether all was right."""
    code = 1
    try:
        work(holder)
        os.write(say, RIGHT)
        code = 0
        if work is _live_on:
            time.sleep(60)
    except SystemExit as stop:
        code = int(stop.code or 0)
        os.write(say, RIGHT)
    except BaseException:
        os.write(say, traceback.format_exc().replace("\n", " | ").encode() + b"\n")
    finally:
        os._exit(code)


# --- what a fork does -------------------------------------------------------------------------------------------------


def _write(holder: list[Recorder]) -> None:
    (recorder,) = holder
    calls: list[Callable[[], object]] = [
        lambda: recorder.step(STEPS + 1),
        lambda: recorder.log(1, "batch", loss=1.0),
        lambda: recorder.save(1),
        lambda: recorder.event(1, "mine", "text"),
        recorder.restore,
        recorder.discard,
        lambda: recorder.add_snapshot(1, {}),
    ]
    for call in calls:
        try:
            call()
        except UsageError as error:
            if "a fork of it" not in " ".join(str(error).split()):
                raise
        else:
            raise AssertionError("a fork could write")


def _close(holder: list[Recorder]) -> None:
    holder[0].close("failed", "a fork says so")
    holder[0].close()


def _leave_a_block(holder: list[Recorder]) -> None:
    with holder[0]:
        sys.exit(0)


def _fail_in_a_block(holder: list[Recorder]) -> None:
    try:
        with holder[0]:
            raise ValueError("a worker failed")
    except ValueError:
        return


def _drop(holder: list[Recorder]) -> None:
    recorder = holder.pop()
    Recorder.__del__(recorder)
    del recorder
    gc.collect()


def _exit(_: list[Recorder]) -> None:
    return None


def _live_on(_: list[Recorder]) -> None:
    return None


WAYS: dict[str, Callable[[list[Recorder]], None]] = {
    "writes": _write,
    "closes": _close,
    "exits in a block": _leave_a_block,
    "fails in a block": _fail_in_a_block,
    "drops it": _drop,
    "exits": _exit,
    "lives on": _live_on,
}
