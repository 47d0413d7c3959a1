"""One run in several processes: each takes its part of every batch, the first one records, measures and decides.

`torchrun --nproc-per-node N -m grokkit train ...` starts them, Fabric connects them. The batch of a step is the one
that a run alone has: every process makes it from the same random streams and keeps its rows. The loss is the mean over
the whole batch and gradients are averaged, so the weights are those of a run alone to rounding. BatchNorm's statistics
are those of each process's rows, as everywhere in data-parallel training; the first one's are recorded.
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
from grokkit.recording.signal import Signal
from grokkit.recording.state import Stateful, get_random_state, load_state, set_random_state
from grokkit.recording.timers import Timers
from grokkit.seeding import stream
from grokkit.training.meter import Meter
from grokkit.trajectory.resume import ResumeStore

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]

SYNC_EVERY = 10
"""Steps between two questions of the processes to each other whether one of them was asked to stop or to save."""


class Ranks:
    """A run in one process, which does everything itself."""

    rank, size = 0, 1

    def device(self, device: torch.device) -> torch.device:
        """Where this process computes."""
        return device

    def validate(self, images: int, batch_size: int, execution: str) -> str:
        """How a step is computed; raises UsageError where the batches or a chosen execution do not fit the team."""
        return execution

    def seed_rank(self, seed: int) -> None:
        """Called when the model is built, before anything else is drawn."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """What a training step calls: `model`, whose gradients are averaged over the team."""
        return model

    def loss(self, loss: Loss) -> Loss:
        """`loss` of this process's rows, so weighted that its average over the team is that of the whole batch."""
        return loss

    def meter(self, device: torch.device) -> Meter:
        """Sums over the whole batches."""
        return Meter(device)

    def shard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """This process's rows of a batch."""
        return x, y

    def on_rank_zero(self, what: Callable[[], T], due: bool = True) -> T | None:
        """What the first process finds; the others hear of it where it is `due`, and a stop of its is one of all."""
        return what()

    def any_rank(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        """Whether one of the processes wants to stop, and whether one wants to save."""
        return stop, save

    def barrier(self) -> None:
        """Wait for the others."""

    def resume_parts(self) -> dict[str, Stateful]:
        """What a resume slot holds of the team."""
        return {}


def current_ranks(device: torch.device) -> Ranks:
    """The team that torchrun has started this process in, connected; otherwise a process alone."""
    return Ranks() if is_single_process() else DDPRanks(device)


def is_single_process() -> bool:
    """Whether this process is no member of a team."""
    return not torch.distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1"


def is_rank_zero() -> bool:
    """Whether this process speaks for its team, or is alone."""
    return is_single_process() or os.environ["RANK"] == "0"


class DDPRanks(Ranks):
    def __init__(self, device: torch.device) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy

        size, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        # the others wait while the first one measures, which may take long
        strategy = DDPStrategy(timeout=timedelta(days=7))
        self._fabric = Fabric(accelerator=device.type, devices=here, num_nodes=size // here, strategy=strategy)
        self._fabric.launch()
        self.rank, self.size = self._fabric.global_rank, self._fabric.world_size
        self.rows, self._weight = 0.0, 1.0

    def device(self, device: torch.device) -> torch.device:
        return self._fabric.device

    def validate(self, images: int, batch_size: int, execution: str) -> str:
        smallest = images % batch_size or batch_size
        if smallest < self.size:
            raise UsageError(
                f"the last batch of an epoch has {smallest} images, fewer than the {self.size} processes: choose "
                f"another `batch_size` than {batch_size} for {images} images, or fewer processes"
            )
        if execution not in ("auto", "eager"):
            raise UsageError(f'several processes compute eagerly, and execution = "{execution}" is asked for')
        return "eager"

    def seed_rank(self, seed: int) -> None:
        if self.rank:  # dropout is to differ between the rows of a batch
            torch.manual_seed(stream(seed, "training", self.rank))

    def wrap(self, model: nn.Module) -> nn.Module:
        return self._fabric.setup_module(model, move_to_device=False)

    def loss(self, loss: Loss) -> Loss:
        return lambda logits, y: loss(logits, y) * self._weight

    def meter(self, device: torch.device) -> Meter:
        return _DDPMeter(device, self)

    def shard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mine = y.tensor_split(self.size)[self.rank]
        self.rows = len(y) / self.size
        self._weight = len(mine) / self.rows
        return x.tensor_split(self.size)[self.rank], mine

    def on_rank_zero(self, what: Callable[[], T], due: bool = True) -> T | None:
        found, stopped = None, False
        if self.rank == 0:
            try:
                found = what()
            except StopRequested:
                stopped = True
        if due:
            found, stopped = self._fabric.broadcast((found, stopped))
        if stopped:
            raise StopRequested
        return found

    def any_rank(self, step: int, stop: bool, save: bool) -> tuple[bool, bool]:
        if step % SYNC_EVERY:
            return False, False
        wanted = self.sum(torch.tensor([float(stop), float(save)], device=self._fabric.device))
        stop, save = (wanted > 0).tolist()
        return stop, save

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' tensors; the argument stays."""
        summed = self._fabric.all_reduce(values.clone(), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def barrier(self) -> None:
        self._fabric.barrier()

    def resume_parts(self) -> dict[str, Stateful]:
        return {"team": _RandomStates(self._fabric.device, self.rank, self.size)}


class _DDPMeter(Meter):
    """Each process sums its rows; they are added up when the sums are taken or saved."""

    def __init__(self, device: torch.device, team: DDPRanks) -> None:
        super().__init__(device)
        self._ranks = team

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            self._sums[0] += loss.detach() * self._ranks.rows  # the weighted loss: times these, the sum over the rows
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
    """The random states of all processes."""

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self._device, self._rank, self._size = device, rank, size

    def state_dict(self) -> dict[str, Any]:
        states: list[Any] = [None] * self._size
        torch.distributed.all_gather_object(states, get_random_state(self._device))
        return {"random": states}

    def check_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["random"]) != self._size:
            raise UsageError(
                f"the run was saved by {len(state['random'])} processes and these are {self._size}; take as many"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.check_state_dict(state)
        set_random_state(state["random"][self._rank], self._device)


class NullRecorder:
    """What the other processes have in the place of the recorder: nothing is measured or written.

    Args:
        path: of the run that the first process writes.
        model, optimizer: restored from its slots.
        schedule, signal: as of the recorder.
    """

    unfinished = False
    save_seconds = 0.0
    spent: float | None = None
    listener: Callable[[int, str, str], None] | None = None

    def __init__(
        self, path: Path, model: nn.Module, optimizer: Optimizer, schedule: tuple[int, ...], signal: Signal | None
    ) -> None:
        self.path, self.schedule = path, schedule
        self._model, self._optimizer, self._signal = model, optimizer, signal
        self._due = frozenset(schedule)
        self.costs = Timers(device_of(model))

    def due(self, step: int) -> bool:
        return step in self._due

    def signal_due(self, step: int) -> bool:
        return self._signal is not None and self._signal.due(step)

    def step(self, step: int) -> None: ...

    def first_readings(self) -> None: ...

    def log(self, step: int, split: str, **values: float) -> None: ...

    def event(self, step: int, kind: str, text: str, **fields: Any) -> None: ...

    def save(self, step: int, *, unfinished: bool = False, **parts: Stateful) -> None:
        """Give the first process what it needs of this one."""
        for part in parts.values():
            part.state_dict()

    def restore(self, **parts: Stateful) -> int:
        """Load what the first process has loaded."""
        found = ResumeStore(self.path / "resume").load()
        if found is None:
            return 0
        step, state = found
        load_state(state, self._model, self._optimizer, parts)
        self.unfinished = state.get("unfinished", False)
        return step

    def close(self, state: str = "done", reason: str = "") -> None: ...

    def withdraw(self) -> None: ...

    def __enter__(self) -> NullRecorder:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...
