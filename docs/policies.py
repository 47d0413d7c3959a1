"""The picture of docs/policies.md: `python docs/policies.py [FOLDER]` writes it there. No network is trained."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import grokkit as gk
from grokkit.figures.theme import FULL, PALETTE, themed
from grokkit.policies.simulate import simulate
from grokkit.stats.trends import fit_slope, log_mean

STEPS, EVERY, WINDOW = 8000, 200, 8


def course(kind: str, seed: int = 0) -> list[dict[str, float]]:
    """A planted signal at 128 points: `fall` rises, falls, rests and falls again; `rise` only rises."""
    rng = np.random.default_rng(seed)
    steps = np.arange(EVERY, STEPS + 1, EVERY)
    at, height = {
        "fall": ([0, 1800, 4200, 6000, 8000], [-1.8, -1.5, -2.2, -2.2, -2.6]),
        "rise": ([0, 2500, 8000], [-1.8, -1.5, -1.4]),
    }[kind]
    points = rng.lognormal(0, 0.5, 128)
    values = np.exp(np.interp(steps, at, height))[:, None] * points * rng.lognormal(0, 0.15, (len(steps), 128))
    readings = []
    for k in range(len(steps)):
        level, error = log_mean(values[k])
        window = slice(max(0, k + 1 - WINDOW), k + 1)
        trend = fit_slope(steps[window].tolist(), values[window])
        ends = zip(("", "_low", "_high"), trend, strict=True)
        bounds = {f"log_density_slope{end}": value for end, value in ends}
        readings.append({"log_density": level, "log_density_se": error, **bounds})
    return readings


@themed
def picture() -> Figure:
    """Two planted signals, and what each policy does on them."""
    figure = Figure(figsize=(FULL, 3.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 1.4))
    titles = ("it rises, falls, rests and falls again", "it only rises: every policy is its deadline schedule")
    for (signal, rates), kind, title in zip(panels.T, ("fall", "rise"), titles, strict=True):
        readings = course(kind)
        level, error = (np.array([each[name] for each in readings]) for name in ("log_density", "log_density_se"))
        steps = np.arange(EVERY, STEPS + 1, EVERY)
        signal.plot(steps, level, color="0.2")
        signal.fill_between(steps, level - error, level + error, color="0.2", alpha=0.18, lw=0)
        signal.set_title(title)
        _rates(rates, readings)
    panels[0, 0].set_ylabel("planted log density")
    panels[1, 0].set_ylabel("learning rate / base rate")
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    figure.supxlabel("step (optimizer updates); a dot is a decision", fontsize=7.5)
    return figure


def _rates(axes: Axes, readings: list[dict[str, float]]) -> None:
    arms = {"wsd": {}, "lc_wsd": {}, "lc_hold": {"shape": "1-sqrt"}, "lc_servo": {"shape": "1-sqrt"}}
    for number, (name, options) in enumerate(arms.items()):
        rates, decisions = simulate(gk.policies.create(name, **options), readings, STEPS, every=EVERY)
        colour = "0.6" if name == "wsd" else PALETTE[number - 1]
        axes.plot(rates, color=colour, label=name, lw=2.4 if name == "wsd" else 1.0)
        at = [step for step, _ in decisions]
        axes.plot(at, rates[at], "o", color=colour, ms=2.5)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    picture().savefig(folder / "policies.png", dpi=200)
