"""Make files durable in a background thread; one file is in flight, and errors are raised at the next call and at the
end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from grokkit.trajectory.snapshot import Staging


class Writer:
    """A background thread that runs one job at a time; two buffers allow the next state to be copied meanwhile.

    A thread is enough: `pwritev`, `fsync` and the hashes release the GIL.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grokkit-writer")
        self._job: Future[None] | None = None
        self._ident: int | None = None
        self._staging = [Staging(), Staging()]
        self.seconds = 0.0
        """Total duration of all jobs so far."""
        self.failure: BaseException | None = None
        """The first error of a job, even if a caller caught it."""

    @property
    def is_busy(self) -> bool:
        """Whether a job is running, so that `submit` would wait."""
        return self._job is not None and not self._job.done()

    @property
    def staging(self) -> Staging:
        """The buffer that is free until the next `submit`."""
        return self._staging[0]

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` after the previous one has finished; raise the error of the previous one."""
        self.wait()
        self._staging.reverse()
        self._job = self._thread.submit(self._run_timed, job)

    def _run_timed(self, job: Callable[[], None]) -> None:
        start, self._ident = time.perf_counter(), threading.get_ident()
        try:
            job()
        except BaseException as error:
            self.failure = self.failure or error
            raise
        finally:
            self.seconds += time.perf_counter() - start

    def wait(self) -> None:
        """Wait until the job in flight is done, and raise its error once."""
        if self._job is None or threading.get_ident() == self._ident:  # garbage collection may run in the thread itself
            return
        try:
            self._job.result()
        finally:
            if self._job.done():  # Ctrl-C interrupts the wait, not the job: its buffer is still in use
                self._job = None

    def close(self) -> None:
        """Wait as `wait`, and end the thread; nothing can be submitted afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown(wait=threading.get_ident() != self._ident)
