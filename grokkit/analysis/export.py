"""Export runs to the formats of other tools: tables, weights, event files.

Existing files are never overwritten: callers check `require_new_path` before the work begins.
"""

from __future__ import annotations

import importlib
import io
import math
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grokkit.analysis.csv_text import encode_csv
from grokkit.analysis.tables import read_each, table
from grokkit.errors import UsageError
from grokkit.trajectory import Run
from grokkit.trajectory.durable import write_atomic
from grokkit.trajectory.lock import locked_draft


def export_csv(runs: Sequence[Run], out: Path) -> None:
    """Write the tidy table of all readings and metrics (see `table`) as comma-separated text (see `encode_csv`)."""
    write_new_file(out, encode_csv(table(runs)))


def export_parquet(runs: Sequence[Run], out: Path) -> None:
    """Write the tidy table as Parquet. Raise UsageError if pyarrow is missing."""
    with require_package("pyarrow", "parquet"):
        importlib.import_module("pyarrow")
    buffer = io.BytesIO()
    table(runs).to_parquet(buffer, engine="pyarrow", index=False)
    write_new_file(out, buffer.getvalue())


def export_safetensors(runs: Sequence[Run], out: Path) -> None:
    """Write every snapshot as `<out>/<run>/step-<step>.safetensors`.

    `run`, `seed` and `step` are in its metadata; the files of a single run are in `out` itself. Raises UsageError if
    safetensors is missing.
    """
    with require_package("safetensors", "safetensors"):
        importlib.import_module("safetensors")

    def write(run: Run, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for step in run.steps():
            run.to_safetensors(step, folder / f"step-{step:012d}.safetensors")

    _write_folders(runs, out, write)


def export_tensorboard(runs: Sequence[Run], out: Path) -> None:
    """Write metrics and readings as event files below `out`, one folder per run.

    Values that are not finite are skipped: TensorBoard cannot draw them. Raises UsageError if tensorboard is missing.
    """
    with require_package("tensorboard", "tensorboard"):
        from torch.utils.tensorboard.writer import SummaryWriter

    def write(run: Run, folder: Path) -> None:
        with SummaryWriter(str(folder)) as writer:
            for tag, step, value in iter_scalars(run):
                writer.add_scalar(tag, value, step)

    _write_folders(runs, out, write)


def iter_scalars(run: Run) -> Iterator[tuple[str, int, float]]:
    """Yield `<measure>/<probe set or split>/<layer>/...`, step and value of every finite number of a run.

    The tag ends in the number of directions or in the measure's identity where the measure has several of them, and
    else in a count (2, 3, ...) where the table does not tell numbers apart, as those of a measure with dims of its own.
    No two numbers of a step have the same tag.
    """
    rows = table(run)
    counts: Counter[tuple[str, int]] = Counter()
    several = rows.groupby("measure")[["directions", "measure_id"]].transform("nunique") > 1
    for row, has_several in zip(rows.to_dict("records"), several.to_dict("records"), strict=True):
        numbers = ["radius", "epsilon", *(["directions"] if has_several["directions"] else [])]
        labels = [row["measure"], row["probe_set"], row["layer"], row["attack"]]
        labels += [f"{name}={row[name]:g}" for name in numbers if not math.isnan(row[name])]
        labels += [row["measure_id"]] if has_several["measure_id"] else []
        tag = "/".join(label for label in labels if label)
        counts[tag, row["step"]] += 1
        count = counts[tag, row["step"]]
        if math.isfinite(row["value"]):
            yield tag if count == 1 else f"{tag}/{count}", row["step"], row["value"]


@contextmanager
def require_package(package: str, extra: str) -> Iterator[None]:
    """Turn the import error of an optional package into a UsageError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"this export needs {package}, which is not installed: pip install 'grokkit[{extra}]'"
        ) from error


def require_new_path(out: Path) -> None:
    """Raise UsageError if `out` exists."""
    if out.exists():
        raise UsageError(f"{out} already exists and is never overwritten; remove it, or pass another --out")


def write_new_file(out: Path, content: bytes) -> None:
    """Write a file atomically; never replaces an existing one."""
    write_atomic(out, content, replace=False)


def _write_folders(runs: Sequence[Run], out: Path, write: Callable[[Run, Path], None]) -> None:
    """Fill a draft folder beside `out` and rename it when complete, with one subfolder per run if there are several.

    A run that cannot be read is skipped with a warning and leaves no files.
    """
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")

    def fill(run: Run) -> None:
        folder = draft if len(runs) == 1 else draft / run.name
        try:
            write(run, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    try:
        with locked_draft(draft):
            read_each(runs, fill)
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
