"""Estimate how long a run takes, its disk space and its cost, from a few real steps and records."""

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
from grokkit.recording.budget import SECONDS_PER_HOUR, format_dollars
from grokkit.recording.signal import Signal
from grokkit.seeding import seeded
from grokkit.training import loop
from grokkit.training.build import count_macs
from grokkit.training.step import WARM_UP
from grokkit.training.trainer import RecorderLike, Trainer, attach_recorder, build_trainer, describe_hardware
from grokkit.trajectory import manifest

TIMED_SECONDS = 2.0
"""Approximate duration of the timed steps, and of the timed records."""

BLOCKS = 5
"""Timed blocks of steps: the median speed is used, the slowest and the fastest are reported."""

MAX_WARM_UP_SECONDS = 10.0
"""Slow first steps are not repeated after this time."""

MAX_TIMED_RECORDS = 5
"""Maximum number of records that are timed after the first."""


@dataclass(frozen=True)
class Training:
    """Measured speed of the updates.

    Args:
        warm_up: (steps, seconds) of the first ones, which include compilation and graph capture.
        steps: number of timed updates after those.
        step: seconds per update, the median of `BLOCKS` blocks; `low` and `high`: of the fastest and the slowest block.
    """

    warm_up: tuple[int, float]
    steps: int
    step: float
    low: float
    high: float

    def seconds(self, steps: int) -> float:
        """Return the duration of `steps` updates, with the first ones as slow as measured."""
        first, elapsed = self.warm_up
        return steps * self.step if steps <= first else elapsed + (steps - first) * self.step


@dataclass(frozen=True)
class Instrument:
    """Cost of one instrument in a run: `count` calls, `first` seconds for the first and `later` for each other."""

    name: str
    count: int
    first: float
    later: float

    @property
    def seconds(self) -> float:
        return self.first + (self.count - 1) * self.later if self.count else 0.0


