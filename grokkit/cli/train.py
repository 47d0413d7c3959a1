"""`grokkit train EXPERIMENT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.parse import parse
from grokkit.cli.text import final_accuracy
from grokkit.errors import TrajectoryError
from grokkit.training.config import Part, RunConfig


def main(words: list[str]) -> None:
    """Read the words and train."""
    parse("train", train, words)


def train(
    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")],
    data: str | None = None,
    runs: Path = Path("runs"),
    seed: int | None = None,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Train every variant of an experiment, one after the other.

    Try:
        grokkit train quickstart
        grokkit train cifar10_small:no_batchnorm --data cifar10.npz --seed 1
        grokkit train my_study.py --data photos/ --steps 2000 --device cuda

    Args:
        experiment: a module in ./experiments, one that ships with grokkit, or the path of a .py file; NAME:VARIANT
            chooses one of its functions.
        data: other data than the experiment's: a dataset's name, an .npz file with x_train y_train x_test y_test,
            or a folder with train/<class>/* and test/<class>/*.
        runs: folder that the runs go to.
        seed: another root seed than the experiment's.
        steps: another number of updates than the experiment's.
        device: cpu or cuda; by default a GPU where there is one.
    """
    from grokkit import recipes
    from grokkit.training import loop
    from grokkit.training.observers import for_terminal

    found = recipes.find(experiment)
    configs = [adjusted(config, data, seed, steps) for config in found.configs()]
    there = [str(runs / config.run_name) for config in configs if (runs / config.run_name).exists()]
    if there:
        raise TrajectoryError(
            f"a run is never overwritten, and there is {', '.join(there)} already. Resume it, remove it, or choose "
            f"another --seed or --runs; {experiment}:VARIANT trains one variant alone"
        )
    for config in configs:
        run = loop.train(config, runs=runs, device=device, observer=for_terminal(), experiment=found.source)
        print(f"{run.path}: done at step {run.status['step']}{final_accuracy(run.newest_metrics())}")
        print(f"{len(run.steps())} snapshots; draw them with: grokkit figure phases {run.path}")


def adjusted(config: RunConfig, data: str | None, seed: int | None, steps: int | None) -> RunConfig:
    """The config with what the command line changes; other data keep the numbers of training and validation images
    asked for and whether labels are shuffled."""
    changes: dict[str, object] = {}
    if data is not None:
        kept = {
            name: value
            for name, value in config.data.options.items()
            if name in ("train", "validation", "shuffle_labels")
        }
        changes["data"] = Part(data, kept)
    if seed is not None:
        changes["seed"] = seed
    if steps is not None:
        changes["steps"] = steps
    return config.replace(**changes)
