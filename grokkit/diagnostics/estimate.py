"""How long a run will take, how much disk, how many dollars: measured on a few real steps and records, then summed."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from grokkit.config.run_config import RunConfig
from grokkit.device.select import fit_threads, select_device
from grokkit.errors import DeviceRefusedError
from grokkit.recording.budget import HOUR, format_dollars
from grokkit.recording.signal import Signal
from grokkit.seeding import seeded
from grokkit.training import loop
from grokkit.training.build import count_macs
from grokkit.training.step import WARM_UP
from grokkit.training.trainer import RecorderLike, Trainer, attach_recorder, build_trainer, describe_hardware
from grokkit.trajectory import manifest

UPDATE_SECONDS = 2.0
"""About what the timed steps take, and the timed records."""

BLOCKS = 5
"""Stretches of steps: the median of their speeds counts, the lowest and the highest are told."""

WARM_SECONDS = 10.0
"""After which slow first steps are enough."""

RECORDS = 5
"""Records timed at most, after the first."""


@dataclass(frozen=True)
class Training:
    """What was measured of the updates.

    Args:
        warm_up: (steps, seconds) of the first ones, compilation and recording of graphs among them.
        steps: timed ones, after those.
        step: seconds of one, the median of `STRETCHES`; `low` and `high`: of the fastest and the slowest stretch.
    """

    warm_up: tuple[int, float]
    steps: int
    step: float
    low: float
    high: float

    def seconds(self, steps: int) -> float:
        """Of a run's `steps` updates, the first ones at what they took."""
        first, taken = self.warm_up
        return steps * self.step if steps <= first else taken + (steps - first) * self.step


@dataclass(frozen=True)
class Instrument:
    """What one instrument takes in a run: `count` times, `first` seconds the first time and `later` each after that."""

    name: str
    count: int
    first: float
    later: float

    @property
    def seconds(self) -> float:
        return self.first + (self.count - 1) * self.later if self.count else 0.0


