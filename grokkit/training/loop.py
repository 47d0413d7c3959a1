"""One training loop that can be read aloud. Its trajectory is written by the recorder, like any other loop's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from grokkit.callbacks.base import Guarded, Observer, guarded
from grokkit.config.run_config import RunConfig
from grokkit.device import placement
from grokkit.device.placement import check_placement, placed_update
from grokkit.device.select import fitting_threads, resolve
from grokkit.errors import BudgetReached, DataError, Interrupted, NumericsError
from grokkit.interrupt import Stopped, StopRequest
from grokkit.recording.attempt import naming_changes
from grokkit.recording.budget import Bill, Purse, amount, dollars, spent_by
from grokkit.recording.state import Stateful
from grokkit.recording.timers import in_words
from grokkit.seeding import seeded
from grokkit.stored_code import import_unknown
from grokkit.training.build import config_of, macs_of
from grokkit.training.evaluation import evaluated
from grokkit.training.ranks import team_of
from grokkit.training.required_names import names_to_train
from grokkit.training.trainer import Job, Recording, build, machine_of, open_recorder
from grokkit.trajectory import Run, as_path, open_run

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
    observer: Observer | None = None,
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
        observer: company, silent by default.
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
    purse = Purse.of(price, budget)
    purse.needs_price()
    company = guarded(observer)
    with company.told_of_the_end(config.steps):
        path = as_path(runs) / config.run_name
        return _run(config, path, device, company, experiment, purse, resumed=False, overwrite=overwrite)


def resume(
    path: str | Path,
    *,
    device: str | None = None,
    observer: Observer | None = None,
    price: float | None = None,
    budget: float | None = None,
    trust: bool = False,
) -> Run:
    """Go on with an interrupted run from its newest slot; the config comes from the folder. A finished run is returned.

    Args:
        path: the run's folder.
        device, observer: as of `train`.
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
    asked = Purse.of(price, budget)
    purse = Purse(Bill.going_on(found.status, asked.price).price, budget)
    purse.needs_price()
    with naming_changes(found.path):
        config, company = config_of(found), guarded(observer)
        import_unknown([found.path], names_to_train(config), trust=trust)
    with company.told_of_the_end(config.steps), naming_changes(found.path):
        if budget is not None and spent_by(found.status) >= budget:
            raise BudgetReached(beyond_budget(found.status["step"], config, spent_by(found.status), budget, found.path))
        return _run(config, found.path, device, company, None, purse, resumed=True)


def _run(
    config: RunConfig,
    path: Path,
    device: str | None,
    observer: Guarded,
    experiment: str | None,
    purse: Purse,
    resumed: bool,
    overwrite: bool = False,
) -> Run:
    place = resolve(device).torch_device
    team = team_of(place)
    with seeded(config.seed, "training"):
        then = open_run(path).environment.get("data", {}) if resumed else {}
        job = build(config, team.device(place), team=team, recorded=then.get("path"))
        check_placement(job.device, job.model, job.optimizer)
        if resumed:
            _check_data(job, then.get("hash"), path)
        work = macs_of(job.model, job.dataset.input_shape) * job.batches.batch_size
        with (
            fitting_threads(work), StopRequest() as stop, _at_step_0(config, path),
            open_recorder(job, path, experiment, resumed, price=purse.price, overwrite=overwrite) as recorder,
        ):  # fmt: skip
            recorder.listener = observer.event
            start = recorder.restore(**_parts(job)) if resumed else 0
            if start == 0:
                job.policy.observe(team.told(partial(evaluate, job, recorder, 0)))
                job.policy.observe(team.told(recorder.first_readings))
            observer.start(f"{path}  on {machine_of(job)}", start, config.steps)
            try:
                _loop(job, recorder, observer, stop, start, purse.budget)
            finally:
                observer.close(in_words(recorder.costs.seconds()))
    team.barrier()
    return open_run(path)


@contextmanager
def _at_step_0(config: RunConfig, path: Path) -> Iterator[None]:
    """A stop before the first update is told like any other; the run goes on from step 0, what was measured stays."""
    try:
        yield
    except Stopped:
        raise Interrupted(how_to_go_on(0, config, path)) from None


def _check_data(job: Job, then: str | None, path: Path) -> None:
    now = job.dataset.hash
    if then != now:
        raise DataError(f"{path} began on other data: {job.dataset.name} had the hash {then}, it has {now} now")


def _loop(
    job: Job, recorder: Recording, observer: Observer, stop: StopRequest, start: int, budget: float | None
) -> None:
    config, saves = job.config, SaveTimes()
    told = 0 if start == 0 else len(job.policy.decisions)
    job.model.train()
    if recorder.unfinished:
        told = _recorded(job, recorder, start, told)
    for step in range(start + 1, config.steps + 1):
        x, y = job.team.part(*job.batches.at(step))
        loss, logits = _updated(job, x, y, step == start + 1)
        if step == start + 1 or step % placement.EVERY == 0:
            check_placement(job.device, job.model, job.optimizer, x=x, y=y, loss=loss, logits=logits)
        job.meter.add(loss, logits, y)
        report(job, recorder, observer, step)
        told = _recorded(job, recorder, step, told)
        broke = is_spent(recorder, budget)
        stopping, saving = job.team.agreed(step, stop.asked or broke, stop.save_asked or saves.due(recorder))
        if stopping or saving or step == config.steps:
            save(job, recorder, step)
            stop.save_asked = False
            saves.done()
        if stopping and step < config.steps:
            if budget is not None and broke:
                raise BudgetReached(beyond_budget(step, config, recorder.spent or 0.0, budget, recorder.path))
            raise Interrupted(how_to_go_on(step, config, recorder.path))