@dataclass(frozen=True)
class Estimate:
    """Estimated time and disk space of a run.

    Args:
        config: of the run.
        machine: description of device, precision and execution.
        training: speed of the updates.
        records: recorded steps.
        instruments: everything a run does besides its updates, the most expensive first.
        files: bytes by kind: `snapshots`, `resume slots`, each measure, `logs`, ...
        complete: False if measuring ended early because the run is known to take too long.
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
        """Duration from the creation of the run folder to the end; imports and loading of data come before."""
        return self.training_seconds + sum(each.seconds for each in self.instruments)

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def dollars(self, price: float) -> float:
        """Return the cost at `price` dollars an hour."""
        return self.seconds * price / SECONDS_PER_HOUR


def estimate(
    config: RunConfig, device: str | None = None, runs: str | Path = "runs", max_seconds: float = math.inf
) -> Estimate:
    """Measure a run's updates and each of its instruments in a temporary folder on the disk of `runs`.

    Args:
        config: the run.
        device: as in `train`.
        runs: the root folder of the run.
        max_seconds: as soon as the run is known to take longer, nothing more is measured.

    Raises:
        The errors of `train` about options, data, device and step 0.

    Cost: building data and model, some dozen steps, two to six records of the run's own size.
    """
    parent = next(path for path in (Path(runs).absolute(), *Path(runs).absolute().parents) if path.is_dir())
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".estimate-", dir=parent))
        stack.enter_context(seeded(config.seed, "training"))
        trainer = build_trainer(config, select_device(device).torch_device)
        stack.enter_context(
            fit_threads(count_macs(trainer.model, trainer.dataset.input_shape) * trainer.batches.batch_size)
        )
        initial = copy.deepcopy(trainer.model.state_dict())
        training = _time_training(trainer)
        records = len(config.schedule)
        result = Estimate(config, describe_hardware(trainer), training, records)
        if result.seconds > max_seconds:
            return result
        trainer.model.load_state_dict(initial)
        path = Path(folder) / "run"
        instruments = _time_instruments(trainer, path)
        resume_states = _estimate_resume_states(
            result.training_seconds + sum(each.seconds for each in instruments[:-1]), instruments[-1]
        )
        all_instruments = tuple(sorted([*instruments[:-1], resume_states], key=lambda each: -each.seconds))
        return Estimate(
            config,
            result.machine,
            training,
            records,
            all_instruments,
            _estimate_files(trainer, path, resume_states.count),
            True,
        )


def _time_training(trainer: Trainer) -> Training:
    """Time steps as the loop takes them, without logging and instruments."""
    step, began = 0, time.perf_counter()
    trainer.model.train()
    while step < WARM_UP + 2 and (step < 2 or time.perf_counter() - began < MAX_WARM_UP_SECONDS):
        step = _take_steps(trainer, step, 1)
    _synchronize(trainer)
    first = step, time.perf_counter() - began
    single = _time_steps(trainer, step, 1)
    count = max(1, round(TIMED_SECONDS / BLOCKS / single))
    blocks = BLOCKS if single < TIMED_SECONDS else 2
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
    """Time each of a run's instruments by the recorder's own timers; the resume state comes last."""
    config, signal = trainer.config, Signal.from_fields(trainer.config.signal)
    with attach_recorder(trainer, path, None) as recorder:
        loop.log_evaluation(trainer, recorder, 0)
        first = _read_timers(recorder)
        schedule, count = recorder.schedule, 0
        began = time.perf_counter()
        for step in schedule[1 : 1 + MAX_TIMED_RECORDS]:
            recorder.step(step)
            count += 1
            if time.perf_counter() - began > TIMED_SECONDS:
                break
        later = {name: (seconds - first.get(name, 0.0)) / count for name, seconds in _read_timers(recorder).items()}
        result = [
            Instrument(name, len(schedule), first[name], later[name])
            for name in first
            if name not in ("signal", "evaluation")
        ]
        if signal is not None:
            result.append(_time_signal(recorder, signal, step, config.steps, first["signal"]))
        result.append(_time_evaluation(trainer, recorder, first["evaluation"]))
        return [*result, _time_resume_state(trainer, recorder, step)]


def _read_timers(recorder: RecorderLike) -> dict[str, float]:
    return {name: seconds for name, seconds in recorder.timers.seconds().items() if name != "training"}


def _time_signal(recorder: RecorderLike, signal: Signal, step: int, steps: int, first: float) -> Instrument:
    before = recorder.timers.current("signal")
    recorder.step((step // signal.every + 1) * signal.every)
    return Instrument("signal", steps // signal.every + 1, first, recorder.timers.current("signal") - before)


def _time_evaluation(trainer: Trainer, recorder: RecorderLike, first: float) -> Instrument:
    """Time an evaluation in the middle of the run and the last one, which differ: see `loop.log_evaluation`."""

    def time_evaluation(step: int) -> float:
        before = recorder.timers.current("evaluation")
        loop.log_evaluation(trainer, recorder, step)
        return recorder.timers.current("evaluation") - before

    count, last = len(recorder.schedule), time_evaluation(trainer.config.steps)
    later = (time_evaluation(-1) * (count - 2) + last) / (count - 1)
    return Instrument("evaluation", count, first, later)


def _time_resume_state(trainer: Trainer, recorder: RecorderLike, step: int) -> Instrument:
    loop.save_state(trainer, recorder, step)
    first = recorder.timers.current("resume slots")
    loop.save_state(trainer, recorder, step)
    return Instrument("resume slots", 2, first, recorder.timers.current("resume slots") - first)


def _estimate_resume_states(seconds: float, saving: Instrument) -> Instrument:
    """Estimate how many resume states a run of `seconds` saves: by interval, limited by time share, one at the end."""
    by_share = loop.SAVE_SHARE * seconds / max(saving.later, 1e-9)
    return Instrument(saving.name, 1 + int(min(seconds / loop.SAVE_INTERVAL, by_share)), saving.first, saving.later)


def _estimate_files(trainer: Trainer, path: Path, resume_states: int) -> dict[str, int]:
    """Estimate the bytes of a whole run from the files of the timed one."""
    config, records = trainer.config, len(trainer.config.schedule)
    sizes = {
        "snapshots": records * _get_mean_size(path / "snapshots"),
        "resume slots": min(resume_states, 2) * _get_mean_size(path / "resume"),
    }
    for kind in ("measures", "attributions"):
        for folder in sorted((path / kind).glob("*")):
            sizes[f"{kind}/{folder.name.rpartition('-')[0]}"] = records * _get_mean_size(folder)
    sizes["probes"] = sum(file.stat().st_size for file in (path / "probes").iterdir())
    log = (path / "metrics.jsonl").read_bytes()
    sizes["logs"] = _count_log_rows(config, records) * len(log) // max(log.count(b"\n"), 1)
    sizes["other"] = sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".toml", ".json"))
    files = records * (1 + len(config.measures) + len(config.attributions)) + resume_states
    sizes["manifest"] = _estimate_manifest_bytes(path, files)
    return sizes


def _estimate_manifest_bytes(path: Path, files: int) -> int:
    """Estimate the size of a manifest: its first line, and one line per file."""
    first, *lines = (path / manifest.MANIFEST_FILE).read_bytes().splitlines(keepends=True)
    return len(first) + round(files * statistics.mean(map(len, lines))) if lines else len(first)


def _get_mean_size(folder: Path) -> int:
    sizes = [file.stat().st_size for file in folder.glob("*.h5")]
    return round(statistics.mean(sizes)) if sizes else 0


def _count_log_rows(config: RunConfig, records: int) -> int:
    """Count the rows of metrics.jsonl: batches, signal, evaluations."""
    interval = max(1, config.steps // loop.REPORTS)
    reports = config.steps // interval + (config.steps % interval > 0)
    readings = config.steps // int(config.signal.get("every", Signal.every)) + 1 if config.signal else 0
    quantities = len(config.signal.get("quantities", Signal.quantities))
    return 3 * reports + 5 * quantities * readings + 2 * records


def summarize_estimate(result: Estimate, price: float | None = None) -> str:
    """Format one line: machine, speed, seconds of training and of the instruments, disk, dollars."""
    steps, overhead = result.config.steps, result.seconds - result.training_seconds
    parts = [
        result.machine,
        format_speed(1 / result.training.step),
        f"{steps:,} steps {format_duration(result.training_seconds)}",
        f"{result.records} records +{format_duration(overhead)}",
        f"disk {format_size(result.bytes)}",
    ]
    if price is not None:
        parts.append(f"about {format_dollars(result.dollars(price))} at {format_dollars(price)}/h")
    return " | ".join(parts)


def format_duration(seconds: float) -> str:
    """Format seconds as `8.2 s`, `4m10`, `2h17`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}" if minutes >= 100 else f"{int(seconds) // 60}m{int(seconds) % 60:02}"


def format_speed(rate: float) -> str:
    """Format steps per second as `1,320 steps/s`, `0.13 steps/s`."""
    return f"{rate:,.0f} steps/s" if rate >= 100 else f"{rate:.3g} steps/s"


def format_size(count: float) -> str:
    """Format bytes as `4.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def require_time_limit(minutes: float, configs: Sequence[RunConfig], seeds: int, runs: Path) -> float:
    """Return the estimated seconds of all runs on this CPU, one after the other.

    Raises:
        DeviceRefusedError: more than `minutes`, so that a forgotten GPU does not cost days of CPU time.
    """
    seconds = 0.0
    for number, config in enumerate(configs, start=1):
        result = estimate(config, "cpu", runs, max_seconds=minutes * 60 / seeds - seconds)
        seconds += result.seconds
        if seconds * seeds > 60 * minutes:
            bound = "about" if result.complete and number == len(configs) else "more than"
            raise DeviceRefusedError(
                f"no GPU found, and on this CPU it would take {bound} {format_duration(seconds * seeds)} "
                f"({config.variant}: {format_speed(1 / result.training.step)} measured, {config.steps:,} steps), above "
                f"--cpu-limit {minutes:g} (minutes). Use a machine with a GPU, fewer --steps, a larger --cpu-limit, or "
                "pass --device cpu to train on the CPU"
            )
    return seconds * seeds
