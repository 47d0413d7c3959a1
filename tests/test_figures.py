"""What is drawn is what the table says: data read back from the lines, labels with units, nothing left behind."""

import functools
import os
import subprocess
import sys
from itertools import pairwise

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from grokkit import figures
from grokkit.errors import UsageError
from grokkit.figures.styles import wrap_label
from grokkit.figures.theme import PROBE_COLOURS, save_figure
from grokkit.names import TABLE_COLUMNS, FigureData

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
LAYERS = ["relu1", "relu2", "relu3"]
RUN = "demo/constant-s0-ab12cd34"


def _complexity_rows(step: int, phase: float, wave: float) -> list[dict]:
    rows = []
    for name, lift in (("train", 1.0), ("test", 0.8), ("random", 0.4)):
        for radius in (0.005, 0.05, 0.5):
            counts = [radius * 40 * (2 + lift * wave + 0.3 * layer) * (1 + 0.2 * phase) for layer in range(3)]
            common = {"measure": "local_complexity", "probe_set": name, "radius": radius, "step": step}
            common |= {"unit": "units per point (normalised input space)", "n": 64}
            rows += [{**common, "layer": n, "value": c} for n, c in zip(LAYERS, counts, strict=True)]
            total = sum(counts)
            rows.append({**common, "layer": "total", "value": total, "low": 0.95 * total, "high": 1.05 * total})
    return rows


def _ratio_rows(rows: list[dict]) -> list[dict]:
    totals = {(row["probe_set"], row["radius"]): row["value"] for row in rows if row["layer"] == "total"}
    return [
        {
            "measure": "local_complexity_ratio",
            "probe_set": name,
            "layer": "total",
            "radius": radius,
            "unit": "1",
            "step": rows[0]["step"],
            "value": value / totals["random", radius],
            "low": 0.5,
            "high": 3.0,
        }
        for (name, radius), value in totals.items()
        if name != "random"
    ]


RADII = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
KAPPAS = {5: 0.15, 10: 0.2, 20: 0.25}


def calibration_rows(step: int, bend: float = 0.5, half: float = 0.02) -> list[dict]:
    """LC = 40 r up to the radius `bend`, and constant beyond; slopes with intervals of this half-width."""
    rows = []
    common = {"probe_set": "train", "step": step, "n": 64, "measure_id": "calibration-1a2b3c4d"}
    for number, kappa in KAPPAS.items():
        rows.append({**common, "measure": "calibration_kappa", "directions": number, "value": kappa, "unit": "1"})
        counts = [160 * kappa * min(radius, bend) for radius in RADII]
        for radius, count in zip(RADII, counts, strict=True):
            row = {**common, "measure": "calibration", "directions": number, "radius": radius, "value": count}
            unit = "units per point (normalised input space)"
            rows.append({**row, "low": 0.9 * count, "high": 1.1 * count, "unit": unit})
    at = {**common, "directions": 10, "unit": "1"}
    for below, above in pairwise(RADII):
        slope = np.log(min(above, bend) / min(below, bend)) / np.log(above / below)
        bounds = {"value": slope, "low": slope - half, "high": slope + half}
        rows.append({**at, "measure": "calibration_slope", "radius": above, **bounds})
        rows.append({**at, "measure": "calibration_vertex", "radius": above, "value": 0.99, "low": 0.98, "high": 1.0})
    return rows


def speed_rows() -> list[dict]:
    """What `grokkit bench throughput` measures, on a machine whose step takes 10 ms and 0.1 ms an image, whose resident
    batches cost next to nothing, and whose DataLoader makes 2,000 images/s beside the step."""
    rows = [
        {"measure": "ceiling_flop_per_s", "value": 1e10, "n": 0, "unit": "FLOP/s"},
        {"measure": "training_flop_per_image", "value": 5e5, "n": 0, "unit": "FLOP"},
    ]
    for size in (2, 16, 64, 256, 1024):
        step = 0.010 + 1e-4 * size
        rows.append({"measure": "step_images_per_s", "value": size / step, "n": size, "unit": "images/s"})
        if size == 2:
            continue
        for source, made in (("resident", 1e-6 * size), ("DataLoader", size / 2000)):
            loop = step + made if source == "resident" else max(step, made)
            for measure, seconds in (("loop_images_per_s", loop), ("input_images_per_s", made)):
                rows.append({"measure": measure, "value": size / seconds, "n": size, "probe_set": source})
    return [{"step": 0, **row} for row in rows]


