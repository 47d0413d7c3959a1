"""`grokkit train EXPERIMENT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.setup import make_callbacks, make_webhook, select_machine, share_budget
from grokkit.cli.text import format_cost, format_final_accuracy, shorten_path
from grokkit.config.overrides import apply_cli_overrides, parse_seeds
from grokkit.config.run_config import RunConfig
from grokkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from grokkit.device.select import Device
    from grokkit.recipes import Experiment
    from grokkit.trajectory import Run


def main(argv: list[str]) -> None:
    """Parse arguments and train."""
    parse_arguments("train", train, argv)


def train(
    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")],
    data: str | None = None,
    runs: Path = Path("runs"),
    seed: int | None = None,
    seeds: str | None = None,
    steps: int | None = None,
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None,
    device: Literal["cpu", "cuda"] | None = None,
    price: float | None = None,
    budget: float | None = None,
    cpu_limit: float = 30.0,
    notify: str | None = None,
) -> None:
    """Train every variant of an experiment, one after the other.

    Try:
        grokkit train quickstart
        grokkit train cifar10_small:no_batchnorm --data cifar10.npz --seed 1
        grokkit train my_study.py --config runs/my_study/arm-s0-1a2b3c4d/config.toml --seed 1
        grokkit train my_study.py --data photos/ --steps 2000 --device cuda
        grokkit train quickstart:constant --seeds 0-31
        grokkit train my_study.py --price 0.28 --budget 1.00 --notify https://ntfy.sh/my-secret-topic
        torchrun --nproc-per-node 2 -m grokkit train quickstart:constant

    Args:
        experiment: a module in ./experiments, one included in grokkit, or a .py file; NAME:VARIANT is one of its
            functions.
        data: data in place of the experiment's: the name of a dataset, an .npz file with x_train y_train x_test y_test,
            or a folder with train/<class>/* and test/<class>/*.
        runs: folder for the runs.
        seed: root seed, in place of the experiment's.
        seeds: many seeds at once, such as 0-31 or 0,3,7: small nets vmapped, convolutional ones in subprocesses.
        steps: number of optimizer updates, in place of the experiment's.
        config_file: a file in the format of a run's config.toml, trained in place of the experiment's variants;
            EXPERIMENT's source is stored in the run, and the names that it registers can be used.
        device: cpu or cuda; by default a GPU if there is one.
        price: price of this machine in dollars per hour; by default $GROKKIT_PRICE.
        budget: maximum total cost of all runs in dollars; when it is reached, they are saved and stop with exit code 6.
        cpu_limit: minutes; without a GPU and without --device cpu, refuse to start if the measured estimate is longer.
        notify: webhook URL for messages at start, decisions, problems and end (ntfy, Slack, Discord or any other); by
            default $GROKKIT_NOTIFY, which keeps a secret URL out of the process list.
    """
    from grokkit.ensemble.seeds import require_new_runs, train_seeds
    from grokkit.recording.budget import Budget

    study, configs, seed_list = _resolve_request(experiment, config_file, data, steps, seed, seeds)
    all_configs = [config.replace(seed=each) for config in configs for each in seed_list or [config.seed]]
    hint = f"another --seed or --runs; {experiment}:VARIANT trains one variant alone"
    require_new_runs([runs / config.run_name for config in all_configs], hint)
    Budget.create(price, budget).require_price()
    on_device, webhook = select_machine(device), make_webhook(notify)
    _require_time_limit(on_device, device, cpu_limit, configs, len(seed_list or [0]), runs)
    trained: list[Run] = []
    for config in configs:
        done = train_seeds(
            config,
            seed_list or [config.seed],
            runs=runs,
            device=device,
            callback=make_callbacks(on_device, webhook),
            experiment=study.source,
            price=price,
            budget=share_budget(budget, trained),
        )
        trained += done
        _print_outcome(done)


def _resolve_request(
    experiment: str, config_file: Path | None, data: str | None, steps: int | None, seed: int | None, seeds: str | None
) -> tuple[Experiment, list[RunConfig], list[int] | None]:
    """Return the experiment, its configs with the command-line overrides, and the `--seeds` (None if not given)."""
    from grokkit import recipes

    if seed is not None and seeds is not None:
        raise UsageError("give --seed or --seeds, not both")
    study = recipes.find_experiment(experiment)
    base_configs = study.configs() if config_file is None else [_read_config(config_file)]
    configs = [apply_cli_overrides(config, data, seed, steps) for config in base_configs]
    return study, configs, None if seeds is None else parse_seeds(seeds)


def _require_time_limit(
    on_device: Device, device: str | None, cpu_limit: float, configs: list[RunConfig], seeds: int, runs: Path
) -> None:
    """Print how long training takes on a CPU that was not requested; see `require_time_limit`, which may refuse."""
    from grokkit.diagnostics.estimate import format_duration, require_time_limit
    from grokkit.training.ranks import is_single_process

    if device is None and on_device.torch_device.type == "cpu" and is_single_process():
        duration = format_duration(require_time_limit(cpu_limit, configs, seeds, runs))
        print(f"estimated duration on this CPU: about {duration}", file=sys.stderr)


def _print_outcome(runs: list[Run]) -> None:
    """Print the results of the runs of one config and the next command; on rank 0 only."""
    from grokkit.training.ranks import is_rank_zero

    if not is_rank_zero():
        return
    for run in runs:
        status, accuracy = run.status, format_final_accuracy(run.newest_metrics())
        print(f"{shorten_path(run.path)}: done at step {status['step']}{accuracy}{format_cost(status)}")
    paths = " ".join(shorten_path(run.path) for run in runs)
    print(f"{len(runs[0].steps())} snapshots{'' if len(runs) == 1 else ' each'}. {_suggest_next(runs[0], paths)}")


def _suggest_next(run: Run, paths: str) -> str:
    """Return the command that draws the run's measures, or that takes those that a figure needs."""
    measured = {identity.rpartition("-")[0] for identity in run.measures()}
    if {"accuracy", "local_complexity"} <= measured:
        return f"Draw the measures with: grokkit figure phases {paths}"
    return f"Measure them with: grokkit lc {shorten_path(run.path)}; see also grokkit attack, grokkit attribute"


def _read_config(path: Path) -> RunConfig:
    try:
        return RunConfig.from_toml(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is not a valid run config: {error}") from error
