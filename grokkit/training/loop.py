"""The training loop: train a run from its config, or resume it. The recorder writes its trajectory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from grokkit.callbacks.base import Callback, CallbackList, as_callback_list
from grokkit.config.run_config import RunConfig
from grokkit.device import placement
from grokkit.device.placement import check_placement, explain_device_mismatch
from grokkit.device.select import fit_threads, select_device
from grokkit.errors import BudgetReached, DataError, Interrupted, NumericsError
from grokkit.interrupt import StopRequest, StopRequested
from grokkit.recording.attempt import append_modifications_to_error
from grokkit.recording.budget import Budget, CostTracker, format_amount, format_dollars, get_spent
from grokkit.recording.state import Stateful
from grokkit.recording.timers import summarize_timers
from grokkit.seeding import seeded
from grokkit.stored_code import import_unknown
from grokkit.training.build import count_macs, load_config
from grokkit.training.evaluation import evaluate_split
from grokkit.training.ranks import current_ranks
from grokkit.training.required_names import list_training_names
from grokkit.training.trainer import RecorderLike, Trainer, attach_recorder, build_trainer, describe_hardware
from grokkit.trajectory import Run, open_run, to_path

REPORTS = 200
"""Rows of batch metrics per run. Each is read one step late, so that the device has work while the host reads."""

MIRROR_AUGMENTATIONS = frozenset({"flip", "altflip"})
"""Augmentations after which the final test evaluation also averages the logits of each image and its mirror."""

SAVE_INTERVAL = 30.0
"""Seconds between two saved resume states, unless saving would take more than `SAVE_SHARE` of the run."""

SAVE_SHARE, MAX_SAVE_INTERVAL = 0.02, 600.0
"""Share of a run's time that saving resume states may take; seconds after which one is saved whatever it costs."""


def train(
    config: RunConfig,
    *,
    runs: str | Path = "runs",
    device: str | None = None,
    callback: Callback | None = None,
    experiment: str | None = None,
    price: float | None = None,
    budget: float | None = None,
    overwrite: bool = False,
) -> Run:
    """Train one run from its first step into a new folder below `runs`.

    Args:
        config: the run's configuration.
        runs: root; the folder is `<runs>/<experiment>/<variant>-s<seed>-<config hash>`.
        device: `cpu`, `cuda`, or None for the best usable one.
        callback: receives progress and events; None for none.
        experiment: source text of the experiment (not its name or path), stored in the run folder and added to the
            user's list of trusted code.
        price: dollars an hour of this machine; by default that of the environment variable GROKKIT_PRICE.
        budget: dollars after which the run is saved and stopped; needs a price.
        overwrite: move an existing run aside first and warn where it went; refused while another process writes it.

    Returns:
        The finished run, opened for reading.

    Raises:
        UsageError, DataError: an option that does not exist or does not fit; nothing is written.
        DeviceRefusedError: a GPU that is present but unusable.
        PlacementError: a tensor of model, optimizer or batch that is not on the run's device.
        TrajectoryError: the folder exists.
        NumericsError: the loss is not finite; what was recorded before is kept.
        Interrupted: Ctrl-C or SIGTERM; the state is saved, `resume` continues the run.
        BudgetReached: the budget is spent; the state is saved, `resume` with a larger one continues the run.
    """
    cost_limit = Budget.create(price, budget)
    cost_limit.require_price()
    callbacks = as_callback_list(callback)
    with callbacks.report_outcome(config.steps):
        path = to_path(runs) / config.run_name
        return _run(config, path, device, callbacks, experiment, cost_limit, resumed=False, overwrite=overwrite)


