"""Learning-rate range test: a short sweep over growing rates that suggests a peak learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from grokkit.config.groups import group_of
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
"""Updates of a sweep: from 1e-6 to 10 each rate is 1.08 times the previous one."""

UNLEARNED_SHARE = 0.01
"""Share of the learnable loss: if less than that is left, any rate looks good."""

OnUpdate = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class LRRange:
    """Result of a range test of one config, with one curve per seed.

    Args:
        config: of the tested run; the seeds are in `seeds`.
        seeds: in the order of `curves`.
        curves: rates, losses, marks, and a suggestion or the reason why there is none.
        steps: planned updates of a sweep.
        base_lr: the config's own rate, that of the optimizer's first parameter group.
        machine: description of device, precision and execution.
    """

    config: RunConfig
    seeds: tuple[int, ...]
    curves: tuple[RangeCurve, ...]
    steps: int
    base_lr: float
    machine: str

    @property
    def suggestions(self) -> np.ndarray:
        """Suggestions as (k,) float64 in ascending order, of the k <= len(seeds) curves that have one."""
        return np.sort([each.suggestion for each in self.curves if each.suggestion is not None])

    @property
    def suggestion(self) -> float | None:
        """The median of the seeds' suggestions on a log scale; None if no seed has one."""
        rates = self.suggestions
        return float(np.exp(np.median(np.log(rates)))) if len(rates) else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest of the seeds' suggestions; None if no seed has one."""
        rates = self.suggestions
        return (float(rates[0]), float(rates[-1])) if len(rates) else None

    @property
    def optimizer(self) -> Spec | None:
        """The config's optimizer at the suggested rate, to two digits; its other rates keep their ratio to it."""
        if self.suggestion is None:
            return None
        factor, optimizer = self.suggestion / self.base_lr, self.config.optimizer
        parameters = inspect.signature(OPTIMIZERS[optimizer.name]).parameters
        base = {
            name: optimizer.options.get(name, parameters[name].default) for name in parameters if name.endswith("lr")
        }
        rates = {name: float(f"{factor * rate:.2g}") for name, rate in base.items()}
        return spec(optimizer.name, **{**optimizer.options, **rates})

    def rows(self) -> list[dict[str, Any]]:
        """Return the result as rows of a table.

        For each seed and update (`step`, from 1): `range_test_rate`, `range_test_loss`, `range_test_centre` and
        `range_test_smoothed`; at the last update of a sweep its marks `range_test_steepest`, `range_test_minimum`,
        `range_test_diverged_at` and `range_test_suggestion`, which are rates.
        """
        return [row for seed, curve in zip(self.seeds, self.curves, strict=True) for row in self._rows(seed, curve)]

    def _rows(self, seed: int, curve: RangeCurve) -> list[dict[str, Any]]:
        unit_of_loss = "nats" if self.config.loss == "cross_entropy" else "squared logits"
        config = self.config.replace(seed=seed)
        run, group = config.run_name, group_of(config.run_name, config.to_dict())

        def row(name: str, step: int, value: float, unit: str = "1") -> dict[str, Any]:
            return {
                "run": run,
                "seed": seed,
                "group": group.name,
                "config": group.config,
                "step": step,
                "probe_set": "batch",
                "measure": f"range_test_{name}",
                "measure_id": "log",
                "value": float(value),
                "unit": unit,
            }

        series = {"rate": curve.rates, "loss": curve.losses, "centre": curve.centres, "smoothed": curve.smoothed}
        units = {"loss": unit_of_loss, "smoothed": unit_of_loss}
        rows = [
            row(name, step, value, units.get(name, "1"))
            for name, values in series.items()
            for step, value in enumerate(values, start=1)
        ]
        marks = {name: getattr(curve, name) for name in ("steepest", "minimum", "diverged_at", "suggestion")}
        return rows + [row(name, len(curve.rates), value) for name, value in marks.items() if value is not None]

    def __str__(self) -> str:
        """Describe the suggestion and its reason, then the reason of every seed that has none."""
        unsuggested = [
            f"seed {seed} has no suggestion: {curve.reason}"
            for seed, curve in zip(self.seeds, self.curves, strict=True)
            if curve.suggestion is None
        ]
        if self.suggestion is None or self.spread is None:
            return "\n".join(["no learning rate is suggested", *unsuggested])
        low, high = self.spread
        count = len(self.suggestions)
        spread = f" (median; {low:.2g} to {high:.2g} over {count} seeds)" if count > 1 else ""
        reasons = [each.reason for each in self.curves if each.suggestion is not None]
        reason = reasons[0] if count == 1 else "a tenth of the rate of the lowest smoothed loss"
        return "\n".join([f"lr_max {self.suggestion:.2g}{spread}: {reason}", *unsuggested])


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
    """Find `lr_max`, a peak learning rate for a run, by a sweep with a geometrically growing rate.

    Model, optimizer, batches, clipping and precision are those of the run; its policy is not used. The rate of an
    update is that of the first parameter group, the others keep their ratio to it. A sweep ends when its smoothed loss
    diverges. The suggestion is a tenth of the rate at which the smoothed loss is lowest, as the peak of a schedule: at
    the minimum itself the loss has stopped falling, and a factor of ten is the usual margin for a run that stays at
    that rate. The rate of steepest descent, which others use, is reported too; it depends more on single batches.

    The position of the minimum depends on how far the model has been trained by then: another number of steps moves it,
    with few images by a factor of several. Compare arms with the same sweep, over several seeds. If hardly any loss is
    left, as on images that the model has memorised, nothing is suggested.

    Args:
        config: of the run; its `steps` and `policy` are not used.
        low, high: first and last rate.
        steps: updates from `low` to `high`, 20 or more.
        seeds: one sweep per seed, of which the median is suggested; by default the config's own seed only.
        device: as in `train`.
        on_update: called with (done, total) after each update, over all sweeps; it jumps if a sweep ends early.

    Returns:
        Curves and suggestion; `.suggestion` is None if no sweep yields one, and `str` gives the reasons. Nothing is
        written.

    Raises:
        UsageError: bounds, steps or seeds that do not define a sweep, or an optimizer whose rate is 0.
        Interrupted: Ctrl-C or SIGTERM; the sweeps are lost.
        The errors of `train` about options, data and device.

    Cost: building data and model, `steps` updates per seed, after each of which the host waits for the loss.
    Source: Smith 2017, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3; the
        geometric growth, the tenth of the minimum and the end at 4 times the best loss are fastai's (Gugger 2018).
    """
    if not isinstance(config, RunConfig):
        raise UsageError(f"`config` must be a gk.RunConfig; got {config!r}")
    rates = sweep_rates(low, high, steps)
    sweep_seeds = validate_seeds([config.seed] if seeds is None else seeds)
    torch_device = select_device(device).torch_device
    curves: list[RangeCurve] = []
    trainer: Trainer | None = None
    with StopRequest("stopping"):
        for seed in sweep_seeds:
            with seeded(seed, "training"):
                trainer = build_trainer(config.replace(seed=seed), torch_device, data_from=trainer)
                report = partial(_report_update, on_update, len(curves) * steps, len(sweep_seeds) * steps)
                curves.append(_sweep(trainer, rates, report))
    assert trainer is not None
    base = _get_base_rates(trainer)[0]
    return LRRange(config, tuple(sweep_seeds), tuple(curves), steps, base, describe_hardware(trainer))


