"""The same queue on a Ray cluster: each run a process inside a Ray task that holds its share of a GPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grokkit.errors import DeviceRefusedError, UsageError
from grokkit.sweep.local import inherit_environment
from grokkit.sweep.run_status import LOG_MARK
from grokkit.trust import worker_environment

WHERE = "Ray, as soon as it has room"
KILLED = -9
"""The code of a run whose worker or node is gone."""


class Cluster:
    """Hands every run to Ray at once, which waits for room by itself.

    A run that Ray loses with its worker or its node counts as killed and is handed over again; its process ends with
    the worker, because Ray gives the worker's share of a GPU to the next run at once. The folders of runs and this
    working folder must lie at the same path on every node.

    Args:
        ray: the module, connected.
        gpus: of each run; 0.5 lets two share one, 0 takes none.
        trusted: digests of the study sources that the runs may execute from their folders; the list of the user who
            runs this queue need not be on the other nodes.
    """

    def __init__(self, ray: Any, gpus: float, trusted: Iterable[str] = ()) -> None:
        self._ray = ray
        self._told = worker_environment(trusted) | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
        # The queue itself decides about another attempt.
        self._task = ray.remote(_task()).options(num_cpus=1, num_gpus=gpus, max_retries=0)

    def start(self, words: Sequence[str], log: Path) -> Remote:
        """Hand `grokkit WORDS...` to Ray, its output appended to `log`."""
        told = {"PYTHONPATH": inherit_environment()["PYTHONPATH"], **self._told}
        return Remote(self._ray, self._task.remote(list(words), str(log.absolute()), os.getcwd(), told, LOG_MARK), log)


class Remote:
    """One run's task."""

    where = WHERE

    def __init__(self, ray: Any, reference: Any, log: Path) -> None:
        self._ray, self._reference, self._log = ray, reference, log
        self._code: int | None = None

    def code(self) -> int | None:
        """The exit code of its process, negative for a signal and for a lost worker; None while it goes on."""
        if self._code is None and self._ray.wait([self._reference], timeout=0)[0]:
            self._code = self._result()
        return self._code

    def _result(self) -> int:
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(self._reference))
        except errors.RayTaskError as error:  # it could not be started, for example on a node without its folder
            self._write(f"{type(error).__name__}: {error}")
            return 1
        except errors.RayError as error:
            self._write(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return KILLED

    def _write(self, text: str) -> None:
        with open(self._log, "a") as file:
            file.write(text.strip() + "\n")

    def stop(self) -> None:
        """Ask it to save and stop."""
        self._ray.cancel(self._reference)


def _task() -> Callable[[list[str], str, str, dict[str, str], str], int]:
    """What a worker does. A nested function travels as a value: no worker needs to find this module."""

    def run(words: list[str], log: str, folder: str, environment: dict[str, str], mark: str) -> int:
        import fcntl
        import os
        import signal
        import socket
        import subprocess
        import sys
        import time
        from contextlib import suppress

        asked: list[int] = []
        # `ray.cancel` comes as an interrupt, which a worker ignores where the shell that started Ray ignores it. A
        # handler that only takes note leaves no moment in which it could part this function from its process.
        before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
        try:
            with open(log, "ab") as output:
                with suppress(OSError):  # held while the process goes on: see grokkit.sweep.child_process
                    fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
                gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "no"
                output.write(f"{mark}on {socket.gethostname()}, {gpus} GPU\n".encode())
                output.flush()
                process = subprocess.Popen(
                    [sys.executable, "-m", "grokkit", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env={**os.environ, **environment, "GROKKIT_PARENT": str(os.getpid())},
                )
            while process.poll() is None:
                if asked:
                    asked.clear()
                    process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
        finally:
            signal.signal(signal.SIGINT, before)
        return process.returncode

    return run


@contextmanager
def connect(
    address: str | None, gpus: float | None, device: str | None, trusted: Iterable[str] = ()
) -> Iterator[Cluster]:
    """A cluster for the time of the block: the one at `address` or RAY_ADDRESS, else one on this machine alone.

    Args:
        address: of the cluster's head, such as `10.0.0.5:6379`, or `auto`.
        gpus: of each run; None: 1, and none where the runs train on the processor.
        device: that the sweep file asks for.
        trusted: as of `Cluster`.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
        DeviceRefusedError: the cluster has fewer GPUs than one run asks for.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers are to use this environment, not build one
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own 15 leaves a run next to nothing of a core that anything else uses. Heard where Ray is started here.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("the launcher `ray` needs Ray: pip install 'grokkit[ray]'") from None
    own, heard = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if own:
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS')}: {error}"
            ) from error
        finally:
            signal.signal(signal.SIGTERM, heard)  # Ray's own handler would end this process without a report
    try:
        yield Cluster(ray, _gpu_share(gpus, device, ray.cluster_resources().get("GPU", 0.0)), trusted)
    finally:
        if own:
            ray.shutdown()


def _gpu_share(wanted: float | None, device: str | None, there: float) -> float:
    """GPUs of each run. Raises DeviceRefusedError where the cluster could never give them."""
    if device == "cpu":
        if wanted:
            raise UsageError(f'the sweep says device = "cpu", and --gpus-per-run {wanted:g} asks for GPUs')
        return 0.0
    share = 1.0 if wanted is None else wanted
    if share < 0:
        raise UsageError(f"--gpus-per-run must be 0 or more; got {share:g}")
    if share > there:
        remedy = "say --gpus-per-run with less" if there else 'say device = "cpu" in the sweep file'
        raise DeviceRefusedError(f"the Ray cluster has {there:g} GPUs and each run asks for {share:g}; {remedy}")
    return share
