"""What commands print and figures draw is what is stored, read here by loops of our own: on a run, on a sweep of
different configurations with two seeds each, and on a recorded run. A new command or figure has to be added here."""

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import grokkit as gk
from grokkit import figures
from grokkit.analysis.tables import figure_data
from grokkit.cli import COMMANDS, main
from grokkit.errors import UsageError
from grokkit.trajectory import Run, documents, find_runs, log
from tests.runs import SMALL

MEASURES = tuple(each for each in SMALL.measures if each.name != "local_complexity")
RADII = (0.5, 2.0)  # with crossings at every step
COMPLEXITY = gk.spec("local_complexity", radii=RADII, directions=4, points=8)
CALIBRATION = gk.spec("calibration", radii=(0.05, 0.1, 0.5), directions=(2, 4), points=8)


class Value(NamedTuple):
    """One stored number with its labels."""

    run: str
    step: int
    measure: str
    probe_set: str
    layer: str
    radius: float | None
    directions: float | None
    epsilon: float | None
    attack: str
    value: float


def stored(run: Run) -> list[Value]:
    """Every number of the run's readings and metrics."""
    found = []
    for identity, steps in run.measures().items():
        for step in steps:
            reading = run.reading(identity, step)
            for place in np.ndindex(reading.values.shape):
                at = {dim: reading.coords[dim][i] for dim, i in zip(reading.dims, place, strict=True)}
                found.append(_value(run, step, reading.measure, at, float(reading.values[place])))
    for row in logged(run):
        found.append(_value(run, row["step"], row["metric"], {"probe_set": row["split"]}, row["value"]))
    return found


def logged(run: Run) -> list[dict]:
    return list(log.read_log(run.path / "metrics.jsonl", documents.parse_metric))


def _value(run: Run, step: int, measure: str, at: dict, value: float) -> Value:
    numbers = (at.get(name) for name in ("radius", "directions", "epsilon"))
    return Value(
        run.name, step, measure, at.get("probe_set", ""), at.get("layer", ""), *numbers, at.get("attack", ""), value
    )


