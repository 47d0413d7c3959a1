"""Sweeps whose runs, Ray workers and queues are killed at random moments, and which end with the bits of others."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grokkit as gk
from grokkit.errors import GrokkitError

CONFIG = gk.RunConfig(
    experiment="torture",
    data=gk.spec("digits", size=8, train=400, test=200),
    model=gk.spec("mlp", widths=(16,)),
    batch_size=50,
    steps=1500,
    records=6,
    probes={"train": 32, "test": 32, "random": 16},
    optimizer=gk.spec("adamw", lr=1e-3),
    policy=gk.spec("lc_wsd"),
    signal={"every": 250, "points": 8, "directions": 4},
    measures=(gk.spec("accuracy"), gk.spec("weight_norm")),
)
RUNS = 4
AT_ONCE = 2
KILLS = 6
"""Of each sweep; after them it is left alone."""

WEIGHTS = {"queue": 1, "run": 2, "worker": 3}
"""How likely each kind of process is to be killed; one of a kind that is not there now is not."""

PAUSE_SECONDS = 6.0
"""The longest time between two kills."""

LIMIT_SECONDS = {"local": 240.0, "ray": 400.0}
"""After its last kill a sweep has this long to end."""

POLL_SECONDS = 0.05


@dataclass
class Tally:
    """What the sweeps of one kind show.

    Args:
        faults: what is lost or wrong.
        kills: how often each kind of process was killed.
        given_up: runs that ended with that named reason, and were gone on with by `--retry-failed`.
        commands: how often the command was started.
    """

    faults: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    given_up: int = 0
    commands: int = 0


def killed_sweeps(kills: int, folder: Path, launcher: str, seed: int = 0) -> Tally:
    """Sweeps with `local` workers or on `ray`, until `kills` processes were killed by SIGKILL."""
    chance, tally, number = random.Random(seed), Tally(), 0
    straight = {n: gk.train(CONFIG.replace(seed=n), runs=folder / "straight", device="cpu") for n in range(RUNS)}
    while tally.kills.total() < kills:
        place = folder / f"{launcher}-{number}"
        number += 1
        place.mkdir()
        _Sweep(place, launcher, chance, tally).follow()
        _compare(place, straight, tally)
        shutil.rmtree(place)
    return tally


class _Sweep:
    """One sweep, from its first command to its end."""

    def __init__(self, folder: Path, launcher: str, chance: random.Random, tally: Tally) -> None:
        self._folder, self._launcher, self._chance, self._tally = folder, launcher, chance, tally
        study = f'from grokkit import RunConfig\nTEXT = """{CONFIG.to_toml()}"""\n'
        (folder / "study.py").write_text(f"{study}def whole() -> RunConfig:\n    return RunConfig.from_toml(TEXT)\n")
        (folder / "night.toml").write_text(f'device = "cpu"\nexperiment = "study.py:whole"\nseeds = "0-{RUNS - 1}"\n')
        self._crowded: Counter[str] = Counter()

    def follow(self) -> None:
        """Start the command, kill, start it again where it was killed, and wait for its end."""
        queue, left, over = self._command(), KILLS, False
        due, limit = self._next(), time.monotonic() + LIMIT_SECONDS[self._launcher]
        while not over:
            time.sleep(POLL_SECONDS)
            self._look()
            if queue.poll() is not None:
                over = self._ended(queue.returncode)
                queue = queue if over else self._command()
            elif left and time.monotonic() > due:
                left -= self._kill(queue)
                due, limit = self._next(), time.monotonic() + LIMIT_SECONDS[self._launcher]
            elif time.monotonic() > limit:
                self._tally.faults.append(f"{self._folder.name} does not end: {self._report()}")
                over = True
        self._clear(queue)

    def _command(self, *more: str) -> subprocess.Popen[bytes]:
        self._tally.commands += 1
        options = ["--at-once", str(AT_ONCE)] if self._launcher == "local" else ["--launcher", "ray"]
        root = str(Path(gk.__file__).parents[1])
        with open(self._folder / "night.txt", "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "grokkit", "sweep", "night.toml", *options, *more],
                cwd=self._folder,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            )

    def _next(self) -> float:
        return time.monotonic() + self._chance.uniform(0, PAUSE_SECONDS)

    def _ended(self, code: int) -> bool:
        """Whether nothing is left to be done after a command with this exit code."""
        if code == 0:
            return True
        if code == -signal.SIGKILL:
            return False
        said = (self._folder / "night.txt").read_text(errors="replace")
        if code == 1 and "given up after" in said:  # a failure with a reason: these kills came too close
            self._tally.given_up += said.count("given up after 3 attempts")
            (self._folder / "night.txt").write_text("")
            return subprocess_code(self._command("--retry-failed")) == 0
        self._tally.faults.append(f"{self._folder.name} ended with exit code {code}: {self._report()}")
        return True

    def _look(self) -> None:
        """Take note of runs with two processes, and of more processes than may be."""
        runs = [words for words in _processes(self._folder).values() if _is_run(words)]
        for name, count in Counter(_run_of(words) for words in runs).items():
            self._crowd(f"{count} processes of {name}", count > 1)
        self._crowd(f"{len(runs)} processes at once", self._launcher == "local" and len(runs) > AT_ONCE)

    def _crowd(self, what: str, is_crowd: bool) -> None:
        self._crowded[what] += is_crowd
        if is_crowd and self._crowded[what] == 20:  # a second and not a moment
            self._tally.faults.append(f"{self._folder.name}: {what}")

    def _kill(self, queue: subprocess.Popen[bytes]) -> int:
        """Kill a process by chance; how many were."""
        there = _processes(self._folder)
        runs = [process for process, words in there.items() if _is_run(words)]
        kinds = {"queue": [queue.pid], "run": runs}
        if self._launcher == "ray":
            kinds["worker"] = [process for process in _below(queue.pid) if _title(process).startswith("ray::run")]
        kind = self._chance.choice([kind for kind, often in WEIGHTS.items() for _ in range(often)])
        if not kinds.get(kind):
            return 0
        try:
            os.kill(self._chance.choice(sorted(kinds[kind])), signal.SIGKILL)
        except ProcessLookupError:
            return 0
        if kind == "queue":
            queue.wait()
        self._tally.kills[kind] += 1
        return 1

    def _report(self) -> str:
        said = (self._folder / "night.txt").read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in said[-8:])

    def _clear(self, queue: subprocess.Popen[bytes]) -> None:
        """Whatever is left of this sweep is killed; after a good end it is a fault."""
        if queue.poll() is None:
            queue.kill()
            queue.wait()
        left = {process: words for process, words in _processes(self._folder).items() if _is_run(words)}
        for process, words in left.items():
            self._tally.faults.append(f"{self._folder.name}: a process is left, {' '.join(words[2:5])}")
            os.kill(process, signal.SIGKILL)


def subprocess_code(process: subprocess.Popen[bytes]) -> int:
    """Exit code of a command that ends by itself."""
    return process.wait(LIMIT_SECONDS["ray"])


def _processes(folder: Path) -> dict[int, list[str]]:
    """Command lines of the processes that work in `folder`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == folder:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:  # gone, or not ours
                continue
    return found


