"""From the runs of `bench.accuracy` to a table, a verdict and a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import ttest_ind, ttest_rel

from grokkit.figures.theme import FULL, LINES, PALETTE, save_figure, themed

REFERENCE = "plain"
"""The arm that the others are held against."""
SAME_START = "grokkit_same_start"
"""The arm whose runs begin with the weights of the plain run of the same seed."""

WORDS = {
    "plain": "plain PyTorch loop",
    "grokkit": "grokkit",
    "plain_momentum": "plain, momentum cycled as well",
    SAME_START: "grokkit from the plain loop's weights",
}
"""The arms, in words."""


def write(folder: Path) -> None:
    """Write curves.csv, verdict.csv and curves.pdf/.png below `folder` from its runs, and print the verdict."""
    runs = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]
    table = curves_of(runs)
    verdict = compared(table)
    table.round(6).to_csv(folder / "curves.csv", index=False)
    verdict.round(5).to_csv(folder / "verdict.csv", index=False)
    save_figure(drawn(table), folder / "curves")
    print(verdict.round(4).to_string(index=False))
    print(costs_of(runs).round(3).to_string())


def curves_of(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and epoch: recipe, arm, seed, epoch, train_loss, test_accuracy."""
    return pd.DataFrame(
        {"recipe": run["recipe"], "arm": run["arm"], "seed": run["seed"], **epoch}
        for run in runs
        for epoch in run["curve"]
    )


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Every arm against the plain one, per recipe and epoch: by Welch's t interval over seeds, and by the paired one
    where a seed stands for the same initial weights in both arms.

    Returns:
        recipe, arm, epoch, quantity, and of the two arms mean, standard deviation and n; difference (arm - plain), its
        95 % interval `low`, `high`, and `half`, its half width: what the runs could have told apart.
    """
    rows = []
    long = table.melt(["recipe", "arm", "seed", "epoch"], var_name="quantity")
    for (recipe, epoch, quantity), group in long.groupby(["recipe", "epoch", "quantity"], sort=False):
        values = group.pivot(index="seed", columns="arm", values="value")
        for arm in values.columns.drop(REFERENCE):
            found = interval(values[arm], values[REFERENCE], paired=arm == SAME_START)
            rows.append({"recipe": recipe, "arm": arm, "epoch": epoch, "quantity": quantity, **found})
    return pd.DataFrame(rows)


def interval(ours: pd.Series, plain: pd.Series, *, paired: bool = False) -> dict[str, float]:
    """Means, standard deviations, and the difference with its 95 % interval; NaN where nothing varies or is repeated.

    Args:
        ours, plain: by seed; NaN for seeds that are not there.
        paired: take the seeds that both have, and the t interval of their differences; else Welch's (Welch 1947,
            Biometrika 34, 28-35), variances not assumed equal.
    """
    both = ours.notna() & plain.notna()
    ours, plain = (values[both if paired else values.notna()] for values in (ours, plain))
    low = high = math.nan
    spread = (ours - plain).std() if paired else ours.std() + plain.std()
    if min(len(ours), len(plain)) > 1 and spread > 0:
        test = ttest_rel(ours, plain) if paired else ttest_ind(ours, plain, equal_var=False)
        low, high = test.confidence_interval(0.95)
    return {
        "mean": ours.mean(),
        "sd": ours.std(),
        "n": len(ours),
        "plain_mean": plain.mean(),
        "plain_sd": plain.std(),
        "plain_n": len(plain),
        "difference": ours.mean() - plain.mean(),
        "low": low,
        "high": high,
        "half": (high - low) / 2,
    }


def costs_of(runs: list[dict[str, Any]]) -> pd.Series:
    """Median CPU-milliseconds per training image, evaluation and all else included."""
    costs = [(run["recipe"], run["arm"], 1000 * run["cpu_seconds"] / run["images"]) for run in runs]
    return pd.DataFrame(costs, columns=["recipe", "arm", "CPU-ms"]).groupby(["recipe", "arm"])["CPU-ms"].median()


@themed
def drawn(table: pd.DataFrame) -> Figure:
    """Test accuracy (above) and training loss (below) by epoch, a column per recipe: a line per seed."""
    recipes = list(dict.fromkeys(table["recipe"]))
    arms = [arm for arm in WORDS if arm in set(table["arm"])]
    figure = Figure(figsize=(FULL, 3.8), layout="constrained")
    panels = figure.subplots(2, len(recipes), sharex=True, sharey="row", squeeze=False)
    for column, recipe in zip(panels.T, recipes, strict=True):
        for axes, quantity in zip(column, ("test_accuracy", "train_loss"), strict=True):
            for (arm, seed), run in table[table["recipe"] == recipe].groupby(["arm", "seed"]):
                number = arms.index(arm)
                label = WORDS[arm] if seed == table["seed"].min() else None
                axes.plot(
                    run["epoch"], run[quantity], color=PALETTE[number], ls=LINES[number], lw=0.9, alpha=0.8, label=label
                )
        column[0].set_title(recipe.replace("_", " "))
        column[1].set_xlabel("epoch")
    panels[0, 0].set_ylabel("test accuracy\n(share of images)")
    panels[1, 0].set_ylabel("training loss\n(nats, mean over the epoch)")
    for axes in panels[0]:
        axes.legend(loc="lower right")
    return figure
