"""Running loss and accuracy of the batches, summed on the device and read without synchronising with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Sums of loss and correct answers over all samples, ragged batches too.

    `enqueue` copies the means to host memory asynchronously; `pop_pending` waits for that copy only, which is done as
    soon as the device has finished what was queued before `enqueue`.

    Args:
        device: of the batches.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._seen = 0
        self._step = 0
        self._pending = torch.zeros(2, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._ready = torch.cuda.Event() if device.type == "cuda" else None

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add a batch: `loss` is its mean, `logits` (B, classes), `y` (B,)."""
        with torch.no_grad():
            self._sums[0] += loss.detach() * len(y)
            self._sums[1] += (logits.argmax(1) == y).sum()
        self._seen += len(y)

    def mean(self) -> tuple[float, float]:
        """Return mean loss and accuracy since the last `enqueue`. This waits for the device."""
        loss, accuracy = (self._sums / max(self._seen, 1)).tolist()
        return loss, accuracy

    def enqueue(self, step: int) -> None:
        """Copy the means since the last call to the host as those of `step`, and reset the sums; does not block."""
        self._pending.copy_(self._sums / max(self._seen, 1), non_blocking=True)
        if self._ready is not None:
            self._ready.record()
        self._sums.zero_()
        self._seen, self._step = 0, step

    def pop_pending(self) -> tuple[int, float, float] | None:
        """Wait for the copy started by `enqueue` and return step, mean loss and accuracy; None if none is pending."""
        if not self._step:
            return None
        if self._ready is not None:
            self._ready.synchronize()
        step, self._step = self._step, 0
        loss, accuracy = self._pending.tolist()
        return step, loss, accuracy

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last `enqueue`, and the means that are enqueued and not read yet."""
        if self._ready is not None and self._step:
            self._ready.synchronize()
        return {"sums": self._sums, "seen": self._seen, "taken": self._pending, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums.copy_(torch.as_tensor(state["sums"]))
        self._pending.copy_(torch.as_tensor(state["taken"]))
        self._seen, self._step = int(state["seen"]), int(state["step"])


class Meters:
    """Meters of several models that are updated by one call of `add`; reading and saving stay per meter.

    Args:
        meters: K of them, on one device; their sums become views of one tensor.
    """

    def __init__(self, meters: Sequence[Meter]) -> None:
        self._meters = list(meters)
        self._sums = torch.stack([meter._sums for meter in meters])
        for meter, sums in zip(self._meters, self._sums, strict=True):
            meter._sums = sums

    def add(self, losses: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add one batch per model: `losses` (K,) are the means, `logits` (K, B, classes), `y` (K, B)."""
        self._sums[:, 0] += losses * y.shape[1]
        self._sums[:, 1] += (logits.argmax(2) == y).sum(1)
        for meter in self._meters:
            meter._seen += y.shape[1]
