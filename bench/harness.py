"""Named contenders, timed in turn; ratios of their medians beside the goals; one table, and a JSON file on request."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        repetitions: timed calls of every contender, after one that is not.
        threads: of torch.
    """

    repetitions: int
    threads: int


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: what was measured.
        value: the number, in `unit` ("" for a ratio).
        goal: the largest value wanted; None: for information.
    """

    name: str
    value: float
    unit: str = ""
    goal: float | None = None


@dataclass(frozen=True)
class Ratio:
    """The cost of one contender over that of another."""

    over: str
    under: str
    goal: float | None = None


@dataclass(frozen=True)
class Cost:
    """What one contender took.

    Args:
        cpu: median CPU-seconds of all threads and of all child processes that have ended.
        wall: median seconds on the clock.
    """

    cpu: float
    wall: float


def medians(contenders: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, float]:
    """Median CPU-seconds of every contender, see `costs`."""
    return {name: cost.cpu for name, cost in costs(contenders, settings).items()}


def costs(contenders: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, Cost]:
    """What every contender takes, one after the other in turn, so that whatever else the machine does meets all of
    them alike. One that starts processes must have joined them when it returns: they are not counted otherwise."""
    for call in contenders.values():
        call()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(settings.repetitions):
        for name, call in contenders.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            call()
            taken[name].append((cpu_seconds() - cpu, time.perf_counter() - wall))
    return {name: Cost(*map(statistics.median, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def cpu_seconds() -> float:
    """CPU-seconds so far of this process and of its children that were joined."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def compared(costs: Mapping[str, float], ratios: Sequence[Ratio], unit: str) -> list[Row]:
    """The ratios, then the costs that they were made of."""
    lines = [Row(f"{one.over} / {one.under}", costs[one.over] / costs[one.under], "", one.goal) for one in ratios]
    return lines + [Row(name, cost, unit) for name, cost in costs.items()]


def header(settings: Settings) -> dict[str, str]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "threads": str(settings.threads),
        "method": f"CPU-seconds, median of {settings.repetitions} interleaved repetitions after one warm-up",
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.processor() or platform.machine()


def show(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}")
    for row in rows:
        line = f"  {row.name:<58} {row.value:9.3f} {row.unit:<6}"
        if row.goal is not None:
            line += f" goal <= {row.goal:g}: {'met' if row.value <= row.goal else 'missed'}"
        print(line.rstrip(), flush=True)


def save(path: Path, head: Mapping[str, str], tables: Mapping[str, Sequence[Row]]) -> None:
    content = {**head, "tables": {title: [asdict(row) for row in rows] for title, rows in tables.items()}}
    path.write_text(json.dumps(content, indent=1) + "\n")