def range_rows() -> list[dict]:
    """What `grokkit lr-find` measures: a loss that falls from 2.3, is lowest at a rate of 0.1 and explodes beyond."""
    rows, rates = [], np.geomspace(1e-5, 1.0, 40)
    losses = 2.3 - 1.5 / (1 + (0.01 / rates) ** 2) + rates**4 * 100
    common = {"probe_set": "batch", "measure_id": "log"}
    series = {"rate": rates, "loss": losses, "centre": rates, "smoothed": losses}
    for name, values in series.items():
        unit = "nats" if name in ("loss", "smoothed") else "1"
        each = {**common, "measure": f"range_test_{name}", "unit": unit}
        rows += [{**each, "step": step, "value": value} for step, value in enumerate(values, start=1)]
    marks = {"steepest": 0.005, "minimum": 0.1, "suggestion": 0.01, "diverged_at": 1.0}
    for name, value in marks.items():
        rows.append({**common, "measure": f"range_test_{name}", "step": 40, "value": value, "unit": "1"})
    return rows


def _run_rows(run: str, seed: int) -> list[dict]:
    rng = np.random.default_rng([seed, len(run)])
    phase, rows = 0.3 * rng.normal(), []
    for step in STEPS:
        t = np.log1p(step) + phase
        fit, late = 1 / (1 + np.exp(3 - t)), 1 / (1 + np.exp(2 * (7 - t)))
        for name, value in (("train", 0.1 + 0.9 * fit), ("test", 0.1 + 0.82 * fit)):
            rows.append({"measure": "accuracy", "probe_set": name, "step": step, "value": value})
        rows.append({"measure": "accuracy", "probe_set": "batch", "step": step, "value": fit, "measure_id": "log"})
        for attack, gain in (("pgd-cross_entropy", 0.6), ("pgd-margin", 0.52)):
            common = {"measure": "robust_accuracy", "probe_set": "test", "step": step, "attack": attack}
            rows.append({**common, "epsilon": 8 / 255, "value": 0.02 + gain * late})
        complexity = _complexity_rows(step, phase, np.exp(-((t - 5) ** 2) / 3) - 0.25 * late + 0.4 * np.exp(-t))
        rows += [*complexity, *_ratio_rows(complexity)]
        rows.append({"measure": "weight_norm", "layer": "total", "step": step, "value": 40 - 2 * t, "unit": "L2 norm"})
        rows.append({"measure": "weight_norm", "layer": "net.weight", "step": step, "value": 3.0, "unit": "L2 norm"})
        rows.append({"measure": "logit_scale", "probe_set": "test", "step": step, "value": 1 + t, "unit": "logits"})
    rows += [row for step, bend in ((0, 1.0), (64, 0.5), (8192, 1.0)) for row in calibration_rows(step, bend)]
    rows += speed_rows() + range_rows()
    for step in range(0, 8192, 128):
        signal = 4 + np.exp(-((step - 2500) ** 2) / 4e6) + 0.01 * rng.normal()
        rate = 1e-3 * (1 if step < 6000 else 1 - np.sqrt((step - 6000) / 2200))
        common = {"step": step, "measure_id": "log"}
        rows.append({**common, "measure": "learning_rate", "probe_set": "batch", "value": rate, "unit": "1"})
        unit = "log(crossings / radius / live unit)"
        rows.append({**common, "measure": "log_density", "probe_set": "signal", "value": signal, "unit": unit})
        rows.append({**common, "measure": "log_density_se", "probe_set": "signal", "value": 0.05})
    return [{"run": run, "seed": seed, **row} for row in rows]


