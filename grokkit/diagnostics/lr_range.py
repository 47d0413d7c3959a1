"""The learning-rate range test: some updates while the rate grows, to see where it helps and where it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from grokkit.config.run_config import RunConfig, Spec, spec
from grokkit.device.placement import explain_device_mismatch
from grokkit.device.select import fit_threads, select_device
from grokkit.diagnostics.range_curve import DivergenceDetector, RangeCurve, analyse_curve, sweep_rates
from grokkit.ensemble.seeds import validate_seeds
from grokkit.errors import Interrupted, UsageError
from grokkit.interrupt import StopRequest, StopRequested, check_interrupt
from grokkit.measures.loss import get_loss
from grokkit.optim.build import OPTIMIZERS
from grokkit.seeding import seeded
from grokkit.training.build import count_macs
from grokkit.training.trainer import Trainer, build_trainer, describe_hardware

STEPS = 200
"""Updates of a sweep: from 1e-6 to 10 a rate is 1.08 times the one before."""

LEFT = 0.01
"""Share of what there is to learn: where less than that is left, any rate looks good."""

OnUpdate = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class LRRange:
    """What the sweeps of one config found, a curve for every seed.

    Args:
        config: its choices; the seeds are in `seeds`.
        seeds: in the order of `curves`.
        curves: rates, losses, marks, and a suggestion or the reason why there is none.
        steps: updates that a sweep was to take.
        base_lr: the config's own rate, that of the optimizer's first parameter group.
        machine: device, precision and execution in words.
    """

    config: RunConfig
    seeds: tuple[int, ...]
    curves: tuple[RangeCurve, ...]
    steps: int
    base_lr: float
    machine: str

    @property
    def suggestions(self) -> np.ndarray:
        """(k,) float64 in ascending order, of the k <= len(seeds) curves that have one."""
        return np.sort([each.suggestion for each in self.curves if each.suggestion is not None])

    @property
    def suggestion(self) -> float | None:
        """The median of the seeds' suggestions, by their logarithms; None where no seed has one."""
        found = self.suggestions
        return float(np.exp(np.median(np.log(found)))) if len(found) else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest of the seeds' suggestions."""
        found = self.suggestions
        return (float(found[0]), float(found[-1])) if len(found) else None

    @property
    def optimizer(self) -> Spec | None:
        """The config's optimizer at the suggestion, to two digits; further rates of it keep their proportion."""
        if self.suggestion is None:
            return None
        factor, chosen = self.suggestion / self.base_lr, self.config.optimizer
        taken = inspect.signature(OPTIMIZERS[chosen.name]).parameters
        now = {name: chosen.options.get(name, taken[name].default) for name in taken if name.endswith("lr")}
        rates = {name: float(f"{factor * rate:.2g}") for name, rate in now.items()}
        return spec(chosen.name, **{**chosen.options, **rates})

    def rows(self) -> list[dict[str, Any]]:
        """Everything as rows of a table: for each seed and update (`step`, from 1) `range_test_rate`,
        `range_test_loss`, `range_test_centre` and `range_test_smoothed`; at the last update of a sweep its marks
        `range_test_steepest`, `range_test_minimum`, `range_test_diverged_at` and `range_test_suggestion`, which are
        rates."""
        return [row for seed, curve in zip(self.seeds, self.curves, strict=True) for row in self._rows(seed, curve)]

    def _rows(self, seed: int, curve: RangeCurve) -> list[dict[str, Any]]:
        nats = "nats" if self.config.loss == "cross_entropy" else "squared logits"
        run = self.config.replace(seed=seed).run_name

        def row(name: str, step: int, value: float, unit: str = "1") -> dict[str, Any]:
            return {
                "run": run,
                "seed": seed,
                "step": step,
                "probe_set": "batch",
                "measure": f"range_test_{name}",
                "measure_id": "log",
                "value": float(value),
                "unit": unit,
            }

        series = {"rate": curve.rates, "loss": curve.losses, "centre": curve.centres, "smoothed": curve.smoothed}
        units = {"loss": nats, "smoothed": nats}
        found = [
            row(name, step, value, units.get(name, "1"))
            for name, values in series.items()
            for step, value in enumerate(values, start=1)
        ]
        marks = {name: getattr(curve, name) for name in ("steepest", "minimum", "diverged_at", "suggestion")}
        return found + [row(name, len(curve.rates), value) for name, value in marks.items() if value is not None]

    def __str__(self) -> str:
        """What is suggested and why; then what the seeds that suggest nothing say."""
        silent = [
            f"seed {seed} suggests nothing: {curve.reason}"
            for seed, curve in zip(self.seeds, self.curves, strict=True)
            if curve.suggestion is None
        ]
        if self.suggestion is None or self.spread is None:
            return "\n".join(["no learning rate is suggested", *silent])
        low, high = self.spread
        known = len(self.suggestions)
        over = f" (median; {low:.2g} to {high:.2g} over {known} seeds)" if known > 1 else ""
        reasons = [each.reason for each in self.curves if each.suggestion is not None]
        why = reasons[0] if known == 1 else "a tenth of the rate of the lowest smoothed loss"
        return "\n".join([f"lr_max {self.suggestion:.2g}{over}: {why}", *silent])


