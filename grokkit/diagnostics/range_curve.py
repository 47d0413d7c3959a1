"""What the curve of a learning-rate range test says: its smoothing, where it diverges, what it suggests. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from grokkit.errors import UsageError

SHARE = 1 / 20
"""Length of the smoothing over the updates of the sweep: in so many updates a loss's weight falls to 1 / e."""

LEAST_STEPS = 20
"""Fewer updates leave nothing to smooth."""

DIVERGED = 4.0
"""The loss has diverged at this many times its lowest value, as in fastai; see `DivergenceDetector`."""

BELOW_MINIMUM = 10.0
"""The suggestion is the rate of the lowest loss over this."""

NOISE, LEAST = 8.0, 0.01
"""A fall or rise counts that is above this many standard errors of the smoothed loss, and above this share of its
highest value: noise alone hardly falls that far."""


@dataclass(frozen=True, eq=False)
class RangeCurve:
    """One sweep, up to where it diverged, and what is read off it. `smoothed` over `centres` is the curve that is
    judged: both are averaged with the same weights, so that the delay of the average hardly moves a mark; where the
    loss falls by orders of magnitude the minimum still comes late.

    Args:
        rates: (n,) float64, the rate of each update.
        losses: (n,) float64, of each batch before its update; only the last may be infinite or NaN.
        centres: (n,) float64, the geometric mean of the rates up to each one, weighted as the losses are.
        smoothed: (n,) float64, the moving average of the losses.
        diverged_at: rate at which the sweep stopped because of `DivergenceDetector`; None where it reached its end.
        steepest: rate at which `smoothed` falls fastest per factor of the rate; None where nothing was learned.
        minimum: rate at which `smoothed` is lowest; None where nothing was learned.
        suggestion: `minimum` / 10; None where the curve does not tell it.
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
        """The lowest smoothed loss; NaN where none is finite."""
        finite = self.smoothed[np.isfinite(self.smoothed)]
        return float(finite.min()) if len(finite) else math.nan


class MovingAverage:
    """Moving average whose weights fall by a factor of (1 - 1 / length) per value, the bias of its start removed."""

    def __init__(self, length: float) -> None:
        self._keep, self._sum, self._weight = 1 - 1 / length, 0.0, 0.0

    def add(self, value: float) -> float:
        """The average with one more value."""
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        self._weight = self._keep * self._weight + 1 - self._keep
        return self._sum / self._weight


class DivergenceDetector:
    """Sees, loss by loss, whether a sweep of `steps` updates has diverged: its smoothed loss is not finite, or above
    `DIVERGED` times its lowest value with half of what had been gained lost again. Without the second condition a
    loss near 0 would diverge with every unlucky batch."""

    def __init__(self, steps: int) -> None:
        self._average = MovingAverage(smoothing_length(steps))
        self._first = self._best = math.inf

    def diverged(self, loss: float) -> bool:
        """Whether it has, by this loss."""
        now = self._average.add(loss)
        if not math.isfinite(now):
            return True
        if math.isinf(self._first):
            self._first = now
        self._best = min(self._best, now)
        return now > max(DIVERGED * self._best, (self._first + self._best) / 2)


def smoothing_length(steps: int) -> float:
    """Length of the smoothing, in updates, of a sweep of `steps`."""
    return max(1.0, SHARE * steps)


def sweep_rates(low: float, high: float, steps: int) -> np.ndarray:
    """(steps,) rates that grow by the same factor from `low` to `high`.

    Raises:
        UsageError: bounds that are not 0 < low < high < infinity, or fewer than `LEAST_STEPS` steps.
    """
    if not 0 < low < high < math.inf:
        raise UsageError(
            f"`low` and `high` must be learning rates with 0 < low < high, such as 1e-6 and 10; got {low} and {high}"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < LEAST_STEPS:
        raise UsageError(f"`steps` must be an int of at least {LEAST_STEPS} (updates of the sweep); got {steps!r}")
    return np.geomspace(low, high, steps)


def smooth(values: Sequence[float] | np.ndarray, length: float) -> np.ndarray:
    """(n,) moving averages up to each of n values, see `MovingAverage`."""
    average = MovingAverage(length)
    return np.array([average.add(float(value)) for value in values])


def analyse_curve(rates: np.ndarray, losses: Sequence[float] | np.ndarray, learnt: float = 0.0) -> RangeCurve:
    """The curve of a sweep and what it suggests.

    Args:
        rates: (N,) the rates that were planned, ascending.
        losses: (n,) the losses seen, n <= N; those after a divergence are left out.
        learnt: the loss below which so little is left to learn that any rate looks good.
    """
    steps, watch = len(rates), DivergenceDetector(len(rates))
    end = next((place for place, loss in enumerate(losses) if watch.diverged(float(loss))), None)
    seen = np.asarray(losses[: len(losses) if end is None else end + 1], dtype=np.float64)
    used, length = np.asarray(rates[: len(seen)], dtype=np.float64), smoothing_length(steps)
    curve = RangeCurve(
        used,
        seen,
        np.exp(smooth(np.log(used), length)),
        smooth(seen, length),
        None if end is None else float(used[-1]),
        reason="",
    )
    return _mark_curve(curve, length, learnt)


def _mark_curve(curve: RangeCurve, length: float, learnt: float) -> RangeCurve:
    """The curve with its marks and its reason."""
    parts = curve.rates, curve.losses, curve.centres, curve.smoothed, curve.diverged_at
    finite = int(np.isfinite(curve.smoothed).sum())
    if finite == 0:
        return RangeCurve(
            *parts,
            reason=f"the loss of the first batch is {_last(curve)}, before any update: look at "
            "the images and the initial weights",
        )
    smoothed = curve.smoothed[:finite]
    at = int(smoothed.argmin())
    settled = min(int(length) - 1, at)
    highest = float(smoothed[settled : at + 1].max())
    least = max(NOISE * _standard_error(curve.losses[:finite], length), LEAST * highest)
    if highest - smoothed[at] <= least:
        return RangeCurve(*parts, reason=_explain_nothing_learned(curve))
    steepest, minimum = _find_steepest(curve, settled, at, length), float(curve.centres[at])
    marks = *parts, steepest, minimum
    if curve.diverged_at is None and smoothed[at:].max() - smoothed[at] <= least:
        return RangeCurve(
            *marks,
            reason=f"the loss did not rise again up to a rate of {curve.rates[-1]:.2g}, so where "
            "it is lowest is not known: sweep to a higher one",
        )
    if smoothed[at] < learnt:
        return RangeCurve(
            *marks,
            reason=f"the loss fell to {smoothed[at]:.2g}, where so little is left to learn that "
            "any rate looks good: sweep with fewer steps, or on more images",
        )
    suggestion = minimum / BELOW_MINIMUM
    if suggestion < curve.rates[0]:
        return RangeCurve(
            *marks,
            reason=f"a tenth of the rate of the lowest loss, {suggestion:.2g}, is below the "
            "lowest rate of the sweep: begin at a lower one",
        )
    reason = f"a tenth of {minimum:.2g}, the rate of the lowest loss; {_end(curve)}"
    return RangeCurve(*marks, suggestion, reason=reason)


def _find_steepest(curve: RangeCurve, first: int, last: int, length: float) -> float:
    """The rate between two places at which the smoothed loss falls fastest per factor of the rate, over as many updates
    as the smoothing is long: the fall from one update to the next is that of a single batch."""
    reach = max(1, round(length / 2))
    places = np.arange(first, last + 1)
    low, high = np.clip(places - reach, first, last), np.clip(places + reach, first, last)
    x = np.log(curve.centres)
    slopes = (curve.smoothed[high] - curve.smoothed[low]) / (x[high] - x[low])
    best = slopes.argmin()
    return float(np.exp((x[low[best]] + x[high[best]]) / 2))


def _standard_error(losses: np.ndarray, length: float) -> float:
    """Of the smoothed loss, from how far two neighbouring losses are apart: the curve itself hardly moves there."""
    if len(losses) < 2:
        return 0.0
    # for normal deviations the median distance of two is 0.6745 sqrt(2) standard deviations
    deviation = float(np.median(np.abs(np.diff(losses)))) / (0.6745 * math.sqrt(2))
    return deviation / math.sqrt(2 * length - 1)


def _explain_nothing_learned(curve: RangeCurve) -> str:
    if curve.diverged_at is None:
        return (
            f"the loss did not fall by more than chance up to a rate of {curve.rates[-1]:.2g}: sweep to a higher "
            "one, or with more steps"
        )
    return (
        f"the loss diverged at {curve.diverged_at:.2g} without having fallen by more than chance: begin at a lower "
        "rate, or sweep with more steps"
    )


def _end(curve: RangeCurve) -> str:
    if curve.diverged_at is None:
        return f"it rose but did not diverge up to {curve.rates[-1]:.2g}"
    return f"it diverged at {curve.diverged_at:.2g}"


def _last(curve: RangeCurve) -> str:
    return f"{curve.losses[-1]:g}" if len(curve.losses) else "missing"
