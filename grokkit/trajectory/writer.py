"""A thread that makes files durable while the run goes on; one file in flight, errors at the next and at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from grokkit.trajectory.snapshot import Staging


class Writer:
    """Takes one job at a time. While one is being written, the next state can be copied: there are two buffers.

    A thread is enough: `pwritev`, `fsync` and the hashes give up the interpreter's lock.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grokkit-writer")
        self._job: Future[None] | None = None
        self._ident: int | None = None
        self._staging = [Staging(), Staging()]
        self.seconds = 0.0
        """That all jobs so far have taken."""
        self.failure: BaseException | None = None
        """What went wrong first, also where somebody caught it."""

    @property
    def busy(self) -> bool:
        """Whether a job is under way, so that `submit` would wait."""
        return self._job is not None and not self._job.done()

    @property
    def staging(self) -> Staging:
        """The buffer that is free until the next `submit`."""
        return self._staging[0]

    def submit(self, job: Callable[[], None]) -> None:
        """Hand `job` over when the one before is done; what went wrong with that one is raised here."""
        self.wait()
        self._staging.reverse()
        self._job = self._thread.submit(self._timed, job)

    def _timed(self, job: Callable[[], None]) -> None:
        start, self._ident = time.perf_counter(), threading.get_ident()
        try:
            job()
        except BaseException as error:
            self.failure = self.failure or error
            raise
        finally:
            self.seconds += time.perf_counter() - start

    def wait(self) -> None:
        """Until the job in flight is done; raises what went wrong with it, once."""
        if self._job is None or threading.get_ident() == self._ident:  # the collector may run in the thread itself
            return
        try:
            self._job.result()
        finally:
            if self._job.done():  # Ctrl-C ends the wait, not the job: its buffer is not free yet
                self._job = None

    def close(self) -> None:
        """`wait`, and let the thread go; nothing can be submitted afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown(wait=threading.get_ident() != self._ident)
