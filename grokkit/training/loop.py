"""One training loop that can be read aloud. Its trajectory is written by the recorder, like any other loop's."""

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
from grokkit.recording.attempt import report_modifications
from grokkit.recording.budget import Budget, CostTracker, format_dollars, get_spent, parse_amount
from grokkit.recording.state import Stateful
from grokkit.recording.timers import summarize_timers
from grokkit.seeding import seeded
from grokkit.stored_code import import_unknown
from grokkit.training.build import count_macs, load_config
from grokkit.training.evaluation import evaluate_split
from grokkit.training.ranks import current_ranks
from grokkit.training.required_names import training_names
from grokkit.training.trainer import RecorderLike, Trainer, attach_recorder, build_trainer, describe_hardware
from grokkit.trajectory import Run, open_run, to_path

REPORTS = 200
"""Rows of batch metrics per run. Each is read one step late, so that the device has work while the host reads."""

MIRRORING = frozenset({"flip", "altflip"})
"""Augmentations after which a net is also asked about the mirror of every test image, at the end."""

SAVE_SECONDS = 30.0
"""Time between two resume slots, unless they would take more than `SAVE_SHARE` of the run."""

SAVE_SHARE, LONGEST = 0.02, 600.0
"""Of a run's time for slots; seconds after which one is saved whatever it costs."""


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
        config: every choice of the run.
        runs: root; the folder is `<runs>/<experiment>/<variant>-s<seed>-<config hash>`.
        device: `cpu`, `cuda`, or None for the best usable one.
        callback: company, silent by default.
        experiment: source text of the study, kept in the folder and put on the user's list of trusted code.
        price: dollars an hour of this machine; by default that of the environment variable GROKKIT_PRICE.
        budget: dollars after which the run is saved and stopped; needs a price.
        overwrite: a run that is there is moved aside first, and a warning says where to; one being written is refused.

    Returns:
        The finished run, opened for reading.

    Raises:
        UsageError, DataError: a choice that does not exist or does not fit; nothing is written then.
        DeviceRefusedError: a GPU that is present but unusable.
        PlacementError: a tensor of model, optimizer or batch that is not on the run's device.
        TrajectoryError: the folder exists.
        NumericsError: the loss is not finite; what was recorded before is kept.
        Interrupted: Ctrl-C or SIGTERM; the state is saved, `resume` goes on.
        BudgetReached: the budget is spent; the state is saved, `resume` with a larger one goes on.
    """
    cost_limit = Budget.of(price, budget)
    cost_limit.needs_price()
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
    """Go on with an interrupted run from its newest slot; the config comes from the folder. A finished run is returned.

    Args:
        path: the run's folder.
        device, callback: as of `train`.
        price: dollars an hour from here on; by default that of the environment variable GROKKIT_PRICE, or of the last
            attempt.
        budget: dollars that the run may cost, earlier attempts included.
        trust: execute the run's experiment.py for a name that is unknown without it, also where it is not on the user's
            list of trusted code; in this call only.

    Raises: as `train`, and
        UntrustedCodeError: a name is unknown, and the run's experiment.py is not on that list.
    """
    found = open_run(path)
    if found.status["state"] == "done":
        return found
    asked = Budget.of(price, budget)
    cost_limit = Budget(CostTracker.resume(found.status, asked.price).price, budget)
    cost_limit.needs_price()
    with report_modifications(found.path):
        config, callbacks = load_config(found), as_callback_list(callback)
        import_unknown([found.path], training_names(config), trust=trust)
    with callbacks.report_outcome(config.steps), report_modifications(found.path):
        if budget is not None and get_spent(found.status) >= budget:
            raise BudgetReached(
                budget_message(found.status["step"], config, get_spent(found.status), budget, found.path)
            )
        return _run(config, found.path, device, callbacks, None, cost_limit, resumed=True)


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
    place = select_device(device).torch_device
    team = current_ranks(place)
    with seeded(config.seed, "training"):
        then = open_run(path).environment.get("data", {}) if resumed else {}
        trainer = build_trainer(config, team.device(place), team=team, recorded=then.get("path"))
        check_placement(trainer.device, trainer.model, trainer.optimizer)
        if resumed:
            _check_data(trainer, then.get("hash"), path)
        work = count_macs(trainer.model, trainer.dataset.input_shape) * trainer.batches.batch_size
        with (
            fit_threads(work),
            StopRequest() as stop,
            _explain_early_stop(config, path),
            attach_recorder(
                trainer, path, experiment, resumed, price=cost_limit.price, overwrite=overwrite
            ) as recorder,
        ):
            recorder.listener = callback.event
            start = recorder.restore(**_resume_parts(trainer)) if resumed else 0
            if start == 0:
                trainer.policy.observe(team.on_rank_zero(partial(log_evaluation, trainer, recorder, 0)))
                trainer.policy.observe(team.on_rank_zero(recorder.first_readings))
            callback.start(f"{path}  on {describe_hardware(trainer)}", start, config.steps)
            try:
                _loop(trainer, recorder, callback, stop, start, cost_limit.budget)
            finally:
                callback.close(summarize_timers(recorder.costs.seconds()))
    team.barrier()
    return open_run(path)


@contextmanager
def _explain_early_stop(config: RunConfig, path: Path) -> Iterator[None]:
    """A stop before the first update is told like any other; the run goes on from step 0, what was measured stays."""
    try:
        yield
    except StopRequested:
        raise Interrupted(resume_hint(0, config, path)) from None


def _check_data(trainer: Trainer, then: str | None, path: Path) -> None:
    now = trainer.dataset.hash
    if then != now:
        raise DataError(f"{path} began on other data: {trainer.dataset.name} had the hash {then}, it has {now} now")


def _loop(
    trainer: Trainer, recorder: RecorderLike, callback: Callback, stop: StopRequest, start: int, budget: float | None
) -> None:
    config, saves = trainer.config, SaveTimer()
    told = 0 if start == 0 else len(trainer.policy.decisions)
    trainer.model.train()
    if recorder.unfinished:
        told = _record_step(trainer, recorder, start, told)
    for step in range(start + 1, config.steps + 1):
        x, y = trainer.ranks.shard(*trainer.batches.at(step))
        loss, logits = _take_step(trainer, x, y, step == start + 1)
        if step == start + 1 or step % placement.EVERY == 0:
            check_placement(trainer.device, trainer.model, trainer.optimizer, x=x, y=y, loss=loss, logits=logits)
        trainer.meter.add(loss, logits, y)
        log_step(trainer, recorder, callback, step)
        told = _record_step(trainer, recorder, step, told)
        broke = is_budget_spent(recorder, budget)
        stopping, saving = trainer.ranks.any_rank(
            step, stop.stop_requested or broke, stop.save_requested or saves.due(recorder)
        )
        if stopping or saving or step == config.steps:
            save_state(trainer, recorder, step)
            stop.save_requested = False
            saves.done()
        if stopping and step < config.steps:
            if budget is not None and broke:
                raise BudgetReached(budget_message(step, config, recorder.spent or 0.0, budget, recorder.path))
            raise Interrupted(resume_hint(step, config, recorder.path))


def _take_step(trainer: Trainer, x: Tensor, y: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    return explain_device_mismatch(partial(trainer.update, x, y)) if first else trainer.update(x, y)


def is_budget_spent(recorder: RecorderLike, budget: float | None) -> bool:
    """Whether the run has cost `budget` dollars; None is no limit."""
    return budget is not None and (recorder.spent or 0.0) >= budget


def budget_message(step: int, config: RunConfig, spent: float, budget: float, *paths: Path) -> str:
    """What a run that has spent its budget says, or several that have spent theirs together."""
    return (
        f"the budget of {format_dollars(budget)} is spent ({format_dollars(spent)}); "
        f"{resume_hint(step, config, *paths)} --budget {parse_amount(2 * max(spent, budget))}"
    )


class SaveTimer:
    """When the next slot is due: `SAVE_SECONDS` after the last, later where slots would take more than `SAVE_SHARE` of
    the time."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def due(self, *recorders: RecorderLike) -> bool:
        now = time.monotonic()
        if now - self._last <= SAVE_SECONDS:
            return False
        cheap = sum(each.save_seconds for each in recorders) <= SAVE_SHARE * (now - self._began)
        return cheap or now - self._last > LONGEST

    def done(self) -> None:
        self._last = time.monotonic()


