"""`grokkit figure NAME RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.errors import UsageError


def main(argv: list[str]) -> None:
    """Parse arguments and draw the figure."""
    parse_arguments("figure", figure, argv)


def figure(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    out: Path | None = None,
    trust: bool = False,
) -> None:
    """Draw a figure from stored readings only, as PDF and PNG, and write the numbers beside it as table.csv.

    Several runs share one figure; a table.csv or .csv.gz can replace the runs that it was made from.

    Try:
        grokkit figure phases runs/quickstart/*
        grokkit figure attributions RUN --out paper_figures

    Args:
        name: a name from `grokkit.figures.names()`.
        runs: folders of runs, a folder that holds runs, or a table.csv or .csv.gz.
        out: output folder; by default `figures` in the run, or in the parent folder of several runs.
        trust: execute the runs' experiment.py if they are needed to resolve the figure's name, even if they are not on
            your list of trusted code; read them first.
    """
    for path in draw_figures([name], runs, out, trust):
        print(path)


def draw_figures(names: list[str], runs: tuple[Path, ...], out: Path | None, trust: bool = False) -> list[Path]:
    """Draw every figure in `names` over all `runs`, write the table of their numbers, and return the paths."""
    from grokkit import figures
    from grokkit.analysis.csv_text import write_csv
    from grokkit.analysis.tables import figure_data, is_table
    from grokkit.stored_code import NameRequest, import_unknown
    from grokkit.trajectory import find_runs

    found = [source for root in runs for source in ([root] if is_table(root) else find_runs(root))]
    if not found:
        raise UsageError(f"no runs found at {', '.join(map(str, runs)) or 'nothing'}; `grokkit ls` lists runs")
    folders = [source.path for source in found if not isinstance(source, Path)]
    import_unknown(folders, [NameRequest(name, figures.registry.get) for name in names], trust=trust)
    first = found[0] if isinstance(found[0], Path) else found[0].path
    folder = out or (first if len(found) == 1 and first.is_dir() else first.parent) / "figures"
    data = figure_data(found)
    files = [path for name in names for path in figures.save_figure(figures.create(name, data), folder / name)]
    write_csv(data.table, folder / "table.csv")
    return [*files, folder / "table.csv"]
