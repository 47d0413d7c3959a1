"""Real runs that are stopped by SIGTERM or killed by SIGKILL at random moments, and gone on with to their end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grokkit as gk
from bench.torture.kills import forked
from grokkit import replay
from grokkit.errors import Interrupted
from grokkit.recording import recorder
from grokkit.training import loop
from grokkit.trajectory import Run

CONFIG = gk.RunConfig(
    experiment="torture",
    data=gk.spec("digits", size=8, train=400, test=200),
    model=gk.spec("mlp", widths=(64, 64)),
    batch_size=50,
    steps=400,
    records=8,
    probes={"train": 64, "test": 64, "random": 32},
    optimizer=gk.spec("adamw", lr=1e-3),
    policy=gk.spec("lc_wsd"),
    signal={"every": 40, "points": 16, "directions": 4},
    measures=(
        gk.spec("accuracy"),
        gk.spec("local_complexity", radii=(0.05, 0.5), directions=8, points=64),
        gk.spec("robust_accuracy", epsilons=(0.1,), steps=10, points=64),
        gk.spec("weight_norm"),
    ),
    attributions=(gk.spec("saliency", images=4), gk.spec("integrated_gradients", images=8, n_steps=32)),
)
AGAIN = (gk.spec("loss"), gk.spec("local_complexity", method="vertex", radii=(0.05, 0.2), directions=16, points=64))
"""Measures that are replayed over the stored snapshots."""

STOPPED = 75


@dataclass
class Tally:
    """What the runs of one suite show.

    Args:
        faults: what is lost or wrong.
        stops: signals that met a run before its end.
        twice: measures taken more than once because a stop cut them off.
        seconds: between each request and the end of the process.
    """

    faults: list[str] = field(default_factory=list)
    stops: int = 0
    twice: int = 0
    seconds: list[float] = field(default_factory=list)


def stopped_runs(count: int, folder: Path, seed: int = 0) -> Tally:
    """SIGTERM at `count` random moments of training runs with their measures."""
    return _met(count, folder, seed, "run", _train, signal.SIGTERM)


def stopped_replays(count: int, folder: Path, seed: int = 0) -> Tally:
    """SIGTERM at `count` random moments of measures that are taken over the snapshots of a finished run."""
    return _met(count, folder, seed, "replay", _replay, signal.SIGTERM)


def killed_runs(count: int, folder: Path, seed: int = 0) -> Tally:
    """SIGKILL at `count` random moments of runs that save a slot at every step."""
    return _met(count, folder, seed, "kill", _train_saving, signal.SIGKILL)


def _met(count: int, folder: Path, seed: int, kind: str, work: Callable[[Path], None], number: signal.Signals) -> Tally:
    """Signals at random moments until `count` of them have met a run before its end."""
    chance, tally, run = random.Random(seed), Tally(), 0
    straight = _straight(folder)
    longest = _seconds(work, folder / f"{kind}-whole", straight)
    while tally.stops < count:
        path, run = folder / f"{kind}-{run}", run + 1
        _prepare(path, kind, straight)
        _until_done(path, partial(work, path), chance.uniform(0, longest), tally, number)
        _compare(path, kind, straight, tally)
        shutil.rmtree(path)
    return tally


def _straight(folder: Path) -> Run:
    """A run without a stop, and the same with the replayed measures beside it."""
    root = folder / "straight"
    if not root.exists():
        _train(root / "bare")
        shutil.copytree(root / "bare", root / "replay")
        _replay(root / "replay")
    return gk.open_run(root / "bare" / CONFIG.run_name)


def _prepare(path: Path, kind: str, straight: Run) -> None:
    if kind == "replay":
        shutil.copytree(straight.path.parent.parent, path)


def _seconds(work: Callable[[Path], None], path: Path, straight: Run) -> float:
    """How long the work takes in a process like the ones that are stopped."""
    _prepare(path, path.name.split("-")[0], straight)
    start = time.monotonic()
    _signalled(partial(work, path), None, signal.SIGTERM)
    shutil.rmtree(path)
    return time.monotonic() - start


def _train(root: Path) -> None:
    path = root / CONFIG.run_name
    if path.exists():
        gk.resume(path, device="cpu")
    else:
        gk.train(CONFIG, runs=root, device="cpu")


def _train_saving(root: Path) -> None:
    loop.SAVE_INTERVAL, loop.SAVE_SHARE = 0.0, 1e9
    _train(root)


def _replay(root: Path) -> None:
    gk.replay_run(gk.open_run(root / CONFIG.run_name), AGAIN, device="cpu")


def _until_done(root: Path, work: Callable[[], None], after: float, tally: Tally, number: signal.Signals) -> None:
    """Run `work` in a process, send the signal, and run it again until it is done."""
    taken: list[str] = []
    code, text, seconds = _signalled(work, after, number)
    taken += text.split()
    if code in (STOPPED, -number):  # the latter also for a SIGTERM that came before anybody listened
        tally.stops += 1
        tally.seconds.append(seconds)
    elif code:
        tally.faults.append(f"{root.name}: exit code {code} after the signal")
    code, text, _ = _signalled(work, None, number)
    taken += text.split()
    if code:
        tally.faults.append(f"{root.name}: exit code {code} when it was gone on with")
    tally.twice += len(taken) - len(set(taken))


def _signalled(work: Callable[[], None], after: float | None, number: signal.Signals) -> tuple[int, str, float]:
    """Exit code, the measures that were ended, and the seconds from the signal to the end."""
    hear, say = os.pipe()
    child = forked(lambda: _told(work, say))
    os.close(say)
    if after is not None:
        time.sleep(after)
        os.kill(child, number)
    start = time.monotonic()
    with os.fdopen(hear) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), text, time.monotonic() - start


def _told(work: Callable[[], None], say: int) -> None:
    """`work`, whose every measure is told when it is ended; a stop ends the process with its exit code."""
    take = recorder.run_instrument

    def told(run: Path, step: int, subject: object, context: object) -> None:
        take(run, step, subject, context)  # type: ignore[arg-type]
        os.write(say, f"{recorder.instrument_name(subject)}@{step}\n".encode())  # type: ignore[arg-type]

    recorder.run_instrument = replay.run_instrument = told  # type: ignore[assignment]
    try:
        work()
    except Interrupted:
        os._exit(STOPPED)
    except KeyboardInterrupt:
        os._exit(130)


def _compare(root: Path, kind: str, straight: Run, tally: Tally) -> None:
    """Every HDF5 file to the bit, but the slots, and the metrics of the newest attempts."""
    wanted = straight.path.parent.parent.parent / ("replay" if kind == "replay" else "bare") / CONFIG.run_name
    mine = gk.open_run(root / CONFIG.run_name)
    left, right = _files(mine.path), _files(wanted)
    differing = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    if differing:
        tally.faults.append(f"{root.name} differs in {differing[:3]}")
    if not mine.metrics.equals(straight.metrics.assign(run=mine.name)):
        tally.faults.append(f"{root.name} has other metrics")
    tally.faults += mine.verify()


def _files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*.h5")
        if file.parent.name not in ("resume", "quarantine")
    }