def resume(
    path: str | Path,
    *,
    device: str | None = None,
    callback: Callback | None = None,
    price: float | None = None,
    budget: float | None = None,
    trust: bool = False,
) -> Run:
    """Resume an interrupted run from its newest resume state, with the config stored in its folder; return the run.

    A finished run is returned as it is.

    Args:
        path: the run's folder.
        device, callback: as in `train`.
        price: dollars an hour from now on; by default that of the environment variable GROKKIT_PRICE, or of the last
            attempt.
        budget: dollars that the run may cost, earlier attempts included.
        trust: execute the run's experiment.py if it is needed to resolve an unknown name, even if it is not on the
            user's list of trusted code; for this call only.

    Raises: as `train`, and
        UntrustedCodeError: a name is unknown, and the run's experiment.py is not on that list.
    """
    run = open_run(path)
    if run.status["state"] == "done":
        return run
    requested = Budget.create(price, budget)
    cost_limit = Budget(CostTracker.resume(run.status, requested.price).price, budget)
    cost_limit.require_price()
    with append_modifications_to_error(run.path):
        config, callbacks = load_config(run), as_callback_list(callback)
        import_unknown([run.path], list_training_names(config), trust=trust)
    with callbacks.report_outcome(config.steps), append_modifications_to_error(run.path):
        if budget is not None and get_spent(run.status) >= budget:
            raise BudgetReached(
                format_budget_message(run.status["step"], config, get_spent(run.status), budget, run.path)
            )
        return _run(config, run.path, device, callbacks, None, cost_limit, resumed=True)


def _run(
    config: RunConfig,
    path: Path,
    device: str | None,
    callback: CallbackList,
    experiment: str | None,
    cost_limit: Budget,
    resumed: bool,
    overwrite: bool = False,
) -> Run:
    torch_device = select_device(device).torch_device
    ranks = current_ranks(torch_device)
    with seeded(config.seed, "training"):
        data_info = open_run(path).environment.get("data", {}) if resumed else {}
        trainer = build_trainer(config, ranks.device(torch_device), ranks=ranks, recorded_path=data_info.get("path"))
        check_placement(trainer.device, trainer.model, trainer.optimizer)
        if resumed:
            _check_data(trainer, data_info.get("hash"), path)
        macs = count_macs(trainer.model, trainer.dataset.input_shape) * trainer.batches.batch_size
        with (
            fit_threads(macs),
            StopRequest() as stop,
            _convert_early_stop(config, path),
            attach_recorder(
                trainer, path, experiment, resumed, price=cost_limit.price, overwrite=overwrite
            ) as recorder,
        ):
            recorder.on_event = callback.event
            start = recorder.restore(**_get_resume_parts(trainer)) if resumed else 0
            if start == 0:
                trainer.policy.observe(ranks.on_rank_zero(partial(log_evaluation, trainer, recorder, 0)))
                trainer.policy.observe(ranks.on_rank_zero(recorder.pop_first_readings))
            callback.start(f"{path}  on {describe_hardware(trainer)}", start, config.steps)
            try:
                _loop(trainer, recorder, callback, stop, start, cost_limit.budget)
            finally:
                callback.close(summarize_timers(recorder.timers.seconds()))
    ranks.barrier()
    return open_run(path)


@contextmanager
def _convert_early_stop(config: RunConfig, path: Path) -> Iterator[None]:
    """Convert a stop before the first update to Interrupted: the run resumes at step 0 and keeps what was measured."""
    try:
        yield
    except StopRequested:
        raise Interrupted(format_resume_hint(0, config, path)) from None


def _check_data(trainer: Trainer, expected: str | None, path: Path) -> None:
    actual = trainer.dataset.hash
    if expected != actual:
        raise DataError(
            f"{path}: the data differ from those the run began with ({trainer.dataset.name} had the hash {expected}, "
            f"now {actual}): restore them, or start a new run"
        )


