"""Runs of many seeds in one loop: one stacked update a step, and for every run its own batches, policy and recorder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from grokkit.callbacks.base import BaseCallback, CallbackList
from grokkit.data.resident import stack_batches
from grokkit.device import placement
from grokkit.device.placement import check_placement
from grokkit.device.select import describe_device, fit_threads
from grokkit.ensemble.stack import Loss, Stack, StackedUpdate
from grokkit.errors import BudgetReached, Interrupted, NumericsError
from grokkit.interrupt import StopRequest, StopRequested
from grokkit.measures.loss import get_loss
from grokkit.recording.budget import Budget
from grokkit.recording.timers import Timers, summarize_timers
from grokkit.seeding import preserved_rng, seeded
from grokkit.training import loop
from grokkit.training.build import count_macs
from grokkit.training.meter import Meters
from grokkit.training.trainer import RecorderLike, Trainer, attach_recorder


@dataclass
class Member:
    """One seed's run within the stack.

    Args:
        place: of its net in the stack.
        told: how many of its policy's decisions are logged.
    """

    index: int
    trainer: Trainer
    recorder: RecorderLike
    decisions: int = 0


def explain_no_stack(job: Trainer) -> str | None:
    """Why nets like this job's are not trained in a stack, in words, or None where they are."""
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in job.model.modules()):
        return "stacked convolutions are grouped ones, which take longer than one net after the other"
    if job.config.execution not in ("auto", "eager"):
        return f'a stack is computed eagerly, and execution = "{job.config.execution}" is asked for'
    if job.precision == "float16":
        return "in float16 the loss scaler decides net by net whether to update"
    models = [copy.deepcopy(job.model).train() for _ in range(2)]
    x, y = stack_batches([job.batches] * 2, 1)
    try:
        with preserved_rng():
            Stack(models, _loss(job), job.precision).backward(x, y)
    except Exception as error:  # whatever a net does that torch.func cannot follow: dropout, decisions on values
        return f"torch.func does not follow this net ({str(error).splitlines()[0][:160]})"
    return None


def train_vmapped(
    jobs: Sequence[Trainer], paths: Sequence[Path], observer: CallbackList, experiment: str | None, purse: Budget
) -> None:
    """Train every job into its folder, from the first step to the last.

    Args:
        jobs: of one config but for the seed, on the same data; `explain_no_stack` has nothing against them.
        paths: their folders, none of which exists.
        observer: hears means over the seeds, and the events of the first one.
        purse: of all of them together.

    Raises:
        NumericsError: losses that are not finite; the runs that had them ended as failed, the others are done.
        Interrupted: every run is saved.
        BudgetReached: so it is, and the budget is spent.
    """
    work = count_macs(jobs[0].model, jobs[0].dataset.input_shape) * jobs[0].batches.batch_size
    # A stack keeps the threads of one net: with two of them beside another busy process a step took 10 times as long.
    with fit_threads(work), StopRequest() as stop, ExitStack() as open_runs:
        nets = Stack([job.model for job in jobs], _loss(jobs[0]), jobs[0].precision)
        lanes = _open_members(jobs, paths, experiment, open_runs, purse.price)
        _split_costs(lanes)
        lanes[0].recorder.listener = observer.event
        company = _MeanReporter(observer)
        seeds = f"{len(jobs)} seeds in a stack, below {paths[0].parent}"
        observer.start(f"{seeds}  on {_machine(jobs[0], len(jobs))}", 0, jobs[0].config.steps)
        try:
            failed = _loop(lanes, nets, company, stop, purse.budget)
        finally:
            observer.close("a run's part: " + summarize_timers(lanes[0].recorder.costs.seconds()))
    if failed:
        told = "; ".join(f"seed {seed}: {text}" for seed, text in failed.items())
        others = ", the others are done" if len(failed) < len(jobs) else ""
        raise NumericsError(f"{len(failed)} of {len(jobs)} seeds failed{others}. {told}")


def _loss(job: Trainer) -> Loss:
    return partial(get_loss(job.config.loss), label_smoothing=job.config.label_smoothing)


def _machine(job: Trainer, nets: int) -> str:
    return f"{describe_device(job.device, precision=job.precision).description}, steps in a stack of {nets} nets"


def _open_members(
    jobs: Sequence[Trainer], paths: Sequence[Path], experiment: str | None, open_runs: ExitStack, price: float | None
) -> list[Member]:
    """A lane for every job, with step 0 recorded; where one of them fails or is stopped, none of the folders stays."""
    facts = {"device": _machine(jobs[0], len(jobs)), "stack": [job.config.seed for job in jobs]}
    lanes: list[Member] = []
    try:
        for place, (job, path) in enumerate(zip(jobs, paths, strict=True)):
            with seeded(job.config.seed, "training"):
                recorder = attach_recorder(job, path, experiment, facts=facts, price=price)
                lanes.append(Member(place, job, recorder))
                open_runs.enter_context(lanes[-1].recorder)
                job.policy.observe(loop.log_evaluation(job, lanes[-1].recorder, 0))
            job.policy.observe(lanes[-1].recorder.first_readings())
    except BaseException as error:
        for lane in lanes:
            lane.recorder.withdraw()
        if isinstance(error, StopRequested):
            raise Interrupted("stopped before the first update; nothing is kept, start again") from None
        raise
    return lanes


