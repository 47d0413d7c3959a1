"""Shared by `lc`, `attack`, `attribute` and `choose-radius`: replay over stored snapshots with a progress bar, then a
summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grokkit.cli.text import align_table
from grokkit.config.run_config import Spec
from grokkit.errors import UsageError
from grokkit.names import format_epsilon

if TYPE_CHECKING:
    from grokkit.measures import Measure
    from grokkit.names import Reading
    from grokkit.trajectory import Run


def run_analysis(
    run: Path,
    measures: Sequence[Spec],
    attributions: Sequence[Spec],
    device: str | None,
    last: int | None,
    trust: bool = False,
) -> None:
    """Replay over the stored snapshots (or only the `last` ones) and print what was added. The same command resumes an
    interrupted replay."""
    from grokkit.trajectory import open_run

    opened = open_run(run)
    if last is not None and last < 1:
        raise UsageError(f"--last must be at least 1 snapshot; got {last}")
    steps = opened.steps() if last is None else opened.steps()[-last:]
    replay_with_progress(opened, measures, attributions, device, steps, trust)


def replay_with_progress(
    run: Run,
    measures: Sequence[Spec | Measure],
    attributions: Sequence[Spec],
    device: str | None,
    steps: list[int],
    trust: bool = False,
) -> None:
    """Replay over these snapshots with a progress bar and print what was added."""
    from rich.console import Console
    from rich.progress import Progress

    from grokkit.replay import replay_run

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("snapshots", total=len(steps))
        added = replay_run(
            run,
            measures,
            attributions,
            steps=steps,
            device=device,
            on_step=lambda done, _: bar.update(task, completed=done),
            trust=trust,
        )
    what = _count(len(measures), "measure") if measures else _count(len(attributions), "method")
    stored = len(steps) * (len(measures) + len(attributions)) - added
    print(f"{what} at {_count(len(steps), 'snapshot')}: {added} added, {stored} already stored")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def print_measure(run: Path, measure: Spec) -> None:
    """Print the stored readings of `measure` at about eight steps, with the layers' total if there is one."""
    from grokkit.measures.runner import make_measure_id
    from grokkit.recording.instruments import as_measure
    from grokkit.trajectory import open_run

    opened = open_run(run)
    identity = make_measure_id(as_measure(measure), opened.probes, opened.config.get("seed", 0))
    steps = opened.measures().get(identity, [])
    readings = {
        step: opened.reading(identity, step) for step in sorted({*steps[:: max(1, len(steps) // 8)], *steps[-1:]})
    }
    if readings:
        print("\n".join(_format_readings(identity, readings)))


def _format_readings(identity: str, readings: Mapping[int, Reading]) -> list[str]:
    """Return the values of one measure as lines: a row per step and a column per value, named by the dims in which the
    values differ; of layers only the total."""
    tables = {step: dict(_name_values(reading)) for step, reading in readings.items()}
    columns = list(dict.fromkeys(name for values in tables.values() for name in values))
    rows = [
        [str(step), *(f"{values[name]:.4g}" if name in values else "-" for name in columns)]
        for step, values in tables.items()
    ]
    unit = " or ".join(dict.fromkeys(reading.unit for reading in readings.values()))
    dims = ", ".join(dict.fromkeys(dim for reading in readings.values() for dim in _list_named_dims(reading)))
    caption = f"{identity}, {unit}" + (f"; a column per {dims.replace('_', ' ')}" if dims else "")
    return [caption, align_table(["step", *columns], rows)]


def _name_values(reading: Reading) -> Iterator[tuple[str, float]]:
    """Yield each value of a reading with a name of its own."""
    has_total, named = "total" in reading.coords.get("layer", ()), _list_named_dims(reading)
    for row in reading.rows():
        if not has_total or row["layer"] == "total":
            yield " ".join(_format_label(dim, row[dim]) for dim in named) or reading.measure, row["value"]


def _list_named_dims(reading: Reading) -> list[str]:
    has_total = "total" in reading.coords.get("layer", ())
    return [dim for dim in reading.dims if len(reading.coords[dim]) > 1 and not (dim == "layer" and has_total)]


def _format_label(dim: str, label: object) -> str:
    if dim == "epsilon" and isinstance(label, float):
        return format_epsilon(label)
    return f"{label:.6g}" if isinstance(label, float) else str(label)
