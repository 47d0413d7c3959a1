"""Analysis of a range-test curve: smoothing, divergence, suggested rate. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from grokkit.errors import UsageError

SMOOTHING_SHARE = 1 / 20
"""Length of the moving average as a share of the sweep's updates; over it the weight of a loss falls to 1 / e."""

MIN_STEPS = 20
"""Fewer updates are too few to smooth."""

DIVERGENCE_FACTOR = 4.0
"""The loss has diverged at this multiple of its lowest value, as in fastai; see `DivergenceDetector`."""

SUGGESTION_DIVISOR = 10.0
"""The suggestion is the rate of the lowest loss divided by this."""

MIN_STANDARD_ERRORS, MIN_LOSS_SHARE = 8.0, 0.01
"""A fall or rise is significant above this many standard errors of the smoothed loss and above this share of its
highest value: noise alone hardly falls that far."""


@dataclass(frozen=True, eq=False)
class RangeCurve:
    """One sweep, up to its divergence, with the rates read off it.

    `smoothed` over `centres` is the curve that is analysed: both are averaged with the same weights, so that the delay
    of the average hardly moves a mark; if the loss falls by orders of magnitude the minimum is still found late.

    Args:
        rates: (n,) float64, the rate of each update.
        losses: (n,) float64, of each batch before its update; only the last may be infinite or NaN.
        centres: (n,) float64, the geometric mean of the rates up to each one, weighted as the losses are.
        smoothed: (n,) float64, the moving average of the losses.
        diverged_at: rate at which `DivergenceDetector` stopped the sweep; None if it reached its end.
        steepest: rate at which `smoothed` falls fastest per factor of the rate; None if nothing was learned.
        minimum: rate at which `smoothed` is lowest; None if nothing was learned.
        suggestion: `minimum` / 10; None if the curve does not determine it.
        reason: one sentence on the suggestion, or why there is none and what to do.
    """

    rates: np.ndarray
    losses: np.ndarray
    centres: np.ndarray
    smoothed: np.ndarray
    diverged_at: float | None = None
    steepest: float | None = None
    minimum: float | None = None
    suggestion: float | None = None
    reason: str = field(default="", kw_only=True)

    @property
    def lowest(self) -> float:
        """The lowest smoothed loss; NaN if none is finite."""
        finite = self.smoothed[np.isfinite(self.smoothed)]
        return float(finite.min()) if len(finite) else math.nan


class MovingAverage:
    """Exponential moving average with weights falling by (1 - 1 / length) per value, corrected for its start."""

    def __init__(self, length: float) -> None:
        self._keep, self._sum, self._weight = 1 - 1 / length, 0.0, 0.0

    def add(self, value: float) -> float:
        """Add a value and return the average."""
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        self._weight = self._keep * self._weight + 1 - self._keep
        return self._sum / self._weight


class DivergenceDetector:
    """Detector of a diverged loss in a sweep of `steps` updates.

    Diverged: the smoothed loss is not finite, or above `DIVERGENCE_FACTOR` times its lowest value with half of the
    improvement lost again. Without the second condition a loss near 0 would diverge with every unlucky batch.
    """

    def __init__(self, steps: int) -> None:
        self._average = MovingAverage(smoothing_length(steps))
        self._first = self._best = math.inf

    def update(self, loss: float) -> bool:
        """Add a loss and return whether the sweep has diverged."""
        average = self._average.add(loss)
        if not math.isfinite(average):
            return True
        if math.isinf(self._first):
            self._first = average
        self._best = min(self._best, average)
        return average > max(DIVERGENCE_FACTOR * self._best, (self._first + self._best) / 2)


def smoothing_length(steps: int) -> float:
    """Return the length of the moving average, in updates, for a sweep of `steps`."""
    return max(1.0, SMOOTHING_SHARE * steps)


