"""`grokkit choose-radius RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.analyse import replay_with_progress
from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table
from grokkit.config.run_config import Spec, spec
from grokkit.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from grokkit.analysis.radius_choice import RadiusChoice
    from grokkit.trajectory import Run


def main(argv: list[str]) -> None:
    """Parse arguments and choose a radius."""
    parse_arguments("choose-radius", choose_radius, argv)


def choose_radius(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    radius: tuple[float, ...] = (),
    directions: tuple[int, ...] = (5, 10, 20, 40),
    points: int = 128,
    probe_set: str = "train",
    snapshots: int = 5,
    device: Literal["cpu", "cuda"] | None = None,
    out: Path | None = None,
    trust: bool = False,
) -> None:
    """Recommend a radius and a number of directions for measuring a run's local complexity (LC), with a figure.

    Checks on some stored snapshots at which radii LC is linear in the radius (there it is a density, and comparable),
    how well the first-order count agrees with the vertex count, and how much of its growth with the number of
    directions P is the known factor kappa(P, D).

    Try:
        grokkit choose-radius RUN
        grokkit choose-radius RUN --points 512 --snapshots 8
        grokkit choose-radius RUN --radius 0.005 0.01 0.02 0.05 0.1 0.2 0.5 --directions 10 20 40

    Args:
        run: the run's folder.
        radius: two or more radii, ascending, in the net's normalised input space; by default 13 from 1e-4 to 1 times
            the typical distance of a probe image from the mean one.
        directions: numbers of directions to compare, ascending, capped at the input's dimension; the radius is chosen
            at the upper middle one.
        points: number of images of the probe set; more give narrower intervals.
        probe_set: probe set that the images are taken from.
        snapshots: number of stored snapshots to use, evenly spaced, including the first and the last.
        device: cpu or cuda; by default a GPU if there is one.
        out: folder for the figure and the numbers behind it, calibration.csv; by default `figures` in the run.
        trust: execute the run's experiment.py if it is needed to resolve a name, even if it is not on your list of
            trusted code; read it first.
    """
    from grokkit.trajectory import open_run

    opened = open_run(run)
    measure = spec("calibration", radii=radius, directions=directions, points=points, probe_set=probe_set)
    steps = spread_steps(opened.steps(), snapshots)
    replay_with_progress(opened, [measure], [], device, steps, trust)
    print("\n".join(_report(opened, measure, steps, out or opened.path / "figures")))


def _report(run: Run, measure: Spec, steps: list[int], folder: Path) -> list[str]:
    """Write figure and CSV from the readings at these steps; return the recommendation and the paths as lines."""
    from grokkit import figures
    from grokkit.analysis.csv_text import write_csv
    from grokkit.analysis.radius_choice import choose_radius
    from grokkit.analysis.tables import figure_data
    from grokkit.measures.runner import make_measure_id
    from grokkit.names import FigureData
    from grokkit.recording.instruments import as_measure

    data = figure_data([run])
    identity = make_measure_id(as_measure(measure), run.probes, run.config.get("seed", 0))
    mask = (data.table["measure_id"] == identity) & data.table["step"].isin(steps)
    rows = data.table[mask].reset_index(drop=True)
    paths = figures.save_figure(
        figures.create("calibration", FigureData(rows, {}, data.events)), folder / "calibration"
    )
    write_csv(rows, folder / "calibration.csv")
    return [format_choice(rows, choose_radius(rows)), *map(str, [*paths, folder / "calibration.csv"])]


def spread_steps(steps: list[int], count: int) -> list[int]:
    """Return `count` of the recorded steps, evenly spaced, including the first and the last."""
    if count < 1:
        raise UsageError(f"--snapshots must be at least 1; got {count}")
    if count == 1:
        return steps[-1:]
    last = len(steps) - 1
    return [steps[position] for position in sorted({round(last * index / (count - 1)) for index in range(count)})]


def format_choice(rows: pd.DataFrame, choice: RadiusChoice) -> str:
    """Return the recommendation as a table over snapshots, with the reason."""
    import numpy as np

    from grokkit.analysis.radius_choice import compare_with_kappa, middle_directions

    vertex = rows[rows["measure"] == "calibration_vertex"]
    lines = []
    for each in choice.snapshots:
        radius = choice.radius or (each.linear[1] if each.linear else None)
        cells = [str(each.step), "not found" if each.linear is None else f"{each.linear[0]:g} .. {each.linear[1]:g}"]
        cells.append("-" if each.bent is None else f"{each.bent:g}")
        match = vertex[(vertex["step"] == each.step) & (vertex["radius"] == radius)]
        cells.append(
            "-" if match.empty else "{:.3f} ({:.3f} .. {:.3f})".format(*match[["value", "low", "high"]].iloc[0])
        )
        ratios = np.empty(0) if radius is None else compare_with_kappa(rows, radius).loc[[each.step]].to_numpy()
        cells.append(f"{100 * (ratios.min() - 1):+.0f} .. {100 * (ratios.max() - 1):+.0f} %" if len(ratios) else "-")
        lines.append(cells)
    header = [
        "step",
        f"linear in r (P = {middle_directions(rows):g})",
        "nonlinear from",
        "vertex / tangent",
        "LC / kappa over P",
    ]
    recommended = "none" if choice.radius is None else f"radius {choice.radius:g}, {choice.directions} directions"
    return f"{align_table(header, lines)}\nrecommended: {recommended}\nwhy: {choice.reason}"
