"""Which radius and how many directions a run should be measured with: a rule over stored calibrations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

TOLERANCE = 0.05
"""A slope d log LC / d log r counts as 1 within this."""
STRICT = 1.5
"""A slope counts as another than 1 beyond the tolerance and this many half-widths of its 95 % interval: so about 95 %
hold for the dozen slopes of one snapshot together."""
WIDTH = 1.25
"""The interval at the chosen P may be this many times as wide as at the largest."""


@dataclass(frozen=True)
class LinearRange:
    """What one snapshot says, at the P of its slopes.

    Args:
        step: of the snapshot.
        linear: smallest and largest radius of the range in which LC is shown to be linear; None where none is shown.
        bent: the smallest radius up to which LC is shown not to be linear; None where it never is.
    """

    step: int
    linear: tuple[float, float] | None
    bent: float | None


@dataclass(frozen=True)
class RadiusChoice:
    """A setting, or why there is none.

    Args:
        snapshots: what each said.
        radius: the largest at which LC is linear at every snapshot; None where one shows no linear range.
        directions: the smallest P whose interval (over the points, along one frame) is at most `WIDTH` times as wide as
            the largest P's; None as above.
        reason: one sentence.
    """

    snapshots: tuple[LinearRange, ...]
    radius: float | None
    directions: int | None
    reason: str

    @property
    def smallest_linear_end(self) -> float | None:
        """The smallest end of the linear ranges that there are: `radius` where there is one."""
        ends = [each.linear[1] for each in self.snapshots if each.linear is not None]
        return min(ends) if ends else None


def choose_radius(rows: pd.DataFrame) -> RadiusChoice:
    """The rule, on the rows of one run's calibration (measures `calibration` and `calibration_slope`).

    A slope between two neighbouring radii is *linear* where its 95 % interval lies in 1 -+ 0.05, *bent* where it is
    farther from 1 than 0.05 and 1.5 half-widths of that interval, else *open*: the counts are too few to tell. A
    snapshot's linear range reaches from its first linear slope to its last one below its first bent one; open slopes
    do not end it, because LC is linear in the limit of small radii. The radius is the smallest end of all ranges.
    """
    slopes, counts = (rows[rows["measure"] == name] for name in ("calibration_slope", "calibration"))
    radii = sorted(set(counts["radius"]))
    found = tuple(
        linear_range(int(step), slopes[slopes["step"] == step], radii) for step in sorted(set(counts["step"]))
    )
    lacking = [each for each in found if each.linear is None]
    if lacking:
        return RadiusChoice(found, None, None, _explain_no_choice(lacking, found, radii))
    radius = min(each.linear[1] for each in found if each.linear is not None)
    directions = _directions(counts[counts["radius"] == radius])
    return RadiusChoice(
        found,
        radius,
        directions,
        f"{radius:g} is the largest radius at which LC is linear in r at all {len(found)} snapshots, and "
        f"{directions} the smallest P whose interval there is at most {WIDTH:g} times as wide as the largest P's",
    )


def linear_range(step: int, slopes: pd.DataFrame, radii: list[float]) -> LinearRange:
    """The linear range of one snapshot from its slopes, each named by the larger of its two radii."""
    low, high, bent = math.nan, math.nan, None
    ordered = slopes.sort_values("radius")[["radius", "value", "low", "high"]].to_numpy(float).tolist()
    for radius, value, lower, upper in ordered:
        off, half = abs(value - 1), (upper - lower) / 2
        if off > TOLERANCE + STRICT * half:
            bent = radius
            break
        if off + half <= TOLERANCE:
            high = radius
            low = radii[radii.index(high) - 1] if math.isnan(low) else low
    return LinearRange(step, None if math.isnan(high) else (low, high), bent)


def _explain_no_choice(lacking: list[LinearRange], found: tuple[LinearRange, ...], radii: list[float]) -> str:
    """About the snapshot that is bent at the smallest radius, then about the others."""
    worst = min(lacking, key=lambda each: each.bent or math.inf)
    if worst.bent is None:
        said = (
            f"at step {worst.step} the counts are too few to tell whether LC is linear anywhere in "
            f"{radii[0]:g}..{radii[-1]:g}: take more points or larger radii"
        )
    else:
        said = (
            f"at step {worst.step} LC is bent at {worst.bent:g}, and below that the counts are too few to tell: it "
            "depends on the radius there, so compare LC at one radius only, show several, or take more points"
        )
    ends = [each.linear[1] for each in found if each.linear is not None]
    return f"{said} (linear up to {min(ends):g} at {len(ends)} of {len(found)} snapshots)" if ends else said


def _directions(counts: pd.DataFrame) -> int:
    """From the rows of one radius, all snapshots and P."""
    widths = counts.assign(width=(counts["high"] - counts["low"]) / counts["value"])
    table = widths.pivot_table(index="step", columns="directions", values="width")
    enough = table.le(WIDTH * table.iloc[:, -1], axis=0).all(axis=0)
    return int(min(enough.index[enough.to_numpy()]))


def middle_directions(rows: pd.DataFrame) -> float:
    """The number of directions at which slopes and vertices were taken: the upper middle one."""
    numbers = sorted(set(rows["directions"][rows["measure"] == "calibration"]))
    return float(numbers[len(numbers) // 2])


def compare_with_kappa(rows: pd.DataFrame, radius: float) -> pd.DataFrame:
    """LC / kappa(P, D) at one radius over that at the largest P: a column per P, a row per step; 1 where kappa explains
    all of LC's growth with P."""
    counts = rows[(rows["measure"] == "calibration") & (rows["radius"] == radius)]
    kappas = rows[rows["measure"] == "calibration_kappa"].groupby("directions")["value"].first()
    scaled = counts.pivot_table(index="step", columns="directions", values="value") / kappas
    return scaled.div(scaled.iloc[:, -1], axis=0)
