"""`python -m bench.torture`: the crash suite in full; what it found, as a table and on request as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import torch

from bench.harness import cpu_name
from bench.torture import busy, calls, disks, edited, hostile, kills, misplaced, odd, stops, sweeps
from bench.torture.forks import forked_recorders


class Found(NamedTuple):
    """What one part of the suite found.

    Args:
        trials: how often something was done to a writer or a file.
        faults: what was lost, wrong or not noticed.
        told: further numbers.
    """

    trials: int
    faults: list[str]
    told: dict[str, Any]


def killed_writers(share: float, folder: Path) -> Found:
    """writers killed at random moments"""
    count = max(4, round(500 * share))
    return Found(count, kills.killed_writers(count, folder), {})


def second_writers(share: float, folder: Path) -> Found:
    """second writers of a run"""
    count = max(2, round(50 * share))
    return Found(count, kills.second_writers(count, folder), {})


def every_call(share: float, folder: Path) -> Found:
    """states between two system calls, and amid a write"""
    traced, run = calls.recorded(folder, 12)
    every = max(1, round(0.2 / share))
    count, faults = calls.at_every_call(traced, run, folder, every)
    return Found(count, faults, {"changes in the log": len(traced)})


def lost_machines(share: float, folder: Path) -> Found:
    """machines that die (model)"""
    traced, run = calls.recorded(folder, 12)
    count = max(10, round(500 * share))
    return Found(count, calls.lost_machines(traced, run, folder, count), {})


def full_disks(share: float, folder: Path) -> Found:
    """disks that fill up"""
    count = max(4, round(100 * share))
    return Found(count, disks.full_disks(count, folder), {})


def damaged_files(share: float, folder: Path) -> Found:
    """damaged files"""
    count = max(30, round(1000 * share))
    errors, faults = disks.damaged_files(count, folder)
    return Found(count, faults, {"told as damaged": errors, "harmless": count - errors})


def stopped_runs(share: float, folder: Path) -> Found:
    """SIGTERM to runs"""
    return _of(stops.stopped_runs(max(3, round(50 * share)), folder))


def stopped_replays(share: float, folder: Path) -> Found:
    """SIGTERM to replays"""
    return _of(stops.stopped_replays(max(3, round(50 * share)), folder))


def killed_runs(share: float, folder: Path) -> Found:
    """SIGKILL to runs"""
    return _of(stops.killed_runs(max(3, round(100 * share)), folder))


def killed_sweeps(share: float, folder: Path) -> Found:
    """SIGKILL to sweeps on this machine: runs and queues"""
    return _of_sweeps(sweeps.killed_sweeps(max(6, round(60 * share)), folder, "local"))


def killed_sweeps_on_ray(share: float, folder: Path) -> Found:
    """SIGKILL to sweeps on Ray: runs, workers and queues"""
    return _of_sweeps(sweeps.killed_sweeps(max(6, round(60 * share)), folder, "ray"))


def busy_files(share: float, folder: Path) -> Found:
    """files that are open, marked, locked or unreadable for a moment"""
    count = max(8, round(200 * share))
    ways, faults = busy.busy_files(count, folder)
    return Found(count, faults, dict(ways))


def misplaced_files(share: float, folder: Path) -> Found:
    """whole files under the names of others, of the same run or another"""
    count = max(8, round(300 * share))
    kinds, faults = misplaced.misplaced_files(count, folder)
    return Found(count, faults, {"copied": dict(kinds)})


def edited_runs(share: float, folder: Path) -> Found:
    """choices, environments, logs and manifests edited, files removed"""
    count = max(8, round(300 * share))
    kinds, faults = edited.edited_runs(count, folder)
    return Found(count, faults, {"edited": dict(kinds)})


def hostile_files(share: float, folder: Path) -> Found:
    """hostile HDF5 files"""
    count = max(15, round(500 * share))
    ends, faults = hostile.hostile_files(count, folder)
    return Found(count, faults, dict(ends))


def odd_documents(share: float, folder: Path) -> Found:
    """odd documents in one of three runs"""
    count = max(15, round(500 * share))
    shown, faults = odd.odd_documents(count, folder)
    return Found(count, faults, {"shown as": dict(shown)})


def forks(share: float, folder: Path) -> Found:
    """recorders whose process forks"""
    count = max(7, round(100 * share))
    ways, faults = forked_recorders(count, folder)
    return Found(count, faults, {"the fork": dict(ways)})


def _of_sweeps(tally: sweeps.Tally) -> Found:
    told = {"killed": dict(tally.kills), "commands": tally.commands, "given up for a while": tally.given_up}
    return Found(tally.kills.total(), tally.faults, told)


def _of(tally: stops.Tally) -> Found:
    told = {"measures taken twice": tally.twice, "longest from the signal to the end, s": round(max(tally.seconds), 3)}
    return Found(tally.stops, tally.faults, told)


PARTS: dict[str, Callable[[float, Path], Found]] = {
    part.__name__: part
    for part in (
        killed_writers,
        every_call,
        lost_machines,
        full_disks,
        damaged_files,
        second_writers,
        stopped_runs,
        stopped_replays,
        killed_runs,
        killed_sweeps,
        killed_sweeps_on_ray,
        busy_files,
        misplaced_files,
        edited_runs,
        hostile_files,
        odd_documents,
        forks,
    )
}


def suite(share: float, only: list[str], folder: Path) -> dict[str, Found]:
    """The parts one after the other, each in a folder of its own; `share` of their full size."""
    results = {}
    for name in only or PARTS:
        place = folder / name
        place.mkdir()
        start = time.monotonic()
        found = PARTS[name](share, place)
        results[name] = found
        told = "".join(f"; {key}: {value}" for key, value in found.told.items())
        line = f"{found.trials:5} {PARTS[name].__doc__}: {len(found.faults)} lost, wrong or unnoticed{told}"
        print(f"{line}  ({time.monotonic() - start:.0f} s)", flush=True)
        for fault in found.faults[:10]:
            print(f"        {fault}")
        shutil.rmtree(place, ignore_errors=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="PART", help=f"which, of {', '.join(PARTS)}; all")
    parser.add_argument("--share", type=float, default=1.0, help="of the full size")
    parser.add_argument("--out", type=Path, help="a JSON file to write as well")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the runs are written for a while")
    options = parser.parse_args()
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)  # a child that is forked off may not meet a pool of threads that it has not
    folder = Path(tempfile.mkdtemp(prefix="grokkit-torture-", dir=options.folder))
    try:
        results = suite(options.share, options.only, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.out:
        head = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "cpu": cpu_name(),
            "system": platform.platform(),
            "torch": torch.__version__,
            "h5py": h5py.__version__,
            "hdf5": h5py.version.hdf5_version,
        }
        parts = {name: {"what": PARTS[name].__doc__, **found._asdict()} for name, found in results.items()}
        options.out.write_text(json.dumps({**head, "parts": parts}, indent=1) + "\n")
    return int(any(found.faults for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
