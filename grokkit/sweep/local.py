"""Launch the runs of a sweep as processes on this machine: by default one per GPU, or one at a time on the CPU."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from grokkit.errors import UsageError
from grokkit.sweep.child_process import lock_log
from grokkit.trust import make_worker_environment


class LocalLauncher:
    """Launcher that starts processes in a fixed number of job slots.

    Every slot has a lock file whose lock the process inherits, so a slot is free exactly when its process is gone. No
    GPU is assigned while a process still uses it, even if its queue was killed or it belongs to another sweep on this
    machine. CPU slots belong to one sweep, and their locks are stored beside its logs.

    Args:
        gpus: GPU ids as in CUDA_VISIBLE_DEVICES; empty: train on the CPU.
        per_gpu: processes at a time on each GPU.
        at_once: processes at a time without GPUs.
        locks: folder of the GPU locks; by default one for this user on this machine.
        trusted: digests of the experiment sources that the processes may execute from run folders.
    """

    def __init__(
        self,
        gpus: Sequence[str],
        *,
        per_gpu: int = 1,
        at_once: int = 1,
        locks: Path | None = None,
        trusted: Iterable[str] = (),
    ) -> None:
        for name, value in (("--runs-per-gpu", per_gpu), ("--at-once", at_once)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}")
        self._lock_folder = locks or Path(tempfile.gettempdir()) / f"grokkit-gpus-{os.getuid()}"
        self._slots = [(gpu, index) for index in range(per_gpu) for gpu in gpus] or [("", n) for n in range(at_once)]
        self._trusted = make_worker_environment(trusted)
        self._attempts: dict[tuple[str, int], LocalAttempt] = {}

    def start(self, argv: Sequence[str], log: Path) -> LocalAttempt | None:
        """Start `grokkit ARGV...` in a free slot with its output appended to `log`; return None if no slot is free or
        another process still appends to `log`."""
        for slot in self._slots:
            if slot in self._attempts and self._attempts[slot].poll() is None:
                continue
            lock = _try_lock(*self._get_lock_file(*slot, log))
            if lock is None:
                continue
            try:
                with lock_log(log) as output:
                    if output is None:
                        return None
                    environment = self._make_environment(slot[0])
                    self._attempts[slot] = LocalAttempt(argv, output, environment, _describe_gpu(slot[0]), lock)
            finally:
                os.close(lock)  # the process has inherited a copy
            return self._attempts[slot]
        return None

    def _get_lock_file(self, gpu: str, index: int, log: Path) -> tuple[Path, str]:
        """Return folder and file name of the lock of a slot."""
        return (
            (self._lock_folder, f"{gpu.replace(os.sep, '-')}.{index}") if gpu else (log.parent, f".processor.{index}")
        )

    def _make_environment(self, gpu: str) -> dict[str, str]:
        """Return the environment of this process, with the run's visible GPU and its share of the CPU cores."""
        from grokkit.device.select import count_cores

        environment = inherit_environment() | self._trusted
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        if len(self._slots) > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // len(self._slots))))
        return environment


def _try_lock(folder: Path, name: str) -> int | None:
    """Open and lock a file and return its descriptor; None if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


class LocalAttempt:
    """Attempt at one run as a local process, in a separate session: Ctrl-C reaches only the queue, which then sends
    SIGTERM once to each process. The process survives if the queue is killed."""

    def __init__(
        self, argv: Sequence[str], output: BinaryIO, environment: Mapping[str, str], location: str, lock: int
    ) -> None:
        self.location = location
        self._process = subprocess.Popen(
            [sys.executable, "-m", "grokkit", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            pass_fds=(lock,),
        )

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Request that the run saves and stops."""
        self._process.send_signal(signal.SIGTERM)


def inherit_environment() -> dict[str, str]:
    """Return the environment of this process, with its `sys.path` as PYTHONPATH."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _describe_gpu(gpu: str) -> str:
    return f"GPU {gpu}" if gpu else "the CPU"


def list_visible_gpus() -> list[str]:
    """Return the ids of the GPUs that a run here would see, as in CUDA_VISIBLE_DEVICES."""
    from torch.cuda import device_count

    from grokkit.device.preflight import count_physical_gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    return [str(index) for index in range(device_count() or count_physical_gpus())]