def _attributions() -> dict[str, np.ndarray]:
    rng, steps = np.random.default_rng(0), np.array(STEPS)
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    blob, arrays = np.exp(-4 * (x**2 + y**2)), {}
    images = (255 * np.stack([blob, blob.T * 0.5, 1 - blob])).astype(np.uint8)[..., None]
    for method in ("saliency", "integrated_gradients"):
        noise = rng.normal(size=(len(steps), 3, 1, 16, 16))
        values = 0.3 * noise + (np.log1p(steps)[:, None, None, None, None] / 4) * blob * np.sign(x)
        arrays[f"attributions/{method}/values"] = np.abs(values) if method == "saliency" else values
        arrays[f"attributions/{method}/steps"] = steps
        arrays[f"attributions/{method}/labels"] = np.array([7, 2, 1])
        arrays[f"attributions/{method}/images"] = images
    return arrays


def synthetic(runs: tuple[str, ...] = (RUN,)) -> FigureData:
    """Made-up runs with all that any figure of the package draws."""
    rows = [row for run in runs for row in _run_rows(run, int(run.split("-s")[1][0]))]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    text = ["run", "probe_set", "layer", "measure", "measure_id", "attack", "unit"]
    table[text] = table[text].fillna("")
    peaked = (
        "log_density peaked: it rose from 4.02 to 5.01 and was below that by more than 0.15 at the last 3 of 47 probes"
    )
    events = [
        {"run": run, "seed": 0, "step": step + 100 * i, "kind": kind, "text": text}
        for i, run in enumerate(runs)
        for step, kind, text in (
            (82, "policy", "warmup over after 82 updates, the rate is held"),
            (
                6000,
                "policy",
                f"{peaked} (now 4.2, standard error 0.05); decay starts 0 updates after the peak; it takes 2200",
            ),
            (7000, "differs", "an incident that no policy took"),
        )
    ]
    return FigureData(table, _attributions(), pd.DataFrame(events))


SEEDS = tuple(f"demo/constant-s{seed}-ab12cd3{seed}" for seed in range(3))
PAIR = (RUN, "demo/decay_at_peak-s0-ef12cd34")
BOTH = (*SEEDS, *(f"demo/decay_at_peak-s{seed}-ef12cd3{seed}" for seed in range(3)))


@functools.cache
def drawn(name: str, runs: tuple[str, ...] = (RUN,), **options) -> Figure:
    """A figure that tests only look at."""
    return figures.create(name, synthetic(runs), **options)


def _without(data: FigureData, measure: str) -> FigureData:
    return FigureData(data.table[data.table["measure"] != measure], data.arrays, data.events)


def _values(data: FigureData, **equal) -> pd.Series:
    rows = data.table
    for column, value in equal.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("step").set_index("step")["value"]


def _line(axes, expected, **style):
    """The line in `axes` whose values are `expected`."""
    found = [line for line in axes.lines if np.array_equal(line.get_ydata(), np.asarray(expected))]
    assert len(found) == 1, f"{len(found)} lines have these values"
    for name, value in style.items():
        assert getattr(found[0], f"get_{name}")() == value
    return found[0]


def test_phases_draws_accuracy_and_complexity_of_each_probe_set_as_in_the_table():
    data = synthetic()
    panels = drawn("phases").axes
    for name in ("train", "test"):
        line = _line(panels[0], _values(data, measure="accuracy", probe_set=name), color=PROBE_COLOURS[name])
        assert list(line.get_xdata()) == STEPS
    for name in ("train", "test", "random"):
        own = _values(data, measure="local_complexity", probe_set=name, layer="total", radius=0.05)
        _line(panels[1], own, color=PROBE_COLOURS[name])
    _line(panels[2], _values(data, measure="weight_norm", layer="total"))
    _line(panels[3], _values(data, measure="logit_scale"))


def test_phases_bands_are_the_intervals_of_a_single_run():
    data = synthetic()
    own = _values(data, measure="local_complexity", probe_set="train", layer="total", radius=0.05)
    band = drawn("phases").axes[1].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.95 * own.min()) and band[:, 1].max() == pytest.approx(1.05 * own.max())


def test_phases_draws_the_lowest_attack_strong_and_each_attack_thin():
    data = synthetic()
    axes = drawn("phases").axes[0]
    strong = [line for line in axes.lines if line.get_marker() == "o"]
    margin = _values(data, measure="robust_accuracy", attack="pgd-margin")
    cross = _values(data, measure="robust_accuracy", attack="pgd-cross_entropy")
    assert len(strong) == 1
    np.testing.assert_array_equal(strong[0].get_ydata(), np.minimum(margin, cross))
    thin = [line for line in axes.lines if line.get_linewidth() == 0.5]
    assert sorted(line.get_ydata()[-1] for line in thin) == sorted([margin.iloc[-1], cross.iloc[-1]])


