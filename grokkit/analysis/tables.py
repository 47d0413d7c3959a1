"""Any number of runs flattened to one table, and to what a figure may see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from grokkit.analysis.csv_text import unquote_text
from grokkit.analysis.derived_rows import derive_rows
from grokkit.errors import DataError, GrokkitError, TrajectoryError
from grokkit.names import TABLE_COLUMNS, FigureData
from grokkit.policies.signal import UNITS
from grokkit.trajectory import Run, open_run
from grokkit.trajectory.documents import escape_surrogates

_TEXT = ("run", "probe_set", "layer", "measure", "measure_id", "attack", "unit")
_UNITS = {"accuracy": "share of images", "learning_rate": "1", **UNITS}
_NOTHING = ["", "nan", "NaN"]
Read = TypeVar("Read")


def table(runs: Run | str | Path | Iterable[Run | str | Path]) -> pd.DataFrame:
    """All readings and metrics of `runs` as one frame with the columns `TABLE_COLUMNS`.

    Beside every local complexity stand the live units of each layer (`live_units`), the share of units that are
    dead (`dead_share`, by layer and in total) and, where noise was measured, LC(set) / LC(random) of the total at each
    radius (`local_complexity_ratio`, Fieller's interval); its density is value / radius. Metrics come in with their
    split as `probe_set` (`batch`, `test_set`, `validation`, `signal`) and measure_id `log`. Text columns are empty
    where they do not apply, numeric ones NaN.

    Of several runs those that cannot be read are left out, each with a warning.

    Raises:
        TrajectoryError: none of the runs can be read, or a path is of no run.
    """
    runs = [runs] if isinstance(runs, Run | str | Path) else runs
    return _join(read_each([run if isinstance(run, Run) else open_run(run) for run in runs], _table_of_run))


def read_each(runs: Sequence[Run], read: Callable[[Run], Read]) -> list[Read]:
    """Call `read` with every run; one in which that fails is left out with a warning that names it and says why.

    Raises:
        TrajectoryError: it fails in all of them.
    """
    found: list[Read] = []
    problems: list[str] = []
    for run in runs:
        try:
            found.append(read(run))
        except Exception as error:  # whatever nobody foresaw in this folder, the other runs go on
            if len(runs) == 1 and isinstance(error, GrokkitError):
                raise
            problems.append(f"{run.path} is left out: {describe_error(error)}")
    if problems and not found:
        raise TrajectoryError("no run can be read:\n" + "\n".join(problems))
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    return found


def describe_error(error: Exception) -> str:
    """What an error says; the type of one that is not ours, whose text may mean nothing without it."""
    return str(error) if isinstance(error, GrokkitError) else f"{type(error).__name__}: {error}"


def _join(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(TABLE_COLUMNS))
    return rows.sort_values(["run", "measure", "step"], kind="stable", ignore_index=True)


def _table_of_run(run: Run) -> pd.DataFrame:
    rows = []
    for identity, step, reading in run.readings():
        labels = {"measure_id": identity, "step": step}
        frame_of = {"directions": reading.settings.get("directions", np.nan)}
        rows += [labels | frame_of | row for row in reading.rows()]
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
    frame["run"], frame["seed"] = run.name, run.config.get("seed", 0)
    return _set_dtypes(frame)


def is_table(path: str | Path) -> bool:
    """Whether a path names a written table."""
    return str(path).endswith((".csv", ".csv.gz"))


def read_table(path: str | Path) -> pd.DataFrame:
    """A table that was written as .csv or .csv.gz, as it was before. Raises DataError where it is none."""
    numbers = {column: _NOTHING for column in TABLE_COLUMNS if column not in _TEXT}
    try:
        # A layer may be called `007` or `NA`: text columns are taken as they stand.
        frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=numbers)
        if list(frame.columns) != list(TABLE_COLUMNS):
            raise DataError(f"{path} is not a table: its columns must be {', '.join(TABLE_COLUMNS)}")
        return _set_dtypes(unquote_text(frame))
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _set_dtypes(frame: pd.DataFrame) -> pd.DataFrame:
    """Text columns empty and counts 0 where nothing applies, the rest floats."""
    for column in TABLE_COLUMNS:
        if column in _TEXT:
            frame[column] = [escape_surrogates(text) if isinstance(text, str) else "" for text in frame[column]]
        elif column in ("seed", "step", "n"):
            frame[column] = frame[column].fillna(0).astype("int64")
        else:
            frame[column] = frame[column].astype("float64")
    return frame


def figure_data(runs: Run | str | Path | Iterable[Run | str | Path]) -> FigureData:
    """The table, the stored images and maps of the first run that has any, and all events.

    Args:
        runs: runs, their folders, or tables written as .csv or .csv.gz (which bring neither maps nor events).

    Of several runs those that cannot be read are left out, each with a warning; so are maps that cannot be.

    Raises:
        TrajectoryError: none of the runs can be read, or a path is of no run.
        DataError: a table is none.
    """
    written: list[pd.DataFrame] = []
    opened: list[Run] = []
    for source in [runs] if isinstance(runs, Run | str | Path) else runs:
        if isinstance(source, Run):
            opened.append(source)
        elif is_table(source):
            written.append(read_table(source))
        else:
            opened.append(open_run(source))
    parts = read_each(opened, lambda run: (run, _table_of_run(run), _events(run)))
    arrays: dict[str, np.ndarray] = {}
    for run, *_ in parts:
        try:
            arrays = arrays or _attribution_arrays(run)
        except Exception as error:  # as in `read_each`
            warnings.warn(f"the maps of {run.path} are left out: {describe_error(error)}", stacklevel=2)
    events = [event for _, _, own in parts for event in own]
    columns = ["run", "seed", "step", "kind", "text"]
    rows = _join([frame for _, frame, _ in parts])
    frames = [*written, rows] if opened or not written else written
    rows = pd.concat(frames, ignore_index=True)
    return FigureData(rows, arrays, pd.DataFrame(events) if events else pd.DataFrame(columns=columns))


def _events(run: Run) -> list[dict[str, object]]:
    """The run's events with its name and seed, whatever fields of their own they have."""
    own = {"run": run.name, "seed": run.config.get("seed", 0)}
    return [{**own, **event, **own} for event in run.events]


def _attribution_arrays(run: Run) -> dict[str, np.ndarray]:
    """Of every method the recording with the most steps, then the most images."""
    found: dict[str, list[tuple[int, int, str, dict[str, np.ndarray]]]] = {}
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
            found.setdefault(meta["method"], []).append((len(steps), len(labels), identity, arrays))
    chosen: dict[str, np.ndarray] = {}
    for method, recordings in found.items():
        _, _, identity, arrays = max(recordings, key=lambda recording: recording[:3])
        if len(recordings) > 1:
            warnings.warn(f"{run.name} holds {method} maps recorded in several ways; taken: {identity}", stacklevel=3)
        chosen |= {f"attributions/{method}/{name}": array for name, array in arrays.items()}
    return chosen
