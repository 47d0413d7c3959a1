"""Flatten runs into one table, and into the data that figures are drawn from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from grokkit.analysis.csv_text import unquote_text
from grokkit.analysis.derived_rows import derive_rows
from grokkit.analysis.run_groups import complete_groups, label_rows
from grokkit.config.groups import group_of
from grokkit.errors import DataError, GrokkitError, TrajectoryError, UsageError
from grokkit.names import TABLE_COLUMNS, FigureData
from grokkit.policies.signal import UNITS
from grokkit.trajectory import Run, open_run
from grokkit.trajectory.documents import escape_surrogates

_TEXT = ("run", "group", "config", "probe_set", "layer", "measure", "measure_id", "attack", "unit")
_GROUP_COLUMNS = ("group", "config")
"""Columns that tables of older versions lack."""
_UNITS = {"accuracy": "share of images", "learning_rate": "1", **UNITS}
_MISSING_VALUES = ["", "nan", "NaN"]
T = TypeVar("T")


def table(runs: Run | str | Path | Iterable[Run | str | Path]) -> pd.DataFrame:
    """Return all readings and metrics of `runs` as one frame with the columns `TABLE_COLUMNS`.

    Every local complexity also has the live units of each layer (`live_units`), the share of units that are dead
    (`dead_share`, by layer and in total) and, if noise was measured, LC(set) / LC(random) of the total at each radius
    (`local_complexity_ratio`, Fieller's interval); its density is value / radius. Metrics have their split as
    `probe_set` (`batch`, `test_set`, `validation`, `signal`) and measure_id `log`. Values that do not apply are empty
    in text columns and NaN in numeric ones. Runs that differ only in their seed have the same `group`, a label that
    names what differs from the other runs given.

    If one of several runs cannot be read, it is skipped with a warning.

    Raises:
        TrajectoryError: none of the runs can be read, or a path is not a run.
    """
    runs = [runs] if isinstance(runs, Run | str | Path) else runs
    opened = [run if isinstance(run, Run) else open_run(run) for run in runs]
    return _concat(read_each(_drop_repeated(opened), lambda run: (run, _build_run_table(run))))


def _drop_repeated(runs: Sequence[Run]) -> list[Run]:
    """Return each run once, also if it was given several times.

    Raises:
        UsageError: two folders hold runs of the same name, whose rows could not be told apart.
    """
    by_path = {run.path.resolve(): run for run in runs}
    by_name: dict[str, Run] = {}
    for run in by_path.values():
        other = by_name.setdefault(run.name, run)
        if other is not run:
            raise UsageError(
                f"{other.path} and {run.path} hold runs of the same name, {run.name}; give one of them, or rename a "
                "folder"
            )
    return list(by_path.values())


def read_each(runs: Sequence[Run], read: Callable[[Run], T]) -> list[T]:
    """Call `read` with every run; if it fails for one of several, skip that run with a warning that names it.

    Raises:
        TrajectoryError: it fails for all of them.
    """
    results: list[T] = []
    problems: list[str] = []
    for run in runs:
        try:
            results.append(read(run))
        except Exception as error:  # any error in one folder must not stop the other runs
            if len(runs) == 1 and isinstance(error, GrokkitError):
                raise
            problems.append(f"skipped {run.path}: {describe_error(error)}")
    if problems and not results:
        raise TrajectoryError("none of the runs can be read:\n" + "\n".join(problems))
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    return results


def describe_error(error: Exception) -> str:
    """Return the message of an error, prefixed with its type unless it is one of grokkit's own."""
    return str(error) if isinstance(error, GrokkitError) else f"{type(error).__name__}: {error}"


def _concat(parts: Sequence[tuple[Run, pd.DataFrame]]) -> pd.DataFrame:
    """Concatenate the rows of the runs and label their groups."""
    if not parts:
        return pd.DataFrame(columns=list(TABLE_COLUMNS))
    rows = pd.concat([frame for _, frame in parts], ignore_index=True)
    rows = label_rows(rows, {group_of(run.name, run.config): run.config for run, _ in parts})
    return rows.sort_values(["run", "measure", "step"], kind="stable", ignore_index=True)


def _build_run_table(run: Run) -> pd.DataFrame:
    rows = []
    for identity, step, reading in run.readings():
        labels = {"measure_id": identity, "step": step}
        directions = {"directions": reading.settings.get("directions", np.nan)}
        rows += [labels | directions | row for row in reading.rows()]
        rows += [labels | row for row in derive_rows(reading)]
    for record in run.metrics.itertuples():
        rows.append(
            {
                "measure": record.metric,
                "measure_id": "log",
                "probe_set": record.split,
                "step": record.step,
                "value": record.value,
                "unit": _UNITS.get(str(record.metric), ""),
            }
        )
    frame = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    config = run.config
    frame["run"], frame["seed"] = run.name, config.get("seed", 0)
    frame["group"], frame["config"] = group_of(run.name, config)
    return _set_dtypes(frame)


def is_table(path: str | Path) -> bool:
    """Return whether a path names a written table."""
    return str(path).endswith((".csv", ".csv.gz"))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table that was written as .csv or .csv.gz. Raise DataError if it is not one."""
    numbers = {column: _MISSING_VALUES for column in TABLE_COLUMNS if column not in _TEXT}
    try:
        # A layer may be called `007` or `NA`: text columns are not parsed.
        frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=numbers)
        older = [column for column in TABLE_COLUMNS if column not in _GROUP_COLUMNS]
        if list(frame.columns) not in (list(TABLE_COLUMNS), older):
            raise DataError(f"{path} is not a table: its columns must be {', '.join(TABLE_COLUMNS)}")
        return _set_dtypes(unquote_text(frame).reindex(columns=list(TABLE_COLUMNS)))
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _set_dtypes(frame: pd.DataFrame) -> pd.DataFrame:
    """Set the column types in place: text (empty if missing), counts as int64 (0 if missing), the rest float64."""
    for column in TABLE_COLUMNS:
        if column in _TEXT:
            frame[column] = [escape_surrogates(text) if isinstance(text, str) else "" for text in frame[column]]
        elif column in ("seed", "step", "n"):
            frame[column] = frame[column].fillna(0).astype("int64")
        else:
            frame[column] = frame[column].astype("float64")
    return frame


def figure_data(runs: Run | str | Path | Iterable[Run | str | Path]) -> FigureData:
    """Collect the table, all events, and the stored images and attribution maps of the first run that has any.

    Args:
        runs: runs, their folders, or tables written as .csv or .csv.gz (which have neither maps nor events).

    If one of several runs cannot be read, it is skipped with a warning; so are maps that cannot be read.

    Raises:
        TrajectoryError: none of the runs can be read, or a path is not a run.
        DataError: a file is not a table.
    """
    tables: list[pd.DataFrame] = []
    run_list: list[Run] = []
    for source in [runs] if isinstance(runs, Run | str | Path) else runs:
        if isinstance(source, Run):
            run_list.append(source)
        elif is_table(source):
            tables.append(read_table(source))
        else:
            run_list.append(open_run(source))
    parts = read_each(_drop_repeated(run_list), lambda run: (run, _build_run_table(run), _read_events(run)))
    arrays: dict[str, np.ndarray] = {}
    for run, *_ in parts:
        try:
            arrays = arrays or _load_attributions(run)
        except Exception as error:  # as in `read_each`
            warnings.warn(f"skipped the attribution maps of {run.path}: {describe_error(error)}", stacklevel=2)
    events = [event for _, _, run_events in parts for event in run_events]
    columns = ["run", "seed", "step", "kind", "text"]
    rows = _concat([(run, frame) for run, frame, _ in parts])
    frames = [*tables, rows] if run_list or not tables else tables
    rows = complete_groups(pd.concat(frames, ignore_index=True))
    return FigureData(rows, arrays, pd.DataFrame(events) if events else pd.DataFrame(columns=columns))


def _read_events(run: Run) -> list[dict[str, object]]:
    """Return the run's events with its name and seed, which override event fields of the same name."""
    labels = {"run": run.name, "seed": run.config.get("seed", 0)}
    return [{**labels, **event, **labels} for event in run.events]


def _load_attributions(run: Run) -> dict[str, np.ndarray]:
    """Load, for every method, the recording with the most steps, then the most images."""
    candidates: dict[str, list[tuple[int, int, str, dict[str, np.ndarray]]]] = {}
    for identity, steps in run.attributions().items():
        maps = [run.attribution(identity, step) for step in steps]
        if maps:
            _, labels, meta = maps[0]
            arrays = {
                "values": np.stack([values for values, _, _ in maps]),
                "steps": np.array(steps),
                "labels": labels,
                "run": np.array(run.name),
                "images": run.probes[meta["probe_set"]].images[: len(labels)],
            }
            candidates.setdefault(meta["method"], []).append((len(steps), len(labels), identity, arrays))
    arrays_of_all: dict[str, np.ndarray] = {}
    for method, recordings in candidates.items():
        _, _, identity, arrays = max(recordings, key=lambda recording: recording[:3])
        if len(recordings) > 1:
            warnings.warn(
                f"{run.name} has {method} maps recorded with several settings; using {identity}", stacklevel=3
            )
        arrays_of_all |= {f"attributions/{method}/{name}": array for name, array in arrays.items()}
    return arrays_of_all
