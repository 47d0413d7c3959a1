"""Train many seeds in one loop: one stacked update per step; each run keeps its own batches, policy and recorder."""

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
from grokkit.ensemble.stack import Stack, StackedUpdate
from grokkit.errors import BudgetReached, Interrupted, NumericsError
from grokkit.interrupt import StopRequest, StopRequested
from grokkit.measures.loss import LossFunction, get_loss
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
        index: of its model in the stack.
        trainer, recorder: of the run.
        decisions: how many of its policy's decisions are logged.
    """

    index: int
    trainer: Trainer
    recorder: RecorderLike
    decisions: int = 0


def find_stack_obstacle(trainer: Trainer) -> str | None:
    """Return the reason why models like this trainer's are not trained in a stack, or None if they are."""
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in trainer.model.modules()):
        return "stacked convolutions become grouped ones, which are slower than one model after the other"
    if trainer.config.execution not in ("auto", "eager"):
        return f'a stack is trained with eager steps, got execution = "{trainer.config.execution}"'
    if trainer.precision == "float16":
        return "in float16 the loss scaler decides per model whether to update"
    models = [copy.deepcopy(trainer.model).train() for _ in range(2)]
    x, y = stack_batches([trainer.batches] * 2, 1)
    try:
        with preserved_rng():
            Stack(models, _make_loss(trainer), trainer.precision).backward(x, y)
    except Exception as error:  # anything that torch.func does not support: dropout, control flow on values
        return f"torch.func does not support this model ({str(error).splitlines()[0][:160]})"
    return None


def train_vmapped(
    trainers: Sequence[Trainer],
    paths: Sequence[Path],
    callback: CallbackList,
    experiment: str | None,
    cost_limit: Budget,
) -> None:
    """Train every trainer into its folder, from the first step to the last.

    Args:
        trainers: of one config except for the seed, on the same data; `find_stack_obstacle` returns None for them.
        paths: their folders, none of which exists.
        callback: receives means over the seeds, and the events of the first one.
        experiment: as in `train`.
        cost_limit: of all runs together.

    Raises:
        NumericsError: losses that are not finite; those runs end as failed, the others are done.
        Interrupted: interrupted; every run is saved.
        BudgetReached: the budget is spent; every run is saved.
    """
    macs = count_macs(trainers[0].model, trainers[0].dataset.input_shape) * trainers[0].batches.batch_size
    # A stack uses the threads of one model: with two, beside another busy process, a step took 10 times as long.
    with fit_threads(macs), StopRequest() as stop, ExitStack() as open_runs:
        nets = Stack([trainer.model for trainer in trainers], _make_loss(trainers[0]), trainers[0].precision)
        members = _open_members(trainers, paths, experiment, open_runs, cost_limit.price)
        _split_costs(members)
        members[0].recorder.on_event = callback.event
        callbacks = _MeanReporter(callback)
        title = f"{len(trainers)} seeds in a stack, below {paths[0].parent}"
        callback.start(f"{title}  on {_describe_machine(trainers[0], len(trainers))}", 0, trainers[0].config.steps)
        try:
            failed = _loop(members, nets, callbacks, stop, cost_limit.budget)
        finally:
            callback.close("per run: " + summarize_timers(members[0].recorder.timers.seconds()))
    if failed:
        messages = "; ".join(f"seed {seed}: {text}" for seed, text in failed.items())
        others = ", the others are done" if len(failed) < len(trainers) else ""
        raise NumericsError(f"{len(failed)} of {len(trainers)} seeds failed{others}. {messages}")


def _make_loss(trainer: Trainer) -> LossFunction:
    return partial(get_loss(trainer.config.loss), label_smoothing=trainer.config.label_smoothing)


def _describe_machine(trainer: Trainer, nets: int) -> str:
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
    """Open a run for every trainer and record step 0; on an error or a stop no folder is kept."""
    facts = {
        "device": _describe_machine(trainers[0], len(trainers)),
        "stack": [trainer.config.seed for trainer in trainers],
    }
    members: list[Member] = []
    try:
        for index, (trainer, path) in enumerate(zip(trainers, paths, strict=True)):
            with seeded(trainer.config.seed, "training"):
                recorder = attach_recorder(trainer, path, experiment, facts=facts, price=price)
                members.append(Member(index, trainer, recorder))
                open_runs.enter_context(members[-1].recorder)
                trainer.policy.observe(loop.log_evaluation(trainer, members[-1].recorder, 0))
            trainer.policy.observe(members[-1].recorder.pop_first_readings())
    except BaseException as error:
        for member in members:
            member.recorder.discard()
        if isinstance(error, StopRequested):
            raise Interrupted("Interrupted before the first update; nothing was saved, start again") from None
        raise
    return members


