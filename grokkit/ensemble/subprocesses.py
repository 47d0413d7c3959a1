"""Train many seeds in subprocesses: each runs `train` for one seed, with its share of the cores."""

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

MAX_PROCESSES_PER_GPU = 4
"""Concurrent processes on one GPU; each holds a CUDA context and the data."""

RESUMABLE_ERRORS = ("Interrupted", "BudgetReached")
"""Errors of a run that is saved and can be resumed."""

WORKER_POLL_SECONDS = 0.2
"""Seconds between two checks of the processes."""


def train_in_subprocesses(
    configs: Sequence[RunConfig],
    runs: str | Path,
    device: str | None,
    callback: CallbackList,
    experiment: str | None,
    reason: str,
    cost_limit: Budget,
) -> None:
    """Train every config in its own process, several at a time.

    Args:
        configs: one per seed.
        runs, device, callback, experiment: as in `train`; the callback receives the steps of all runs together.
        reason: why they are not trained with vmap; part of the callback's title.
        cost_limit: of all runs together; each is charged the price divided by the number of concurrent processes.

    Raises:
        Interrupted: interrupted; runs that had started are saved.
        BudgetReached: some have spent their share of the budget; they are saved, the others done.
        GrokkitError: some runs failed, the others are done; of the class of their errors if it is the same for all.
    """
    on_gpu = select_device(device).torch_device.type == "cuda"
    at_once = min(len(configs), MAX_PROCESSES_PER_GPU if on_gpu else count_cores())
    settings = {
        "runs": str(runs),
        "device": device,
        "experiment": experiment,
        "threads": max(1, count_cores() // at_once),
        **asdict(cost_limit.split(len(configs), at_once)),
    }
    workers = [Worker(config, Path(runs) / config.run_name) for config in configs]
    total = sum(config.steps for config in configs)
    callback.start(f"{len(configs)} seeds, {at_once} processes at a time: {reason}", 0, total)
    with StopRequest() as stop, ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(worker.run, settings) for worker in workers}
        try:
            while waiting:
                done, waiting = wait(waiting, WORKER_POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                if stop.stop_requested:
                    _stop_workers(workers)
                if stop.save_requested:
                    stop.save_requested = False
                    for worker in workers:
                        worker.save()
                _report_progress(workers, callback)
        finally:
            _stop_workers(workers)
            callback.close()
    _raise_failures(workers)


class Worker:
    """The process of one seed, followed from a separate thread.

    Args:
        config: its run.
        path: its folder.
    """

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.config, self.path = config, path
        self.last_report: tuple[int, Mapping[str, float]] = (0, {})
        self.failure: tuple[str, str] | None = None
        self.events: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
        self.has_started = self._stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(self, settings: Mapping[str, Any]) -> None:
        """Start the process and read its messages until it ends."""
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
                start_new_session=True,  # Ctrl-C reaches only the parent, which stops its workers once
            )
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps({**settings, "config": self.config.to_toml()}) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                self.failure = (message["error"], message["text"])
            elif "event" in message:
                self.events.put((message["step"], message["event"], message["text"]))
            else:
                self.last_report = (message["step"], message["values"])
        code = process.wait()
        process.stdout.close()
        self.stop()
        if code == -signal.SIGTERM:  # stopped before its loop began, or after its end
            self.has_started = self.path.exists()
            if self.has_started and open_run(self.path).status["state"] != "done":
                self.failure = ("Interrupted", "interrupted before its first update")
        elif code and self.failure is None:
            self.failure = ("GrokkitError", f"the process exited without an error message (exit code {code})")

    def save(self) -> None:
        """Request a save; the process continues."""
        with self._lock, suppress(BrokenPipeError):
            if self._process is not None and self._process.stdin is not None and not self._stopped:
                self._process.stdin.write("\n")
                self._process.stdin.flush()

    def stop(self) -> None:
        """Request a save and a stop by closing the process's stdin; one that has not started does not start."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()


def _stop_workers(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.stop()


def _report_progress(workers: Sequence[Worker], callback: CallbackList) -> None:
    """Report the steps of all runs together and means over those that have reported, and pass on non-final events."""
    for worker in workers:
        while not worker.events.empty():
            step, kind, text = worker.events.get()
            if kind not in FINAL_EVENTS:
                callback.event(step, kind, f"seed {worker.config.seed}: {text}")
    reports = [worker.last_report for worker in workers if worker.last_report[0]]
    if reports:
        names = reports[0][1].keys()
        means = {name: sum(values[name] for _, values in reports) / len(reports) for name in names}
        callback.report(sum(step for step, _ in reports), means)


def _raise_failures(workers: Sequence[Worker]) -> None:
    """Raise the error that summarises interrupted, unstarted and failed runs; return if there are none."""
    not_started = [str(worker.config.seed) for worker in workers if not worker.has_started]
    failures = [(worker, *worker.failure) for worker in workers if worker.failure is not None]
    stopped = [(worker, kind) for worker, kind, _ in failures if kind in RESUMABLE_ERRORS]
    saved, budget_spent = [str(worker.path) for worker, _ in stopped], "BudgetReached" in {kind for _, kind in stopped}
    failed = [(worker, kind, text) for worker, kind, text in failures if kind not in RESUMABLE_ERRORS]
    texts = [text for _, _, text in failed]
    summary = "; ".join(f"seed {worker.config.seed}: {text}" for worker, _, text in failed)
    if saved or not_started:
        option = " --budget DOLLARS" if budget_spent else ""
        lines = [f"Resume with: grokkit resume {' '.join(saved)}{option}"] * bool(saved)
        lines += [f"seeds not started: {', '.join(not_started)}"] * bool(not_started) + [f"failed: {summary}"] * bool(
            failed
        )
        raise (
            BudgetReached("the budget is spent. " + "; ".join(lines))
            if budget_spent
            else Interrupted("Interrupted. " + "; ".join(lines))
        )
    if not failed:
        return
    kinds = {kind for _, kind, _ in failed}
    error = getattr(errors, kinds.pop(), GrokkitError) if len(kinds) == 1 else GrokkitError
    if len(failed) == len(workers) and len(set(texts)) == 1:
        raise error(texts[0])
    raise error(
        f"{len(failed)} of {len(workers)} seeds failed, the others are done. {summary}. "
        "Resume an existing folder with: grokkit resume FOLDER"
    )