def test_phases_draws_seeds_as_mean_and_range_and_groups_by_colour():
    data = synthetic(BOTH)
    figure = drawn("phases", BOTH)
    rows = data.table[(data.table["measure"] == "accuracy") & (data.table["probe_set"] == "test")]
    colours = []
    for variant in ("demo/constant", "demo/decay_at_peak"):
        by_step = rows[rows["run"].str.startswith(variant)].groupby("step")["value"]
        expected = by_step.mean().to_numpy()
        found = [x for x in figure.axes[0].lines if len(x.get_ydata()) and np.allclose(x.get_ydata(), expected)]
        assert len(found) == 1
        colours.append(found[0].get_color())
        low = [c.get_paths()[0].vertices[:, 1].min() for c in figure.axes[0].collections]
        assert np.isclose(low, by_step.min().min()).any()
    assert colours[0] != colours[1]
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"train", "test", "random", "demo/constant", "demo/decay_at_peak"} <= set(words)


def test_seeds_are_averaged_only_where_all_of_them_were_measured():
    data = synthetic(SEEDS)
    short = data.table[~((data.table["run"] == SEEDS[1]) & (data.table["step"] > 64))]
    line = figures.create("phases", FigureData(short, {}, data.events)).axes[0].lines[0]
    assert line.get_xdata().max() == 64


def test_complexity_without_a_total_is_the_sum_over_layers():
    data = synthetic()
    table = data.table[~((data.table["measure"] == "local_complexity") & (data.table["layer"] == "total"))]
    own = _values(data, measure="local_complexity", probe_set="test", layer="total", radius=0.05)
    lines = figures.create("phases", FigureData(table, {}, data.events)).axes[1].lines
    assert any(np.allclose(line.get_ydata(), own) for line in lines)


def test_long_labels_are_broken_after_a_slash_or_a_space_never_within_a_word():
    assert wrap_label("cifar10_small/no_batchnorm") == "cifar10_small/\nno_batchnorm"
    assert wrap_label("a/b (optimizer.lr=0.1, steps=20)") == "a/b (optimizer.lr=0.1,\nsteps=20)"
    assert wrap_label("a/b") == "a/b" and wrap_label("a/$x$") == r"a/\$x\$"


def test_paired_draws_tables_whose_layers_have_no_total():
    data = synthetic(BOTH)
    table = data.table[~((data.table["measure"] == "local_complexity") & (data.table["layer"] == "total"))]
    alone = figures.create("paired", FigureData(table, {}, data.events))
    for ours, other in zip(alone.axes, drawn("paired", BOTH).axes, strict=True):
        for line, wanted in zip(ours.lines, other.lines, strict=True):
            np.testing.assert_allclose(line.get_ydata(), wanted.get_ydata())


def test_the_radius_is_an_option_and_a_wrong_one_names_the_known():
    data = synthetic()
    own = _values(data, measure="local_complexity", probe_set="test", layer="total", radius=0.5)
    _line(figures.create("phases", data, radius=0.5).axes[1], own)
    with pytest.raises(UsageError, match=r"`radius` must be one of 0.005, 0.05, 0.5; got 0.1"):
        figures.create("phases", data, radius=0.1)


def test_step_zero_stands_at_the_left_edge_of_the_log_axis():
    axes = drawn("phases").axes[3]
    assert axes.get_xlim()[0] < 0 and "0" in [text.get_text() for text in axes.get_xticklabels()]
    at = axes.transData.transform([(0, 1), (1, 1), (10, 1), (100, 1)])[:, 0]
    assert at[1] > at[0] and at[2] - at[1] == pytest.approx(at[3] - at[2])


@pytest.mark.parametrize(
    ("figure", "measure", "way"),
    [
        ("phases", "local_complexity", "grokkit lc RUN"),
        ("phases", "accuracy", "replay_run"),
        ("layers", "local_complexity", "grokkit lc RUN"),
        ("policy", "learning_rate", "grokkit train"),
    ],
)
def test_a_missing_measure_is_named_with_the_command_that_adds_it(figure, measure, way):
    with pytest.raises(UsageError, match=f"no {measure}.*{way}"):
        figures.create(figure, _without(synthetic(), measure))