def series(values: Iterable[Value], **labels: object) -> dict[str, dict[int, float]]:
    """Run -> step -> value of the numbers with these labels; no step may occur twice."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for each in values:
        if all(getattr(each, name) == label for name, label in labels.items()):
            assert each.step not in found[each.run], f"{labels} do not name one number"
            found[each.run][each.step] = each.value
    return found


def grouped(runs: list[Run]) -> list[list[str]]:
    """Names of the runs that differ only in their seed."""
    groups: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        config = {**run.config, "seed": None}
        groups[json.dumps(config, sort_keys=True, default=str)].append(run.name)
    return list(groups.values())


def mean(curves: dict[str, dict[int, float]], runs: list[str]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Mean over the runs at the steps that all have."""
    steps = sorted(set.intersection(*(set(curves[run]) for run in runs)))
    return tuple(steps), tuple(float(np.mean([curves[run][step] for run in runs])) for step in steps)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> list[Run]:
    """Two learning rates under one name, two seeds each."""
    runs = tmp_path_factory.mktemp("sweep")
    made = []
    for rate in (0.3, 0.001):
        for seed in (0, 1):
            changes = {"optimizer": gk.spec("sgd", lr=rate), "policy": gk.spec("constant")}
            config = SMALL.replace(seed=seed, measures=(*MEASURES, COMPLEXITY), **changes)
            made.append(gk.train(config, runs=runs))
            gk.replay_run(made[-1], [CALIBRATION])
    return made


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> list[Run]:
    """One run with a policy that listens."""
    run = gk.train(SMALL.replace(measures=(*MEASURES, COMPLEXITY)), runs=tmp_path_factory.mktemp("single"))
    gk.replay_run(run, [CALIBRATION])
    return [run]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[Run]:
    """A loop of one's own, whose length the recorder is not told."""
    torch.manual_seed(0)
    data = gk.load_data("digits", size=8, train=120, test=60)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10))
    model = gk.Classifier(gk.Normalise(data.mean, data.std), net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path_factory.mktemp("recorded") / "loops" / "mine"
    measures = [*MEASURES, COMPLEXITY, CALIBRATION]
    probes = gk.probe_sets(data, train=20, test=20, random=10)
    x, y = torch.tensor(data.x_train) / 255, torch.tensor(data.y_train)
    with gk.record(
        path, model, optimizer, probes=probes, measures=measures, schedule=(1, 5, 20), attributions=SMALL.attributions
    ) as recorder:
        for step in range(1, 24):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            recorder.log(step, "batch", loss=loss.item(), learning_rate=0.1)
            recorder.step(step)
    return [gk.open_run(path)]


@pytest.fixture(params=["single", "sweep", "recorded"])
def runs(request) -> list[Run]:
    return request.getfixturevalue(request.param)


# ---- figures

Curve = tuple[tuple[float, ...], tuple[float, ...]]


class Drawn(NamedTuple):
    """Expected curves by group of runs; `coloured`: a group has a colour of its own if there are several."""

    curves: list[list[Curve]]
    coloured: bool = True


def by_group(runs: list[Run], *labels: dict) -> list[list[Curve]]:
    values = [each for run in runs for each in stored(run)]
    found = [series(values, **label) for label in labels]
    return [[mean(each, group) for each in found if each] for group in grouped(runs)]


def sets(*names: str, **labels: object) -> list[dict]:
    return [{"probe_set": name, **labels} for name in names]


def expect_phases(runs: list[Run]) -> Drawn:
    values = [each for run in runs for each in stored(run)]
    labels = [
        *sets("train", "test", measure="accuracy"),
        *sets("train", "test", "random", measure="local_complexity", radius=RADII[0], layer="total"),
        *sets("train", "test", "random", measure="logit_scale"),
    ]
    curves = by_group(runs, *labels)
    for group, found in zip(grouped(runs), curves, strict=True):
        attacks = sorted({each.attack for each in values if each.attack})
        attacked = [series(values, measure="robust_accuracy", attack=attack) for attack in attacks]
        lowest = {run: {s: min(a[run][s] for a in attacked) for s in attacked[0][run]} for run in group}
        found += [*(mean(each, group) for each in attacked), mean(lowest, group)]
        layers = sorted({each.layer for each in values if each.measure == "weight_norm"} - {"total"})
        norms = [series(values, measure="weight_norm", layer=layer) for layer in layers]
        total = {r: {s: math.sqrt(sum(n[r][s] ** 2 for n in norms)) for s in norms[0][r]} for r in group}
        found.append(mean(total, group))
    return Drawn(curves)


def expect_migration(runs: list[Run]) -> Drawn:
    values = [each for run in runs for each in stored(run)]
    at = {"measure": "local_complexity", "radius": RADII[0], "layer": "total"}
    noise = series(values, **at, probe_set="random")
    curves = []
    for group in grouped(runs):
        curves.append([])
        for name in ("train", "test"):
            data = series(values, **at, probe_set=name)
            ratio = {r: {s: data[r][s] / noise[r][s] for s in data[r] if noise[r][s]} for r in group}
            curves[-1].append(mean(ratio, group))
    return Drawn(curves)


def expect_layers(runs: list[Run]) -> Drawn:
    layers = dict.fromkeys(v.layer for v in stored(runs[0]) if v.measure == "local_complexity" and v.layer != "total")
    at = {"measure": "local_complexity", "radius": RADII[0]}
    return Drawn(
        by_group(runs, *(each for n in layers for each in sets("train", "test", "random", **at, layer=n))), False
    )


BOUNDS = ("_se", "_low", "_high")  # drawn as bands


def expect_policy(runs: list[Run]) -> Drawn:
    values = [each for run in runs for each in stored(run)]
    signals = {each.measure for each in values if each.probe_set == "signal" and not each.measure.endswith(BOUNDS)}
    labels = [{"measure": "learning_rate"}]
    labels += [{"measure": name, "probe_set": "signal"} for name in sorted(signals)]
    curves = []
    for group in grouped(runs):  # every run is a line
        curves.append(
            [mean(found, [run]) for label in labels for run in group if (found := series(values, **label))[run]]
        )
    return Drawn(curves)


def expect_paired(runs: list[Run]) -> Drawn:
    values = [each for run in runs for each in stored(run)]
    at = {"measure": "local_complexity", "radius": RADII[0], "layer": "total"}
    curves = by_group(runs, *sets("train", "test", "random", **at))
    under, over = sorted(grouped(runs), key=lambda group: _rate_of(runs, group[0]))
    ratios: list[Curve] = []
    for name in ("train", "test", "random"):
        found = series(values, **at, probe_set=name)
        seeds = [
            {s: found[o][s] / found[u][s] for s in found[o] if found[o][s] > 0 and found[u][s] > 0}
            for o, u in zip(sorted(over, key=_seed_of), sorted(under, key=_seed_of), strict=True)
        ]
        # drawn: a pair's ratio at every step at which its denominator is not 0, the mean at those with a ratio above 0
        steps = sorted(set().union(*seeds))
        logs = {s: [math.log(pair[s]) for pair in seeds if s in pair] for s in steps}
        ratios.append((tuple(steps), tuple(math.exp(np.mean(logs[s])) for s in steps)))
    return Drawn([*curves, ratios], False)


def _rate_of(runs: list[Run], name: str) -> float:
    return next(run.config["optimizer"]["lr"] for run in runs if run.name == name)


def _seed_of(name: str) -> str:
    return name.split("-s")[-1].split("-")[0]


def expect_calibration(runs: list[Run]) -> Drawn:
    """Density against radius at the upper middle number of directions, a line per snapshot of each run."""
    curves = []
    for run in runs:
        values = [each for each in stored(run) if each.measure == "calibration" and each.directions == 4]
        steps = sorted({each.step for each in values})
        curves.append([])
        for step in steps:
            found = sorted((each.radius, each.value) for each in values if each.step == step and each.value > 0)
            curves[-1].append((tuple(r for r, _ in found), tuple(v / r for r, v in found)))
    return Drawn(curves, False)


EXPECTED: dict[str, Callable[[list[Run]], Drawn]] = {
    "phases": expect_phases,
    "migration": expect_migration,
    "layers": expect_layers,
    "policy": expect_policy,
    "paired": expect_paired,
    "calibration": expect_calibration,
}
CHECKED_APART = {
    "attributions": "test_attribution_maps_are_those_stored",
    "policies": "test_policies_refuses_arms_of_several_configurations",
    "lr_range": "draws the table of `grokkit lr-find`: test_the_range_test_is_drawn_and_printed_as_measured",
    "throughput": "draws the table of `grokkit bench`: tests/test_throughput.py",
}


def test_every_figure_is_checked() -> None:
    assert {*EXPECTED, *CHECKED_APART} == {*figures.names()}


def lines_of(figure: Figure) -> list[tuple[Curve, str]]:
    """Data and colour of all curves: of whatever has a point per step, drawn in data coordinates."""
    found = []
    for axes in figure.axes:
        for line in axes.lines:
            x, y = (np.asarray(each, float) for each in line.get_data())
            if len(x) and line.get_transform() == axes.transData:
                found.append(((tuple(x), tuple(y)), to_hex(line.get_color())))
    return found


def is_same(a: Curve, b: Curve) -> bool:
    """Whether two curves have the same finite points; an infinite value leaves a gap."""
    (x, y), (u, v) = ([np.asarray(each, float) for each in curve] for curve in (a, b))
    known, wanted = np.isfinite(y), np.isfinite(v)
    return np.array_equal(x[known], u[wanted]) and np.allclose(y[known], v[wanted], rtol=1e-9, atol=1e-12)


def assert_same_lines(a: Figure, b: Figure) -> None:
    for (ours, colour), (theirs, other) in zip(lines_of(a), lines_of(b), strict=True):
        assert is_same(ours, theirs) and colour == other


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_draw_what_is_stored(name: str, runs: list[Run]) -> None:
    if name == "paired" and len(grouped(runs)) != 2:
        with pytest.raises(UsageError, match="draws two groups"):
            figures.create(name, figure_data(runs))
        return
    expected = EXPECTED[name](runs)
    lines = lines_of(figures.create(name, figure_data(runs)))
    colours = []
    for group in expected.curves:
        found = [[colour for curve, colour in lines if is_same(curve, wanted)] for wanted in group]
        assert all(found), f"{name} lacks {[wanted for wanted, each in zip(group, found, strict=True) if not each][:1]}"
        colours.append({colour for each in found for colour in each})
    if expected.coloured and len(expected.curves) > 1:
        unique = [mine - set().union(*(other for other in colours if other is not mine)) for mine in colours]
        assert all(unique), f"groups share colours: {colours}"
    known = [wanted for group in expected.curves for wanted in group]
    if name not in ("paired", "calibration"):  # these also draw pairs, slopes and ratios, which other tests check
        strangers = [curve for curve, _ in lines if not any(is_same(curve, wanted) for wanted in known)]
        assert not strangers, f"{name} draws what is not stored: {strangers[:1]}"


def test_groups_are_labelled_by_what_differs(sweep: list[Run]) -> None:
    table = gk.table(sweep)
    assert set(table["group"]) == {"small/default (optimizer.lr=0.3)", "small/default (optimizer.lr=0.001)"}
    legends = [
        text.get_text() for legend in figures.create("phases", figure_data(sweep)).legends for text in legend.texts
    ]
    assert [text for text in legends if text.startswith("optimizer")] == [
        "optimizer.lr=0.001",
        "optimizer.lr=0.3",
    ]  # by size


def test_a_written_table_draws_the_same_figure(sweep: list[Run], tmp_path: Path) -> None:
    assert main(["figure", "phases", *(str(run.path) for run in sweep), "--out", str(tmp_path)]) == 0
    again = figures.create("phases", figure_data(tmp_path / "table.csv"))
    assert_same_lines(again, figures.create("phases", figure_data(sweep)))


def test_a_table_of_an_older_version_is_never_averaged_over_configurations(sweep: list[Run]) -> None:
    data = figure_data(sweep)
    old = data.table.drop(columns=["group", "config"])
    lines = lines_of(figures.create("phases", gk.FigureData(old, {}, data.events)))
    values = [each for run in sweep for each in stored(run)]
    found = series(values, measure="accuracy", probe_set="test")
    for run in sweep:  # every run by itself: which seeds belong together is not known
        assert any(is_same(curve, mean(found, [run.name])) for curve, _ in lines)


def test_policies_refuses_arms_of_several_configurations(sweep: list[Run]) -> None:
    with pytest.raises(UsageError, match="those of default differ in more than their seed"):
        figures.create("policies", figure_data(sweep))
    lines = lines_of(figures.create("policies", figure_data(sweep[:2])))
    values = [each for run in sweep[:2] for each in stored(run)]
    wanted = mean(series(values, measure="accuracy", probe_set="test"), [run.name for run in sweep[:2]])
    assert any(is_same(curve, wanted) for curve, _ in lines)


def test_attribution_maps_are_those_stored(runs: list[Run]) -> None:
    figure = figures.create("attributions", figure_data(runs))
    pictures = [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]
    for identity, steps in runs[0].attributions().items():
        for step in steps:
            relevance = runs[0].attribution(identity, step)[0][0].sum(axis=0)
            assert any(each.shape == relevance.shape and np.allclose(each, relevance) for each in pictures)
    assert runs[0].name in figure.get_suptitle()


def test_curves_in_different_units_do_not_share_an_axis(single: list[Run], recorded: list[Run]) -> None:
    data = figure_data([*single, *recorded])
    mixed = data.table.assign(unit=data.table["unit"].where(data.table["run"] == single[0].name, "another unit"))
    with pytest.raises(UsageError, match=r"accuracy in different units.*Draw them separately"):
        figures.create("phases", gk.FigureData(mixed, {}, data.events))


def test_seeds_with_different_settings_are_matched_or_warned_of(sweep: list[Run]) -> None:
    data = figure_data(sweep[:2])
    complexity = data.table["measure"] == "local_complexity"
    more = data.table[complexity & (data.table["run"] == sweep[0].name)].assign(n=99, measure_id="longer", value=-1.0)
    both = gk.FigureData(pd.concat([data.table, more]), {}, data.events)
    with pytest.warns(UserWarning, match="the one that most seeds share"):
        matched = figures.create("phases", both)
    assert_same_lines(matched, figures.create("phases", data))
    other = data.table.assign(n=data.table["n"].where(data.table["run"] == sweep[0].name, 99))
    with pytest.warns(UserWarning, match="with different settings"):
        figures.create("phases", gk.FigureData(other, {}, data.events))


# ---- commands


def printed(capsys, *words: object) -> str:
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main([str(word) for word in words])
    assert code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def rows_under(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose header line begins with `header`."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.split()[:1] == [header])
    rows = [line.split("  ") for line in lines[start:]]
    return [[cell.strip() for cell in row if cell.strip()] for row in rows if row != [""]]


def newest(run: Run) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in logged(run):
        found[f"{row['split']}.{row['metric']}"] = row["value"]
    return found


def check_measure_table(text: str, run: Run, identity: str) -> None:
    """Every number of the printed table is the stored one, under its labels, and the unit is the reading's."""
    reading = run.reading(identity, run.measures()[identity][-1])
    assert f"{identity}, {reading.unit}" in text
    header, *rows = rows_under(text, "step")
    assert [int(row[0]) for row in rows] == run.measures()[identity]
    for row in rows:
        reading = run.reading(identity, int(row[0]))
        wanted = {}
        for place in np.ndindex(reading.values.shape):
            at = {dim: reading.coords[dim][i] for dim, i in zip(reading.dims, place, strict=True)}
            if at.get("layer", "total") == "total":
                named = [dim for dim in reading.dims if dim != "layer" and len(reading.coords[dim]) > 1]
                parts = {dim: f"{at[dim]:g}" if isinstance(at[dim], float) else str(at[dim]) for dim in named}
                parts |= {"epsilon": {0.1: "0.1", 0.2: "51/255"}[at["epsilon"]]} if "epsilon" in parts else {}
                name = " ".join(parts.values())
                wanted[name or reading.measure] = f"{reading.values[place]:.4g}"
        assert dict(zip(header[1:], row[1:], strict=True)) == wanted


def check_lc(run: Run, capsys, tmp_path: Path) -> None:
    options = ["--radius", "0.05", "0.2", "--points", "6", "--directions", "3"]
    text = printed(capsys, "lc", run.path, *options)
    check_measure_table(text, run, _newest_identity(run, "local_complexity"))


def check_attack(run: Run, capsys, tmp_path: Path) -> None:
    text = printed(capsys, "attack", run.path, "--epsilon", "0.1", "0.2", "--steps", "2", "--points", "6")
    check_measure_table(text, run, _newest_identity(run, "robust_accuracy"))


def _newest_identity(run: Run, measure: str) -> str:
    folders = [path for path in (run.path / "measures").iterdir() if path.name.startswith(f"{measure}-")]
    return max(folders, key=lambda path: max(file.stat().st_mtime_ns for file in path.iterdir())).name


def check_attribute(run: Run, capsys, tmp_path: Path) -> None:
    text = printed(capsys, "attribute", run.path, "--method", "input_x_gradient", "--images", "2")
    count = len(run.attributions()[next(each for each in run.attributions() if each.startswith("input_x_gradient"))])
    assert f"1 method at {count} snapshots: {count} added, 0 already stored" in text


def check_choose_radius(run: Run, capsys, tmp_path: Path) -> None:
    options = ["--radius", "0.05", "0.1", "0.2", "--directions", "2", "4", "--points", "8", "--snapshots", "2"]
    text = printed(capsys, "choose-radius", run.path, *options, "--out", tmp_path)
    identity = _newest_identity(run, "calibration")
    table = pd.read_csv(tmp_path / "calibration.csv")
    for row in table[table["measure"] == "calibration"].itertuples():
        reading = run.reading(identity, row.step)
        place = tuple(list(reading.coords[dim]).index(getattr(row, dim)) for dim in reading.dims)
        assert reading.values[place] == row.value
    assert [int(row[0]) for row in rows_under(text, "step")[1:3]] == [run.steps()[0], run.steps()[-1]]


def check_status(run: Run, capsys, tmp_path: Path) -> None:
    found = json.loads(printed(capsys, "status", run.path, "--as-json"))
    status = json.loads((run.path / "status.json").read_text())
    finite = {name: value if math.isfinite(value) else None for name, value in newest(run).items()}
    assert found["newest"] == finite and found["step"] == status["step"] and found["seconds"] == status["seconds"]
    assert found["measures"] == {name: len(steps) for name, steps in run.measures().items()}
    text = printed(capsys, "status", run.path)
    for name, value in newest(run).items():
        assert [name, f"{value:.4g}"] in [line.split() for line in text.splitlines()]


def check_ls(run: Run, capsys, tmp_path: Path) -> None:
    status = json.loads((run.path / "status.json").read_text())
    _, row = rows_under(printed(capsys, "ls", run.path), "run")
    assert row[1] == status["state"] and row[2] == f"{status['step']}/{status['total_steps'] or '?'}"


def check_diff(run: Run, capsys, tmp_path: Path) -> None:
    found = json.loads(printed(capsys, "diff", run.path, run.path, "--as-json"))
    assert found["metrics"]["compared"] == len((run.path / "metrics.jsonl").read_text().splitlines())
    assert found["snapshots"]["compared"] == len(run.steps())
    assert found["snapshots"]["identical_up_to"] == run.steps()[-1]


def check_export(run: Run, capsys, tmp_path: Path) -> None:
    printed(capsys, "export", run.path, "--csv", "--out", tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    written = table.assign(value=pd.to_numeric(table["value"])).groupby("measure")["value"]
    for measure in {each.measure for each in stored(run)}:
        wanted = [each.value for each in stored(run) if each.measure == measure]
        np.testing.assert_array_equal(np.sort(written.get_group(measure)), np.sort(wanted))


def check_figure(run: Run, capsys, tmp_path: Path) -> None:
    text = printed(capsys, "figure", "policy", run.path, "--out", tmp_path)
    assert [Path(line).name for line in text.splitlines()] == ["policy.pdf", "policy.png", "table.csv"]
    again = figures.create("policy", figure_data(tmp_path / "table.csv"))
    assert_same_lines(again, figures.create("policy", figure_data(run)))


def check_watch(run: Run, capsys, tmp_path: Path) -> None:
    text = printed(capsys, "watch", run.path)
    status = json.loads((run.path / "status.json").read_text())
    assert f"step {status['step']:,}" in text
    for name, value in newest(run).items():
        if name == "batch.loss":
            assert f"{value:.4g}" in text


def check_resume(run: Run, capsys, tmp_path: Path) -> None:
    if (run.path / "resume").exists() and "variant" in run.config:
        text = printed(capsys, "resume", run.path)
        assert f"done at step {run.status['step']}, test accuracy {newest(run)['test_set.accuracy']:.4f}" in text


def check_note(run: Run, capsys, tmp_path: Path) -> None:
    printed(capsys, "note", run.path, "as stored 1.25")
    assert "as stored 1.25" in printed(capsys, "note", run.path)


CHECKS: dict[str, Callable] = {
    "lc": check_lc,
    "attack": check_attack,
    "attribute": check_attribute,
    "choose-radius": check_choose_radius,
    "status": check_status,
    "ls": check_ls,
    "diff": check_diff,
    "export": check_export,
    "figure": check_figure,
    "watch": check_watch,
    "resume": check_resume,
    "note": check_note,
}
NEED_THE_MODEL = ("lc", "attack", "attribute", "choose-radius")
NOT_ABOUT_A_RUN = {
    "train": "test_train_and_sweep_print_the_stored_accuracy",
    "sweep": "test_train_and_sweep_print_the_stored_accuracy",
    "lr-find": "test_the_range_test_is_drawn_and_printed_as_measured",
    "model": "test_the_profile_is_printed_as_measured",
    "serve": "the page has a contract of its own, test_page_equals_stored.py",
    "demo": "calls train, lc, attribute and figure",
    "estimate": "a measurement of its own that nothing stores: tests/test_estimate.py",
    "bench": "a measurement of its own with its own table: tests/test_throughput.py",
    "doctor": "facts about the machine: tests/test_doctor.py",
}


def test_every_command_is_checked() -> None:
    assert {*CHECKS, *NOT_ABOUT_A_RUN} == {*COMMANDS}


@pytest.mark.parametrize("command", CHECKS)
def test_commands_print_what_is_stored(command: str, runs: list[Run], capsys, tmp_path: Path) -> None:
    if command in NEED_THE_MODEL and not (runs[-1].path / "config.toml").read_text().startswith("experiment"):
        assert main([command, str(runs[-1].path)]) == 2  # a loop of one's own: the command cannot build its model
        assert "gk.replay_run" in capsys.readouterr().err
        return
    CHECKS[command](runs[-1], capsys, tmp_path)


STUDY = '''"""Two rates."""
from grokkit import RunConfig, spec
from tests.runs import SMALL

def base() -> RunConfig:
    return SMALL.replace(experiment="rates", variant="base", policy=spec("constant"), attributions=(), steps=12)
'''


@pytest.mark.slow
def test_train_and_sweep_print_the_stored_accuracy(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.py").write_text(STUDY)
    text = printed(capsys, "train", "rates.py", "--seeds", "0-1", "--device", "cpu")
    (first, second) = find_runs(tmp_path / "runs")
    for run in (first, second):
        assert (
            f"{run.name.split('/')[1]}: done at step 12, test accuracy {newest(run)['test_set.accuracy']:.4f}" in text
        )
    Path("grid.toml").write_text('experiment = "rates.py"\nseeds = [0]\n[grid]\n"optimizer.lr" = [0.3, 0.002]\n')
    text = printed(capsys, "sweep", "grid.toml")
    header, *rows = rows_under(text[text.rindex("\nrun") :], "run")
    assert len(rows) == 2
    for row in rows:
        run = gk.open_run(tmp_path / "runs" / row[0])
        cells = dict(zip(header, row, strict=False))
        assert cells["test accuracy"] == f"{newest(run)['test_set.accuracy']:.4g}"
        assert cells["test loss"] == f"{newest(run)['test_set.loss']:.4g}"
        assert f"optimizer.lr={run.config['optimizer']['lr']}" in cells["differs in"]


def test_the_range_test_is_drawn_and_printed_as_measured(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.py").write_text(STUDY)
    text = printed(capsys, "lr-find", "rates.py", "--seeds", "0-1", "--steps", "20", "--device", "cpu")
    table = pd.read_csv("lr_range/rates.csv")
    figure = figures.create("lr_range", figure_data("lr_range/rates.csv"))
    for row in rows_under(text, "seed")[1:3]:
        own = table[table["seed"] == int(row[0])].pivot(index="step", columns="measure", values="value")
        curve = tuple(own["range_test_rate"]), tuple(own["range_test_loss"])
        assert any(is_same(found, curve) for found, _ in lines_of(figure))
        minimum = own["range_test_minimum"].dropna()
        assert row[2] == (f"{minimum.iloc[0]:.2g}" if len(minimum) else "-")


def test_the_profile_is_printed_as_measured(capsys) -> None:
    net = gk.models.create("mlp", (1, 8, 8), 10)
    assert printed(capsys, "model", "mlp", "--input-shape", "1", "8", "8").strip() == str(gk.profile(net, (1, 8, 8)))


def test_tensorboard_tags_name_one_number_each(runs: list[Run]) -> None:
    from grokkit.analysis.export import iter_scalars

    rows = list(iter_scalars(runs[0]))
    assert len({(tag, step) for tag, step, _ in rows}) == len(rows)
    assert {value for _, _, value in rows} >= {each.value for each in stored(runs[0]) if math.isfinite(each.value)}
