"""`python -m bench.gpu`: every stage in a process of its own, with a time limit; what is finished is not done again."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.gpu import correctness, lc_cost, long_run, overhead, speed
from bench.gpu.results import Results, Setting, asked, path_of, read

STAGES = {"a": correctness, "c": speed, "d": overhead, "b": lc_cost, "e": long_run}
"""By letter, the most valuable first."""

SECONDS = {"a": 300, "c": 480, "d": 120, "b": 120, "e": 480}
"""What each stage may take: 25 minutes in all, none above 8."""

GRACE = 30.0
"""Seconds that a stage is given to put its things down after its time is over."""


def main() -> None:
    options = parsed()
    device = checked_device(options)
    out = options.out or Path("artifacts/gpu") / slug(device)
    settings = {
        stage: Setting(stage, out, device, options.data, options.small, SECONDS[stage], options.going_on)
        for stage in STAGES if stage in options.stages
    }  # fmt: skip
    if options.child:
        perform(settings[options.child], options.seconds)
        return
    end = time.monotonic() + 60 * options.minutes
    print(f"{device}: stages {' '.join(settings)} in at most {options.minutes:g} minutes; results go to {out}")
    for setting in settings.values():
        go(setting, end - time.monotonic())
    print(summary(settings.values()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--data", default="cifar10", help="an .npz file; by default CIFAR-10 is downloaded")
    parser.add_argument("--out", type=Path, help="folder of the results; by default artifacts/gpu/<device>")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all stages together")
    told = "; ".join(f"{letter}: {module.TITLE}" for letter, module in STAGES.items())
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help=told)
    parser.add_argument("--continue", dest="going_on", type=Path, help="a long run's .tar, to go on with in stage e")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="the miniature: the same code on next to nothing")
    parser.add_argument("--child", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def checked_device(options: argparse.Namespace) -> str:
    """The device; leaves with a sentence where it cannot be used or would take days."""
    if options.device == "cpu" and not options.small:
        sys.exit("python -m bench.gpu: on a CPU only the miniature can be had: add --small")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("python -m bench.gpu: torch finds no CUDA device here; `grokkit doctor` says why. The miniature runs "
                 "anywhere: --device cpu --small")  # fmt: skip
    if options.data != "cifar10" and not Path(options.data).is_file():
        sys.exit(f"python -m bench.gpu: there is no file {options.data}; leave --data out to download CIFAR-10")
    if options.going_on is not None and not options.going_on.is_file():
        sys.exit(f"python -m bench.gpu: there is no file {options.going_on} to go on with")
    return str(options.device)


def slug(device: str) -> str:
    """The device's name as a folder's."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def go(setting: Setting, left: float) -> None:
    """Run one stage in a process of its own, unless it is finished or no time is left."""
    found = read(path_of(setting))
    if found is not None and found["complete"] and found["asked"] == asked(setting) and setting.going_on is None:
        print(f"{setting.stage}: finished already on {found['date']}")
        return
    seconds = min(setting.seconds, left)
    if seconds < 20 and not setting.small:
        print(f"{setting.stage}: no time is left for it; the same command goes on with it")
        return
    print(f"{setting.stage}: {STAGES[setting.stage].TITLE}, at most {seconds:.0f} s", flush=True)
    command = [sys.executable, "-m", "bench.gpu", *sys.argv[1:], "--child", setting.stage, "--seconds", str(seconds)]
    child = subprocess.Popen(command)
    try:
        child.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        print(f"{setting.stage}: stopped at its limit; what it measured is kept")
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs: first in a way that lets it save."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def perform(setting: Setting, seconds: float | None) -> None:
    """One stage, in this process."""
    import dataclasses

    module = STAGES[setting.stage]
    results = Results(dataclasses.replace(setting, seconds=seconds or setting.seconds), module.TITLE)
    module.measure(results)
    results.save(complete=True)


def summary(settings: object) -> str:
    """A line for every stage, and one for every part that failed."""
    lines = []
    for setting in settings:  # type: ignore[attr-defined]
        found = read(path_of(setting))
        if found is None:
            lines.append(f"{setting.stage}: nothing was measured")
            continue
        state = "complete" if found["complete"] else "partial: the same command goes on with it"
        lines.append(f"{setting.stage}: {state}; {len(found['parts'])} parts, {sum(found['seconds'].values()):.0f} s")
        lines += [f"   {name}: {why}" for name, why in found["failed"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
