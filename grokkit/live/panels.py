"""Assign every logged metric and reading to a chart of the live page and to a curve with a label in it."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from grokkit.names import Reading, format_epsilon
from grokkit.policies.signal import UNITS


class Panel(NamedTuple):
    """Chart of the live page.

    Args:
        key: identifier used by traces.
        title: heading of the chart.
        scale: initial scale of the value axis: `log`, `linear`, `share` (0 to 1) or `zero` (linear from 0).
        missing: hint shown for a run without such values, such as the command that adds them.
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
"""Charts that every page has; other values of a run get additional charts after these."""

MAX_LAYERS = 64
"""Maximum number of layers that are drawn of a measure without a total."""
MAX_LABELLED = 6
"""Maximum number of settings (values of dims other than probe set and layer) that are drawn at once, each with a label;
of more settings one is selected."""


class Trace(NamedTuple):
    """Identity of a curve; the curves of several runs of a group with equal traces are drawn as one, over seeds.

    Args:
        panel: key of the chart.
        label: name of the curve in the chart.
        role: `batch`, `train`, `test`, `random`, `test_set`, `validation`, `layer` or another name; decides the colour.
        unit: unit of the value.
        choice: setting that is selected in the chart, such as a radius; empty: always shown.
        probe: probe set that is selected in the chart; empty: always shown.
        order: position among the curves of the chart.
        source: the measure and its parameters, equal across seeds (identities are not); empty for logged metrics.
        remark: what else must be said of the values, such as that they are the lowest of several; shown with the unit.
    """

    panel: str
    label: str
    role: str
    unit: str
    choice: str = ""
    probe: str = ""
    order: int = 0
    source: str = ""
    remark: str = ""


TraceRow = tuple[Trace, float, float, float]
"""A trace with value, low and high."""

_LOSS_UNITS = {"cross_entropy": "nats", "mse": "squared logits"}
_SPLITS = {"batch": ("batches", 0), "test_set": ("test set", 4), "validation": ("validation", 5)}
SIGNAL_PANELS = ("signal", "signal_slope")
"""Panels of the signals of policies; the second is for slopes, which have another unit."""
STANDARD_ERROR_SUFFIX, BOUND_SUFFIXES = "_se", ("_low", "_high")
"""Suffixes of logged signals that are the standard error of the signal without suffix, or a bound of its interval."""


def metric_trace(split: str, metric: str, loss: str) -> Trace:
    """Return the trace of a logged metric; `loss` is the name of the run's loss function."""
    label, order = _SPLITS.get(split, (split, 6))
    if split == "signal":
        panel = SIGNAL_PANELS["_slope" in metric]
        return Trace(panel, metric.replace("_", " "), "signal", UNITS.get(metric, ""))
    if metric == "loss":
        return Trace("loss", label, split, _LOSS_UNITS.get(loss, loss), order=order)
    if metric == "learning_rate":
        return Trace("rate", "learning rate", "rate", "")
    if metric == "accuracy_tta":
        return Trace("accuracy", f"{label}, test-time augmentation", split, "share of images", order=order)
    if metric.startswith("accuracy"):
        suffix = metric.removeprefix("accuracy").replace("_", " ")
        return Trace("accuracy", label + suffix, split, "share of images", order=order)
    return Trace(_make_panel_key(metric), label, split, "", order=order)


def _make_panel_key(name: str) -> str:
    """Return the key of the chart of a metric or measure that has none in `PANELS`: its name, if that is not taken."""
    return f"{name} (own)" if name in {panel.key for panel in PANELS} | set(SIGNAL_PANELS) else name


def make_source(reading: Reading) -> str:
    """Return the name of a measure with its parameters, equal across seeds."""
    parameters = json.dumps(reading.settings.get("parameters", {}), sort_keys=True, default=str)
    return f"{reading.measure}-{zlib.crc32(parameters.encode()):08x}"


def reading_traces(reading: Reading) -> Iterator[TraceRow]:
    """Yield the traces of a reading with their values."""
    rows = list(reading.rows())
    source = make_source(reading)
    if reading.measure == "local_complexity":
        yield from _complexity_traces(source, reading, rows)
    elif reading.measure == "robust_accuracy":
        yield from _robust_traces(source, reading, rows)
    else:
        yield from _plain_traces(source, reading, rows)


def _complexity_traces(source: str, reading: Reading, rows: list[dict[str, Any]]) -> Iterator[TraceRow]:
    parameters = reading.settings.get("parameters", {})
    method = "" if parameters.get("method", "tangent") == "tangent" else f", {parameters['method']}"
    directions, radii = reading.settings.get("directions"), _format_coords(reading, "radius")
    for row in rows:
        count = row.get("directions", directions)
        choice = radii[row["radius"]] + (f", {count} directions" if count is not None else "") + method
        probe, layer = row.get("probe_set", ""), row.get("layer", "total")
        if layer == "total":
            trace = Trace("complexity", probe, probe, reading.unit, choice, "", _get_probe_order(probe), source)
        else:
            order = list(reading.coords["layer"]).index(layer)
            trace = Trace("layers", layer, "layer", reading.unit, choice, probe, order, source)
        yield trace, row["value"], row["low"], row["high"]


