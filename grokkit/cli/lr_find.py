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
    """Parse arguments and run the range test."""
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
    """Find a peak learning rate (lr_max) for every variant of an experiment by a learning-rate range test.

    Trains each variant for some updates on its own batches while the rate grows from --low to --high, until the loss
    diverges (Smith 2017). Suggests a tenth of the rate at which the smoothed loss is lowest, as the median over seeds.
    The curve of one seed is noisy: use several. Writes no run folder.

    Try:
        grokkit lr-find quickstart:constant --seeds 0-4
        grokkit lr-find cifar10_small --data cifar10.npz --seeds 0-2
        grokkit lr-find my_study.py --low 1e-4 --high 100 --steps 400

    Args:
        experiment: a name or the path of a .py file, with :VARIANT for one of its functions, as in `grokkit train`.
        data: data in place of the experiment's: the name of a dataset, an .npz file or a folder of classes.
        seed: root seed, in place of the experiment's.
        seeds: several seeds with one range test each, such as 0-4 or 0,3,7.
        low: first learning rate.
        high: last learning rate; the test ends earlier if the loss diverges.
        steps: updates from low to high; the experiment's number of steps is ignored.
        device: cpu or cuda; by default a GPU if there is one.
        out: folder for the figure as PDF and PNG and the numbers behind it as CSV, named after the experiment.
    """
    from grokkit import recipes
    from grokkit.cli.setup import select_machine

    if seed is not None and seeds is not None:
        raise UsageError("give --seed or --seeds, not both")
    seed_list = None if seeds is None else parse_seeds(seeds)
    study = recipes.find_experiment(experiment)
    configs = [apply_cli_overrides(each, data, seed, None) for each in study.configs()]
    select_machine(device)
    results = []
    for config in configs:
        results.append(_run_range_tests(config, low, high, steps, seed_list, device))
        print(_format_result(results[-1]), flush=True)
    name = "-".join([study.name, *(study.variants if ":" in experiment else [])])
    print("\n".join(str(path) for path in _write_results(results, out, name)))


def _run_range_tests(
    config: RunConfig, low: float, high: float, steps: int, seeds: list[int] | None, device: str | None
) -> LRRange:
    """Run the range tests of one variant with a progress bar."""
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


def _format_result(result: LRRange) -> str:
    """Return one line per seed, the suggestion, and how to use it."""
    header = ["seed", "lowest loss", "at rate", "steepest", "diverged at", "suggestion"]
    rows = [
        [
            str(seed),
            f"{curve.lowest:.3g}",
            *(_format_rate(each) for each in (curve.minimum, curve.steepest, curve.diverged_at, curve.suggestion)),
        ]
        for seed, curve in zip(result.seeds, result.curves, strict=True)
    ]
    config = result.config
    lines = [f"{config.experiment}/{config.variant}  on {result.machine}", align_table(header, rows), str(result)]
    if result.optimizer is not None:
        lines.append(
            f"  currently {result.base_lr:g}; to use it: optimizer={_format_as_code(result.optimizer)}, "
            f"or in the grid of a sweep: {_format_as_grid(result.optimizer)}"
        )
    return "\n".join(lines)


def _format_rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _format_as_code(optimizer: Spec) -> str:
    """Format as Python, `spec("sgd", lr=0.02, momentum=0.9)`."""
    options = "".join(f", {name}={value!r}" for name, value in optimizer.options.items())
    return f'spec("{optimizer.name}"{options})'


def _format_as_grid(optimizer: Spec) -> str:
    """Format as TOML, `"optimizer.lr" = [0.02]`, for every learning rate of the optimizer."""
    rates = {name: value for name, value in optimizer.options.items() if name.endswith("lr")}
    return ", ".join(f'"optimizer.{name}" = [{value:g}]' for name, value in rates.items())


def _write_results(results: Sequence[LRRange], folder: Path, name: str) -> list[Path]:
    """Write the figure and a CSV file of its numbers, from which `grokkit figure lr_range` can redraw it."""
    import pandas as pd

    from grokkit import figures
    from grokkit.analysis.csv_text import write_csv
    from grokkit.names import TABLE_COLUMNS, FigureData

    table = pd.DataFrame([row for each in results for row in each.rows()]).reindex(columns=list(TABLE_COLUMNS))
    paths = figures.save_figure(figures.create("lr_range", FigureData(table, {}, pd.DataFrame())), folder / name)
    write_csv(table, folder / f"{name}.csv")
    return [*paths, folder / f"{name}.csv"]
