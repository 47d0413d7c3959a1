"""`grokkit export RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.errors import UsageError

if TYPE_CHECKING:
    from grokkit.trajectory import Run

SUFFIXES = {
    "html": ".html",
    "csv": ".csv",
    "parquet": ".parquet",
    "safetensors": "-safetensors",
    "tensorboard": "-tensorboard",
}


def main(argv: list[str]) -> None:
    """Parse arguments and export."""
    parse_arguments("export", export, argv)


def export(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    html: bool = False,
    csv: bool = False,
    parquet: bool = False,
    safetensors: bool = False,
    tensorboard: bool = False,
    out: Path | None = None,
) -> None:
    """Export runs to one format, for other tools or as a self-contained HTML page; give exactly one of the formats.

    Try:
        grokkit export RUN --html
        grokkit export runs/quickstart --csv --out table.csv
        grokkit export RUN --safetensors --out weights

    Args:
        runs: folders of runs, or folders that hold runs.
        html: the live page as one file that contains its data; opens without a server and without a network.
        csv: all readings and metrics as one tidy table.
        parquet: the same table as Parquet; needs pyarrow.
        safetensors: a folder with one file per snapshot; needs safetensors.
        tensorboard: a folder with event files; needs tensorboard.
        out: output file or folder; by default named after the first run or folder, in the working directory.
    """
    formats = {"html": html, "csv": csv, "parquet": parquet, "safetensors": safetensors, "tensorboard": tensorboard}
    requested = [name for name, is_requested in formats.items() if is_requested]
    if len(requested) != 1:
        raise UsageError(f"give exactly one of {', '.join(f'--{name}' for name in formats)}; got {len(requested)}")
    from grokkit.trajectory import find_runs

    found = [run for root in runs for run in find_runs(root)]
    if not found:
        raise UsageError(f"no runs found at {', '.join(map(str, runs)) or 'nothing'}; `grokkit ls` lists runs")
    target = out or Path(runs[0].resolve().name + SUFFIXES[requested[0]])
    write_export(requested[0], found, target)
    print(target)


def write_export(form: str, runs: list[Run], out: Path) -> None:
    """Write `runs` to `out` in one of the formats of `SUFFIXES`."""
    from grokkit.analysis import export as exporters

    exporters.require_new_path(out)
    if form == "html":
        from grokkit.live.page import build_single_file
        from grokkit.live.run_browser import RunBrowser

        exporters.write_new_file(out, build_single_file(RunBrowser([run.path for run in runs])).encode())
    else:
        getattr(exporters, f"export_{form}")(runs, out)
