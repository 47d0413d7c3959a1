"""`python -m grokkit.ensemble.worker`: the process that trains one seed for `grokkit.ensemble.subprocesses`.

Stdin: one line of JSON with the settings, then an empty line for every requested save; end of file, because the parent
closed it or is gone, saves the run and stops it. Stdout: one line of JSON per report, per event, and for an error.
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
    """Callback that sends reports and events through a pipe."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._send(step=step, values=dict(values))

    def event(self, step: int, kind: str, text: str) -> None:
        self._send(event=kind, step=step, text=text)

    def _send(self, **message: object) -> None:
        print(json.dumps(message), file=self._pipe, flush=True)


def main() -> int:
    """Read the settings, train, return the exit code."""
    pipe, sys.stdout = sys.stdout, sys.stderr  # what a model prints must not be read as a message
    settings = json.loads(sys.stdin.readline())
    ignore_early_sigusr1()
    threading.Thread(target=_listen_to_parent, daemon=True).start()
    torch.set_num_threads(settings["threads"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            if settings["experiment"] is not None:
                study = Path(folder) / "experiment.py"
                study.write_text(settings["experiment"])
                import_study(study)
            train(
                RunConfig.from_toml(settings["config"]),
                runs=settings["runs"],
                device=settings["device"],
                callback=ReportToParent(pipe),
                experiment=settings["experiment"],
                price=settings["price"],
                budget=settings["budget"],
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
