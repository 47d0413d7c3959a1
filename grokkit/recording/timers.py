"""What a run's instruments cost, each apart, against the training that they watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Timers:
    """Wall-clock seconds by instrument, and of everything else since the start: the training.

    Args:
        device: its pending work is finished before an instrument starts, so that nobody pays for another.
        before: seconds of earlier attempts at the same run, as `seconds()` gave them.
        clock: seconds that never go back.
        runs: how many runs are computed together; what they cost is shared by them alike.
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
        """Charge the block to `instrument`; within another's block nothing is charged twice: the outer one pays."""
        if self._inside:
            yield
            return
        self._finish()
        self._inside, start = True, self._clock()
        try:
            yield
        finally:
            self._finish()
            self._inside = False
            self._spent[instrument] = self._spent.get(instrument, 0.0) + self._clock() - start

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def current(self, instrument: str) -> float:
        """Seconds that `instrument` has taken in this attempt."""
        return self._spent.get(instrument, 0.0)

    def training(self) -> float:
        """Seconds of this attempt that no instrument has taken."""
        return self._clock() - self._began - sum(self._spent.values())

    def total(self) -> float:
        """One run's seconds over all attempts, training and instruments together."""
        return sum(self._before.values()) + (self._clock() - self._began) / self._runs

    def seconds(self) -> dict[str, float]:
        """One run's `training` and instruments, over all attempts, the dearest instrument first behind training."""
        training = self.training()
        now = {name: spent / self._runs for name, spent in {"training": training, **self._spent}.items()}
        total = {name: now.get(name, 0.0) + self._before.get(name, 0.0) for name in {**self._before, **now}}
        dearest = sorted(total.items(), key=lambda item: (item[0] != "training", -item[1]))
        return dict(dearest)


def summarize_timers(seconds: Mapping[str, float]) -> str:
    """`training 93.1 s; instruments 7.3 % of that: local_complexity 5.1 %, ...`, from `Costs.seconds`."""
    training = max(seconds.get("training", 0.0), 1e-9)
    instruments = {name: value / training for name, value in seconds.items() if name != "training"}
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in instruments.items())
    return f"training {training:.3g} s; instruments {100 * sum(instruments.values()):.1f} % of that: {shares or 'none'}"
