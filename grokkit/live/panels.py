"""Which chart a number belongs to, and what it is called there."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from grokkit.names import Reading
from grokkit.policies.signal import UNITS


class Panel(NamedTuple):
    """One chart.

    Args:
        key: what traces name it by.
        title: what stands above it.
        scale: of the value axis at first: `log`, `linear`, `share` (0 to 1) or `zero` (linear from 0).
        missing: what adds the numbers to a run that has none.
    """

    key: str
    title: str
    scale: str
    missing: str


PANELS = (
    Panel("loss", "Loss", "log", "no loss was logged"),
    Panel("accuracy", "Accuracy", "share", "no accuracy was logged"),
    Panel("complexity", "Local complexity", "linear", "add it with: grokkit lc RUN"),
    Panel("layers", "Local complexity by layer", "linear", "add it with: grokkit lc RUN"),
    Panel("robust", "Robust accuracy", "share", "add it with: grokkit attack RUN"),
    Panel("rate", "Learning rate", "zero", "no learning rate was logged"),
)
"""The charts that every page has; what else a run holds gets charts of its own behind them."""

SHOWN_LAYERS = 64
"""Layers of a measure without a total that are drawn."""


class Trace(NamedTuple):
    """What one curve of one run shows; two runs' curves with equal traces are seeds of one another.

    Args:
        panel: key of its chart.
        label: its name in the chart.
        role: `batch`, `train`, `test`, `random`, `test_set`, `validation`, `layer`, or another word: its colour.
        unit: of the value.
        choice: what a chart lets one choose from, such as a radius; empty: always shown.
        probe: the probe set that a chart lets one choose; empty: always shown.
        order: place among its neighbours.
        source: the measure and its parameters, which seeds share (their identities differ); empty for logged metrics.
    """

    panel: str
    label: str
    role: str
    unit: str
    choice: str = ""
    probe: str = ""
    order: int = 0
    source: str = ""


TraceRow = tuple[Trace, float, float, float]
"""A trace with value, low and high."""

_LOSS_UNITS = {"cross_entropy": "nats", "mse": "squared logits"}
_SPLITS = {"batch": ("batches", 0), "test_set": ("test set", 4), "validation": ("validation", 5)}
SIGNALS = ("signal", "signal_slope")
"""The panels of what policies listen to; the second, of slopes, has another unit."""
STANDARD_ERROR, ENDS = "_se", ("_low", "_high")
"""Endings of a logged signal that is the standard error of the one without it, or an end of its interval."""


def metric_trace(split: str, metric: str, loss: str) -> Trace:
    """The trace of a logged number; `loss` is the run's loss function."""
    label, order = _SPLITS.get(split, (split, 6))
    if metric == "loss":
        return Trace("loss", label, split, _LOSS_UNITS.get(loss, loss), order=order)
    if metric == "learning_rate":
        return Trace("rate", "learning rate", "rate", "")
    if metric.startswith("accuracy"):
        suffix = metric.removeprefix("accuracy").replace("_", " ")
        return Trace("accuracy", label + suffix, split, "share of images", order=order)
    if split == "signal":
        panel = SIGNALS["_slope" in metric]
        return Trace(panel, metric.replace("_", " "), "signal", UNITS.get(metric, ""))
    return Trace(metric, label, split, "", order=order)


def reading_traces(reading: Reading) -> Iterator[TraceRow]:
    """The traces of a reading with their numbers."""
    rows = list(reading.rows())
    parameters = json.dumps(reading.settings.get("parameters", {}), sort_keys=True, default=str)
    source = f"{reading.measure}-{zlib.crc32(parameters.encode()):08x}"
    if reading.measure == "local_complexity":
        yield from _complexity_traces(source, reading, rows)
    elif reading.measure == "robust_accuracy":
        yield from _robust_traces(source, reading, rows)
    else:
        yield from _plain_traces(source, reading, rows)