def _sweep(trainer: Trainer, rates: np.ndarray, report: Callable[[int], None]) -> RangeCurve:
    """Take one update at each rate, until the loss diverges."""
    bases, detector = _get_base_rates(trainer), DivergenceDetector(len(rates))
    losses: list[float] = []
    trainer.model.train()
    with fit_threads(count_macs(trainer.model, trainer.dataset.input_shape) * trainer.batches.batch_size):
        for step, rate in enumerate(rates, start=1):
            _check_interrupt(step, len(rates), trainer.config.seed)
            for group, base in zip(trainer.optimizer.param_groups, bases, strict=True):
                group["lr"] = float(rate) * base / bases[0]
            loss, _ = explain_device_mismatch(partial(trainer.update, *trainer.batches.at(step)))
            losses.append(float(loss))
            report(step)
            if detector.update(losses[-1]):
                break
    return analyse_curve(rates, losses, _compute_learned_loss(trainer.config, len(trainer.dataset.classes)))


def _compute_learned_loss(config: RunConfig, classes: int) -> float:
    """Compute the loss at which all but `UNLEARNED_SHARE` is learned of the range from guessing to certainty."""
    known = torch.full((1, classes), config.label_smoothing / classes, dtype=torch.float64)
    known[0, 0] += 1 - config.label_smoothing
    predictions = known, torch.full_like(known, 1 / classes)
    loss = partial(get_loss(config.loss), label_smoothing=config.label_smoothing)
    logits = [each.log() if config.loss == "cross_entropy" else each for each in predictions]
    lowest, guessing = (float(loss(each, torch.zeros(1, dtype=torch.int64))) for each in logits)
    return lowest + UNLEARNED_SHARE * (guessing - lowest)


def _get_base_rates(trainer: Trainer) -> list[float]:
    """Return the base rate of every parameter group, without the policy's initial scale."""
    bases = [float(rate) for rate in trainer.policy.base_lrs]
    if not bases[0] > 0:
        raise UsageError(
            f"the optimizer's `lr` must be above 0, because rates are scaled relative to it; got {bases[0]}"
        )
    return bases


def _check_interrupt(step: int, steps: int, seed: int) -> None:
    try:
        check_interrupt(grace=0)
    except StopRequested:
        raise Interrupted(
            f"Interrupted before update {step}/{steps} with seed {seed}. Nothing was saved; run the same command to "
            "start again"
        ) from None


def _report_update(on_update: OnUpdate | None, before: int, total: int, done: int) -> None:
    """Call `on_update` with the updates of all sweeps: `before` in earlier ones and `done` in this one."""
    if on_update is not None:
        on_update(before + done, total)