def test_phases_leaves_out_what_was_never_taken():
    assert len(figures.create("phases", _without(synthetic(), "robust_accuracy")).axes[0].lines) == 2
    labels = [axes.get_ylabel() for axes in figures.create("phases", _without(synthetic(), "weight_norm")).axes]
    assert labels == ["accuracy\n(share of images)", "local complexity\n(units per point)", "logit scale\n(logits)"]


def test_of_two_recordings_the_longer_is_drawn_and_said_so():
    data = synthetic()
    shorter = data.table[data.table.step < 100].assign(measure_id="other", value=-1.0)
    with pytest.warns(UserWarning, match="recorded with several settings"):
        both = figures.create("phases", FigureData(pd.concat([shorter, data.table]), {}, data.events))
    alone = figures.create("phases", data)
    for ours, other in zip(both.axes, alone.axes, strict=True):
        assert [line.get_ydata().tolist() for line in ours.lines] == [line.get_ydata().tolist() for line in other.lines]


def test_one_recording_given_twice_is_refused():
    data = synthetic()
    with pytest.raises(UsageError, match="has accuracy at step 0 twice under one measure_id: the run and a table"):
        figures.create("phases", FigureData(pd.concat([data.table, data.table]), {}, data.events))


def test_layers_draws_each_layer_of_each_probe_set_in_its_own_colour():
    data = synthetic()
    panels = drawn("layers").axes
    for name, axes in zip(("train", "test", "random"), panels, strict=False):
        assert axes.get_title(loc="left") == f"{name} points"
        own = [_values(data, measure="local_complexity", probe_set=name, layer=n, radius=0.05) for n in LAYERS]
        colours = [tuple(_line(axes, values).get_color()) for values in own]
        assert len(set(colours)) == 3
    assert [text.get_text() for text in panels[-1].get_yticklabels()] == LAYERS


def test_layers_refuses_a_table_of_totals_only():
    data = synthetic()
    table = data.table[(data.table["measure"] != "local_complexity") | (data.table["layer"] == "total")]
    with pytest.raises(UsageError, match="no layers of local_complexity"):
        figures.create("layers", FigureData(table, {}, data.events))
    with pytest.raises(UsageError, match="`scale`"):
        figures.create("layers", data, scale="cubic")


def test_attributions_share_one_scale_per_row_symmetric_where_signed():
    data = synthetic()
    figure = figures.create("attributions", data, image=1)
    maps = [axes.images[0] for axes in figure.axes if axes.images]
    signed, unsigned = maps[1:9], maps[10:18]
    for row, method in ((signed, "integrated_gradients"), (unsigned, "saliency")):
        assert len({image.get_clim() for image in row}) == 1
        values = data.arrays[f"attributions/{method}/values"]
        np.testing.assert_array_equal(row[0].get_array(), values[0, 1, 0])
        np.testing.assert_array_equal(row[-1].get_array(), values[-1, 1, 0])
    low, high = signed[0].get_clim()
    assert low == -high and unsigned[0].get_clim()[0] == 0
    np.testing.assert_allclose(maps[0].get_array() * 255, data.arrays["attributions/saliency/images"][1, ..., 0])


def test_attributions_show_at_most_eight_snapshots_with_the_first_and_the_last():
    figure = drawn("attributions")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:2] == ["image 0", "step 0"] and titles[-1] == "8,192" and 6 <= len(titles) - 1 <= 8
    assert "class 7" in figure.get_suptitle()


def test_attributions_name_what_there_is_not():
    with pytest.raises(UsageError, match=r"`image` must be an int in 0..2, the explained images; got 3"):
        figures.create("attributions", synthetic(), image=3)


def test_attributions_say_how_to_add_them():
    data = synthetic()
    with pytest.raises(UsageError, match="grokkit attribute RUN"):
        figures.create("attributions", FigureData(data.table, {}, data.events))


