"""Shared by `lc`, `attack`, `attribute` and `choose-radius`: replay over stored snapshots with a progress bar, then a
summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grokkit.cli.text import align_table
from grokkit.config.run_config import Spec
from grokkit.errors import UsageError

if TYPE_CHECKING:
    from grokkit.measures import Measure
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
    instruments = len(measures) + len(attributions)
    print(f"{added} added, {len(steps) * instruments - added} already stored: {instruments} x {len(steps)} snapshots")


def print_measure(run: Path, measure: Spec) -> None:
    """Print the readings of `measure` at about eight steps, summed over layers."""
    from grokkit.analysis.tables import table
    from grokkit.measures.runner import make_measure_id
    from grokkit.recording.instruments import as_measure
    from grokkit.trajectory import open_run

    opened = open_run(run)
    identity = make_measure_id(as_measure(measure), opened.probes, opened.config.get("seed", 0))
    rows = table([opened]).query("measure_id == @identity and layer in ('', 'total')")
    rows = rows[rows.measure == measure.name]  # not those derived from the readings: dead share, ratio to noise
    if rows.empty:
        return
    steps = sorted(rows.step.unique())
    printed = {*steps[:: max(1, len(steps) // 8)], steps[-1]}
    columns = [name for name in ("probe_set", "radius", "epsilon", "attack") if rows[name].astype(str).nunique() > 1]
    wide = rows[rows.step.isin(printed)].pivot_table(index="step", columns=columns or "probe_set", values="value")
    print(f"{identity}, {rows.unit.iloc[0]}")
    values = [[str(step), *(f"{value:.4g}" for value in row)] for step, row in wide.iterrows()]
    print(align_table(["step", *(_format_column(column) for column in wide.columns)], values))


def _format_column(column: object) -> str:
    parts = column if isinstance(column, tuple) else (column,)
    return " ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in parts)
