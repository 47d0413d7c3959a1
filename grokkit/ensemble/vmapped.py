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


def explain_no_stack(trainer: Trainer) -> str | None:
    """Why nets like this job's are not trained in a stack, in words, or None where they are."""
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in trainer.model.modules()):
        return "stacked convolutions are grouped ones, which take longer than one net after the other"
    if trainer.config.execution not in ("auto", "eager"):
        return f'a stack is computed eagerly, and execution = "{trainer.config.execution}" is asked for'
    if trainer.precision == "float16":
        return "in float16 the loss scaler decides net by net whether to update"
    models = [copy.deepcopy(trainer.model).train() for _ in range(2)]
    x, y = stack_batches([trainer.batches] * 2, 1)
    try:
        with preserved_rng():
            Stack(models, _loss(trainer), trainer.precision).backward(x, y)
    except Exception as error:  # whatever a net does that torch.func cannot follow: dropout, decisions on values
        return f"torch.func does not follow this net ({str(error).splitlines()[0][:160]})"
    return None


def train_vmapped(
    trainers: Sequence[Trainer],
    paths: Sequence[Path],
    callback: CallbackList,
    experiment: str | None,
    cost_limit: Budget,
) -> None:
    """Train every job into its folder, from the first step to the last.

    Args:
        jobs: of one config but for the seed, on the same data; `explain_no_stack` has nothing against them.
        paths: their folders, none of which exists.
        callback: hears means over the seeds, and the events of the first one.
        purse: of all of them together.

    Raises:
        NumericsError: losses that are not finite; the runs that had them ended as failed, the others are done.
        Interrupted: every run is saved.
        BudgetReached: so it is, and the budget is spent.
    """
    work = count_macs(trainers[0].model, trainers[0].dataset.input_shape) * trainers[0].batches.batch_size
    # A stack keeps the threads of one net: with two of them beside another busy process a step took 10 times as long.
    with fit_threads(work), StopRequest() as stop, ExitStack() as open_runs:
        nets = Stack([trainer.model for trainer in trainers], _loss(trainers[0]), trainers[0].precision)
        members = _open_members(trainers, paths, experiment, open_runs, cost_limit.price)
        _split_costs(members)
        members[0].recorder.listener = callback.event
        callbacks = _MeanReporter(callback)
        seeds = f"{len(trainers)} seeds in a stack, below {paths[0].parent}"
        callback.start(f"{seeds}  on {_machine(trainers[0], len(trainers))}", 0, trainers[0].config.steps)
        try:
            failed = _loop(members, nets, callbacks, stop, cost_limit.budget)
        finally:
            callback.close("a run's part: " + summarize_timers(members[0].recorder.costs.seconds()))
    if failed:
        told = "; ".join(f"seed {seed}: {text}" for seed, text in failed.items())
        others = ", the others are done" if len(failed) < len(trainers) else ""
        raise NumericsError(f"{len(failed)} of {len(trainers)} seeds failed{others}. {told}")


def _loss(trainer: Trainer) -> Loss:
    return partial(get_loss(trainer.config.loss), label_smoothing=trainer.config.label_smoothing)


def _machine(trainer: Trainer, nets: int) -> str:
    return (
        f"{describe_device(trainer.device, precision=trainer.precision).description}, steps in a stack of {nets} nets"
    )


def _open_members(
    trainers: Sequence[Trainer],
    paths: Sequence[Path],
    experiment: str | None,
    open_runs: ExitStack,
    price: float | None,
) -> list[Member]:
    """A lane for every job, with step 0 recorded; where one of them fails or is stopped, none of the folders stays."""
    facts = {"device": _machine(trainers[0], len(trainers)), "stack": [trainer.config.seed for trainer in trainers]}
    members: list[Member] = []
    try:
        for place, (trainer, path) in enumerate(zip(trainers, paths, strict=True)):
            with seeded(trainer.config.seed, "training"):
                recorder = attach_recorder(trainer, path, experiment, facts=facts, price=price)
                members.append(Member(place, trainer, recorder))
                open_runs.enter_context(members[-1].recorder)
                trainer.policy.observe(loop.log_evaluation(trainer, members[-1].recorder, 0))
            trainer.policy.observe(members[-1].recorder.first_readings())
    except BaseException as error:
        for member in members:
            member.recorder.withdraw()
        if isinstance(error, StopRequested):
            raise Interrupted("stopped before the first update; nothing is kept, start again") from None
        raise
    return members