def _split_costs(members: Sequence[Member]) -> None:
    """Replace the members' timers by one shared timer: a step serves all runs, and each status reports its share."""
    spent: dict[str, float] = {}
    for member in members:
        for name, seconds in member.recorder.timers.seconds().items():
            if name != "training":
                spent[name] = spent.get(name, 0.0) + seconds / len(members)
    timers = Timers(members[0].trainer.device, spent, runs=len(members))
    for member in members:
        member.recorder.timers = timers


def _loop(
    members: Sequence[Member], nets: Stack, callbacks: _MeanReporter, stop: StopRequest, budget: float | None
) -> dict[int, str]:
    """Run the training loop for all members at once, like `loop._loop`; return the error messages by failed seed."""
    share = None if budget is None else budget / len(members)
    config = members[0].trainer.config
    trainers = [member.trainer for member in members]
    batches = [trainer.batches for trainer in trainers]
    update = StackedUpdate(nets, config.optimizer, [trainer.optimizer for trainer in trainers])
    meters = Meters([trainer.meter for trainer in trainers])
    running, failed = list(members), dict[int, str]()
    save_timer = loop.SaveTimer()
    for trainer in trainers:
        trainer.model.train()
    for step in range(1, config.steps + 1):
        x, y = stack_batches(batches, step)
        losses, logits = nets.backward(x, y)
        nets.clip(config.clip)
        update.step([trainer.policy.scale for trainer in trainers], [member.index for member in running])
        if step == 1 or step % placement.CHECK_INTERVAL == 0:
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
        callbacks.flush()
        completed = _run_after_step(running, step)
        budget_spent = loop.is_budget_spent(members[0].recorder, share)
        due = stop.save_requested or save_timer.is_due(*(member.recorder for member in running))
        if stop.stop_requested or budget_spent or due or step == config.steps:
            _save_members(running, step, completed)
            stop.save_requested = False
            save_timer.reset()
        if not running:
            break
        if completed < len(running) or ((stop.stop_requested or budget_spent) and step < config.steps):
            _raise_interrupted(running, step, failed, share if budget_spent else None)
    return failed


def _run_after_step(members: Sequence[Member], step: int) -> int:
    """Call `loop.after_step` for every member; return how many completed it before a stop."""
    for done, member in enumerate(members):
        try:
            member.decisions = loop.after_step(member.trainer, member.recorder, step, member.decisions)
        except StopRequested:
            return done
    return len(members)


def _save_members(members: Sequence[Member], step: int, completed: int) -> None:
    for index, member in enumerate(members):
        # Stacked models draw nothing; resumed alone, each run must find its own stream.
        with seeded(member.trainer.config.seed, "training"):
            loop.save_state(member.trainer, member.recorder, step, unfinished=index >= completed)


def _raise_interrupted(members: Sequence[Member], step: int, failed: Mapping[int, str], share: float | None) -> None:
    """Close all runs as interrupted and raise; `share` is the dollars that each has spent, if that is why."""
    config = members[0].trainer.config

    def format_message(selected: Sequence[Member]) -> str:
        paths = [member.recorder.path for member in selected]
        if share is None:
            return loop.format_resume_hint(step, config, *paths)
        spent = sum(member.recorder.spent or 0.0 for member in selected)
        return loop.format_budget_message(step, config, spent, len(selected) * share, *paths)

    for member in members:
        member.recorder.close("interrupted", format_message([member]))
    failures = "".join(f"; seed {seed} had failed: {text}" for seed, text in failed.items())
    raise (Interrupted if share is None else BudgetReached)(format_message(members) + failures)


class _MeanReporter(BaseCallback):
    """Callback that collects the values of all seeds and reports their means."""

    def __init__(self, callback: CallbackList) -> None:
        self._callback = callback
        self._values: dict[int, list[Mapping[str, float]]] = {}

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._values.setdefault(step, []).append(values)

    def flush(self) -> None:
        """Report the means of the values collected since the last call."""
        for step, all_values in self._values.items():
            means = {name: sum(values[name] for values in all_values) / len(all_values) for name in all_values[0]}
            self._callback.report(step, means)
        self._values.clear()