def _loop(
    trainer: Trainer, recorder: RecorderLike, callback: Callback, stop: StopRequest, start: int, budget: float | None
) -> None:
    config, save_timer = trainer.config, SaveTimer()
    logged = 0 if start == 0 else len(trainer.policy.decisions)
    trainer.model.train()
    if recorder.unfinished:
        logged = _record_step(trainer, recorder, start, logged)
    for step in range(start + 1, config.steps + 1):
        x, y = trainer.ranks.shard(*trainer.batches.at(step))
        loss, logits = _take_step(trainer, x, y, step == start + 1)
        if step == start + 1 or step % placement.CHECK_INTERVAL == 0:
            check_placement(trainer.device, trainer.model, trainer.optimizer, x=x, y=y, loss=loss, logits=logits)
        trainer.meter.add(loss, logits, y)
        log_step(trainer, recorder, callback, step)
        logged = _record_step(trainer, recorder, step, logged)
        budget_spent = is_budget_spent(recorder, budget)
        should_stop, should_save = trainer.ranks.any_rank(
            step, stop.stop_requested or budget_spent, stop.save_requested or save_timer.is_due(recorder)
        )
        if should_stop or should_save or step == config.steps:
            save_state(trainer, recorder, step)
            stop.save_requested = False
            save_timer.reset()
        if should_stop and step < config.steps:
            if budget is not None and budget_spent:
                raise BudgetReached(format_budget_message(step, config, recorder.spent or 0.0, budget, recorder.path))
            raise Interrupted(format_resume_hint(step, config, recorder.path))


