"""A policy as a torch learning-rate scheduler, in grokkit's loop or in anyone's."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grokkit import policies
from grokkit.errors import UsageError
from grokkit.optim import decay
from grokkit.policies import Observation, Policy

_NO_STATE = frozenset({"policy", "_broadcast", "_first", "_unloaded", "_moved"})
"""Of a scheduler's own, built afresh and not loaded."""


LEAST_READINGS = 10
"""Updates by which something may be expected to have been told, in the shortest of runs."""


class PolicyLR(LRScheduler):
    """Drive an optimizer's learning rates by a policy.

    `.observe(readings)` delivers news, `.step()` after each `optimizer.step()` advances the clock, also where a loss
    scaler skipped that update. Every parameter group keeps its own base rate; the policy sees the first group's. The
    rates change by factors on what they are, so that a rate set by hand or a group that comes later is scaled on, and
    the scheduler works inside `ChainedScheduler` and `SequentialLR`; there its clock starts at 0 at its milestone. In a
    chain `LambdaLR`, `OneCycleLR`, `CyclicLR` and `CosineAnnealingWarmRestarts` overwrite what others did to the rate:
    take `MultiplicativeLR`.

    Each decision in `decisions` is a dict of its `step`, the first group's `lr` that it led to (before what later
    schedulers of a chain do), and the `reason`. Where half of the budget is over, news have come, and something that
    the policy listens to was never among them, there is a warning: a name may be misspelt.

    An update takes away the share lr * weight_decay of a weight: a schedule of the rate is one of the decay too. A
    group with the key `fixed_decay=True` keeps that share at its base value, whoever else moves its rate:
    `weight_decay` follows the rate, its base stays in the group as `initial_weight_decay`. Exact for AdamW and for SGD
    without momentum; with momentum the decay of earlier updates still arrives at later rates.

    Args:
        optimizer: its rates are the base rates, for which a scale of 1 stands; where an earlier scheduler left its
            mark, `initial_lr`, in a group, that is, as for torch's own. A new stage with other base rates or another
            decay takes a new optimizer.
        policy: a policy, its name, or a mapping with its name and parameters.
        total_steps: optimizer updates that the policy's budget holds, >= 1.
        last_epoch: only -1, a fresh start; to resume, build it afresh and call `load_state_dict`. Build all schedulers
            before `optimizer.load_state_dict`, as torch asks: `LinearLR` and `SequentialLR` change the rates when they
            are built. What PolicyLR alone did to loaded rates, its own `load_state_dict` takes back.
        broadcast: in a process group every rank hears what rank 0 observes. False where all know the same already, or
            where every rank trains a net of its own.

    Raises:
        UsageError: on a budget below 1, another `last_epoch`, a loaded state of another policy or budget, an answer of
            the policy that is no finite scale above 0, or a `fixed_decay` that the optimizer cannot keep (Adam, RMSprop
            and the like: they normalise the decay).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        policy: str | Mapping[str, Any] | Policy,
        total_steps: int,
        last_epoch: int = -1,
        *,
        broadcast: bool = True,
    ) -> None:
        if last_epoch != -1:
            raise UsageError(
                f"`last_epoch` must be -1, because a policy has a state of its own; got {last_epoch}. "
                "To resume, build PolicyLR afresh and call load_state_dict"
            )
        # The base class's constructor calls step(), so everything that step() needs comes before it.
        self.policy: Policy = policies.as_policy(policy)
        self.total_steps = policies.as_count("total_steps", total_steps)
        self.decisions: list[dict[str, Any]] = []
        self._news: dict[str, float] = {}
        self._named: list[str] = []  # whatever was news, in order of names
        self._broadcast = broadcast
        self._unloaded: list[tuple[dict[str, Any], float]] = []
        self._moved, moved = "", _explain_moved_rates(optimizer)
        found = [float(group["lr"]) for group in getattr(optimizer, "param_groups", ())]
        super().__init__(optimizer, last_epoch)
        self._first = list(zip(optimizer.param_groups, found, self._last_lr, strict=True))
        self._moved = moved
        decay.validate_keys(optimizer.param_groups)
        # Before every update once more: in a chain others move the rate after this scheduler.
        optimizer.register_step_pre_hook(decay.apply_fixed_decay)

    @property
    def updates(self) -> int:
        """Optimizer updates done on this scheduler's clock."""
        return self._updates

    @property
    def scale(self) -> float:
        """The factor on the base rates for the next update."""
        return self._scale

    def observe(self, readings: Mapping[str, float] | None) -> None:
        """Deliver news, name -> number; kept until the next `step()`, the newest of a name counts. None is no news.

        In a process group the news of rank 0 count on every rank, because what ranks measure differs in the last bits
        and their weights would part: every rank calls this after the same updates, with anything or None.

        Cost: nothing outside of a process group. In one, two small broadcasts a call, for which NCCL waits for the GPU:
            call it where news are due, not at every update.

        Raises:
            UsageError: news that are no numbers by name.
        """
        news = _to_numbers(readings)
        if fresh := _broadcast_from_rank_zero(news) if self._broadcast else news:
            self._news.update(fresh)
            self._named = sorted({*self._named, *fresh})

    def step(self, epoch: int | None = None) -> None:
        """Advance the clock by one update and set the rates for the next one; call it after `optimizer.step()`."""
        if epoch is not None:
            raise UsageError(
                f"PolicyLR cannot jump to epoch {epoch}; a policy sees every update: call step() without arguments, "
                "and give what the policy is to hear to observe()"
            )
        if self._unloaded or self._moved:
            self._warn_at_the_first_step()
        if self.last_epoch < 0:  # a start, or SequentialLR has put the rates back and begins again
            self._restart()
        decay.remember_decay(self.optimizer)
        reason = self._advance()
        super().step()
        self._factor, self._first = 1.0, []
        decay.apply_fixed_decay(self.optimizer)
        self._note(reason, self.optimizer.param_groups[0]["lr"])

    def get_lr(self) -> list[float | Tensor]:
        """The rates of all groups, from what they are now."""
        return [group["lr"] * self._factor for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only; of the policy just its description, to be compared on loading."""
        kept = {key: value for key, value in super().state_dict().items() if key not in _NO_STATE}
        for key in ("base_lrs", "_last_lr"):
            kept[key] = [float(rate) for rate in kept[key]]
        return copy.deepcopy(kept) | {"policy": self._description()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the optimizer's own state, with the rates, is loaded separately.

        In either order; where it is not loaded at all, the first step warns.
        """
        self.check_state_dict(state_dict)
        self._unloaded = [(group, found) for group, found, _ in self._first if _is_alike(group["initial_lr"], found)]
        self._moved = ""
        kept = {key: value for key, value in state_dict.items() if key not in _NO_STATE}
        self._take_back()
        super().load_state_dict(copy.deepcopy(kept))
        # The updates before count; torch would otherwise warn where the first thing that a resumed run does is `step`.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise UsageError where `load_state_dict` would refuse this state; nothing is loaded."""
        ours = {"policy": self._description(), "total_steps": self.total_steps}
        for key, own in ours.items():
            if state_dict.get(key) != own:
                raise UsageError(f"the state was saved with {key} {state_dict.get(key)}; this scheduler has {own}")

    def warn_of_unloaded_rates(self) -> None:
        """Warn, once, where a state was loaded and the rates are still those of a new optimizer, and not its own."""
        now = {id(group) for group in self.optimizer.param_groups}  # loading makes new ones
        told = [
            (found, float(saved))
            for (group, found), saved in zip(self._unloaded, self._last_lr, strict=False)
            if id(group) in now and _is_alike(group["lr"], found) and not _is_alike(saved, found)
        ]
        self._unloaded = []
        if told:
            found, saved = told[0]
            warnings.warn(
                f"PolicyLR goes on where the rate was {saved:g}, and the optimizer has {found:g}, as it was built: "
                "load the optimizer's state too; with a recorder, give the optimizer to `gk.record`, or to `save` and "
                "`restore` as a part",
                stacklevel=3,
            )

    def _warn_at_the_first_step(self) -> None:
        self.warn_of_unloaded_rates()
        if self._moved:
            warnings.warn(self._moved, stacklevel=4)
            self._moved = ""

    def _take_back(self) -> None:
        """Undo what the constructor did to the rates, for an optimizer that had been loaded before it.

        One that was loaded since has other groups than those; rates that were set since stay.
        """
        for group, found, made in self._first:
            if float(group["lr"]) == float(made):
                _set_rate(group, found)
        self._first = []

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """The rates at a milestone of `SequentialLR`, where torch sets the epoch to 0 instead of stepping."""
        self._restart()
        reason = self._advance()
        self._factor = 1.0
        rates = [group.get("initial_lr", group["lr"]) * self._scale for group in self.optimizer.param_groups]
        self._note(reason, rates[0])
        return rates

    def _restart(self) -> None:
        """Back to before the first question; news that already came is kept for it."""
        self._updates = -1
        self._scale = self._factor = 1.0
        self._policy_state = self.policy.init()
        self.decisions.clear()

    def _advance(self) -> str | None:
        """Ask the policy for the next update's scale; the reason where it has one."""
        self._updates += 1
        if self._updates == max(LEAST_READINGS, self.total_steps // 2):
            self._warn_of_silence()
        base = float(self.base_lrs[0])
        observation = Observation(self._updates, self.total_steps, base, self._news)
        scale, state, reason = self.policy.update(observation, self._policy_state)
        if not 0 < scale < math.inf:
            raise UsageError(
                f"a policy's scale must be finite and above 0; {self._description()} answered {scale!r} after "
                f"{self._updates} updates"
            )
        self._policy_state, self._news = state, {}
        self._factor, self._scale = scale / self._scale, scale
        return reason

    def _note(self, reason: str | None, rate: float | Tensor) -> None:
        if reason:
            self.decisions.append({"step": self._updates, "lr": float(rate), "reason": reason})

    def _warn_of_silence(self) -> None:
        missed = policies.get_followed_readings(self.policy) - {*self._named}
        if self._named and missed:
            warnings.warn(
                f"half of the budget is over, and {type(self.policy).__name__} has not heard what it listens to: "
                f"{', '.join(sorted(missed))}. What came was {', '.join(self._named)}",
                stacklevel=4,
            )

    def _description(self) -> str:
        """Class and parameters, those of the policies inside too."""
        return _describe(self.policy)


def _describe(value: Any) -> str:
    """As `repr`, the same for NumPy's numbers as for Python's, and without the address of an object that has none."""
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{each.name}={_describe(getattr(value, each.name))}" for each in fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_describe, value))})"
    if isinstance(value, Real):
        return repr(value if isinstance(value, bool) else int(value) if isinstance(value, Integral) else float(value))
    return f"{type(value).__name__}()" if isinstance(value, Policy) else repr(value)


def _explain_moved_rates(optimizer: Optimizer) -> str:
    """What is to be told where an earlier scheduler has moved the rates in the course of a training; else empty.

    Schedulers that are built one after another for the same training move them too, before the first update; torch's
    mark on `step` tells such a scheduler from one whose `initial_lr` came with a loaded state.
    """
    started = getattr(optimizer, "_opt_called", False) or not hasattr(
        getattr(optimizer, "step", None), "_wrapped_by_lr_sched"
    )
    for group in getattr(optimizer, "param_groups", ()) if started else ():
        if "initial_lr" in group and not _is_alike(group["lr"], group["initial_lr"]):
            return (
                f"PolicyLR was built on an optimizer whose rate an earlier scheduler had moved from "
                f"{float(group['initial_lr']):g} to {float(group['lr']):g}, and scales it from there: to resume, call "
                "load_state_dict before the first step; to begin a new stage, take a new optimizer"
            )
    return ""


def _is_alike(one: float | Tensor, other: float | Tensor) -> bool:
    return math.isclose(float(one), float(other), rel_tol=1e-6)


def _inner_schedulers(part: Any) -> list[Any]:
    """The schedulers of which one is made."""
    return list(getattr(part, "_schedulers", ())) if isinstance(part, LRScheduler) else []


def check_state(part: Any, state: Any) -> None:
    """Raise what `check_state_dict` of `part`, or of a scheduler in it, raises."""
    if (check := getattr(part, "check_state_dict", None)) is not None:
        check(state)
    for inner, its in zip(
        _inner_schedulers(part), state.get("_schedulers", ()) if _inner_schedulers(part) else (), strict=False
    ):
        check_state(inner, its)


def warn_of_unloaded_rates(part: Any) -> None:
    """`PolicyLR.warn_of_unloaded_rates` of every PolicyLR in `part`."""
    if isinstance(part, PolicyLR):
        part.warn_of_unloaded_rates()
    for inner in _inner_schedulers(part):
        warn_of_unloaded_rates(inner)


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Give a group its rate, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _to_numbers(readings: Mapping[str, float] | None) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in ({} if readings is None else readings).items()}
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UsageError(
            f'news must be numbers by name, such as {{"train_loss": 0.5}}, or None; got {readings!r}'
        ) from error


def _broadcast_from_rank_zero(news: dict[str, float]) -> dict[str, float]:
    """The news of rank 0 of the process group; outside of one, `news`."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return news
    held = [news]
    distributed.broadcast_object_list(held, src=0)
    return held[0]
