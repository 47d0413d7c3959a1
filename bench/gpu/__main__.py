"""`python -m bench.gpu`: every stage in a process of its own, with a time limit; what is finished is not done again."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu import correctness, lc_cost, long_run, overhead, speed
from bench.gpu.common import offer_data
from bench.gpu.results import Results, Setting, asked, device_name, read

STAGES = {"a": correctness, "c": speed, "d": overhead, "b": lc_cost, "e": long_run}
"""By letter, the most valuable first."""

SECONDS = {"a": 300, "c": 480, "d": 120, "b": 120, "e": 480}
"""What each stage may take, its start included: 25 minutes in all, none above 8."""

GRACE = 20.0
"""Last seconds of a stage's limit: one that still runs is asked to put its things down."""
START = 15.0
"""Seconds that a stage's process may need before it measures anything."""
LEAST = 60.0
"""A stage is not begun with fewer seconds."""
DEATHS = 4
"""So often a stage whose process died goes on in a fresh one."""


def main() -> None:
    options = parsed()
    device = checked_device(options)
    name = slug(device)
    out, work = options.out or Path("artifacts/gpu") / name, options.work or Path("runs/gpu") / name
    settings = [
        Setting(stage, out, work, device, options.data, options.small, SECONDS[stage], options.resume)
        for stage in STAGES
        if stage in options.stages
    ]
    offer_data(settings[0])
    if options.child:
        (setting,) = (each for each in settings if each.stage == options.child)
        perform(replace(setting, seconds=options.seconds), fresh=not options.after_death)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; what was measured is kept"))
    end = time.monotonic() + 60 * options.minutes
    print(plan(settings, options.minutes), flush=True)
    for setting in settings:
        go(setting, end)
    print(summary(settings))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as an .npz file; by default it is downloaded")
    parser.add_argument("--out", type=Path, help="folder of the results; by default artifacts/gpu/<device>")
    parser.add_argument("--work", type=Path, help="folder of runs and weights; by default runs/gpu/<device>")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all stages together")
    told = "; ".join(f"{letter}: {module.TITLE}" for letter, module in STAGES.items())
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help=told.replace("%", "%%"))
    parser.add_argument("--continue", dest="resume", type=Path, help="a long run's .tar.gz, to go on with in stage e")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="the miniature: the same code on next to nothing")
    parser.add_argument("--child", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--after-death", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def checked_device(options: argparse.Namespace) -> str:
    """The device; leaves with a sentence where it cannot be used or would take days."""
    if options.device == "cpu" and not options.small:
        sys.exit("python -m bench.gpu: on a CPU only the miniature can be had: add --small")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "python -m bench.gpu: torch finds no CUDA device here; `grokkit doctor` says why. The miniature runs "
            "anywhere: --device cpu --small"
        )
    if options.data != "cifar10" and not (options.data.endswith(".npz") and Path(options.data).is_file()):
        sys.exit(f"python -m bench.gpu: there is no .npz file {options.data}; leave --data out to download CIFAR-10")
    if options.resume is not None and not options.resume.is_file():
        sys.exit(f"python -m bench.gpu: there is no file {options.resume} to go on with")
    return str(options.device)


def slug(device: str) -> str:
    """The device's name as a folder's."""
    name = device_name(device) if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def plan(settings: list[Setting], minutes: float) -> str:
    """What will be done, and for how long at most."""
    first = settings[0]
    lines = [
        f"{device_name(first.device)}: at most {minutes:g} minutes; results go to {first.out}, runs to {first.work}"
    ]
    lines += [f"  {each.stage}, at most {each.seconds:.0f} s: {STAGES[each.stage].TITLE}" for each in settings]
    return "\n".join(lines)


def go(setting: Setting, end: float) -> None:
    """Run one stage in a process of its own, unless it is finished or no time is left until `end` (monotonic)."""
    found = read(setting.path)
    if found is not None and found["complete"] and found["asked"] == asked(setting):
        print(f"{setting.stage}: finished already on {found['date']}")
        return
    end = min(end, time.monotonic() + setting.seconds)
    for death in range(DEATHS):
        seconds = end - time.monotonic()
        if seconds < LEAST and not setting.small:
            print(f"{setting.stage}: no time is left for it; the same command goes on with it")
            return
        print(f"{setting.stage}: {seconds:.0f} s", flush=True)
        code = one_process(setting, seconds, after_death=death > 0)
        if code in (0, None):
            return
        print(f"{setting.stage}: its process ended with code {code}", flush=True)


def one_process(setting: Setting, seconds: float, *, after_death: bool) -> int | None:
    """A stage's exit code, None where it was stopped at its limit."""
    budget = seconds if setting.small else seconds - GRACE - START
    words = ["--child", setting.stage, "--seconds", f"{budget:.1f}", *["--after-death"] * after_death]
    # in a session of its own, so that what it started can be ended with it
    child = subprocess.Popen([sys.executable, "-m", "bench.gpu", *sys.argv[1:], *words], start_new_session=True)
    try:
        return child.wait(seconds - GRACE)
    except subprocess.TimeoutExpired:
        print(f"{setting.stage}: stopped at its limit; what it measured is kept")
        return None
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs: first in a way that lets it save."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def perform(setting: Setting, *, fresh: bool) -> None:
    """One stage, in this process."""
    module = STAGES[setting.stage]
    results = Results(setting, module.TITLE, fresh=fresh)
    module.measure(results)
    results.finish()


def summary(settings: Iterable[Setting]) -> str:
    """A few lines for every stage: how it stands, what it found, what failed."""
    lines = []
    for setting in settings:
        found = read(setting.path)
        if found is None:
            lines.append(f"{setting.stage}: nothing was measured")
            continue
        state = "complete" if found["complete"] else "partial: the same command goes on with it"
        lines.append(f"{setting.stage}: {state}; {len(found['parts'])} parts, {sum(found['seconds'].values()):.0f} s")
        lines += [f"   {line}" for line in STAGES[setting.stage].lines(found["parts"])]
        for name, rows in found["parts"].items():
            lines += [f"   NOT PASSED, {name}: {row}" for row in rows if row.get("passes") is False]
        lines += [f"   FAILED, {name}: {why}" for name, why in found["failed"].items()]
        lines += [f"   left out, {name}: {why}" for name, why in found["left_out"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