def _robust_traces(source: str, reading: Reading, rows: list[dict[str, Any]]) -> Iterator[TraceRow]:
    """Yield one trace per epsilon, with the lowest accuracy over all attacks and the interval of that one."""
    worst: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        key = row.get("probe_set", ""), row.get("epsilon", 0.0)
        if key not in worst or row["value"] < worst[key]["value"] or math.isnan(worst[key]["value"]):
            worst[key] = row
    radii, texts = sorted({epsilon for _, epsilon in worst}), _format_coords(reading, "epsilon")
    attacks = list(map(str, reading.coords.get("attack", ())))
    remark = f"the lowest of {len(attacks)} attacks: {', '.join(attacks)}" if len(attacks) > 1 else "".join(attacks)
    for (probe, epsilon), row in worst.items():
        label = ", ".join(part for part in (probe, texts.get(epsilon, "")) if part)
        trace = Trace(
            "robust", label, "epsilon", reading.unit, order=radii.index(epsilon), source=source, remark=remark
        )
        yield trace, row["value"], row["low"], row["high"]


def _format_coords(reading: Reading, dim: str) -> dict[Any, str]:
    """Return a text for each coordinate of `dim`, different for each: `r = 0.1`, `eps = 8/255`, `20 directions`."""
    form = {"radius": "r = {}", "epsilon": "eps = {}", "directions": "{} directions"}.get(
        dim, f"{dim.replace('_', ' ')} {{}}"
    )
    values = reading.coords.get(dim, ())
    texts = [_format_number(dim, value) for value in values]
    texts = texts if len(set(texts)) == len(texts) else list(map(str, values))
    return {value: form.format(text) for value, text in zip(values, texts, strict=True)}


def _format_number(dim: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return format_epsilon(value) if dim == "epsilon" else f"{value:g}"


def _plain_traces(source: str, reading: Reading, rows: list[dict[str, Any]]) -> Iterator[TraceRow]:
    layers = list(reading.coords.get("layer", ()))
    drawn = ["total"] if "total" in layers else layers[:MAX_LAYERS]
    remark = f"the first {MAX_LAYERS} of {len(layers)} layers" if len(layers) > MAX_LAYERS else ""
    remark = "all layers in total" if "total" in layers else remark
    panel = reading.measure if reading.measure in ("accuracy", "loss") else _make_panel_key(reading.measure)
    others = [dim for dim in reading.dims if dim not in ("probe_set", "layer")]
    texts = {dim: _format_coords(reading, dim) for dim in others}
    is_selected = math.prod(len(reading.coords[dim]) for dim in others) > MAX_LABELLED
    for row in rows:
        layer, probe = row.get("layer", ""), row.get("probe_set", "")
        if layers and layer not in drawn:
            continue
        setting = ", ".join(texts[dim][row[dim]] for dim in others)
        choice, setting = (setting, "") if is_selected else ("", setting)
        if len(drawn) > 1:  # one curve per layer, of the probe set that is selected
            parts, role, order = [layer, setting], "layer", layers.index(layer)
        else:
            parts = [_make_probe_label(probe, panel), "" if layer == "total" else layer, setting]
            role, order = (probe, _get_probe_order(probe)) if probe else ("rate", 0)
        label = ", ".join(part for part in parts if part) or reading.measure.replace("_", " ")
        selected_probe = probe if role == "layer" else ""
        trace = Trace(panel, label, role, reading.unit, choice, selected_probe, order, source, remark)
        yield trace, row["value"], row["low"], row["high"]


def _make_probe_label(probe: str, panel: str) -> str:
    """Return the label of a probe set, as in `test probes` if the chart also shows metrics of whole splits."""
    return f"{probe} probes" if probe and panel in ("accuracy", "loss") else probe


def _get_probe_order(probe: str) -> int:
    return {"train": 1, "test": 2, "random": 3}.get(probe, 3)


def describe_panels(traces: Mapping[Trace, Any]) -> list[dict[str, str]]:
    """Return the charts for these traces as JSON values: those of `PANELS`, then the others, signals first, by name."""
    known = {panel.key for panel in PANELS}
    rest = sorted({trace.panel for trace in traces} - known, key=lambda key: (key not in SIGNAL_PANELS, key))
    extra = [Panel(key, _make_title(key), "linear", "") for key in rest]
    return [panel._asdict() for panel in (*PANELS, *extra)]


def _make_title(key: str) -> str:
    if key in SIGNAL_PANELS:
        return "Policy's signal" if key == SIGNAL_PANELS[0] else "Slope of the policy's signal"
    return key.replace("_", " ").capitalize()