def _split_costs(lanes: Sequence[Member]) -> None:
    """One account for all runs: a step belongs to them all, and each run's status says its part of what they cost."""
    spent: dict[str, float] = {}
    for lane in lanes:
        for name, seconds in lane.recorder.costs.seconds().items():
            if name != "training":
                spent[name] = spent.get(name, 0.0) + seconds / len(lanes)
    costs = Timers(lanes[0].trainer.device, spent, runs=len(lanes))
    for lane in lanes:
        lane.recorder.costs = costs


def _loop(
    lanes: Sequence[Member], nets: Stack, company: _MeanReporter, stop: StopRequest, budget: float | None
) -> dict[int, str]:
    """The loop of `loop._loop`, for all at once; returns what went wrong, by seed."""
    share = None if budget is None else budget / len(lanes)
    config = lanes[0].trainer.config
    jobs = [lane.trainer for lane in lanes]
    batches = [job.batches for job in jobs]
    update = StackedUpdate(nets, config.optimizer, [job.optimizer for job in jobs])
    meters = Meters([job.meter for job in jobs])
    running, failed = list(lanes), dict[int, str]()
    saves = loop.SaveTimer()
    for job in jobs:
        job.model.train()
    for step in range(1, config.steps + 1):
        x, y = stack_batches(batches, step)
        losses, logits = nets.backward(x, y)
        nets.clip(config.clip)
        update.step([job.policy.scale for job in jobs], [lane.index for lane in running])
        if step == 1 or step % placement.EVERY == 0:
            for lane in running:
                check_placement(
                    lane.trainer.device, lane.trainer.model, lane.trainer.optimizer, x=x, y=y, logits=logits
                )
        meters.add(losses, logits, y)
        for lane in list(running):
            try:
                loop.log_step(lane.trainer, lane.recorder, company, step)
            except NumericsError as error:
                lane.recorder.close("failed", f"NumericsError: {error}")
                failed[lane.trainer.config.seed] = str(error)
                running.remove(lane)
        company.tell()
        followed = _after_step(running, step)
        broke = loop.is_budget_spent(lanes[0].recorder, share)
        due = stop.save_requested or saves.due(*(lane.recorder for lane in running))
        if stop.stop_requested or broke or due or step == config.steps:
            _save(running, step, followed)
            stop.save_requested = False
            saves.done()
        if not running:
            break
        if followed < len(running) or ((stop.stop_requested or broke) and step < config.steps):
            _interrupt(running, step, failed, share if broke else None)
    return failed


def _after_step(lanes: Sequence[Member], step: int) -> int:
    """`loop.after_step` for every lane; how many came to its end before a stop."""
    for done, lane in enumerate(lanes):
        try:
            lane.decisions = loop.after_step(lane.trainer, lane.recorder, step, lane.decisions)
        except StopRequested:
            return done
    return len(lanes)


def _save(lanes: Sequence[Member], step: int, followed: int) -> None:
    for place, lane in enumerate(lanes):
        with seeded(
            lane.trainer.config.seed, "training"
        ):  # nets in a stack draw nothing; alone they find their own stream
            loop.save_state(lane.trainer, lane.recorder, step, unfinished=place >= followed)


def _interrupt(lanes: Sequence[Member], step: int, failed: Mapping[int, str], share: float | None) -> None:
    """End all runs as interrupted; where `share` is given because each has spent these dollars."""
    config = lanes[0].trainer.config

    def told(of: Sequence[Member]) -> str:
        paths = [lane.recorder.path for lane in of]
        if share is None:
            return loop.resume_hint(step, config, *paths)
        spent = sum(lane.recorder.spent or 0.0 for lane in of)
        return loop.budget_message(step, config, spent, len(of) * share, *paths)

    for lane in lanes:
        lane.recorder.close("interrupted", told([lane]))
    lost = "".join(f"; seed {seed} had failed: {text}" for seed, text in failed.items())
    raise (Interrupted if share is None else BudgetReached)(told(lanes) + lost)


class _MeanReporter(BaseCallback):
    """Tells one observer the means over the seeds."""

    def __init__(self, observer: CallbackList) -> None:
        self._callback = observer
        self._heard: dict[int, list[Mapping[str, float]]] = {}

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._heard.setdefault(step, []).append(values)

    def tell(self) -> None:
        """Pass on what all seeds have reported."""
        for step, all_values in self._heard.items():
            means = {name: sum(values[name] for values in all_values) / len(all_values) for name in all_values[0]}
            self._callback.report(step, means)
        self._heard.clear()
