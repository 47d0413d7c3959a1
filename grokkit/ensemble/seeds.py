"""Train many seeds of one config at once: small models vmapped in one process, others in subprocesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from grokkit.callbacks.base import Callback, CallbackList, as_callback_list
from grokkit.config.run_config import RunConfig
from grokkit.device.select import select_device
from grokkit.ensemble.subprocesses import train_in_subprocesses
from grokkit.ensemble.vmapped import find_stack_obstacle, train_vmapped
from grokkit.errors import TrajectoryError, UsageError
from grokkit.recording.budget import Budget
from grokkit.training.loop import train
from grokkit.training.ranks import is_rank_zero, is_single_process
from grokkit.training.trainer import build_trainer
from grokkit.trajectory import Run, open_run, to_path


def train_seeds(
    config: RunConfig,
    seeds: Iterable[int],
    *,
    runs: str | Path = "runs",
    device: str | None = None,
    callback: Callback | None = None,
    experiment: str | None = None,
    price: float | None = None,
    budget: float | None = None,
) -> list[Run]:
    """Train one run per seed, all at the same time; each run has the folder that `train` would create for that seed.

    Models without convolutions are trained with `torch.func.vmap` (`stack.Stack`): 32 small MLPs take 0.56 to 0.87 of
    the CPU time of sequential runs (`python -m bench seeds`). Their numbers agree with those of a single run to
    rounding, which training amplifies like any other small difference; environment.json records `stack`. Seeds whose
    learning rates diverge, because a policy depends on readings, are updated one by one from then on, and the gain is
    smaller.

    Convolutional models, and models that `torch.func` does not support (dropout), get one process per seed, as many at
    a time as there are cores, and 4 on a GPU: stacked convolutional models take more CPU time than sequential ones
    (`python -m bench seeds-convnets`), while processes use all cores and every run is `train` itself. CUDA streams
    within one process are not implemented: their benefit was not measured.

    Args:
        config: the configuration of all runs; its seed is replaced.
        seeds: ints of 0 or more, no duplicates.
        runs: root of the folders.
        device: `cpu`, `cuda`, or None for the best usable one.
        callback: receives means over the seeds; None for none.
        experiment: source text of the experiment (not its name or path), stored in the folders. Worker processes import
            it for what it registers.
        price: dollars an hour of the machine, by default GROKKIT_PRICE; concurrent runs share it equally.
        budget: dollars for all seeds together, split equally; needs a price.

    Returns:
        The finished runs, in the order of the seeds.

    Raises:
        UsageError, DataError: an option that does not exist or does not fit; nothing is written.
        TrajectoryError: one of the folders exists; nothing is written.
        NumericsError: the loss of some seeds is not finite; those runs end as failed, all others are done.
        Interrupted: Ctrl-C or SIGTERM; runs that have started are saved, `resume` continues each of them.
        BudgetReached: the budget is spent; runs that have started are saved.
    """
    cost_limit = Budget.create(price, budget)
    cost_limit.require_price()
    configs = [config.replace(seed=seed) for seed in validate_seeds(seeds)]
    root = to_path(runs)
    paths = [root / each.run_name for each in configs]
    if len(configs) > 1 and not is_single_process():
        raise UsageError(
            f"torchrun's processes train one run together, got {len(configs)} seeds; pass one seed, or start without "
            "torchrun"
        )
    require_new_runs(paths, "other seeds or another folder for the runs")
    callbacks = as_callback_list(callback)
    if len(configs) == 1:
        run = train(
            configs[0],
            runs=runs,
            device=device,
            callback=callbacks,
            experiment=experiment,
            price=cost_limit.price,
            budget=budget,
        )
        return [run]
    with callbacks.report_outcome(config.steps):
        _train_all(configs, paths, root, device, callbacks, experiment, cost_limit)
    return [open_run(path) for path in paths]


def _train_all(
    configs: Sequence[RunConfig],
    paths: Sequence[Path],
    runs: Path,
    device: str | None,
    callbacks: CallbackList,
    experiment: str | None,
    cost_limit: Budget,
) -> None:
    """Train with vmap if the model supports it, else in subprocesses."""
    first = build_trainer(configs[0], select_device(device).torch_device)
    reason = find_stack_obstacle(first)
    if reason is None:
        trainers = [first, *(build_trainer(each, first.device, data_from=first) for each in configs[1:])]
        train_vmapped(trainers, paths, callbacks, experiment, cost_limit)
    else:
        del first
        train_in_subprocesses(configs, runs, device, callbacks, experiment, reason, cost_limit)


def require_new_runs(paths: Iterable[Path], alternative: str) -> None:
    """Raise TrajectoryError if one of the runs already exists, before any is started.

    `alternative` is what the message suggests to change. Under torchrun only rank 0 checks: the other ranks may arrive
    here after it has created the folder.
    """
    if is_rank_zero() and (existing := [str(path) for path in paths if path.exists()]):
        raise TrajectoryError(
            f"{', '.join(existing)} already exists, and a run is never overwritten. Resume or remove it, or choose "
            f"{alternative}"
        )


def validate_seeds(seeds: Iterable[int]) -> list[int]:
    """Return the seeds as a list; raise UsageError if it is empty, or a seed is repeated or not an int >= 0."""
    result = list(seeds)
    invalid = [seed for seed in result if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
    duplicates = sorted({seed for seed in result if result.count(seed) > 1}) if not invalid else []
    if invalid or duplicates or not result:
        got = (
            f"{invalid[0]!r}"
            if invalid
            else f"{', '.join(map(str, duplicates))} more than once"
            if duplicates
            else "none"
        )
        raise UsageError(f"`seeds` must be ints of 0 or more, at least one and no two the same; got {got}")
    return result
