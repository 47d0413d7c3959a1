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
    """Read the words and train."""
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
        experiment: a module in ./experiments, one that ships, or a .py file; NAME:VARIANT is one of its functions.
        data: other data than the experiment's: a dataset's name, an .npz file with x_train y_train x_test y_test,
            or a folder with train/<class>/* and test/<class>/*.
        runs: folder that the runs go to.
        seed: another root seed than the experiment's.
        seeds: many of them at once, such as 0-31 or 0,3,7: small nets in a stack, convolutional ones in processes.
        steps: another number of updates than the experiment's.
        config_file: a file like a run's config.toml, trained in place of the experiment's variants; of EXPERIMENT the
            source is kept, and the names that it registers are known.
        device: cpu or cuda; by default a GPU where there is one.
        price: dollars an hour of this machine; by default $GROKKIT_PRICE.
        budget: dollars that all the runs together may cost; then they are saved and stop, with exit code 6.
        cpu_limit: minutes; without a GPU and --device cpu, a measured estimate above it ends this before it starts.
        notify: web address that hears of start, decisions, trouble and end (ntfy, Slack, Discord or any other); by
            default $GROKKIT_NOTIFY, which keeps a secret address out of the list of processes.
    """
    from grokkit.ensemble.seeds import require_new_runs, train_seeds
    from grokkit.recording.budget import Budget

    found, configs, wanted = _resolve_request(experiment, config_file, data, steps, seed, seeds)
    every = [config.replace(seed=each) for config in configs for each in wanted or [config.seed]]
    one = f"another --seed or --runs; {experiment}:VARIANT trains one variant alone"
    require_new_runs([runs / config.run_name for config in every], one)
    Budget.of(price, budget).needs_price()
    on, messages = select_machine(device), make_webhook(notify)
    _require_time_limit(on, device, cpu_limit, configs, len(wanted or [0]), runs)
    paid: list[Run] = []
    for config in configs:
        done = train_seeds(
            config,
            wanted or [config.seed],
            runs=runs,
            device=device,
            callback=make_callbacks(on, messages),
            experiment=found.source,
            price=price,
            budget=share_budget(budget, paid),
        )
        paid += done
        _print_outcome(done)


def _resolve_request(
    experiment: str, config_file: Path | None, data: str | None, steps: int | None, seed: int | None, seeds: str | None
) -> tuple[Experiment, list[RunConfig], list[int] | None]:
    """The study, its configs with what is asked of them, and the seeds where many are asked for."""
    from grokkit import recipes

    if seed is not None and seeds is not None:
        raise UsageError("give --seed or --seeds, not both")
    found = recipes.find_experiment(experiment)
    made = found.configs() if config_file is None else [_read_config(config_file)]
    configs = [apply_cli_overrides(config, data, seed, steps) for config in made]
    return found, configs, None if seeds is None else parse_seeds(seeds)


def _require_time_limit(
    on: Device, device: str | None, cpu_limit: float, configs: list[RunConfig], seeds: int, runs: Path
) -> None:
    """Say how long it will take on a CPU that nobody asked for; see `require_time_limit`."""
    from grokkit.diagnostics.estimate import format_duration, require_time_limit
    from grokkit.training.ranks import is_single_process

    if device is None and on.torch_device.type == "cpu" and is_single_process():
        about = format_duration(require_time_limit(cpu_limit, configs, seeds, runs))
        print(f"measured: about {about} on this CPU", file=sys.stderr)


def _print_outcome(done: list[Run]) -> None:
    """Say how the runs of one config ended, and what to do next; one process of a team does."""
    from grokkit.training.ranks import is_rank_zero

    if not is_rank_zero():
        return
    for run in done:
        state, numbers = run.status, format_final_accuracy(run.newest_metrics())
        print(f"{shorten_path(run.path)}: done at step {state['step']}{numbers}{format_cost(state)}")
    paths = " ".join(shorten_path(run.path) for run in done)
    print(f"{len(done[0].steps())} snapshots; draw them with: grokkit figure phases {paths}")


def _read_config(path: Path) -> RunConfig:
    try:
        return RunConfig.from_toml(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is no config of a run: {error}") from error
