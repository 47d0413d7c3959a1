"""`grokkit lr-find EXPERIMENT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table
from grokkit.config.overrides import apply_cli_overrides, parse_seeds
from grokkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grokkit.config.run_config import RunConfig, Spec
    from grokkit.diagnostics.lr_range import LRRange


def main(argv: list[str]) -> None:
    """Read the words and sweep."""
    parse_arguments("lr-find", lr_find, argv)


def lr_find(
    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")],
    data: str | None = None,
    seed: int | None = None,
    seeds: str | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 200,
    device: Literal["cpu", "cuda"] | None = None,
    out: Path = Path("lr_range"),
) -> None:
    """Find lr_max, a peak learning rate, for every variant of an experiment by a range test.

    Each variant is trained for some updates on its own batches while the rate grows from --low to --high, until the
    loss diverges (Smith 2017). Suggested is a tenth of the rate at which the smoothed loss is lowest, the median over
    the seeds. One seed's curve is noisy: take several. No run folder is written.

    Try:
        grokkit lr-find quickstart:constant --seeds 0-4
        grokkit lr-find cifar10_small --data cifar10.npz --seeds 0-2
        grokkit lr-find my_study.py --low 1e-4 --high 100 --steps 400

    Args:
        experiment: a name or the path of a .py file, with :VARIANT for one of its functions, as of `grokkit train`.
        data: other data than the experiment's: a dataset's name, an .npz file or a folder of classes.
        seed: another root seed than the experiment's.
        seeds: a sweep for each of many, such as 0-4 or 0,3,7.
        low: first learning rate.
        high: last learning rate; where the loss diverges the sweep ends earlier.
        steps: updates of a sweep, from low to high; the experiment's own number does not matter here.
        device: cpu or cuda; by default a GPU where there is one.
        out: folder for the figure as PDF and PNG and the numbers behind it as CSV, named after the experiment.
    """
    from grokkit import recipes
    from grokkit.cli.setup import select_machine

    if seed is not None and seeds is not None:
        raise UsageError("give --seed or --seeds, not both")
    wanted = None if seeds is None else parse_seeds(seeds)
    study = recipes.find_experiment(experiment)
    configs = [apply_cli_overrides(each, data, seed, None) for each in study.configs()]
    select_machine(device)
    found = []
    for config in configs:
        found.append(_run_sweep(config, low, high, steps, wanted, device))
        print(_format_result(found[-1]), flush=True)
    name = "-".join([study.name, *(study.variants if ":" in experiment else [])])
    print("\n".join(str(path) for path in _write_results(found, out, name)))


def _run_sweep(
    config: RunConfig, low: float, high: float, steps: int, seeds: list[int] | None, device: str | None
) -> LRRange:
    """The sweeps of one variant, with a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from grokkit.diagnostics.lr_range import lr_range_test

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{config.experiment}/{config.variant}", total=None)
        return lr_range_test(
            config,
            low=low,
            high=high,
            steps=steps,
            seeds=seeds,
            device=device,
            on_update=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _format_result(found: LRRange) -> str:
    """A line per seed, what is suggested, and how to use it."""
    header = ["seed", "lowest loss", "at rate", "steepest", "diverged at", "suggestion"]
    rows = [
        [
            str(seed),
            f"{curve.lowest:.3g}",
            *(_format_rate(each) for each in (curve.minimum, curve.steepest, curve.diverged_at, curve.suggestion)),
        ]
        for seed, curve in zip(found.seeds, found.curves, strict=True)
    ]
    config = found.config
    lines = [f"{config.experiment}/{config.variant}  on {found.machine}", align_table(header, rows), str(found)]
    if found.optimizer is not None:
        lines.append(
            f"  now {found.base_lr:g}; to use it: optimizer={_as_code(found.optimizer)}, in a sweep's grid: "
            f"{_as_grid(found.optimizer)}"
        )
    return "\n".join(lines)


def _format_rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _as_code(optimizer: Spec) -> str:
    """`spec("sgd", lr=0.02, momentum=0.9)`."""
    options = "".join(f", {name}={value!r}" for name, value in optimizer.options.items())
    return f'spec("{optimizer.name}"{options})'


def _as_grid(optimizer: Spec) -> str:
    """`"optimizer.lr" = [0.02]`, for every rate of the optimizer."""
    rates = {name: value for name, value in optimizer.options.items() if name.endswith("lr")}
    return ", ".join(f'"optimizer.{name}" = [{value:g}]' for name, value in rates.items())


def _write_results(found: Sequence[LRRange], folder: Path, name: str) -> list[Path]:
    """The figure and its numbers, from which `grokkit figure lr_range` draws it again."""
    import pandas as pd

    from grokkit import figures
    from grokkit.analysis.csv_text import write_csv
    from grokkit.names import TABLE_COLUMNS, FigureData

    table = pd.DataFrame([row for each in found for row in each.rows()]).reindex(columns=list(TABLE_COLUMNS))
    paths = figures.save_figure(figures.create("lr_range", FigureData(table, {}, pd.DataFrame())), folder / name)
    write_csv(table, folder / f"{name}.csv")
    return [*paths, folder / f"{name}.csv"]
