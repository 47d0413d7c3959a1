"""What following a run costs its reader: CPU-seconds of one look at a long log."""

from __future__ import annotations

import json
import math
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from bench.harness import Row, Settings, medians
from grokkit.live.run_browser import RunBrowser
from grokkit.trajectory import run
from grokkit.trajectory.log import Log

ROWS, METRICS, NEW = 200_000, ("loss", "accuracy", "learning_rate", "gradient_norm"), 200
GOAL = 0.3


def updates(settings: Settings) -> list[Row]:
    """What the server spends on one answer to the page, of a run with 200,000 logged numbers in four curves."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long-s0"
        run.create_run(
            path, config="seed = 0\n", environment={}, probes=[], status={"state": "done", "step": 0, "attempt": 1}
        )
        steps = count()
        _append(path, steps, ROWS)
        study = RunBrowser([path])
        cursor = _answer(study, "")

        def update() -> None:
            nonlocal cursor
            _append(path, steps, NEW)
            cursor = _answer(study, cursor)

        taken = medians(
            {
                f"update with {NEW} new rows after {ROWS:,} (writing them included)": update,
                f"reload: all {ROWS:,} rows thinned again": lambda: _answer(study, ""),
                f"first look: {ROWS:,} rows read, checked and thinned": lambda: _answer(RunBrowser([path]), ""),
            },
            settings,
        )
    goals = (GOAL, GOAL, None)
    return [Row(name, seconds, "s", goal) for (name, seconds), goal in zip(taken.items(), goals, strict=True)]


def _append(path: Path, steps: Any, rows: int) -> None:
    log = Log(path / "metrics.jsonl", 1)
    for step in (next(steps) for _ in range(rows // len(METRICS))):
        for place, metric in enumerate(METRICS):
            log.append({"step": step, "split": "batch", "metric": metric, "value": math.sin(step * (place + 1.1))})
    log.close()


def _answer(study: RunBrowser, cursor: str) -> str:
    """One answer as the server gives it; the next cursor."""
    told = study.update(cursor)
    json.dumps(told, allow_nan=False)
    return str(told["cursor"])