def sweep_rates(low: float, high: float, steps: int) -> np.ndarray:
    """Return (steps,) rates that grow by a constant factor from `low` to `high`.

    Raises:
        UsageError: bounds that are not 0 < low < high < infinity, or fewer than `MIN_STEPS` steps.
    """
    if not 0 < low < high < math.inf:
        raise UsageError(
            f"`low` and `high` must be learning rates with 0 < low < high, such as 1e-6 and 10; got {low} and {high}"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < MIN_STEPS:
        raise UsageError(f"`steps` must be an int of at least {MIN_STEPS} (updates of the sweep); got {steps!r}")
    return np.geomspace(low, high, steps)


def smooth(values: Sequence[float] | np.ndarray, length: float) -> np.ndarray:
    """Return the (n,) moving averages up to each of n values, see `MovingAverage`."""
    average = MovingAverage(length)
    return np.array([average.add(float(value)) for value in values])


def analyse_curve(rates: np.ndarray, losses: Sequence[float] | np.ndarray, learned_loss: float = 0.0) -> RangeCurve:
    """Analyse the losses of a sweep: smooth them, find the marks, suggest a rate.

    Args:
        rates: (N,) planned rates, ascending.
        losses: (n,) observed losses, n <= N; those after a divergence are dropped.
        learned_loss: the loss below which so little is left to learn that any rate looks good.
    """
    steps, detector = len(rates), DivergenceDetector(len(rates))
    end = next((index for index, loss in enumerate(losses) if detector.update(float(loss))), None)
    used_losses = np.asarray(losses[: len(losses) if end is None else end + 1], dtype=np.float64)
    used_rates, length = np.asarray(rates[: len(used_losses)], dtype=np.float64), smoothing_length(steps)
    curve = RangeCurve(
        used_rates,
        used_losses,
        np.exp(smooth(np.log(used_rates), length)),
        smooth(used_losses, length),
        None if end is None else float(used_rates[-1]),
        reason="",
    )
    return _mark_curve(curve, length, learned_loss)


def _mark_curve(curve: RangeCurve, length: float, learned_loss: float) -> RangeCurve:
    """Return the curve with its marks and its reason."""
    fields = curve.rates, curve.losses, curve.centres, curve.smoothed, curve.diverged_at
    finite = int(np.isfinite(curve.smoothed).sum())
    if finite == 0:
        return RangeCurve(
            *fields,
            reason=f"the loss of the first batch is {_format_last_loss(curve)}, before any update: check "
            "the images and the initial weights",
        )
    smoothed = curve.smoothed[:finite]
    lowest = int(smoothed.argmin())
    warm = min(int(length) - 1, lowest)
    highest = float(smoothed[warm : lowest + 1].max())
    threshold = max(
        MIN_STANDARD_ERRORS * _estimate_standard_error(curve.losses[:finite], length), MIN_LOSS_SHARE * highest
    )
    if highest - smoothed[lowest] <= threshold:
        return RangeCurve(*fields, reason=_explain_nothing_learned(curve))
    steepest, minimum = _find_steepest(curve, warm, lowest, length), float(curve.centres[lowest])
    marks = *fields, steepest, minimum
    if curve.diverged_at is None and smoothed[lowest:].max() - smoothed[lowest] <= threshold:
        return RangeCurve(
            *marks,
            reason=f"the loss did not rise again up to a rate of {curve.rates[-1]:.2g}, so its "
            "minimum is unknown: sweep to a higher rate",
        )
    if smoothed[lowest] < learned_loss:
        return RangeCurve(
            *marks,
            reason=f"the loss fell to {smoothed[lowest]:.2g}; so little is left to learn that "
            "any rate looks good: sweep with fewer steps, or on more images",
        )
    suggestion = minimum / SUGGESTION_DIVISOR
    if suggestion < curve.rates[0]:
        return RangeCurve(
            *marks,
            reason=f"a tenth of the rate of the lowest loss, {suggestion:.2g}, is below the "
            "lowest rate of the sweep: start at a lower rate",
        )
    reason = f"a tenth of {minimum:.2g}, the rate of the lowest loss; {_describe_end(curve)}"
    return RangeCurve(*marks, suggestion, reason=reason)


def _find_steepest(curve: RangeCurve, first: int, last: int, length: float) -> float:
    """Find the rate, between two indices, at which the smoothed loss falls fastest per factor of the rate.

    The slope is taken over as many updates as the moving average is long: the fall from one update to the next is that
    of a single batch.
    """
    half_width = max(1, round(length / 2))
    indices = np.arange(first, last + 1)
    low, high = np.clip(indices - half_width, first, last), np.clip(indices + half_width, first, last)
    x = np.log(curve.centres)
    slopes = (curve.smoothed[high] - curve.smoothed[low]) / (x[high] - x[low])
    best = slopes.argmin()
    return float(np.exp((x[low[best]] + x[high[best]]) / 2))


def _estimate_standard_error(losses: np.ndarray, length: float) -> float:
    """Estimate the standard error of the smoothed loss from differences of neighbouring losses, which exclude trend."""
    if len(losses) < 2:
        return 0.0
    # For normal deviations the median distance of two is 0.6745 sqrt(2) standard deviations.
    deviation = float(np.median(np.abs(np.diff(losses)))) / (0.6745 * math.sqrt(2))
    return deviation / math.sqrt(2 * length - 1)


def _explain_nothing_learned(curve: RangeCurve) -> str:
    if curve.diverged_at is None:
        return (
            f"the loss did not fall by more than chance up to a rate of {curve.rates[-1]:.2g}: sweep to a higher "
            "rate, or with more steps"
        )
    return (
        f"the loss diverged at {curve.diverged_at:.2g} without having fallen by more than chance: start at a lower "
        "rate, or sweep with more steps"
    )


def _describe_end(curve: RangeCurve) -> str:
    if curve.diverged_at is None:
        return f"it rose but did not diverge up to {curve.rates[-1]:.2g}"
    return f"it diverged at {curve.diverged_at:.2g}"


def _format_last_loss(curve: RangeCurve) -> str:
    return f"{curve.losses[-1]:g}" if len(curve.losses) else "missing"
