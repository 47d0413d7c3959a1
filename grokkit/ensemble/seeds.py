"""Many seeds of one config at once: small nets in a stack, others in processes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from grokkit.callbacks.base import Callback, CallbackList, as_callback_list
from grokkit.config.run_config import RunConfig
from grokkit.device.select import select_device
from grokkit.ensemble.subprocesses import train_in_subprocesses
from grokkit.ensemble.vmapped import explain_no_stack, train_vmapped
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
    """Train one run for every seed, at once; each is a folder of its own, the one that `train` makes of that seed.

    Nets without convolutions are trained in a stack (`stack.Stack`): 32 small MLPs take 0.56 to 0.87 of the CPU time
    of one after the other (`python -m bench seeds`). Their numbers agree with those of a run alone to rounding, which
    training enlarges like any other small difference; environment.json says `stack`. Seeds whose learning rates come
    to differ, because a policy listens to readings, are updated one by one from then on, and the gain is smaller.

    Convolutional nets, and nets that `torch.func` does not follow (dropout), get a process for each seed, as many at a
    time as there are cores, and 4 on a GPU: a stack of convolutional nets takes more CPU time than one after the other
    (`python -m bench seeds-convnets`), while processes use all cores and every run is `train` itself. Streams of one
    process on a GPU are not built: nobody has measured them here.

    Args:
        config: every choice but the seed.
        seeds: 0 or more each, no two the same.
        runs: root of the folders.
        device: `cpu`, `cuda`, or None for the best usable one.
        callback: company; it hears means over the seeds. Silent by default.
        experiment: source text of the study, kept in the folders. A process learns from it what the study registers.
        price: dollars an hour of the machine, by default GROKKIT_PRICE; runs at the same time share it alike.
        budget: dollars for all seeds together, each its part of them; needs a price.

    Returns:
        The finished runs, in the order of the seeds.

    Raises:
        UsageError, DataError: a choice that does not exist or does not fit; nothing is written then.
        TrajectoryError: one of the folders exists; nothing is written then.
        NumericsError: the loss of some seeds is not finite; those runs end as failed, all others are done.
        Interrupted: Ctrl-C or SIGTERM; what has begun is saved, `resume` goes on with each run alone.
        BudgetReached: the budget is spent; what has begun is saved.
    """
    cost_limit = Budget.of(price, budget)
    cost_limit.needs_price()
    configs = [config.replace(seed=seed) for seed in validate_seeds(seeds)]
    root = to_path(runs)
    paths = [root / each.run_name for each in configs]
    if len(configs) > 1 and not is_single_process():
        raise UsageError("torchrun's processes train one run together: give one seed, or start many without torchrun")
    require_new_runs(paths, "other seeds or another folder for the runs")
    callbacks = as_callback_list(callback)
    if len(configs) == 1:
        alone = train(
            configs[0],
            runs=runs,
            device=device,
            callback=callbacks,
            experiment=experiment,
            price=cost_limit.price,
            budget=budget,
        )
        return [alone]
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
    """In a stack where that can be, else in processes."""
    first = build_trainer(configs[0], select_device(device).torch_device)
    because = explain_no_stack(first)
    if because is None:
        trainers = [first, *(build_trainer(each, first.device, beside=first) for each in configs[1:])]
        train_vmapped(trainers, paths, callbacks, experiment, cost_limit)
    else:
        del first
        train_in_subprocesses(configs, runs, device, callbacks, experiment, because, cost_limit)


def require_new_runs(paths: Iterable[Path], others: str) -> None:
    """Raise TrajectoryError where one of the runs is there already, before any is begun; `others` says what to choose
    instead. Of a team only the first process looks: the others come when it has begun."""
    if is_rank_zero() and (there := [str(path) for path in paths if path.exists()]):
        raise TrajectoryError(
            f"a run is never overwritten, and there is {', '.join(there)} already. Resume or remove what is there, or "
            f"choose {others}"
        )


def validate_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list. Raises UsageError where there is none, or one that is twice there or no int >= 0."""
    found = list(seeds)
    wrong = [seed for seed in found if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
    twice = sorted({seed for seed in found if found.count(seed) > 1}) if not wrong else []
    if wrong or twice or not found:
        came = f"{wrong[0]!r}" if wrong else f"{', '.join(map(str, twice))} more than once" if twice else "none"
        raise UsageError(f"`seeds` must be ints of 0 or more, at least one and no two the same; got {came}")
    return found
