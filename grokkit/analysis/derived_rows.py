"""Derive table rows from a reading beyond its own values: live and dead units, complexity against noise, checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from grokkit.names import Reading

NOISE_PROBE_SET = "random"
"""The probe set that the others are compared with."""


def derive_rows(reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield the rows of other measures that follow from a reading.

    `live_units` and `dead_share` (units that are live at no measured point / units), per layer and in total, if units
    were counted; `local_complexity_ratio` if noise was measured too; and the rows that a measure put into its
    settings under `companions`.
    """
    yield from _derive_liveness(reading)
    if reading.measure == "local_complexity":
        yield from _derive_noise_ratio(reading)
    yield from reading.settings.get("companions", ())


def _derive_liveness(reading: Reading) -> Iterator[dict[str, Any]]:
    units: Mapping[str, int] = reading.settings.get("units", {})
    images = {row.get("probe_set"): row["n"] for row in reading.rows()}
    for probe_set, live in reading.settings.get("live_units", {}).items():
        for layer, count in live.items():
            yield {"measure": "live_units", "probe_set": probe_set, "layer": layer, "value": count, "unit": "units"}
        if not live or not live.keys() <= units.keys():  # a net without activations has no units
            continue
        shares = {layer: 1 - count / units[layer] for layer, count in live.items()}
        shares["total"] = 1 - sum(live.values()) / sum(units[layer] for layer in live)
        common = {"measure": "dead_share", "probe_set": probe_set, "n": images[probe_set], "unit": "share of units"}
        yield from ({**common, "layer": layer, "value": share} for layer, share in shares.items())


def _derive_noise_ratio(reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield LC(set) / LC(random) of the layer `total` at each radius; no row if noise has no crossing."""
    directions = {"directions": reading.settings.get("directions", math.nan)}
    rows = [directions | row for row in reading.rows() if row.get("layer") == "total"]
    noise = {row["radius"]: row for row in rows if row["probe_set"] == NOISE_PROBE_SET and row["value"] > 0}
    for row in rows:
        if row["probe_set"] == NOISE_PROBE_SET or row["radius"] not in noise:
            continue
        value, low, high = fieller_ratio(row, noise[row["radius"]])
        yield {**row, "measure": "local_complexity_ratio", "value": value, "low": low, "high": high, "unit": "1"}


def fieller_ratio(top: Mapping[str, float], bottom: Mapping[str, float]) -> tuple[float, float, float]:
    """Compute the quotient of two independent means with Fieller's interval, from their own symmetric intervals.

    The bounds are the t with |a - t b|^2 = da^2 + t^2 db^2, where da and db are the half-widths of the two intervals;
    the level is theirs. The point sets are independent; that both were measured along one frame is not modelled. The
    bounds are NaN if an interval is unknown, or if the bottom's reaches 0: no finite one exists then.

    Args:
        top, bottom: mappings with `value`, `low` and `high`; the bottom's value is above 0.

    Source: Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).
    """
    a, b = top["value"], bottom["value"]
    da, db = a - top["low"], b - bottom["low"]
    lead = b * b - db * db
    if not lead > 0 or math.isnan(da):
        return a / b, math.nan, math.nan
    middle, half = a * b / lead, math.sqrt(a * a * db * db + da * da * lead) / lead
    return a / b, middle - half, middle + half