def _take_step(trainer: Trainer, x: Tensor, y: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    return explain_device_mismatch(partial(trainer.update, x, y)) if first else trainer.update(x, y)


def is_budget_spent(recorder: RecorderLike, budget: float | None) -> bool:
    """Return whether the run has cost `budget` dollars; None is no limit."""
    return budget is not None and (recorder.spent or 0.0) >= budget


def format_budget_message(step: int, config: RunConfig, spent: float, budget: float, *paths: Path) -> str:
    """Format the message of runs that have spent `budget` dollars together, with the command that resumes them."""
    return (
        f"the budget of {format_dollars(budget)} is spent ({format_dollars(spent)}). "
        f"{format_resume_hint(step, config, *paths)} --budget {format_amount(2 * max(spent, budget))}"
    )


class SaveTimer:
    """Timer of the resume states: due `SAVE_INTERVAL` after the last, later if saving takes more than `SAVE_SHARE`."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def is_due(self, *recorders: RecorderLike) -> bool:
        """Return whether to save now, given what the recorders have spent on saving."""
        now = time.monotonic()
        if now - self._last <= SAVE_INTERVAL:
            return False
        cheap = sum(each.save_seconds for each in recorders) <= SAVE_SHARE * (now - self._began)
        return cheap or now - self._last > MAX_SAVE_INTERVAL

    def reset(self) -> None:
        """Restart the interval after a save."""
        self._last = time.monotonic()


def _record_step(trainer: Trainer, recorder: RecorderLike, step: int, logged: int) -> int:
    """Call `after_step`; on a stop between two measures save a state from which the remaining ones are taken."""
    try:
        return after_step(trainer, recorder, step, logged)
    except StopRequested:
        save_state(trainer, recorder, step, unfinished=True)
        raise Interrupted(format_resume_hint(step, trainer.config, recorder.path)) from None


def log_step(trainer: Trainer, recorder: RecorderLike, callback: Callback, step: int) -> None:
    """Read the meter, log and report after the update number `step`, before anything is measured.

    Raises:
        NumericsError: the loss is not finite.
    """
    config = trainer.config
    _log_meter(trainer, recorder, callback)
    if step % max(1, config.steps // REPORTS) == 0 or step == config.steps:
        trainer.meter.enqueue(step)
        recorder.log(step, "batch", learning_rate=_get_lr(trainer), **_get_cost(recorder))
    if step == config.steps:
        _log_meter(trainer, recorder, callback)


def after_step(trainer: Trainer, recorder: RecorderLike, step: int, logged: int) -> int:
    """Record what is due after `step` updates, evaluate, and update the learning rate by the policy.

    If interrupted, nothing but files and logs has changed, so it can be called again for the same step.

    Args:
        logged: how many of the policy's decisions were logged before.

    Returns:
        How many are logged now: `logged` of the next call.

    Raises:
        StopRequested: interrupted between two measures.
    """
    due = recorder.is_due(step) or recorder.is_signal_due(step)
    for readings in trainer.ranks.on_rank_zero(partial(_measure_step, trainer, recorder, step), due) or ():
        trainer.policy.observe(readings)
    trainer.policy.step()
    return log_decisions(trainer, recorder, logged)


def _measure_step(trainer: Trainer, recorder: RecorderLike, step: int) -> tuple[dict[str, float] | None, ...]:
    """Record and evaluate what is due; return the readings for the policy."""
    return recorder.step(step), log_evaluation(trainer, recorder, step) if recorder.is_due(step) else None


def save_state(trainer: Trainer, recorder: RecorderLike, step: int, unfinished: bool = False) -> None:
    """Save the resume state: everything that `resume` needs."""
    recorder.save(step, unfinished=unfinished, **_get_resume_parts(trainer))


def _get_resume_parts(trainer: Trainer) -> dict[str, Stateful]:
    return {"policy": trainer.policy, "meter": trainer.meter, "update": trainer.update, **trainer.ranks.resume_parts()}


def format_resume_hint(step: int, config: RunConfig, *paths: Path) -> str:
    """Format the message of one or several interrupted runs, with the command that resumes them."""
    return f"Interrupted at step {step}/{config.steps}. Resume with: grokkit resume {' '.join(map(str, paths))}"


def _log_meter(trainer: Trainer, recorder: RecorderLike, callback: Callback) -> None:
    """Read the meter's enqueued means, check that they are finite, log them, pass them to policy and callback."""
    pending = trainer.meter.pop_pending()
    if pending is None:
        return
    step, loss, accuracy = pending
    if not math.isfinite(loss):
        last_snapshot = max(open_run(recorder.path).steps(), default=0)
        raise NumericsError(
            f"the training loss is {loss} in the batches up to step {step}. Snapshots up to step {last_snapshot} are "
            "kept, but the newest may already hold NaN or infinite weights. Usual remedy: a smaller learning rate, or "
            "clip = norm"
        )
    recorder.log(step, "batch", loss=loss, accuracy=accuracy)
    trainer.policy.observe({"train_loss": loss})
    slow = trainer.slowdown.check(step, recorder.timers.training())
    if slow is not None:
        recorder.event(step, "slow", slow)
    callback.report(step, {"loss": loss, "accuracy": accuracy, "lr": _get_lr(trainer), **_get_cost(recorder)})


def _get_cost(recorder: RecorderLike) -> dict[str, float]:
    """Return the dollars spent so far as a metric; empty if no price is known."""
    return {} if recorder.spent is None else {"spent": recorder.spent}


def _get_lr(trainer: Trainer) -> float:
    return float(trainer.optimizer.param_groups[0]["lr"])


def log_evaluation(trainer: Trainer, recorder: RecorderLike, step: int) -> dict[str, float] | None:
    """Log loss and accuracy on held-out images; return the readings for the policy.

    A validation split is evaluated at every recorded step and its loss goes to the policy; the test set is then
    evaluated at the first and the last step only. At the last step, if training mirrored images, the test set is also
    evaluated with test-time augmentation.
    """
    last, readings = step == trainer.config.steps, None
    with recorder.timers.section("evaluation"):
        if trainer.validation is not None:
            metrics = evaluate_split(trainer.model, trainer.validation, trainer.config.loss)
            recorder.log(step, "validation", **metrics)
            readings = {"validation_loss": metrics["loss"]}
        if trainer.validation is None or step == 0 or last:
            mirrored = last and not MIRROR_AUGMENTATIONS.isdisjoint(trainer.config.augment)
            recorder.log(
                step,
                "test_set",
                **evaluate_split(trainer.model, trainer.test_set, trainer.config.loss, mirrored=mirrored),
            )
    return readings


def log_decisions(trainer: Trainer, recorder: RecorderLike, logged: int) -> int:
    """Log the policy's decisions after the first `logged`; return how many there are now."""
    for decision in trainer.policy.decisions[logged:]:
        recorder.event(decision["step"], "policy", decision["reason"], lr=decision["lr"])
    return len(trainer.policy.decisions)