def _record_step(trainer: Trainer, recorder: RecorderLike, step: int, told: int) -> int:
    """`follow`; where a stop was asked for amid the measures, all is saved so that they go on with the next one."""
    try:
        return after_step(trainer, recorder, step, told)
    except StopRequested:
        save_state(trainer, recorder, step, unfinished=True)
        raise Interrupted(resume_hint(step, trainer.config, recorder.path)) from None


def log_step(trainer: Trainer, recorder: RecorderLike, callback: Callback, step: int) -> None:
    """What follows the update number `step` before anything is measured: read the meter, log, tell the callback.

    Raises:
        NumericsError: the loss is not finite.
    """
    config = trainer.config
    _log_meter(trainer, recorder, callback)
    if step % max(1, config.steps // REPORTS) == 0 or step == config.steps:
        trainer.meter.enqueue(step)
        recorder.log(step, "batch", learning_rate=_rate(trainer), **_current_cost(recorder))
    if step == config.steps:
        _log_meter(trainer, recorder, callback)


def after_step(trainer: Trainer, recorder: RecorderLike, step: int, told: int) -> int:
    """Record what is due after `step` updates, evaluate, ask the policy for the next rate.

    Nothing but files and logs has changed where this is stopped, so that it can be called again for the same step.

    Args:
        told: how many of the policy's decisions were logged before; what is returned is to be given at the next step.

    Raises:
        Stopped: a stop was asked for amid the measures.
    """
    due = recorder.due(step) or recorder.signal_due(step)
    for heard in trainer.ranks.on_rank_zero(partial(_measure_step, trainer, recorder, step), due) or ():
        trainer.policy.observe(heard)
    trainer.policy.step()
    return log_decisions(trainer, recorder, told)


def _measure_step(trainer: Trainer, recorder: RecorderLike, step: int) -> tuple[dict[str, float] | None, ...]:
    """Record and evaluate what is due; what the policy is to hear of it."""
    return recorder.step(step), log_evaluation(trainer, recorder, step) if recorder.due(step) else None


def save_state(trainer: Trainer, recorder: RecorderLike, step: int, unfinished: bool = False) -> None:
    """Put all that `resume` goes on from into a slot."""
    recorder.save(step, unfinished=unfinished, **_resume_parts(trainer))


def _resume_parts(trainer: Trainer) -> dict[str, Stateful]:
    return {"policy": trainer.policy, "meter": trainer.meter, "update": trainer.update, **trainer.ranks.resume_parts()}


def resume_hint(step: int, config: RunConfig, *paths: Path) -> str:
    """What an interrupted run, or several, say."""
    return f"stopped after step {step} of {config.steps}; go on with: grokkit resume {' '.join(map(str, paths))}"


def _log_meter(trainer: Trainer, recorder: RecorderLike, callback: Callback) -> None:
    """Read what the meter has set aside, check it, log it and tell the policy and the callback."""
    taken = trainer.meter.read_async()
    if taken is None:
        return
    step, loss, accuracy = taken
    if not math.isfinite(loss):
        kept = max(open_run(recorder.path).steps(), default=0)
        raise NumericsError(
            f"the training loss is {loss} by step {step}; snapshots up to step {kept} are kept (the last ones may "
            "hold such numbers too). "
            "A smaller learning rate, or clip = norm, is the usual remedy"
        )
    recorder.log(step, "batch", loss=loss, accuracy=accuracy)
    trainer.policy.observe({"train_loss": loss})
    slow = trainer.slowdown.check(step, recorder.costs.training())
    if slow is not None:
        recorder.event(step, "slow", slow)
    callback.report(step, {"loss": loss, "accuracy": accuracy, "lr": _rate(trainer), **_current_cost(recorder)})


def _current_cost(recorder: RecorderLike) -> dict[str, float]:
    """Dollars so far as a number among others; nothing where no price is known."""
    return {} if recorder.spent is None else {"spent": recorder.spent}


def _rate(trainer: Trainer) -> float:
    return float(trainer.optimizer.param_groups[0]["lr"])


def log_evaluation(trainer: Trainer, recorder: RecorderLike, step: int) -> dict[str, float] | None:
    """Log loss and accuracy on images that were not trained on; return what the policy is to hear of it.

    A validation split is asked at every recorded step and its loss told to the policy; the test set is then left alone
    but for the first and the last step. After the last one, where training mirrored images, the test set is told with
    test-time augmentation too.
    """
    last, heard = step == trainer.config.steps, None
    with recorder.costs.section("evaluation"):
        if trainer.validation is not None:
            told = evaluate_split(trainer.model, trainer.validation, trainer.config.loss)
            recorder.log(step, "validation", **told)
            heard = {"validation_loss": told["loss"]}
        if trainer.validation is None or step == 0 or last:
            mirrored = last and not MIRRORING.isdisjoint(trainer.config.augment)
            recorder.log(
                step,
                "test_set",
                **evaluate_split(trainer.model, trainer.test_set, trainer.config.loss, mirrored=mirrored),
            )
    return heard


def log_decisions(trainer: Trainer, recorder: RecorderLike, told: int) -> int:
    """Log the policy's decisions after the first `told`; return how many there are now."""
    for decision in trainer.policy.decisions[told:]:
        recorder.event(decision["step"], "policy", decision["reason"], lr=decision["lr"])
    return len(trainer.policy.decisions)