def test_policy_draws_rates_signal_and_numbered_decisions_with_their_reasons():
    data = synthetic()
    figure = drawn("policy")
    rate, signal = figure.axes
    _line(rate, _values(data, measure="learning_rate"))
    _line(signal, _values(data, measure="log_density"))
    marks = [line.get_xdata()[0] for line in rate.lines if list(line.get_ydata()) == [0, 1]]
    assert marks == [82, 6000] and [text.get_text() for text in rate.texts] == ["1", "2"]
    listed = figure.texts[0].get_text()
    assert listed.startswith("1  step 82: warmup over") and "2  step 6,000: log_density peaked" in listed
    assert "incident" not in listed


def test_policy_draws_a_slope_between_the_ends_of_its_interval_with_a_line_at_0():
    data = synthetic()
    level = data.table[data.table["measure"] == "log_density"]
    ends = {"": -1.0, "_low": -1.5, "_high": 0.25}
    rows = [level.assign(measure=f"log_density_slope{end}", value=value) for end, value in ends.items()]
    rows[1].loc[rows[1].index[:3], "value"] = -1e6  # the first intervals, of two readings
    rows[2].loc[rows[2].index[:3], "value"] = np.nan
    figure = figures.create("policy", FigureData(pd.concat([data.table, *rows]), {}, data.events))
    _, _, slope = figure.axes
    assert [line for line in slope.lines if list(line.get_ydata()) == [0, 0]], "the line at 0"
    (band,) = slope.collections
    below, above = band.get_paths()[-1].vertices[:, 1].min(), band.get_paths()[-1].vertices[:, 1].max()
    assert (below, above) == (-1.5, 0.25) and slope.get_ylim()[0] >= -3


def test_policy_takes_rows_whose_measure_is_signal():
    data = synthetic()
    table = data.table.replace({"measure": {"log_density": "signal"}, "probe_set": {"signal": ""}})
    signal = figures.create("policy", FigureData(table, {}, data.events)).axes[1]
    assert _line(signal, _values(data, measure="log_density")) in signal.lines


def test_policy_without_a_signal_or_decisions_is_one_panel():
    data = synthetic()
    table = data.table[data.table["probe_set"] != "signal"]
    figure = figures.create("policy", FigureData(table, {}, pd.DataFrame(columns=["run", "step", "kind", "text"])))
    assert len(figure.axes) == 1 and not figure.texts


def test_policy_draws_every_run():
    figure = drawn("policy", BOTH)
    assert sum(len(line.get_xdata()) > 2 for line in figure.axes[0].lines) == len(BOTH)


def test_paired_draws_both_groups_each_pair_and_their_mean_ratio():
    data = synthetic(BOTH)
    figure = drawn("paired", BOTH)
    for column, name in enumerate(("train", "test", "random")):
        above, below = figure.axes[column], figure.axes[3 + column]
        assert above.get_title(loc="left") == f"{name} points"
        rows = data.table.query("measure == 'local_complexity' and layer == 'total' and radius == 0.05")
        wide = rows[rows.probe_set == name].pivot_table(index="step", columns="run", values="value")
        first, second = wide[list(SEEDS)], wide[[run for run in BOTH if run not in SEEDS]]
        _line(above, first.mean(axis=1)), _line(above, second.mean(axis=1))
        ratios = second.to_numpy() / first.to_numpy()
        for pair in ratios.T:
            assert any(
                np.allclose(line.get_ydata(), pair) for line in below.lines if len(line.get_ydata()) == len(STEPS)
            )
        (mean,) = [line for line in below.lines if line.get_linewidth() == pytest.approx(1.2)]
        np.testing.assert_allclose(mean.get_ydata(), np.exp(np.log(ratios).mean(axis=1)))


def test_paired_asks_for_two_groups_with_a_seed_in_common():
    with pytest.raises(UsageError, match=r"draws two groups.*got 1: demo/constant"):
        figures.create("paired", synthetic())
    strangers = synthetic((RUN, "demo/decay_at_peak-s7-ef12cd34"))
    with pytest.raises(UsageError, match="share no seed and step; pair them: grokkit train --seed"):
        figures.create("paired", strangers)