def _split_costs(members: Sequence[Member]) -> None:
    """One account for all runs: a step belongs to them all, and each run's status says its part of what they cost."""
    spent: dict[str, float] = {}
    for member in members:
        for name, seconds in member.recorder.costs.seconds().items():
            if name != "training":
                spent[name] = spent.get(name, 0.0) + seconds / len(members)
    costs = Timers(members[0].trainer.device, spent, runs=len(members))
    for member in members:
        member.recorder.costs = costs


def _loop(
    members: Sequence[Member], nets: Stack, callbacks: _MeanReporter, stop: StopRequest, budget: float | None
) -> dict[int, str]:
    """The loop of `loop._loop`, for all at once; returns what went wrong, by seed."""
    share = None if budget is None else budget / len(members)
    config = members[0].trainer.config
    trainers = [member.trainer for member in members]
    batches = [trainer.batches for trainer in trainers]
    update = StackedUpdate(nets, config.optimizer, [trainer.optimizer for trainer in trainers])
    meters = Meters([trainer.meter for trainer in trainers])
    running, failed = list(members), dict[int, str]()
    saves = loop.SaveTimer()
    for trainer in trainers:
        trainer.model.train()
    for step in range(1, config.steps + 1):
        x, y = stack_batches(batches, step)
        losses, logits = nets.backward(x, y)
        nets.clip(config.clip)
        update.step([trainer.policy.scale for trainer in trainers], [member.index for member in running])
        if step == 1 or step % placement.EVERY == 0:
            for member in running:
                check_placement(
                    member.trainer.device, member.trainer.model, member.trainer.optimizer, x=x, y=y, logits=logits
                )
        meters.add(losses, logits, y)
        for member in list(running):
            try:
                loop.log_step(member.trainer, member.recorder, callbacks, step)
            except NumericsError as error:
                member.recorder.close("failed", f"NumericsError: {error}")
                failed[member.trainer.config.seed] = str(error)
                running.remove(member)
        callbacks.tell()
        followed = _after_step(running, step)
        broke = loop.is_budget_spent(members[0].recorder, share)
        due = stop.save_requested or saves.due(*(member.recorder for member in running))
        if stop.stop_requested or broke or due or step == config.steps:
            _save(running, step, followed)
            stop.save_requested = False
            saves.done()
        if not running:
            break
        if followed < len(running) or ((stop.stop_requested or broke) and step < config.steps):
            _interrupt(running, step, failed, share if broke else None)
    return failed


def _after_step(members: Sequence[Member], step: int) -> int:
    """`loop.after_step` for every lane; how many came to its end before a stop."""
    for done, member in enumerate(members):
        try:
            member.decisions = loop.after_step(member.trainer, member.recorder, step, member.decisions)
        except StopRequested:
            return done
    return len(members)


def _save(members: Sequence[Member], step: int, followed: int) -> None:
    for place, member in enumerate(members):
        with seeded(
            member.trainer.config.seed, "training"
        ):  # nets in a stack draw nothing; alone they find their own stream
            loop.save_state(member.trainer, member.recorder, step, unfinished=place >= followed)


def _interrupt(members: Sequence[Member], step: int, failed: Mapping[int, str], share: float | None) -> None:
    """End all runs as interrupted; where `share` is given because each has spent these dollars."""
    config = members[0].trainer.config

    def told(of: Sequence[Member]) -> str:
        paths = [member.recorder.path for member in of]
        if share is None:
            return loop.resume_hint(step, config, *paths)
        spent = sum(member.recorder.spent or 0.0 for member in of)
        return loop.budget_message(step, config, spent, len(of) * share, *paths)

    for member in members:
        member.recorder.close("interrupted", told([member]))
    lost = "".join(f"; seed {seed} had failed: {text}" for seed, text in failed.items())
    raise (Interrupted if share is None else BudgetReached)(told(members) + lost)


class _MeanReporter(BaseCallback):
    """Tells one callback the means over the seeds."""

    def __init__(self, callback: CallbackList) -> None:
        self._callback = callback
        self._heard: dict[int, list[Mapping[str, float]]] = {}

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._heard.setdefault(step, []).append(values)

    def tell(self) -> None:
        """Pass on what all seeds have reported."""
        for step, all_values in self._heard.items():
            means = {name: sum(values[name] for values in all_values) / len(all_values) for name in all_values[0]}
            self._callback.report(step, means)
        self._heard.clear()