def _updated(job: Job, x: Tensor, y: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    return placed_update(partial(job.update, x, y)) if first else job.update(x, y)


def is_spent(recorder: Recording, budget: float | None) -> bool:
    """Whether the run has cost `budget` dollars; None is no limit."""
    return budget is not None and (recorder.spent or 0.0) >= budget


def beyond_budget(step: int, config: RunConfig, spent: float, budget: float, *paths: Path) -> str:
    """What a run that has spent its budget says, or several that have spent theirs together."""
    return (f"the budget of {dollars(budget)} is spent ({dollars(spent)}); "
            f"{how_to_go_on(step, config, *paths)} --budget {amount(2 * max(spent, budget))}")  # fmt: skip


class SaveTimes:
    """When the next slot is due: `SAVE_SECONDS` after the last, later where slots would take more than `SAVE_SHARE` of
    the time."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def due(self, *recorders: Recording) -> bool:
        now = time.monotonic()
        if now - self._last <= SAVE_SECONDS:
            return False
        cheap = sum(each.save_seconds for each in recorders) <= SAVE_SHARE * (now - self._began)
        return cheap or now - self._last > LONGEST

    def done(self) -> None:
        self._last = time.monotonic()


def _recorded(job: Job, recorder: Recording, step: int, told: int) -> int:
    """`follow`; where a stop was asked for amid the measures, all is saved so that they go on with the next one."""
    try:
        return follow(job, recorder, step, told)
    except Stopped:
        save(job, recorder, step, unfinished=True)
        raise Interrupted(how_to_go_on(step, job.config, recorder.path)) from None


def report(job: Job, recorder: Recording, observer: Observer, step: int) -> None:
    """What follows the update number `step` before anything is measured: read the meter, log, tell the observer.

    Raises:
        NumericsError: the loss is not finite.
    """
    config = job.config
    _report(job, recorder, observer)
    if step % max(1, config.steps // REPORTS) == 0 or step == config.steps:
        job.meter.take(step)
        recorder.log(step, "batch", learning_rate=_rate(job), **_cost_of(recorder))
    if step == config.steps:
        _report(job, recorder, observer)


def follow(job: Job, recorder: Recording, step: int, told: int) -> int:
    """Record what is due after `step` updates, evaluate, ask the policy for the next rate.

    Nothing but files and logs has changed where this is stopped, so that it can be called again for the same step.

    Args:
        told: how many of the policy's decisions were logged before; what is returned is to be given at the next step.

    Raises:
        Stopped: a stop was asked for amid the measures.
    """
    due = recorder.due(step) or recorder.signal_due(step)
    for heard in job.team.told(partial(_measured, job, recorder, step), due) or ():
        job.policy.observe(heard)
    job.policy.step()
    return _note_decisions(job, recorder, told)


def _measured(job: Job, recorder: Recording, step: int) -> tuple[dict[str, float] | None, ...]:
    """Record and evaluate what is due; what the policy is to hear of it."""
    return recorder.step(step), evaluate(job, recorder, step) if recorder.due(step) else None


def save(job: Job, recorder: Recording, step: int, unfinished: bool = False) -> None:
    """Put all that `resume` goes on from into a slot."""
    recorder.save(step, unfinished=unfinished, **_parts(job))


def _parts(job: Job) -> dict[str, Stateful]:
    return {"policy": job.policy, "meter": job.meter, "update": job.update, **job.team.parts()}


def how_to_go_on(step: int, config: RunConfig, *paths: Path) -> str:
    """What an interrupted run, or several, say."""
    return f"stopped after step {step} of {config.steps}; go on with: grokkit resume {' '.join(map(str, paths))}"


def _report(job: Job, recorder: Recording, observer: Observer) -> None:
    """Read what the meter has set aside, check it, log it and tell the policy and the observer."""
    taken = job.meter.read()
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
    job.policy.observe({"train_loss": loss})
    slow = job.pace.slow(step, recorder.costs.training())
    if slow is not None:
        recorder.event(step, "slow", slow)
    observer.report(step, {"loss": loss, "accuracy": accuracy, "lr": _rate(job), **_cost_of(recorder)})


def _cost_of(recorder: Recording) -> dict[str, float]:
    """Dollars so far as a number among others; nothing where no price is known."""
    return {} if recorder.spent is None else {"spent": recorder.spent}


def _rate(job: Job) -> float:
    return float(job.optimizer.param_groups[0]["lr"])


def evaluate(job: Job, recorder: Recording, step: int) -> dict[str, float] | None:
    """Log loss and accuracy on images that were not trained on; return what the policy is to hear of it.

    A validation split is asked at every recorded step and its loss told to the policy; the test set is then left alone
    but for the first and the last step. After the last one, where training mirrored images, the test set is told with
    test-time augmentation too.
    """
    last, heard = step == job.config.steps, None
    with recorder.costs.of("evaluation"):
        if job.validation is not None:
            told = evaluated(job.model, job.validation, job.config.loss)
            recorder.log(step, "validation", **told)
            heard = {"validation_loss": told["loss"]}
        if job.validation is None or step == 0 or last:
            mirrored = last and not MIRRORING.isdisjoint(job.config.augment)
            recorder.log(step, "test_set", **evaluated(job.model, job.test_set, job.config.loss, mirrored=mirrored))
    return heard


def _note_decisions(job: Job, recorder: Recording, told: int) -> int:
    """Log the policy's decisions after the first `told`; return how many there are now."""
    for decision in job.policy.decisions[told:]:
        recorder.event(decision["step"], "policy", decision["reason"], lr=decision["lr"])
    return len(job.policy.decisions)