def test_migration_draws_complexity_against_noise_with_a_line_at_one():
    data = synthetic()
    axes = drawn("migration").axes[0]
    own = _values(data, measure="local_complexity_ratio", probe_set="test", radius=0.05)
    lc = [
        _values(data, measure="local_complexity", layer="total", radius=0.05, probe_set=n) for n in ("test", "random")
    ]
    np.testing.assert_allclose(_line(axes, own).get_ydata(), lc[0].to_numpy() / lc[1].to_numpy())
    assert list(axes.lines[0].get_ydata()) == [1, 1]
    with pytest.raises(UsageError, match="grokkit lc RUN`, if the run has random points"):
        figures.create("migration", _without(data, "local_complexity_ratio"))


def test_calibration_draws_density_slopes_and_growth_of_each_snapshot():
    density, slopes, growth = drawn("calibration").axes
    flat = [line for line in density.lines if line.get_linewidth() == pytest.approx(2.2)]
    assert [line.get_xdata().max() for line in flat] == [1.0, 0.5, 1.0], "the planted ends of the linear ranges"
    assert all(np.allclose(line.get_ydata(), 160 * 0.2) for line in flat)
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in density.lines), "the recommended radius"
    crosses = next(line for line in density.lines if line.get_marker() == "x")
    assert np.allclose(crosses.get_ydata()[1:6], 0.99 * 160 * 0.2)
    ends = [container.lines[0].get_ydata()[-1] for container in slopes.containers]
    assert ends == pytest.approx([0, 0, 0], abs=1e-9)
    over = [line for line in growth.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(over) == 3 and all(np.allclose(line.get_ydata(), 1) for line in over), (
        "kappa explains the planted growth"
    )


def test_of_two_calibrations_of_a_run_the_longer_is_drawn_and_said_so():
    data = synthetic()
    rows = data.table[data.table.measure.str.startswith("calibration") & (data.table.step == 0)]
    shorter = rows.assign(measure_id="calibration-other", value=7.0)
    with pytest.warns(UserWarning, match="recorded with several settings; drawing calibration-1a2b3c4d"):
        both = figures.create("calibration", FigureData(pd.concat([shorter, data.table]), {}, data.events))
    lines = [[list(line.get_ydata()) for line in figure.axes[1].lines] for figure in (both, drawn("calibration"))]
    assert lines[0] == lines[1]


def test_no_text_overlaps_another_in_the_legends_and_titles():
    for name in ("phases", "policy", "layers", "paired"):
        figure = drawn(name, BOTH)
        boxes = [legend.get_window_extent() for legend in figure.legends]
        boxes += [axes.get_tightbbox() for axes in figure.axes if axes.get_label() != "<colorbar>"]
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                width = min(one.x1, other.x1) - max(one.x0, other.x0)
                height = min(one.y1, other.y1) - max(one.y0, other.y0)
                assert width < 2 or height < 2, name


def test_save_writes_pdf_and_png_with_true_type_fonts(tmp_path):
    figure = drawn("policy")
    paths = save_figure(figure, tmp_path / "new" / "policy-r0.05")
    assert [path.name for path in paths] == ["policy-r0.05.pdf", "policy-r0.05.png"]
    pdf = paths[0].read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf
    assert mpl.image.imread(paths[1]).shape[1] == pytest.approx(300 * figure.get_size_inches()[0], abs=1)


def test_the_same_figure_saves_to_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import runpy, sys; from grokkit import figures; from grokkit.figures.theme import save_figure;"
        "synthetic = runpy.run_path(sys.argv[1])['synthetic'];"
        "save_figure(figures.create('phases', synthetic()), sys.argv[2])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, __file__, str(tmp_path / "there")], check=True, env=environment)
    here = save_figure(drawn("phases"), tmp_path / "here")
    assert [p.read_bytes() for p in here] == [(tmp_path / f"there{p.suffix}").read_bytes() for p in here]


def test_settings_of_the_caller_do_not_change_what_is_drawn():
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9}):
        line = figures.create("policy", synthetic()).axes[0].lines[0]
        assert mpl.rcParams["font.size"] == 30
    assert line.get_linewidth() == 1


@pytest.mark.parametrize("name", ["phases", "layers", "policy", "migration", "calibration"])
def test_a_run_that_has_only_begun_can_be_drawn(name):
    data = synthetic()
    begun = FigureData(data.table[data.table["step"] == 0], {}, data.events[data.events["step"] < 0])
    assert figures.create(name, begun).axes