def _is_run(words: list[str]) -> bool:
    return words[1:3] == ["-m", "grokkit"] and len(words) > 4 and words[3] in ("train", "resume")


def _run_of(words: list[str]) -> str:
    return Path(words[4] if words[3] == "resume" else words[words.index("--config") + 1]).name.removesuffix(".toml")


def _title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def _below(ancestor: int) -> list[int]:
    """Processes that descend from this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, level = [], [ancestor]
    while level:
        level = [process for process, parent in parents.items() if parent in level]
        found += level
    return found


def _compare(folder: Path, straight: dict[int, gk.Run], tally: Tally) -> None:
    """Every HDF5 file to the bit, but the slots, and the metrics of the newest attempts."""
    for seed, wanted in straight.items():
        path = folder / "runs" / CONFIG.replace(seed=seed).run_name
        try:
            mine = gk.open_run(path)
        except GrokkitError as error:
            tally.faults.append(f"{folder.name}, seed {seed}: {error}")
            continue
        left, right = _files(mine.path), _files(wanted.path)
        differing = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
        if differing:
            tally.faults.append(f"{folder.name}, seed {seed} differs in {differing[:3]}")
        if not mine.metrics.equals(wanted.metrics.assign(run=mine.name)):
            tally.faults.append(f"{folder.name}, seed {seed} has other metrics")
        tally.faults += mine.verify()


def _files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*.h5")
        if file.parent.name not in ("resume", "quarantine")
    }
