"""Data-parallel training: every rank trains on its shard of each batch; rank 0 records, measures and decides.

`torchrun --nproc-per-node N -m grokkit train ...` starts the ranks, Lightning Fabric connects them. The batch of a step
is that of a single-process run: every rank makes it from the same random streams and keeps its rows. The loss is the
mean over the whole batch and gradients are averaged, so the weights are those of a single-process run to rounding.
BatchNorm statistics are those of each rank's rows, as usual in data-parallel training; those of rank 0 are recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from grokkit.device.preserved_state import device_of
from grokkit.errors import UsageError
from grokkit.interrupt import StopRequested
from grokkit.literals import ExecutionChoice, FinalState
from grokkit.measures.loss import LossFunction
from grokkit.recording.signal import Signal
from grokkit.recording.state import Stateful, get_random_state, load_state, set_random_state
from grokkit.recording.timers import Timers
from grokkit.seeding import derive_seed
from grokkit.training.meter import Meter
from grokkit.trajectory.resume import ResumeStore

T = TypeVar("T")

SYNC_EVERY = 10
"""Steps between two exchanges of the ranks on whether one of them was asked to stop or to save."""


class Ranks:
    """The single-process case, and the interface of `DDPRanks`."""

    rank, size = 0, 1

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this rank."""
        return device

    def validate(self, images: int, batch_size: int, execution: ExecutionChoice) -> ExecutionChoice:
        """Return how steps are executed; raise UsageError if the batch size or `execution` does not fit the ranks."""
        return execution

    def seed_rank(self, seed: int) -> None:
        """Seed this rank's global generator. Call it when the model is built, before anything else is drawn."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module for the training step: `model` with gradients averaged over the ranks."""
        return model

    def loss(self, loss: LossFunction) -> LossFunction:
        """Return `loss` weighted by this rank's rows, so that its average over the ranks is that of the whole batch."""
        return loss

    def meter(self, device: torch.device) -> Meter:
        """Return a meter that sums over the whole batches."""
        return Meter(device)

    def shard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's rows of a batch."""
        return x, y

    def on_rank_zero(self, fn: Callable[[], T], broadcast: bool = True) -> T | None:
        """Run `fn` on rank 0 and broadcast its result if `broadcast`; an interrupt on rank 0 interrupts all ranks."""
        return fn()

    def any_rank(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """Return whether any rank requests a stop, and whether any requests a save."""
        return stop, save

    def barrier(self) -> None:
        """Wait for all ranks."""

    def resume_parts(self) -> dict[str, Stateful]:
        """Return the objects that are saved with the resume state on behalf of the ranks."""
        return {}


def current_ranks(device: torch.device) -> Ranks:
    """Return the ranks of this process: connected if torchrun started it, else a single process."""
    return Ranks() if is_single_process() else DDPRanks(device)


def is_single_process() -> bool:
    """Return whether this process trains alone."""
    return not torch.distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1"


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, or trains alone."""
    return is_single_process() or os.environ["RANK"] == "0"


class DDPRanks(Ranks):
    """Ranks of a torchrun launch, connected by Lightning Fabric's DDP strategy."""

    def __init__(self, device: torch.device) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy

        size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        # The other ranks wait while rank 0 measures, which may take long.
        strategy = DDPStrategy(timeout=timedelta(days=7))
        self._fabric = Fabric(
            accelerator=device.type, devices=local_size, num_nodes=size // local_size, strategy=strategy
        )
        self._fabric.launch()
        self.rank, self.size = self._fabric.global_rank, self._fabric.world_size
        self.rows, self._weight = 0.0, 1.0

    def device(self, device: torch.device) -> torch.device:
        rank_device: torch.device = self._fabric.device
        return rank_device

    def validate(self, images: int, batch_size: int, execution: ExecutionChoice) -> ExecutionChoice:
        smallest = images % batch_size or batch_size
        if smallest < self.size:
            raise UsageError(
                f"the last batch of an epoch has {smallest} images, fewer than the {self.size} processes: choose "
                f"another `batch_size` than {batch_size} for {images} images, or fewer processes"
            )
        if execution not in ("auto", "eager"):
            raise UsageError(
                f'several processes train with eager steps; expected execution = "auto" or "eager", got "{execution}"'
            )
        return "eager"

    def seed_rank(self, seed: int) -> None:
        if self.rank:  # dropout must differ between the rows of a batch
            torch.manual_seed(derive_seed(seed, "training", self.rank))

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped: nn.Module = self._fabric.setup_module(model, move_to_device=False)
        return wrapped

    def loss(self, loss: LossFunction) -> LossFunction:
        return lambda logits, y: loss(logits, y) * self._weight

    def meter(self, device: torch.device) -> Meter:
        return _DDPMeter(device, self)

    def shard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y_shard = y.tensor_split(self.size)[self.rank]
        self.rows = len(y) / self.size
        self._weight = len(y_shard) / self.rows
        return x.tensor_split(self.size)[self.rank], y_shard

    def on_rank_zero(self, fn: Callable[[], T], broadcast: bool = True) -> T | None:
        result, stopped = None, False
        if self.rank == 0:
            try:
                result = fn()
            except StopRequested:
                stopped = True
        if broadcast:
            result, stopped = self._fabric.broadcast((result, stopped))
        if stopped:
            raise StopRequested
        return result

    def any_rank(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        if step % SYNC_EVERY:
            return False, False
        requests = self.sum(torch.tensor([float(stop), float(save)], device=self._fabric.device))
        stop, save = (requests > 0).tolist()
        return stop, save

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors; `values` is unchanged."""
        summed = self._fabric.all_reduce(values.clone(), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def barrier(self) -> None:
        self._fabric.barrier()

    def resume_parts(self) -> dict[str, Stateful]:
        return {"team": _RandomStates(self._fabric.device, self.rank, self.size)}


class _DDPMeter(Meter):
    """Meter of one rank's rows; the sums are added over the ranks when they are enqueued or saved."""

    def __init__(self, device: torch.device, ranks: DDPRanks) -> None:
        super().__init__(device)
        self._ranks = ranks

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            self._sums[0] += loss.detach() * self._ranks.rows  # the loss is weighted: times `rows` it is the rows' sum
            self._sums[1] += (logits.argmax(1) == y).sum()
        self._seen += len(y)

    def enqueue(self, step: int) -> None:
        self._sums[:], self._seen = self._total()
        super().enqueue(step)

    def _total(self) -> tuple[Tensor, int]:
        total = self._ranks.sum(torch.cat([self._sums, self._sums.new_tensor([self._seen])]))
        return total[:2], int(total[2])

    def state_dict(self) -> dict[str, Any]:
        sums, seen = self._total()
        return super().state_dict() | {"sums": sums, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self._ranks.rank:
            self._sums.zero_()
            self._seen = 0


class _RandomStates:
    """The random states of all ranks, as one part of the resume state."""

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self._device, self._rank, self._size = device, rank, size

    def state_dict(self) -> dict[str, Any]:
        states: list[Any] = [None] * self._size
        torch.distributed.all_gather_object(states, get_random_state(self._device))
        return {"random": states}

    def check_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["random"]) != self._size:
            raise UsageError(
                f"the resume state was saved by {len(state['random'])} processes, this launch has {self._size}: "
                f"use --nproc-per-node {len(state['random'])}"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.check_state_dict(state)
        set_random_state(state["random"][self._rank], self._device)


class NullRecorder:
    """Stand-in for the recorder on all ranks but 0: nothing is measured or written.

    Args:
        path: of the run that rank 0 writes.
        model, optimizer: restored from its resume state.
        schedule, signal: as in the recorder.
    """

    unfinished = False
    save_seconds = 0.0
    spent: float | None = None
    on_event: Callable[[int, str, str], None] | None = None

    def __init__(
        self, path: Path, model: nn.Module, optimizer: Optimizer, schedule: tuple[int, ...], signal: Signal | None
    ) -> None:
        self.path, self.schedule = path, schedule
        self._model, self._optimizer, self._signal = model, optimizer, signal
        self._due = frozenset(schedule)
        self.timers = Timers(device_of(model))

    def is_due(self, step: int) -> bool:
        return step in self._due

    def is_signal_due(self, step: int) -> bool:
        return self._signal is not None and self._signal.is_due(step)

    def step(self, step: int) -> None: ...

    def pop_first_readings(self) -> None: ...

    def log(self, step: int, split: str, **values: float) -> None: ...

    def event(self, step: int, kind: str, text: str, **fields: Any) -> None: ...

    def save(self, step: int, *, unfinished: bool = False, **parts: Stateful) -> None:
        """Take part in the collective calls of the parts' `state_dict`; rank 0 saves the result."""
        for part in parts.values():
            part.state_dict()

    def restore(self, **parts: Stateful) -> int:
        """Load the resume state that rank 0 has loaded; return its step, 0 if there is none."""
        result = ResumeStore(self.path / "resume").load()
        if result is None:
            return 0
        step, state = result
        load_state(state, self._model, self._optimizer, parts)
        self.unfinished = state.get("unfinished", False)
        return step

    def close(self, state: FinalState = "done", reason: str = "") -> None: ...

    def discard(self) -> None: ...

    def __enter__(self) -> NullRecorder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...
