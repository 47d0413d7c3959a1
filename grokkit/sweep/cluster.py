"""Launch the runs of a sweep on a Ray cluster: each run is a process inside a Ray task that holds a share of a GPU."""

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
from grokkit.trust import make_worker_environment

LOCATION = "Ray, as soon as resources are free"
KILLED_EXIT_CODE = -9
"""Exit code reported for a run whose worker or node is gone."""


class RayLauncher:
    """Launcher that submits every run to Ray at once; Ray queues them until resources are free.

    A run whose worker or node is lost counts as killed and is submitted again. Its process ends with the worker,
    because Ray assigns the worker's share of a GPU to the next run at once. The run folders and the working directory
    must have the same path on every node.

    Args:
        ray: the `ray` module, connected to a cluster.
        gpus: GPUs of each run; 0.5 lets two runs share one GPU, 0 takes none.
        trusted: digests of the experiment sources that the runs may execute from their folders; the trust list of the
            user who starts this queue need not exist on the other nodes.
    """

    def __init__(self, ray: Any, gpus: float, trusted: Iterable[str] = ()) -> None:
        self._ray = ray
        self._environment = make_worker_environment(trusted) | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
        # No retries by Ray: the queue decides about another attempt.
        self._task = ray.remote(_make_task()).options(num_cpus=1, num_gpus=gpus, max_retries=0)

    def start(self, argv: Sequence[str], log: Path) -> RayAttempt:
        """Submit `grokkit ARGV...` to Ray; its output is appended to `log`."""
        env = {"PYTHONPATH": inherit_environment()["PYTHONPATH"], **self._environment}
        return RayAttempt(
            self._ray, self._task.remote(list(argv), str(log.absolute()), os.getcwd(), env, LOG_MARK), log
        )


class RayAttempt:
    """Attempt at one run as a Ray task."""

    location = LOCATION

    def __init__(self, ray: Any, reference: Any, log: Path) -> None:
        self._ray, self._reference, self._log = ray, reference, log
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code of the process, negative for a signal and for a lost worker; None while it runs."""
        if self._exit_code is None and self._ray.wait([self._reference], timeout=0)[0]:
            self._exit_code = self._get_exit_code()
        return self._exit_code

    def _get_exit_code(self) -> int:
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(self._reference))
        except errors.RayTaskError as error:  # not started, for example on a node that lacks the working directory
            self._append_to_log(f"{type(error).__name__}: {error}")
            return 1
        except errors.RayError as error:
            self._append_to_log(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return KILLED_EXIT_CODE

    def _append_to_log(self, text: str) -> None:
        with open(self._log, "a") as file:
            file.write(text.strip() + "\n")

    def stop(self) -> None:
        """Request that the run saves and stops."""
        self._ray.cancel(self._reference)


def _make_task() -> Callable[[list[str], str, str, dict[str, str], str], int]:
    """Return the function that a Ray worker executes. It is nested, so that Ray pickles it by value and no worker needs
    to import this module."""

    def run(argv: list[str], log: str, folder: str, environment: dict[str, str], mark: str) -> int:
        import fcntl
        import os
        import signal
        import socket
        import subprocess
        import sys
        import time
        from contextlib import suppress

        interrupts: list[int] = []
        # `ray.cancel` sends SIGINT, which a worker ignores if the shell that started Ray ignores it. The handler only
        # records the signal: an exception could end this function at any moment and leave the process behind.
        before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
        try:
            with open(log, "ab") as output:
                with suppress(OSError):  # the process inherits the lock: see grokkit.sweep.child_process
                    fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
                gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "no"
                output.write(f"{mark}on {socket.gethostname()}, {gpus} GPU\n".encode())
                output.flush()
                process = subprocess.Popen(
                    [sys.executable, "-m", "grokkit", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                    env={**os.environ, **environment, "GROKKIT_PARENT": str(os.getpid())},
                )
            while process.poll() is None:
                if interrupts:
                    interrupts.clear()
                    process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
        finally:
            signal.signal(signal.SIGINT, before)
        return process.returncode

    return run


@contextmanager
def connect(
    address: str | None, gpus: float | None, device: str | None, trusted: Iterable[str] = ()
) -> Iterator[RayLauncher]:
    """Connect to the cluster at `address` or RAY_ADDRESS, else start Ray on this machine; disconnect after the block.

    Args:
        address: address of the cluster's head, such as `10.0.0.5:6379`, or `auto`.
        gpus: GPUs of each run; None: 1, or 0 if the runs train on the CPU.
        device: `device` of the sweep file.
        trusted: as in `RayLauncher`.

    Raises:
        UsageError: Ray is not installed, or no cluster responds.
        DeviceRefusedError: the cluster has fewer GPUs than one run needs.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers use this environment and build none
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's default of 15 leaves a run almost nothing of a core that is also used by others. Takes effect only if Ray is
    # started here.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("the launcher `ray` needs Ray: pip install 'grokkit[ray]'") from None
    starts_ray, handler = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    if starts_ray:
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            place = address or os.environ.get("RAY_ADDRESS")
            problem = f"no Ray cluster found at {place}" if place else "Ray could not be started on this machine"
            raise UsageError(f"{problem}: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray's own handler would end this process without a report
    try:
        yield RayLauncher(ray, _resolve_gpu_share(gpus, device, ray.cluster_resources().get("GPU", 0.0)), trusted)
    finally:
        if starts_ray:
            ray.shutdown()


def _resolve_gpu_share(requested: float | None, device: str | None, available: float) -> float:
    """Return the GPUs of each run. Raises DeviceRefusedError if the cluster has fewer."""
    if device == "cpu":
        if requested:
            raise UsageError(f'--gpus-per-run {requested:g} contradicts device = "cpu" in the sweep file')
        return 0.0
    share = 1.0 if requested is None else requested
    if share < 0:
        raise UsageError(f"--gpus-per-run must be 0 or more; got {share:g}")
    if share > available:
        remedy = "pass a smaller --gpus-per-run" if available else 'set device = "cpu" in the sweep file'
        raise DeviceRefusedError(f"the Ray cluster has {available:g} GPUs, but each run needs {share:g}; {remedy}")
    return share
