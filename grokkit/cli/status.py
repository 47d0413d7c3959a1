"""`grokkit status RUN`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse
from grokkit.errors import TrajectoryError


def main(words: list[str]) -> None:
    """Read the words and tell."""
    parse("status", status, words)


def status(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    verify: bool = False,
    as_json: bool = False,
) -> None:
    """Say how a run stands: state, step, device, what is stored, the newest numbers.

    Try:
        grokkit status runs/quickstart/constant-s0-1a2b3c4d
        grokkit status RUN --verify

    Args:
        run: the run's folder.
        verify: also check every file against its digest; exit code 4 if one is damaged.
        as_json: print JSON instead of lines.
    """
    from grokkit.trajectory import open_run

    opened = open_run(run)
    told = {
        **opened.status,
        "state": opened.state,
        "updated": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(opened.status["updated"])),
        "device": opened.environment["device"],
        "snapshots": len(opened.steps()),
        "measures": {name: len(steps) for name, steps in opened.measures().items()},
        "attributions": {name: len(steps) for name, steps in opened.attributions().items()},
        "newest": opened.newest_metrics(),
    }
    print(json.dumps(told, indent=1) if as_json else "\n".join(_line(key, value) for key, value in told.items()))
    if verify:
        problems = opened.verify()
        if problems:
            raise TrajectoryError("\n".join(problems))
        print("every file matches its digest")


def _line(key: str, value: object) -> str:
    if isinstance(value, dict):
        return f"{key:12} " + (", ".join(f"{name} {_short(item)}" for name, item in value.items()) or "none")
    return f"{key:12} {_short(value)}"


def _short(value: object) -> str:
    if value is None:
        return "not known"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
