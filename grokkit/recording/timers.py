"""Wall-clock timers of a run: training, and each instrument separately."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Timers:
    """Wall-clock seconds per instrument, and of everything else since the start, which is the training.

    Args:
        device: synchronised around every timed block, so that queued kernels are charged to the right one.
        before: seconds of earlier attempts at the same run, as returned by `seconds()`.
        clock: a monotonic clock in seconds.
        runs: number of runs that are computed together; each is charged an equal share.
    """

    def __init__(
        self,
        device: torch.device,
        before: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        runs: int = 1,
    ) -> None:
        self._runs = runs
        self._device, self._clock = device, clock
        self._before = dict(before or {})
        self._spent: dict[str, float] = {}
        self._began = clock()
        self._inside = False

    @contextmanager
    def section(self, instrument: str) -> Iterator[None]:
        """Charge the time of the block to `instrument`; a nested block is charged to the outer one only."""
        if self._inside:
            yield
            return
        self._synchronize()
        self._inside, start = True, self._clock()
        try:
            yield
        finally:
            self._synchronize()
            self._inside = False
            self._spent[instrument] = self._spent.get(instrument, 0.0) + self._clock() - start

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def current(self, instrument: str) -> float:
        """Return the seconds that `instrument` has taken in this attempt."""
        return self._spent.get(instrument, 0.0)

    def training(self) -> float:
        """Return the seconds of this attempt that no instrument has taken."""
        return self._clock() - self._began - sum(self._spent.values())

    def total(self) -> float:
        """Return one run's seconds over all attempts, training and instruments together."""
        return sum(self._before.values()) + (self._clock() - self._began) / self._runs

    def seconds(self) -> dict[str, float]:
        """Return one run's seconds by name over all attempts: `training` first, then instruments, slowest first."""
        training = self.training()
        now = {name: spent / self._runs for name, spent in {"training": training, **self._spent}.items()}
        total = {name: now.get(name, 0.0) + self._before.get(name, 0.0) for name in {**self._before, **now}}
        ordered = sorted(total.items(), key=lambda item: (item[0] != "training", -item[1]))
        return dict(ordered)


def summarize_timers(seconds: Mapping[str, float]) -> str:
    """Format `Timers.seconds` as `training 93.1 s; instruments 7.3 % of the training time: loss 5.1 %, ...`."""
    training = max(seconds.get("training", 0.0), 1e-9)
    instruments = {name: value / training for name, value in seconds.items() if name != "training"}
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in instruments.items())
    total = f"{100 * sum(instruments.values()):.1f} % of the training time"
    return f"training {training:.3g} s; instruments {total}: {shares or 'none'}"
