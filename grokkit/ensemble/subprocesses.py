"""Runs of many seeds in processes: each is `train` of one seed, with its share of the cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from grokkit import errors
from grokkit.callbacks.base import FINAL_EVENTS, CallbackList
from grokkit.config.run_config import RunConfig
from grokkit.device.select import count_cores, select_device
from grokkit.errors import BudgetReached, GrokkitError, Interrupted
from grokkit.interrupt import StopRequest
from grokkit.recording.budget import Budget
from grokkit.trajectory import open_run

ON_A_GPU = 4
"""Processes at a time on one GPU, where each holds a context and the data."""

STOPPED = ("Interrupted", "BudgetReached")
"""Errors of a run that is saved and can go on."""

POLL_SECONDS = 0.2
"""Between two looks at the processes."""


def train_in_subprocesses(
    configs: Sequence[RunConfig],
    runs: str | Path,
    device: str | None,
    callback: CallbackList,
    experiment: str | None,
    because: str,
    cost_limit: Budget,
) -> None:
    """Train every config in a process of its own.

    Args:
        configs: one for each seed.
        runs, device, callback, experiment: as of `train`; the callback hears of the steps of all runs together.
        because: why they are not in a stack; told to the callback.
        purse: of all of them together; each pays its part of the machine, as many as are on it at a time.

    Raises:
        Interrupted: asked to stop; what had begun is saved.
        BudgetReached: some have spent their part of the budget; they are saved, the others done.
        GrokkitError: some runs failed, the others are done; of the class of their errors where it is the same.
    """
    on_gpu = select_device(device).torch_device.type == "cuda"
    at_once = min(len(configs), ON_A_GPU if on_gpu else count_cores())
    order = {
        "runs": str(runs),
        "device": device,
        "experiment": experiment,
        "threads": max(1, count_cores() // at_once),
        **asdict(cost_limit.shared(len(configs), at_once)),
    }
    workers = [Worker(config, Path(runs) / config.run_name) for config in configs]
    total = sum(config.steps for config in configs)
    callback.start(f"{len(configs)} seeds, {at_once} processes at a time: {because}", 0, total)
    with StopRequest() as stop, ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(worker.run, order) for worker in workers}
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                if stop.stop_requested:
                    _stop(workers)
                if stop.save_requested:
                    stop.save_requested = False
                    for worker in workers:
                        worker.save()
                _tell(workers, callback)
        finally:
            _stop(workers)
            callback.close()
    _raise_what_failed(workers)


class Worker:
    """One seed's process, followed from a thread of its own.

    Args:
        config: its run.
        path: its folder.
    """

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.config, self.path = config, path
        self.reported: tuple[int, Mapping[str, float]] = (0, {})
        self.failure: tuple[str, str] | None = None
        self.events: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
        self.has_started = self._stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(self, order: Mapping[str, Any]) -> None:
        """Start the process and read what it reports, to its end."""
        with self._lock:
            if self._stopped:
                return
            self.has_started = True
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "grokkit.ensemble.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the parent, which asks its children once
            )
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps({**order, "config": self.config.to_toml()}) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            told = json.loads(line)
            if "error" in told:
                self.failure = (told["error"], told["text"])
            elif "event" in told:
                self.events.put((told["step"], told["event"], told["text"]))
            else:
                self.reported = (told["step"], told["values"])
        code = process.wait()
        process.stdout.close()
        self.stop()
        if code == -signal.SIGTERM:  # asked to stop before its loop began, or after its end
            self.has_started = self.path.exists()
            if self.has_started and open_run(self.path).status["state"] != "done":
                self.failure = ("Interrupted", "stopped before its first update")
        elif code and self.failure is None:
            self.failure = ("GrokkitError", f"its process ended with exit code {code}")

    def save(self) -> None:
        """Ask the process to save and go on."""
        with self._lock, suppress(BrokenPipeError):
            if self._process is not None and self._process.stdin is not None and not self._stopped:
                self._process.stdin.write("\n")
                self._process.stdin.flush()

    def stop(self) -> None:
        """Ask the process to save and stop, by the end of its input; one that has not begun does not begin."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()


def _stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.stop()


def _tell(workers: Sequence[Worker], callback: CallbackList) -> None:
    """Steps of all runs together, means over those that have reported, and every run's events but its end."""
    for worker in workers:
        while not worker.events.empty():
            step, kind, text = worker.events.get()
            if kind not in FINAL_EVENTS:
                callback.event(step, kind, f"seed {worker.config.seed}: {text}")
    heard = [worker.reported for worker in workers if worker.reported[0]]
    if heard:
        names = heard[0][1].keys()
        means = {name: sum(values[name] for _, values in heard) / len(heard) for name in names}
        callback.report(sum(step for step, _ in heard), means)


def _raise_what_failed(workers: Sequence[Worker]) -> None:
    idle = [str(worker.config.seed) for worker in workers if not worker.has_started]
    told = [(worker, *worker.failure) for worker in workers if worker.failure is not None]
    stopped = [(worker, kind) for worker, kind, _ in told if kind in STOPPED]
    saved, broke = [str(worker.path) for worker, _ in stopped], "BudgetReached" in {kind for _, kind in stopped}
    failed = [(worker, kind, text) for worker, kind, text in told if kind not in STOPPED]
    texts = [text for _, _, text in failed]
    said = "; ".join(f"seed {worker.config.seed}: {text}" for worker, _, text in failed)
    if saved or idle:
        more = " --budget DOLLARS" if broke else ""
        lines = [f"go on with: grokkit resume {' '.join(saved)}{more}"] * bool(saved)
        lines += [f"seeds {', '.join(idle)} had not begun"] * bool(idle) + [f"failed: {said}"] * bool(failed)
        raise (
            BudgetReached("the budget is spent; " + "; ".join(lines))
            if broke
            else Interrupted("stopped; " + "; ".join(lines))
        )
    if not failed:
        return
    kinds = {kind for _, kind, _ in failed}
    error = getattr(errors, kinds.pop(), GrokkitError) if len(kinds) == 1 else GrokkitError
    if len(failed) == len(workers) and len(set(texts)) == 1:
        raise error(texts[0])
    raise error(
        f"{len(failed)} of {len(workers)} seeds failed, the others are done. {said}. "
        "A folder that is there goes on with: grokkit resume FOLDER"
    )
