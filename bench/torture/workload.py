"""A writer whose every byte is known from its step, and what must be true of its folder whenever it is looked at."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import grokkit as gk
from grokkit.names import ProbeSet
from grokkit.recording.recorder import Recorder
from grokkit.trajectory.writer import Writer

TENSORS, SHAPE = 20, (37, 38)
"""About 113 KB a snapshot."""
EVERY = 3
"""Steps between two slots."""
SCHEDULE = range(3000)
PROBE = ProbeSet("test", np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64), "zeros", np.arange(2))

Acknowledge = Callable[[str, int], None]


class Net(nn.Module):
    """Only weights; `at` puts those of a step in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(SHAPE)) for _ in range(TENSORS)])
        self.register_buffer("seen", torch.tensor(0))

    def at(self, step: int) -> Net:
        with torch.no_grad():
            for name, tensor in content(step).items():
                self.state_dict()[name].copy_(tensor)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2]


def content(step: int) -> dict[str, torch.Tensor]:
    """The state of a step."""
    whole = torch.randn(TENSORS, *SHAPE, generator=torch.Generator().manual_seed(step))
    return {f"layers.{number}": tensor for number, tensor in enumerate(whole)} | {"seen": torch.tensor(step)}


class Counter:
    """A part with a state, as a policy has one."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def opened(path: Path, net: Net, resume: bool = False) -> Recorder:
    return gk.record(
        path,
        net,
        probes={"test": PROBE},
        measures=["weight_norm"],
        schedule=SCHEDULE,
        config={"seed": 0},
        resume=resume,
    )


def write(path: Path, acknowledge: Acknowledge, last: int = len(SCHEDULE) - 1) -> None:
    """Record steps until `last`, or until somebody puts an end to it; `acknowledge` hears of every snapshot and slot
    that is on the disk."""
    _acknowledging(acknowledge)
    net, part = Net().at(0), Counter()
    with opened(path, net) as recorder:
        acknowledge("snapshot", 0)
        for step in range(1, last + 1):
            advance(recorder, net, part, step)


def advance(recorder: Recorder, net: Net, part: Counter, step: int) -> None:
    """One step as a loop takes it."""
    net.at(step)
    part.count = step
    recorder.log(step, "batch", loss=step / 8)
    recorder.step(step)
    if step % EVERY == 0:
        recorder.save(step, part=part)


def _acknowledging(acknowledge: Acknowledge) -> None:
    """Have the writing thread say what it has made durable, at the moment when it knows."""
    submit = Writer.submit

    def saying(self: Writer, job: Callable[[], None]) -> None:
        name, step = _what(job)

        def done() -> None:
            job()
            if name:
                acknowledge(name, step)

        submit(self, done)

    Writer.submit = saying  # type: ignore[method-assign]


def _what(job: Callable[[], None]) -> tuple[str, int]:
    """Which file a job of the recorder writes."""
    write = next(cell.cell_contents for cell in job.__closure__ or () if callable(cell.cell_contents))
    arguments = getattr(write, "args", ())
    if len(arguments) == 3:
        return "snapshot", arguments[1]
    return ("slot", arguments[0].step) if arguments else ("", 0)


def by_pipe(handle: int) -> Acknowledge:
    """Acknowledge by a line in a pipe or a file."""
    return lambda name, step: (os.write(handle, f"{name} {step}\n".encode()), None)[1]


def heard(text: str) -> dict[str, int]:
    """The newest acknowledged step by kind; a line that was torn was not said."""
    newest: dict[str, int] = {}
    for line in text.split("\n")[:-1]:
        name, step = line.split()
        newest[name] = max(newest.get(name, -1), int(step))
    return newest


def faults(path: Path, acknowledged: Mapping[str, int]) -> list[str]:
    """What is lost or wrong in the folder of a writer that has come to its end, and after it was gone on with.

    Nothing that was acknowledged is missing; no file that is there is wrong, nor is a log; the run can be resumed from
    the acknowledged slot or a later one, and two more steps are written like any other.
    """
    if not path.exists():
        return [f"acknowledged {dict(acknowledged)}, and there is no folder"] if acknowledged else []
    found = []
    for look in (_faults_of_files, _faults_of_resuming):
        try:
            found += look(path, acknowledged)
        except Exception as error:
            found.append(f"{look.__name__}: {type(error).__name__}: {error}")
    return found


def _faults_of_files(path: Path, acknowledged: Mapping[str, int]) -> list[str]:
    found, run = [], gk.open_run(path)
    # the step in the status of a running run acknowledges its snapshot; step 0 stands there from the beginning, and the
    # step of a failed one is how far it came
    said = run.status["step"] or -1 if run.status["state"] == "running" else -1
    acknowledged = {**acknowledged, "snapshot": max(said, acknowledged.get("snapshot", -1))}
    missing = set(range(acknowledged.get("snapshot", -1) + 1)) - set(run.steps())
    if missing:
        found.append(f"acknowledged snapshots are missing: {sorted(missing)}")
    taken = next(iter(run.measures().values()), [])
    if lost := set(range(acknowledged.get("snapshot", 0))) - set(taken):
        found.append(f"readings of steps before the acknowledged one are missing: {sorted(lost)}")
    for step in run.steps():
        if not same(run.load(step), content(step)):
            found.append(f"the snapshot of step {step} is another")
    found += run.verify()
    metrics = {int(row.step) for row in run.metrics.query("metric == 'loss'").itertuples()}
    if lost := set(range(1, max(acknowledged.values(), default=0) + 1)) - metrics:
        found.append(f"metrics of acknowledged steps are lost: {sorted(lost)}")
    return found


def _faults_of_resuming(path: Path, acknowledged: Mapping[str, int]) -> list[str]:
    net, part = Net().at(0), Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with opened(path, net, resume=True) as recorder:
            step = recorder.restore(part=part)
            found = []
            if step < acknowledged.get("slot", 0):
                found.append(f"resumed at {step}, and a slot of step {acknowledged['slot']} was acknowledged")
            if step and not (same(net.state_dict(), content(step)) and part.count == step):
                found.append(f"the slot of step {step} holds another state")
            for later in (step + 1, step + 2):
                advance(recorder, net, part, later)
    run = gk.open_run(path)
    if any(not same(run.load(later), content(later)) for later in (step + 1, step + 2)):
        found.append("what was written after resuming is another")
    return found if run.status["state"] == "done" else [*found, f"ended as {run.status['state']}"]


def same(mine: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in other)
