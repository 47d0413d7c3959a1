"""Choose the radius and the number of directions for a run's local complexity: a rule over its stored radius sweeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

TOLERANCE = 0.05
"""A slope d log LC / d log r counts as 1 within this distance."""
BENT_HALF_WIDTHS = 1.5
"""A slope counts as different from 1 if it lies beyond the tolerance by this many half-widths of its 95 % interval, so
that about 95 % hold for the dozen slopes of one snapshot together.
"""
MAX_WIDTH = 1.25
"""The interval at the chosen P may be this many times as wide as at the largest P."""


@dataclass(frozen=True)
class LinearRange:
    """Radii at which local complexity is linear at one snapshot, at the P of its slopes.

    Args:
        step: of the snapshot.
        linear: smallest and largest radius of the range in which LC is shown to be linear; None if there is none.
        bent: the smallest radius up to which LC is shown not to be linear; None if it never is.
    """

    step: int
    linear: tuple[float, float] | None
    bent: float | None


@dataclass(frozen=True)
class RadiusChoice:
    """Recommended setting, or the reason why there is none.

    Args:
        snapshots: result of each snapshot.
        radius: the largest at which LC is linear at every snapshot; None if one shows no linear range.
        directions: the smallest P whose interval (over the points, along one frame) is at most `MAX_WIDTH` times as
            wide as the largest P's; None as above.
        reason: one sentence.
    """

    snapshots: tuple[LinearRange, ...]
    radius: float | None
    directions: int | None
    reason: str

    @property
    def smallest_linear_end(self) -> float | None:
        """Return the smallest end of all linear ranges, which is `radius` if that is set; None without any range."""
        ends = [snapshot.linear[1] for snapshot in self.snapshots if snapshot.linear is not None]
        return min(ends) if ends else None


def choose_radius(rows: pd.DataFrame) -> RadiusChoice:
    """Choose radius and directions from the rows of one run's radius sweeps.

    The rows are those of the measures `calibration` and `calibration_slope`. A slope between two neighbouring radii
    is *linear* if its 95 % interval lies in 1 -+ 0.05, *bent* if it is farther from 1 than 0.05 and 1.5 half-widths
    of that interval, else *open*: the counts are too few to decide. A snapshot's linear range reaches from its first
    linear slope to its last one below its first bent one; open slopes do not end it, because LC is linear in the
    limit of small radii. The radius is the smallest end of all ranges.
    """
    slopes, counts = (rows[rows["measure"] == name] for name in ("calibration_slope", "calibration"))
    radii = sorted(set(counts["radius"]))
    snapshots = tuple(
        linear_range(int(step), slopes[slopes["step"] == step], radii) for step in sorted(set(counts["step"]))
    )
    without_range = [snapshot for snapshot in snapshots if snapshot.linear is None]
    if without_range:
        return RadiusChoice(snapshots, None, None, _explain_no_choice(without_range, snapshots, radii))
    radius = min(snapshot.linear[1] for snapshot in snapshots if snapshot.linear is not None)
    directions = _choose_directions(counts[counts["radius"] == radius])
    return RadiusChoice(
        snapshots,
        radius,
        directions,
        f"{radius:g} is the largest radius at which LC is linear in r at all {len(snapshots)} snapshots, and "
        f"{directions} the smallest P whose interval there is at most {MAX_WIDTH:g} times as wide as the largest P's",
    )


def linear_range(step: int, slopes: pd.DataFrame, radii: list[float]) -> LinearRange:
    """Find the linear range of one snapshot from its slopes, each labelled by the larger of its two radii."""
    low, high, bent = math.nan, math.nan, None
    ordered = slopes.sort_values("radius")[["radius", "value", "low", "high"]].to_numpy(float).tolist()
    for radius, value, lower, upper in ordered:
        deviation, half = abs(value - 1), (upper - lower) / 2
        if deviation > TOLERANCE + BENT_HALF_WIDTHS * half:
            bent = radius
            break
        if deviation + half <= TOLERANCE:
            high = radius
            low = radii[radii.index(high) - 1] if math.isnan(low) else low
    return LinearRange(step, None if math.isnan(high) else (low, high), bent)


def _explain_no_choice(without_range: list[LinearRange], snapshots: tuple[LinearRange, ...], radii: list[float]) -> str:
    """Explain why no radius can be recommended: the snapshot bent at the smallest radius, then the others."""
    worst = min(without_range, key=lambda snapshot: snapshot.bent or math.inf)
    if worst.bent is None:
        reason = (
            f"at step {worst.step} the counts are too few to decide whether LC is linear anywhere in "
            f"{radii[0]:g}..{radii[-1]:g}: use more points or larger radii"
        )
    else:
        reason = (
            f"at step {worst.step} LC is not linear at {worst.bent:g}, and below that the counts are too few to "
            "decide: it depends on the radius there, so compare LC at one radius only, show several, or use more points"
        )
    ends = [snapshot.linear[1] for snapshot in snapshots if snapshot.linear is not None]
    return f"{reason} (linear up to {min(ends):g} at {len(ends)} of {len(snapshots)} snapshots)" if ends else reason


def _choose_directions(counts: pd.DataFrame) -> int:
    """Return the smallest sufficient P, from the rows of one radius at all snapshots and P."""
    widths = counts.assign(width=(counts["high"] - counts["low"]) / counts["value"])
    table = widths.pivot(index="step", columns="directions", values="width")
    enough = table.le(MAX_WIDTH * table.iloc[:, -1], axis=0).all(axis=0)
    return int(min(enough.index[enough.to_numpy()]))


def middle_directions(rows: pd.DataFrame) -> float:
    """Return the number of directions at which slopes and vertex counts were measured: the upper middle one."""
    numbers = sorted(set(rows["directions"][rows["measure"] == "calibration"]))
    return float(numbers[len(numbers) // 2])


def compare_with_kappa(rows: pd.DataFrame, radius: float) -> pd.DataFrame:
    """Compute LC / kappa(P, D) at one radius, relative to its value at the largest P.

    Returns:
        A column per P, a row per step; 1 if kappa explains all of LC's growth with P.
    """
    counts = rows[(rows["measure"] == "calibration") & (rows["radius"] == radius)]
    kappas = rows[rows["measure"] == "calibration_kappa"].groupby("directions")["value"].first()
    scaled = counts.pivot(index="step", columns="directions", values="value") / kappas
    return scaled.div(scaled.iloc[:, -1], axis=0)
