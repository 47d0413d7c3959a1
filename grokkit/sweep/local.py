"""Processes on this machine: one for each GPU, or as many at once as were asked for without one."""

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
from grokkit.trust import worker_environment


class Local:
    """Starts processes in slots.

    A slot is held by a lock that the process inherits, so it is free when the process is gone and not before: a queue
    that was killed, or another sweep on this machine, never gets a GPU that is still computing. Slots of the processor
    are those of one sweep, and their locks lie beside its logs.

    Args:
        gpus: their numbers, as CUDA_VISIBLE_DEVICES takes them; none: this machine's processor.
        per_gpu: processes at a time on each.
        at_once: processes at a time where there are no GPUs.
        locks: folder of the locks; by default one for this user on this machine.
        trusted: digests of the study sources that the processes may execute from run folders.
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
        self._locks = locks or Path(tempfile.gettempdir()) / f"grokkit-gpus-{os.getuid()}"
        self._slots = [(gpu, place) for place in range(per_gpu) for gpu in gpus] or [("", n) for n in range(at_once)]
        self._trusted = worker_environment(trusted)
        self._taken: dict[tuple[str, int], Process] = {}

    def start(self, words: Sequence[str], log: Path) -> Process | None:
        """Start `grokkit WORDS...` in a free slot, its output appended to `log`; None where no slot is free, or
        another process still appends to it."""
        for slot in self._slots:
            if slot in self._taken and self._taken[slot].code() is None:
                continue
            lock = _lock(*self._lock_of(*slot, log))
            if lock is None:
                continue
            try:
                with lock_log(log) as output:
                    if output is None:
                        return None
                    environment = self._environment(slot[0])
                    self._taken[slot] = Process(words, output, environment, _name_gpu(slot[0]), lock)
            finally:
                os.close(lock)  # the process has its own
            return self._taken[slot]
        return None

    def _lock_of(self, gpu: str, place: int, log: Path) -> tuple[Path, str]:
        """Folder and name of the lock of a slot."""
        return (self._locks, f"{gpu.replace(os.sep, '-')}.{place}") if gpu else (log.parent, f".processor.{place}")

    def _environment(self, gpu: str) -> dict[str, str]:
        """That of this process, with the GPU that the run may see and its share of the cores."""
        from grokkit.device.select import count_cores

        told = inherit_environment() | self._trusted
        if gpu:
            told["CUDA_VISIBLE_DEVICES"] = gpu
        if len(self._slots) > 1:
            told.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // len(self._slots))))
        return told


def _lock(folder: Path, name: str) -> int | None:
    """An open, locked file; None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


class Process:
    """One run's process, in a session of its own: Ctrl-C is for the queue, which asks its processes once. It outlives a
    queue that is killed."""

    def __init__(
        self, words: Sequence[str], output: BinaryIO, environment: Mapping[str, str], where: str, lock: int
    ) -> None:
        self.where = where
        self._process = subprocess.Popen(
            [sys.executable, "-m", "grokkit", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            pass_fds=(lock,),
        )

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it goes on."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save and stop."""
        self._process.send_signal(signal.SIGTERM)


def inherit_environment() -> dict[str, str]:
    """This process's environment, with what it can import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _name_gpu(gpu: str) -> str:
    return f"GPU {gpu}" if gpu else "the processor"


def list_visible_gpus() -> list[str]:
    """The GPUs that a run here would see, as CUDA_VISIBLE_DEVICES takes them."""
    from torch.cuda import device_count

    from grokkit.device.select import count_physical_gpus

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [gpu.strip() for gpu in told.split(",") if gpu.strip() not in ("", "-1")]
    return [str(index) for index in range(device_count() or count_physical_gpus())]