def _complexity_traces(source: str, reading: Reading, rows: list[dict[str, Any]]) -> Iterator[TraceRow]:
    asked = reading.settings.get("parameters", {})
    how = "" if asked.get("method", "tangent") == "tangent" else f", {asked['method']}"
    directions = reading.settings.get("directions")
    for row in rows:
        count = row.get("directions", directions)
        choice = f"r = {row['radius']:g}" + (f", {count} directions" if count is not None else "") + how
        probe, layer = row.get("probe_set", ""), row.get("layer", "total")
        if layer == "total":
            trace = Trace("complexity", probe, probe, reading.unit, choice, "", _probe_order(probe), source)
        else:
            order = list(reading.coords["layer"]).index(layer)
            trace = Trace("layers", layer, "layer", reading.unit, choice, probe, order, source)
        yield trace, row["value"], row["low"], row["high"]


def _robust_traces(source: str, reading: Reading, rows: list[dict[str, Any]]) -> Iterator[TraceRow]:
    """The worst attack counts at each epsilon."""
    worst: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        place = row.get("probe_set", ""), row.get("epsilon", 0.0)
        if place not in worst or row["value"] < worst[place]["value"]:
            worst[place] = row
    radii = sorted({epsilon for _, epsilon in worst})
    for (probe, epsilon), row in worst.items():
        label = f"{probe}, eps = {_format_epsilon(epsilon)}"
        trace = Trace("robust", label, "epsilon", reading.unit, order=radii.index(epsilon), source=source)
        yield trace, row["value"], row["low"], row["high"]


def _format_epsilon(epsilon: float) -> str:
    """8/255 where it is a whole number of grey levels, else the number."""
    levels = round(255 * epsilon, 6)
    return f"{levels:g}/255" if levels == int(levels) else f"{epsilon:g}"


def _plain_traces(source: str, reading: Reading, rows: list[dict[str, Any]]) -> Iterator[TraceRow]:
    layers = list(reading.coords.get("layer", ()))
    shown = {"total"} if "total" in layers else set(layers[:SHOWN_LAYERS])
    panel = {"accuracy": "accuracy", "loss": "loss"}.get(reading.measure, reading.measure)
    for row in rows:
        layer, probe = row.get("layer", ""), row.get("probe_set", "")
        if layers and layer not in shown:
            continue
        others = [f"{dim} {row[dim]}" for dim in reading.dims if dim not in ("probe_set", "layer")]
        words = [_probe_label(probe, panel), "" if layer == "total" else layer, *others]
        label = ", ".join(word for word in words if word) or reading.measure.replace("_", " ")
        role, order = (probe, _probe_order(probe)) if probe else ("layer" if len(shown) > 1 else "rate", 0)
        order = layers.index(layer) if role == "layer" else order
        trace = Trace(panel, label, role, reading.unit, order=order, source=source)
        yield trace, row["value"], row["low"], row["high"]


def _probe_label(probe: str, panel: str) -> str:
    """Beside logged numbers of whole splits it has to be said which images a number is of."""
    return f"{probe} probes" if probe and panel in ("accuracy", "loss") else probe


def _probe_order(probe: str) -> int:
    return {"train": 1, "test": 2, "random": 3}.get(probe, 3)


def describe_panels(traces: Mapping[Trace, Any]) -> list[dict[str, str]]:
    """The charts for these traces: those of `PANELS`, then one for everything else, in the order of its name."""
    known = {panel.key for panel in PANELS}
    rest = sorted({trace.panel for trace in traces} - known, key=lambda key: (key not in SIGNALS, key))
    extra = [Panel(key, _title(key), "linear", "") for key in rest]
    return [panel._asdict() for panel in (*PANELS, *extra)]


def _title(key: str) -> str:
    if key in SIGNALS:
        return "Policy's signal" if key == SIGNALS[0] else "Slope of the policy's signal"
    return key.replace("_", " ").capitalize()
