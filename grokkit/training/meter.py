"""Loss and accuracy of the batches, summed on the device and read without draining it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums of loss and correct answers over all samples, ragged batches too.

    `take` sets the means aside in memory of the host while the device goes on; `read` waits until they are there, which
    they are as soon as the device has done what it was given before `take`.

    Args:
        device: of the batches.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._seen = 0
        self._step = 0
        self._taken = torch.zeros(2, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._ready = torch.cuda.Event() if device.type == "cuda" else None

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count a batch: `loss` is its mean, `logits` (B, classes), `y` (B,)."""
        with torch.no_grad():
            self._sums[0] += loss.detach() * len(y)
            self._sums[1] += (logits.argmax(1) == y).sum()
        self._seen += len(y)

    def mean(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last taking, at once: this waits for the device."""
        loss, correct = (self._sums / max(self._seen, 1)).tolist()
        return loss, correct

    def enqueue(self, step: int) -> None:
        """Set aside the means since the last taking as those of `step`, and start anew; nothing waits."""
        self._taken.copy_(self._sums / max(self._seen, 1), non_blocking=True)
        if self._ready is not None:
            self._ready.record()
        self._sums.zero_()
        self._seen, self._step = 0, step

    def read_async(self) -> tuple[int, float, float] | None:
        """Step, mean loss and accuracy that were set aside, once; None where nothing was."""
        if not self._step:
            return None
        if self._ready is not None:
            self._ready.synchronize()
        step, self._step = self._step, 0
        loss, correct = self._taken.tolist()
        return step, loss, correct

    def state_dict(self) -> dict[str, Any]:
        """What has been summed since the last taking, and what is set aside and not read yet."""
        if self._ready is not None and self._step:
            self._ready.synchronize()
        return {"sums": self._sums, "seen": self._seen, "taken": self._taken, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sums.copy_(torch.as_tensor(state["sums"]))
        self._taken.copy_(torch.as_tensor(state["taken"]))
        self._seen, self._step = int(state["seen"]), int(state["step"])


class Meters:
    """Meters of several nets, whose batches are counted in one go; each is read, saved and begun anew as ever.

    Args:
        meters: K of them, on one device; from here on their sums are views.
    """

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = list(meters)
        self._sums = torch.stack([meter._sums for meter in meters])
        for meter, sums in zip(self._meters, self._sums, strict=True):
            meter._sums = sums

    def add(self, losses: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count a batch of each: `losses` (K,) are the means, `logits` (K, B, classes), `y` (K, B)."""
        self._sums[:, 0] += losses * y.shape[1]
        self._sums[:, 1] += (logits.argmax(2) == y).sum(1)
        for meter in self._meters:
            meter._seen += y.shape[1]
