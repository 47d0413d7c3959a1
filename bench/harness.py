"""Named contenders, timed in turn; ratios of their medians beside the goals; one table, and a JSON file on request."""

from __future__ import annotations

import json
import platform
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


def medians(contenders: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, float]:
    """Median CPU-seconds of every contender: all threads of the process, one contender after the other in turn, so
    that whatever else the machine does meets all of them alike."""
    for call in contenders.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(settings.repetitions):
        for name, call in contenders.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


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
