"""What `grokkit estimate` says, over what the run then takes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import grokkit as gk
from bench.harness import Row, Settings
from grokkit.config.run_config import spec
from grokkit.diagnostics.estimate import estimate
from grokkit.recipes import quickstart

GOAL = 0.15
"""Largest difference from the run's seconds, as a share of them."""

RUNS = {
    "mlp, 12,000 steps": quickstart.constant(),
    "cnn, 600 steps": quickstart.constant().replace(
        model=spec("cnn"), data=spec("digits", size=32, train=500), init_scale=1.0, steps=600, records=12
    ),
    "resnet9 of width 8, 60 steps": quickstart.constant().replace(
        model=spec("resnet9", width=8), data=spec("digits", size=32, train=500), init_scale=1.0, steps=60, records=6
    ),
}


def against_runs(settings: Settings) -> list[Row]:
    """Seconds by estimate and of the run, their difference as a share of the run's, and estimated over real bytes."""
    rows = []
    for name, config in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            said = estimate(config, "cpu", folder)
            run = gk.train(config, runs=folder, device="cpu")
            size = sum(file.stat().st_size for file in Path(run.path).rglob("*") if file.is_file())
            seconds = run.status["seconds"]
        rows += [
            Row(f"{name}: estimate", said.seconds, "s"),
            Row(f"{name}: run", seconds, "s"),
            Row(f"{name}: difference of seconds", abs(said.seconds / seconds - 1), goal=GOAL),
            Row(f"{name}: bytes, estimate over run", said.bytes / size),
        ]
    return rows
