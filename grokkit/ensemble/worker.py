"""`python -m grokkit.ensemble.worker`: the process that trains one seed for `workers`.

Its input is one line of JSON, then an empty one whenever the run is to be saved; when it ends, because the parent is
gone or closes it, the run is saved and stops. Its output is a line of JSON for every report, every event and an error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import torch

from grokkit.callbacks.base import BaseCallback
from grokkit.config.run_config import RunConfig
from grokkit.errors import GrokkitError
from grokkit.interrupt import ignore_early_sigusr1
from grokkit.registry import import_study
from grokkit.training.loop import train


class ReportToParent(BaseCallback):
    """Company at the other end of a pipe, which hears reports and events."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._say(step=step, values=dict(values))

    def event(self, step: int, kind: str, text: str) -> None:
        self._say(event=kind, step=step, text=text)

    def _say(self, **told: object) -> None:
        print(json.dumps(told), file=self._pipe, flush=True)


def main() -> int:
    """Read the order, train, return the exit code."""
    pipe, sys.stdout = sys.stdout, sys.stderr  # what a model prints is not to be taken for a report
    order = json.loads(sys.stdin.readline())
    ignore_early_sigusr1()
    threading.Thread(target=_listen_to_parent, daemon=True).start()
    torch.set_num_threads(order["threads"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            if order["experiment"] is not None:
                study = Path(folder) / "experiment.py"
                study.write_text(order["experiment"])
                import_study(study)
            train(
                RunConfig.from_toml(order["config"]),
                runs=order["runs"],
                device=order["device"],
                callback=ReportToParent(pipe),
                experiment=order["experiment"],
                price=order["price"],
                budget=order["budget"],
            )
    except GrokkitError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), file=pipe, flush=True)
        return error.exit_code
    return 0


def _listen_to_parent() -> None:
    for _ in sys.stdin:
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