@dataclass(frozen=True)
class Estimate:
    """A run before it is begun.

    Args:
        config: its choices.
        machine: device, precision and execution in words.
        training: the updates.
        records: recorded steps.
        instruments: all that a run takes beside them, the dearest first.
        files: bytes by kind: `snapshots`, `resume`, each measure, `logs`, ...
        complete: False where measuring ended early, because the run is known to take too long.
    """

    config: RunConfig
    machine: str
    training: Training
    records: int
    instruments: tuple[Instrument, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    complete: bool = False

    @property
    def training_seconds(self) -> float:
        return self.training.seconds(self.config.steps)

    @property
    def seconds(self) -> float:
        """From the run folder's first second to its last; the start of Python and the loading of data come before."""
        return self.training_seconds + sum(each.seconds for each in self.instruments)

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def dollars(self, price: float) -> float:
        """At `price` dollars an hour."""
        return self.seconds * price / HOUR


def estimate(
    config: RunConfig, device: str | None = None, runs: str | Path = "runs", enough: float = math.inf
) -> Estimate:
    """Measure a run's updates and each of its instruments in a folder that goes again, on the disk of `runs`.

    Args:
        config: the run.
        device: as of `train`.
        runs: where the run is to go.
        enough: seconds; as soon as the run is known to take longer, nothing more is measured.

    Raises:
        What `train` raises of choices, data, device and step 0.

    Cost: building data and model, some dozen steps, two to six records of the run's own size.
    """
    place = next(path for path in (Path(runs).absolute(), *Path(runs).absolute().parents) if path.is_dir())
    with ExitStack() as around:
        folder = around.enter_context(tempfile.TemporaryDirectory(prefix=".estimate-", dir=place))
        around.enter_context(seeded(config.seed, "training"))
        trainer = build_trainer(config, select_device(device).torch_device)
        around.enter_context(
            fit_threads(count_macs(trainer.model, trainer.dataset.input_shape) * trainer.batches.batch_size)
        )
        initial = copy.deepcopy(trainer.model.state_dict())
        training = _time_training(trainer)
        records = len(config.schedule)
        found = Estimate(config, describe_hardware(trainer), training, records)
        if found.seconds > enough:
            return found
        trainer.model.load_state_dict(initial)
        path = Path(folder) / "run"
        instruments = _time_instruments(trainer, path)
        slots = _estimate_resume_states(
            found.training_seconds + sum(each.seconds for each in instruments[:-1]), instruments[-1]
        )
        every = tuple(sorted([*instruments[:-1], slots], key=lambda each: -each.seconds))
        return Estimate(config, found.machine, training, records, every, _files(trainer, path, slots.count), True)


def _time_training(trainer: Trainer) -> Training:
    """Steps as the loop takes them, but for its log and its instruments."""
    step, began = 0, time.perf_counter()
    trainer.model.train()
    while step < WARM_UP + 2 and (step < 2 or time.perf_counter() - began < WARM_SECONDS):
        step = _take_steps(trainer, step, 1)
    _synchronize(trainer)
    first = step, time.perf_counter() - began
    once = _time_steps(trainer, step, 1)
    count = max(1, round(UPDATE_SECONDS / BLOCKS / once))
    blocks = BLOCKS if once < UPDATE_SECONDS else 2
    speeds = [_time_steps(trainer, step + 1 + block * count, count) / count for block in range(blocks)]
    return Training(first, blocks * count, statistics.median(speeds), min(speeds), max(speeds))


def _time_steps(trainer: Trainer, done: int, count: int) -> float:
    _synchronize(trainer)
    start = time.perf_counter()
    _take_steps(trainer, done, count)
    _synchronize(trainer)
    return max(time.perf_counter() - start, 1e-9)


def _take_steps(trainer: Trainer, done: int, count: int) -> int:
    for step in range(done + 1, done + count + 1):
        x, y = trainer.batches.at(step)
        loss, logits = trainer.update(x, y)
        trainer.meter.add(loss, logits, y)
        if step <= trainer.config.steps:
            trainer.policy.step()
    return done + count


def _synchronize(trainer: Trainer) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


def _time_instruments(trainer: Trainer, path: Path) -> list[Instrument]:
    """Each of a run's instruments, timed by the recorder itself; the resume slots come last."""
    config, signal = trainer.config, Signal.of(trainer.config.signal)
    with attach_recorder(trainer, path, None) as recorder:
        loop.log_evaluation(trainer, recorder, 0)
        first = _read_timers(recorder)
        schedule, taken = recorder.schedule, 0
        began = time.perf_counter()
        for step in schedule[1 : 1 + RECORDS]:
            recorder.step(step)
            taken += 1
            if time.perf_counter() - began > UPDATE_SECONDS:
                break
        later = {name: (seconds - first.get(name, 0.0)) / taken for name, seconds in _read_timers(recorder).items()}
        found = [
            Instrument(name, len(schedule), first[name], later[name])
            for name in first
            if name not in ("signal", "evaluation")
        ]
        if signal is not None:
            found.append(_signal(recorder, signal, step, config.steps, first["signal"]))
        found.append(_evaluation(trainer, recorder, first["evaluation"]))
        return [*found, _time_resume_state(trainer, recorder, step)]


def _read_timers(recorder: RecorderLike) -> dict[str, float]:
    return {name: seconds for name, seconds in recorder.costs.seconds().items() if name != "training"}


def _signal(recorder: RecorderLike, signal: Signal, step: int, steps: int, first: float) -> Instrument:
    before = recorder.costs.current("signal")
    recorder.step((step // signal.every + 1) * signal.every)
    return Instrument("signal", steps // signal.every + 1, first, recorder.costs.current("signal") - before)


def _evaluation(trainer: Trainer, recorder: RecorderLike, first: float) -> Instrument:
    """Those amid the run and the last one differ: see `loop.log_evaluation`."""

    def taken(step: int) -> float:
        before = recorder.costs.current("evaluation")
        loop.log_evaluation(trainer, recorder, step)
        return recorder.costs.current("evaluation") - before

    count, last = len(recorder.schedule), taken(trainer.config.steps)
    later = (taken(-1) * (count - 2) + last) / (count - 1)
    return Instrument("evaluation", count, first, later)


def _time_resume_state(trainer: Trainer, recorder: RecorderLike, step: int) -> Instrument:
    loop.save_state(trainer, recorder, step)
    first = recorder.costs.current("resume slots")
    loop.save_state(trainer, recorder, step)
    return Instrument("resume slots", 2, first, recorder.costs.current("resume slots") - first)


def _estimate_resume_states(seconds: float, one: Instrument) -> Instrument:
    """As many slots as a run of `seconds` saves: by the clock, within their share of the time, and one at the end."""
    by_share = loop.SAVE_SHARE * seconds / max(one.later, 1e-9)
    return Instrument(one.name, 1 + int(min(seconds / loop.SAVE_SECONDS, by_share)), one.first, one.later)


def _files(trainer: Trainer, path: Path, slots: int) -> dict[str, int]:
    """Bytes of a whole run, from the files of the one that was begun."""
    config, records = trainer.config, len(trainer.config.schedule)
    sizes = {
        "snapshots": records * _mean_size(path / "snapshots"),
        "resume slots": min(slots, 2) * _mean_size(path / "resume"),
    }
    for kind in ("measures", "attributions"):
        for folder in sorted((path / kind).glob("*")):
            sizes[f"{kind}/{folder.name.rpartition('-')[0]}"] = records * _mean_size(folder)
    sizes["probes"] = sum(file.stat().st_size for file in (path / "probes").iterdir())
    log = (path / "metrics.jsonl").read_bytes()
    sizes["logs"] = _log_lines(config, records) * len(log) // max(log.count(b"\n"), 1)
    sizes["other"] = sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".toml", ".json"))
    files = records * (1 + len(config.measures) + len(config.attributions)) + slots
    sizes["manifest"] = _manifest_bytes(path, files)
    return sizes


def _manifest_bytes(path: Path, files: int) -> int:
    """Of its first line, and of one for each of so many files."""
    first, *lines = (path / manifest.MANIFEST_FILE).read_bytes().splitlines(keepends=True)
    return len(first) + round(files * statistics.mean(map(len, lines))) if lines else len(first)


def _mean_size(folder: Path) -> int:
    sizes = [file.stat().st_size for file in folder.glob("*.h5")]
    return round(statistics.mean(sizes)) if sizes else 0


def _log_lines(config: RunConfig, records: int) -> int:
    """Rows of metrics.jsonl: batches, signal, evaluations."""
    every = max(1, config.steps // loop.REPORTS)
    reports = config.steps // every + (config.steps % every > 0)
    readings = config.steps // int(config.signal.get("every", Signal.every)) + 1 if config.signal else 0
    quantities = len(config.signal.get("quantities", Signal.quantities))
    return 3 * reports + 5 * quantities * readings + 2 * records


def summarize_estimate(found: Estimate, price: float | None = None) -> str:
    """One line: machine, speed, seconds of training and of the instruments, disk, dollars."""
    steps, beside = found.config.steps, found.seconds - found.training_seconds
    parts = [
        found.machine,
        format_speed(1 / found.training.step),
        f"{steps:,} steps {format_duration(found.training_seconds)}",
        f"{found.records} records +{format_duration(beside)}",
        f"disk {format_size(found.bytes)}",
    ]
    if price is not None:
        parts.append(f"about {format_dollars(found.dollars(price))} at {format_dollars(price)}/h")
    return " | ".join(parts)


def format_duration(seconds: float) -> str:
    """`8.2 s`, `4m10`, `2h17`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}" if minutes >= 100 else f"{int(seconds) // 60}m{int(seconds) % 60:02}"


def format_speed(rate: float) -> str:
    """`1,320 steps/s`, `0.13 steps/s`."""
    return f"{rate:,.0f} steps/s" if rate >= 100 else f"{rate:.3g} steps/s"


def format_size(count: float) -> str:
    """Bytes as `4.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def require_time_limit(minutes: float, configs: Sequence[RunConfig], seeds: int, runs: Path) -> float:
    """Seconds that all runs will take on this CPU, one after the other.

    Raises:
        DeviceRefusedError: they are more than `minutes`, so that nobody waits for days where a GPU was meant.
    """
    seconds = 0.0
    for number, config in enumerate(configs, start=1):
        found = estimate(config, "cpu", runs, enough=minutes * 60 / seeds - seconds)
        seconds += found.seconds
        if seconds * seeds > 60 * minutes:
            least = "about" if found.complete and number == len(configs) else "more than"
            raise DeviceRefusedError(
                f"there is no GPU here, and on this CPU it would take {least} {format_duration(seconds * seeds)} "
                f"({config.variant}: {format_speed(1 / found.training.step)} measured, {config.steps:,} steps), beyond "
                f"--cpu-limit {minutes:g} (minutes). Use a machine with a GPU, fewer --steps, a larger --cpu-limit, or "
                "say --device cpu to train here all the same"
            )
    return seconds * seeds