def lr_range_test(
    config: RunConfig,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = STEPS,
    seeds: Iterable[int] | None = None,
    device: str | None = None,
    on_update: OnUpdate | None = None,
) -> LRRange:
    """Find `lr_max`, a peak learning rate for a run: update by update the rate grows by the same factor, and the
    loss of every batch is noted.

    Model, optimizer, batches, clipping and precision are those of the run; its policy is not asked. The rate of an
    update is that of the first parameter group, the others keep their proportion to it. A sweep ends where its smoothed
    loss diverges. Suggested is a tenth of the rate at which the smoothed loss is lowest, as the peak of a schedule: at
    the minimum itself the loss has ceased to fall, and a decade below it is the field's margin for a run that stays
    there. The rate of steepest fall, which others take, is told beside it; it depends more on single batches.

    What is low is partly that the net has been trained by then: another number of steps moves the minimum, on few
    images by a factor of several. Compare arms with the same sweep, over several seeds. Where hardly any loss is left,
    as of images that the net has memorised, nothing is suggested.

    Args:
        config: every choice of the run; its `steps` and `policy` do not matter here.
        low, high: first and last rate.
        steps: updates from `low` to `high`, 20 or more.
        seeds: a sweep for each, whose median is suggested; by default the config's own seed alone.
        device: as of `train`.
        on_update: called with (done, all) after each update, of all the sweeps; an early end skips the rest.

    Returns:
        Curves and suggestion; `.suggestion` is None where no sweep tells one, and `str` says why. Nothing is written.

    Raises:
        UsageError: bounds, steps or seeds that make no sweep, or an optimizer whose rate is 0.
        Interrupted: Ctrl-C or SIGTERM; the sweeps are lost.
        What `train` raises of choices, data and device.

    Cost: building data and model, `steps` updates a seed, after each of which the host waits for the loss.
    Source: Smith 2017, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3; the
        geometric growth, the tenth of the minimum and the end at 4 times the best loss are fastai's (Gugger 2018).
    """
    if not isinstance(config, RunConfig):
        raise UsageError(f"`config` must be a gk.RunConfig; got {config!r}")
    rates = sweep_rates(low, high, steps)
    chosen = validate_seeds([config.seed] if seeds is None else seeds)
    place = select_device(device).torch_device
    curves: list[RangeCurve] = []
    trainer: Trainer | None = None
    with StopRequest("stopping"):
        for seed in chosen:
            with seeded(seed, "training"):
                trainer = build_trainer(config.replace(seed=seed), place, beside=trainer)
                told = partial(_tell, on_update, len(curves) * steps, len(chosen) * steps)
                curves.append(_sweep(trainer, rates, told))
    assert trainer is not None
    base = _base_rates(trainer)[0]
    return LRRange(config, tuple(chosen), tuple(curves), steps, base, describe_hardware(trainer))


def _sweep(trainer: Trainer, rates: np.ndarray, told: Callable[[int], None]) -> RangeCurve:
    """One update at each rate, until the loss diverges."""
    bases, watch = _base_rates(trainer), DivergenceDetector(len(rates))
    losses: list[float] = []
    trainer.model.train()
    with fit_threads(count_macs(trainer.model, trainer.dataset.input_shape) * trainer.batches.batch_size):
        for step, rate in enumerate(rates, start=1):
            _stop_if_asked(step, len(rates), trainer.config.seed)
            for group, base in zip(trainer.optimizer.param_groups, bases, strict=True):
                group["lr"] = float(rate) * base / bases[0]
            loss, _ = explain_device_mismatch(partial(trainer.update, *trainer.batches.at(step)))
            losses.append(float(loss))
            told(step)
            if watch.diverged(losses[-1]):
                break
    return analyse_curve(rates, losses, _learned_loss(trainer.config, len(trainer.dataset.classes)))


def _learned_loss(config: RunConfig, classes: int) -> float:
    """The loss at which all but `LEFT` is learnt of what there is between guessing and knowing every label."""
    known = torch.full((1, classes), config.label_smoothing / classes, dtype=torch.float64)
    known[0, 0] += 1 - config.label_smoothing
    answers = known, torch.full_like(known, 1 / classes)
    cost = partial(get_loss(config.loss), label_smoothing=config.label_smoothing)
    logits = [each.log() if config.loss == "cross_entropy" else each for each in answers]
    least, guessing = (float(cost(each, torch.zeros(1, dtype=torch.int64))) for each in logits)
    return least + LEFT * (guessing - least)


def _base_rates(trainer: Trainer) -> list[float]:
    """Of every parameter group, whatever scale the policy begins with."""
    bases = [float(rate) for rate in trainer.policy.base_lrs]
    if not bases[0] > 0:
        raise UsageError(f"the optimizer's `lr` must be above 0, for its groups keep their proportions; got {bases[0]}")
    return bases


def _stop_if_asked(step: int, steps: int, seed: int) -> None:
    try:
        check_interrupt(grace=0)
    except StopRequested:
        raise Interrupted(
            f"stopped before update {step} of {steps} with seed {seed}; a sweep keeps nothing, the same command begins "
            "it again"
        ) from None


def _tell(on_update: OnUpdate | None, before: int, total: int, done: int) -> None:
    if on_update is not None:
        on_update(before + done, total)
