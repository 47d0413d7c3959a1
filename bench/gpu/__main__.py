"""`python -m bench.gpu`: every stage in a process of its own, with a time limit; what is finished is not done again."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from bench.gpu import correctness, lc_cost, long_run, overhead, speed
from bench.gpu.results import Results, Rows, Setting, asked, broken, path_of, read

STAGES = {"a": correctness, "c": speed, "d": overhead, "b": lc_cost, "e": long_run}
"""By letter, the most valuable first."""

SECONDS = {"a": 300, "c": 480, "d": 120, "b": 120, "e": 480}
"""What each stage may take: 25 minutes in all, none above 8."""

MARGIN = 15.0
"""Seconds before its limit at which a stage believes it to be over."""

GRACE = 15.0
"""Seconds between the request to stop, at the limit, and the end."""


def main() -> None:
    options = parsed()
    device = checked_device(options)
    name = slug(device)
    out, work = options.out or Path("artifacts/gpu") / name, options.work or Path("runs/gpu") / name
    settings = {
        stage: Setting(stage, out, work, device, options.data, options.small, SECONDS[stage], options.going_on)
        for stage in STAGES if stage in options.stages
    }  # fmt: skip
    if options.child:
        perform(settings[options.child], options.seconds)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; what was measured is kept"))
    end = time.monotonic() + 60 * options.minutes
    print(f"{name}: at most {options.minutes:g} minutes in all; results go to {out}, runs to {work}")
    for stage in settings:
        print(f"  {stage}: at most {SECONDS[stage] / 60:g} min, {STAGES[stage].TITLE}")
    for setting in settings.values():
        go(setting, end - time.monotonic())
    print(summary(settings.values()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as an .npz file; by default it is downloaded")
    parser.add_argument("--out", type=Path, help="folder of the results; by default artifacts/gpu/<device>")
    parser.add_argument("--work", type=Path, help="folder of runs and weights; by default runs/gpu/<device>")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all stages together")
    told = "; ".join(f"{letter}: {module.TITLE}" for letter, module in STAGES.items())
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES),
                        help=told.replace("%", "%%"))  # fmt: skip
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
    goes_on = setting.stage == "e"  # as far as the time allows, every time
    if found is not None and found["complete"] and found["asked"] == asked(setting) and not goes_on:
        print(f"{setting.stage}: finished already on {found['date']}")
        return
    seconds = min(setting.seconds, left)
    if seconds < 20 + MARGIN and not setting.small:
        print(f"{setting.stage}: no time is left for it; the same command goes on with it")
        return
    print(f"{setting.stage}: at most {seconds:.0f} s", flush=True)
    told = ["--child", setting.stage, "--seconds", str(seconds - MARGIN)]
    child = subprocess.Popen([sys.executable, "-m", "bench.gpu", *sys.argv[1:], *told])
    try:
        child.wait(seconds)
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
    module = STAGES[setting.stage]
    bring_data(setting)
    results = Results(dataclasses.replace(setting, seconds=seconds or setting.seconds), module.TITLE)
    module.measure(results)
    results.finish()


def bring_data(setting: Setting) -> None:
    """Let the given file be what the loader of CIFAR-10 finds. Runs then name their data alike on every machine, and
    can go on where the file lies elsewhere."""
    if setting.data == "cifar10":
        return
    folder = (setting.work / "data").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "cifar10.npz"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(setting.data).resolve())
    os.environ["GROKKIT_DATA"] = str(folder)


def summary(settings: Iterable[Setting]) -> str:
    """Every stage's state, its main numbers, the checks that do not hold and the parts that failed."""
    lines = []
    for setting in settings:
        found = read(path_of(setting))
        if found is None:
            lines.append(f"{setting.stage}: nothing was measured")
            continue
        state = "complete" if found["complete"] else "partial: the same command goes on with it"
        lines += [f"\n{setting.stage}: {state}; {len(found['parts'])} parts, {sum(found['seconds'].values()):.0f} s"]
        lines += [table(STAGES[setting.stage].headline(found["parts"]))]
        lines += [f"  DOES NOT HOLD: {words}" for words in broken(found["parts"])]
        lines += [f"  FAILED: {name}: {why}" for name, why in found["failed"].items()]
    return "\n".join(lines)


def table(rows: Rows) -> str:
    """Rows in columns; a name that a row lacks is left empty."""
    with pd.option_context("display.width", 200, "display.max_columns", None):
        return pd.DataFrame(rows).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}")


if __name__ == "__main__":
    main()
