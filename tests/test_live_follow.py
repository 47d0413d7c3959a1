"""Following runs: only what is new is read and told, and piece by piece it adds up to the whole."""

import json
import math
import shutil
import zlib

import numpy as np
import pytest

from grokkit.live import run_browser as study_module
from grokkit.live.curves import finite_json
from grokkit.live.follow import Follower
from grokkit.live.panels import metric_trace, reading_traces
from grokkit.live.run_browser import RunBrowser
from grokkit.live.sources import Source, label_sources
from grokkit.names import Reading
from grokkit.trajectory import log as log_room
from grokkit.trajectory import open_run
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.run import write_status
from tests import live_runs

LOSS = metric_trace("batch", "loss", "")


def points(follower, trace=LOSS):
    steps, values, *_ = follower.series[trace].rows_from(0)
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


@pytest.fixture
def run(tmp_path):
    path = live_runs.make(tmp_path / "study" / "plain-s0", batch_size=50)
    live_runs.log(path, (1, 3.0), (2, 2.0))
    return path


@pytest.fixture
def follower(run):
    found = Follower(open_run(run))
    found.refresh(1)
    return found


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch):
    monkeypatch.setattr(study_module, "DISCOVERY_SECONDS", 0.0)


def test_an_update_reads_the_new_bytes_of_the_logs_only(run, follower, monkeypatch):
    asked = []
    monkeypatch.setattr(
        log_room,
        "read_log_from",
        lambda path, offset, check, real=log_room.read_log_from: (
            asked.append((path.name, offset)) or real(path, offset, check)
        ),
    )
    follower.refresh(2)
    assert asked == [], "nothing new: no log is opened"
    size = (run / "metrics.jsonl").stat().st_size
    live_runs.log(run, (3, 1.0))
    follower.refresh(3)
    assert asked == [("metrics.jsonl", size)] and points(follower) == {1: 3.0, 2: 2.0, 3: 1.0}
    assert follower.series[LOSS].changed_since(2) == 3 and follower.series[LOSS].changed_since(3) is None


def test_a_torn_line_waits_and_damaged_lines_are_told(run, follower):
    whole = (run / "metrics.jsonl").read_bytes()
    live_runs.log(run, (3, 1.0))
    line = (run / "metrics.jsonl").read_bytes()[len(whole) :]
    (run / "metrics.jsonl").write_bytes(whole + line[:-5])
    follower.refresh(2)
    assert points(follower) == {1: 3.0, 2: 2.0} and not follower.problems
    (run / "metrics.jsonl").write_bytes(whole + line.replace(b"3,", b"4,") + line + line[:9])
    follower.refresh(3)
    assert points(follower) == {1: 3.0, 2: 2.0, 3: 1.0}
    assert list(follower.problems.values()) == [f"damaged lines of {run}/metrics.jsonl, skipped: 1"]


def test_of_a_repeated_step_the_newest_attempt_counts_and_its_step_is_the_runs(run, follower):
    live_runs.log(run, (2, 20.0), (3, 30.0), attempt=2)
    write_status(run, state="interrupted", step=2, total_steps=1000, attempt=2)
    follower.refresh(2)
    assert (
        points(follower)
        == {1: 3.0, 2: 20.0, 3: 30.0}
        == {row.step: row.value for row in open_run(run).metrics.itertuples()}
    )
    assert follower.step == 3


def test_decisions_that_a_resumed_run_took_back_are_taken_back(run, follower):
    live_runs.event(run, 10, "policy", "early")
    live_runs.event(run, 30, "policy", "late")
    follower.refresh(2)
    assert [each["text"] for each in follower.events] == ["early", "late"]
    live_runs.event(run, 20, "resumed", "again", attempt=2)
    follower.refresh(3)
    assert [each["text"] for each in follower.events] == ["early", "again"] and follower.events_changed == 3
    assert follower.events == open_run(run).events


def test_another_run_in_the_same_folder_is_read_afresh(run, follower):
    shutil.rmtree(run)
    live_runs.make(run)
    live_runs.log(run, (1, 9.0))
    assert follower.refresh(2) is False
    assert points(follower) == {1: 9.0}


def test_a_log_that_has_become_shorter_is_read_afresh(run, follower):
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[: whole.index(b"\n") + 1])
    assert follower.refresh(2) is False
    assert points(follower) == {1: 3.0}


def test_readings_are_read_once_and_a_damaged_one_again_when_it_is_mended(run, follower, monkeypatch):
    path = live_runs.complexity(run, 10, 1.0, 2.0)
    good = path.read_bytes()
    path.write_bytes(good[:-20] + bytes(20))
    follower.refresh(2)
    assert "is damaged" in follower.problems[str(path)] and {trace.panel for trace in follower.series} == {"loss"}
    live_runs.complexity(run, 20, 3.0, 4.0)
    path.unlink()
    live_runs.complexity(run, 10, 1.0, 2.0)
    follower.refresh(3)
    assert not follower.problems
    (total,) = (trace for trace in follower.series if trace.panel == "complexity")
    assert points(follower, total) == {10: 3.0, 20: 7.0} and total.choice == "r = 0.1, 4 directions"
    layers = sorted((trace for trace in follower.series if trace.panel == "layers"), key=lambda trace: trace.order)
    assert [trace.label for trace in layers] == ["relu0", "relu1"] and points(follower, layers[1]) == {10: 2.0, 20: 4.0}
    monkeypatch.setattr(type(follower.run), "reading", None)
    live_runs.event(run, 1, "x", "y")
    follower.refresh(4)


def test_the_end_is_told_from_the_latest_pace(run, monkeypatch):
    def stand(step, updated, **more):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: updated)
            write_status(run, state="running", step=step, total_steps=1000, attempt=2, **more)

    with RunLock(run):
        start = (run / "metrics.jsonl").stat().st_mtime + 100.0
        stand(100, start, costs={"training": 50.0, "loss": 150.0})
        follower = Follower(open_run(run))
        follower.refresh(1)
        assert follower.state == "running" and follower.seconds == 200.0
        assert follower.estimate_end_time() == pytest.approx(start + 2.0 * 900, abs=0.01), "the mean pace at first"
        stand(200, start + 50, seconds=222.0)
        follower.refresh(2)
        assert (
            follower.estimate_end_time() == pytest.approx(start + 50 + 0.5 * 800, abs=0.01)
            and follower.seconds == 222.0
        )
        for step in range(300, 800, 100):
            stand(step, start + 50 + 500 * (step - 200) / 100)
            follower.refresh(step)
        assert follower.estimate_end_time() == pytest.approx(start + 2550 + 5.0 * 300, abs=0.01), (
            "what is long past no longer counts"
        )
        stand(400, start + 3000)
        follower.refresh(900)
        assert follower.step == 400 and follower.estimate_end_time() is None, (
            "a restart has no pace yet, nor seconds to tell it"
        )
    follower.refresh(901)
    assert follower.state == "killed" and follower.estimate_end_time() is None


def test_a_standard_error_bounds_the_signal_and_is_no_curve(run, follower):
    live_runs.log(run, (0, -np.inf), (4, 1.0), (8, 2.0), split="signal", metric="log_density")
    live_runs.log(run, (0, np.inf), (4, 0.25), split="signal", metric="log_density_se")
    follower.refresh(2)
    steps, values, low, high = follower.get_curve(metric_trace("signal", "log_density", ""), 0)
    expected = [[0, 4, 8], [-np.inf, 1, 2], [np.nan, 0.75, np.nan], [np.nan, 1.25, np.nan]]
    np.testing.assert_array_equal([steps, values, low, high], expected)
    told = RunBrowser([run]).update()
    assert [curve["label"] for curve in told["curves"]] == ["batches", "log density"]
    assert told["curves"][1]["y"] == [None, 1.0, 2.0] and told["curves"][1]["low"] == [None, 0.75, None]


def robust(values):
    coords = {"probe_set": ("test",), "epsilon": (8 / 255, 0.1), "attack": ("a", "b")}
    return Reading("robust_accuracy", np.array([values]), tuple(coords), coords, "share of images", 4)


def test_the_worst_attack_counts_at_each_epsilon():
    rows = list(reading_traces(robust([[0.5, 0.25], [0.1, 0.2]])))
    found = [(trace.label, value) for trace, value, _, _ in rows]
    assert found == [("test, eps = 8/255", 0.25), ("test, eps = 0.1", 0.1)]


def test_a_measure_of_one_s_own_gets_a_chart_with_a_curve_per_layer():
    coords = {"layer": ("a", "b"), "probe_set": ("train",)}
    rows = list(reading_traces(Reading("my_rank", np.array([[1.0], [2.0]]), tuple(coords), coords, "1")))
    found = [(trace.panel, trace.label, value) for trace, value, _, _ in rows]
    assert found == [("my_rank", "a", 1.0), ("my_rank", "b", 2.0)] and {trace.probe for trace, *_ in rows} == {"train"}


def test_of_the_worst_attack_the_interval_counts_and_all_attacks_are_named():
    coords = {"probe_set": ("test",), "epsilon": (0.1,), "attack": ("a", "b", "c")}
    values, low = np.array([[[math.nan, 0.5, 0.25]]]), np.array([[[0.0, 0.4, 0.2]]])
    made = Reading("robust_accuracy", values, tuple(coords), coords, "share of images", low=low, high=low + 0.2)
    ((trace, *numbers),) = reading_traces(made)
    assert numbers == pytest.approx([0.25, 0.2, 0.4]) and trace.remark == "the lowest of 3 attacks: a, b, c"


def test_more_than_a_few_settings_are_selected_and_a_few_are_labelled():
    def traces(**coords):
        shape = tuple(map(len, coords.values()))
        return [row[0] for row in reading_traces(Reading("calibration", np.ones(shape), tuple(coords), coords, "1"))]

    many = traces(probe_set=("train",), directions=(5, 10), radius=(0.1, 0.2, 0.3, 0.4))
    assert {trace.label for trace in many} == {"train"} and len({trace.choice for trace in many}) == 8
    assert many[0].choice == "5 directions, r = 0.1"
    few = traces(probe_set=("train",), directions=(5, 10), radius=(0.1, 0.2))
    assert few[1].label == "train, 5 directions, r = 0.2" and {trace.choice for trace in few} == {""}
    assert [trace.label for trace in traces(radius=(0.1, 0.1 + 1e-9))] == ["r = 0.1", "r = 0.100000001"]


def test_layers_that_are_left_out_are_told():
    layers = tuple(f"l{n}" for n in range(70))
    rows = list(reading_traces(Reading("my_rank", np.ones(70), ("layer",), {"layer": layers}, "1")))
    assert len(rows) == 64 and {trace.remark for trace, *_ in rows} == {"the first 64 of 70 layers"}


def test_a_chart_holds_only_what_it_is_called():
    assert metric_trace("test_set", "accuracy_tta", "").label == "test set, test-time augmentation"
    assert metric_trace("signal", "loss", "").panel == "signal", "the signal of a policy is no loss of the run"
    for name in ("rate", "layers", "complexity", "robust"):
        assert metric_trace("batch", name, "").panel == f"{name} (own)"
        made = Reading(name, np.ones(1), ("probe_set",), {"probe_set": ("test",)}, "1")
        assert [trace.panel for trace, *_ in reading_traces(made)] == [f"{name} (own)"]


def test_one_measure_with_several_settings_is_as_many_curves_named_by_what_differs(run):
    for seed, points in enumerate((8, 64)):
        settings = {"parameters": {"points": points, "radii": [0.1]}}
        live_runs.reading(run, 5, "oui", [0.5 + seed], seed, settings, probe_set=("test",))
    told = RunBrowser([run]).update()
    curves = [curve for curve in told["curves"] if curve["panel"] == "oui"]
    found = {told["sources"][curve["source"]]: curve["y"] for curve in curves}
    assert found == {"points=8": [0.5], "points=64": [1.5]}


def test_readings_of_equal_settings_in_one_run_are_not_mixed(run):
    for seed in range(2):
        live_runs.reading(run, 5, "oui", [0.5 + seed], seed, {"parameters": {"points": 8}}, probe_set=("test",))
    told = RunBrowser([run]).update()
    found = {told["sources"][curve["source"]]: curve["y"] for curve in told["curves"] if curve["panel"] == "oui"}
    assert found == {"reading=oui-00000000": [0.5], "reading=oui-00000001": [1.5]}


def test_parameters_of_any_form_do_not_end_the_view(run):
    for seed, parameters in enumerate(([1], "x", None, {"a": [math.nan]}, {"a": {"b": 2}}, {"": "\ud800"})):
        live_runs.reading(run, 5, "oui", [0.5 + seed], seed, {"parameters": parameters}, probe_set=("test",))
    told = RunBrowser([run]).update()
    curves = [curve for curve in told["curves"] if curve["panel"] == "oui"]
    assert len(curves) == 6 == len({told["sources"][curve["source"]] for curve in curves})
    json.dumps(told, allow_nan=False)


def test_what_a_chart_names_anyway_does_not_make_sources_differ():
    radii = [{"radii": [0.1], "points": 8}, {"radii": [0.1, 0.5], "points": 8}]
    sources = {str(n): Source("local_complexity", parameters) for n, parameters in enumerate(radii)}
    assert label_sources([{"0": sources["0"]}, {"1": sources["1"]}]) == {"0": "", "1": ""}
    assert label_sources([sources]) == {"0": "radii=[0.1]", "1": "radii=[0.1, 0.5]"}
    maps = [{"n_steps": n, "seed": n, "targets": [n]} for n in (4, 50)]
    sources = {str(n): Source("integrated_gradients", parameters) for n, parameters in enumerate(maps)}
    assert label_sources([sources]) == {"0": "n_steps=4", "1": "n_steps=50"}
    seeds = [{"0": Source("saliency", {"images": 2, "seed": n, "targets": [n], "captum": f"0.{n}"})} for n in (0, 1)]
    assert label_sources([seeds[0], {"1": seeds[1]["0"]}]) == {"0": "", "1": ""}


# ---- several runs


class Client:
    """What the page keeps of what it is told."""

    def __init__(self, study):
        self.study, self.cursor, self.curves, self.runs = study, "", {}, {}

    def ask(self, groups=None):
        told = json.loads(json.dumps(self.study.update(self.cursor, groups), allow_nan=False))
        if told["reset"]:
            self.curves, self.runs = {}, {}
        self.cursor = told["cursor"]
        self.runs |= told["runs"]
        for piece in told["curves"]:
            key = piece["group"], piece["panel"], piece["label"], piece["probe"], piece["choice"]
            before = [row for row in self.curves.get(key, []) if row[0] < piece["from"]]
            new = zip(piece["x"], piece["y"], piece["low"] or piece["y"], piece["high"] or piece["y"], strict=True)
            self.curves[key] = before + list(new)
        return told


def test_a_client_is_told_only_what_is_new_and_has_all_of_it(tmp_path):
    rng = np.random.default_rng(0)
    paths = [live_runs.make(tmp_path / "a" / f"x-s{seed}", seed, total=60_000) for seed in range(2)]
    study, step = RunBrowser([tmp_path]), 0
    client = Client(study)
    for turn in range(12):
        for path in paths:
            rows = [(step + n, float(rng.standard_normal())) for n in range(1500)]
            live_runs.log(path, *rows)
        if turn == 7:
            live_runs.log(paths[1], *((n, 5.0) for n in range(3000, 3100)), attempt=2)
        step += 1500
        told = client.ask()
        assert told["reset"] == (turn == 0)
        if turn not in (0, 7):
            assert len(told["curves"][0]["x"]) < 400, "of thousands of rows a few columns are new"
        fresh = Client(study)
        fresh.ask()
        assert client.curves == fresh.curves
    assert client.ask()["curves"] == [] and client.ask()["runs"] == {}


def test_runs_that_progress_unequally_are_told_piece_by_piece_as_at_once(tmp_path):
    rng = np.random.default_rng(0)
    paths = [live_runs.make(tmp_path / "a" / f"x-s{seed}", seed, total=9000) for seed in range(3)]
    study, steps = RunBrowser([tmp_path]), [0, 0, 0]
    client = Client(study)
    for _ in range(40):
        which, rows = int(rng.integers(3)), int(rng.integers(1, 60))
        every = [10, 5, 10][which]
        values = np.where(rng.random(rows) < 0.1, np.nan, rng.standard_normal(rows))
        live_runs.log(paths[which], *((steps[which] + n * every, value) for n, value in enumerate(values.tolist())))
        steps[which] += rows * every
        if rng.random() < 0.6:
            client.ask()
            fresh = Client(study)
            fresh.ask()
            assert client.curves == fresh.curves


def test_a_window_has_every_row_of_its_own_and_no_other(tmp_path):
    for seed in range(2):
        path = live_runs.make(tmp_path / "a" / f"x-s{seed}", seed, total=60_000)
        live_runs.log(path, *((n, float(n + 10 * seed)) for n in range(0, 60_000, 3)))
    study = RunBrowser([tmp_path])
    (key,) = study.update()["shown"]
    (piece,) = study.get_window(key, 30_000, 31_000)
    steps = list(range(30_000, 31_000, 3))
    assert (piece["from"], piece["to"], piece["x"]) == (30_000, 31_000, steps)
    assert piece["y"] == [n + 5 for n in steps] and set(piece["count"]) == {2}
    assert piece["low"] == steps and piece["high"] == [n + 10 for n in steps]
    (whole,) = study.update()["curves"]
    assert sum(30_000 <= step <= 31_000 for step in whole["x"]) < len(steps) / 2
    for name in ("panel", "label", "group", "choice", "probe", "source"):
        assert piece[name] == whole[name], "by these the page knows which curve it is"
    assert study.get_window(key, 31, 30)[0]["x"] == [] and study.get_window("none", 0, 1) == []


def test_runs_that_differ_in_their_seed_alone_are_one_group_with_a_band(tmp_path):
    for seed, loss in ((0, 1.0), (1, 3.0), (2, 8.0)):
        path = live_runs.make(tmp_path / "a" / f"x-s{seed}-0123abcd", seed, batch_size=50)
        live_runs.log(path, (1, loss), *([(2, 2 * loss)] if seed else []))
        live_runs.complexity(path, 5, loss, seed=seed)
    told = RunBrowser([tmp_path]).update()
    (group,) = told["groups"]
    assert group["label"] == "a/x" and len(group["runs"]) == 3 and group["steps_per_epoch"] == 3.0
    loss, layer, total = told["curves"]
    assert (loss["x"], loss["y"], loss["low"], loss["high"], loss["count"]) == (
        [1, 2],
        [4, 11],
        [1, 6],
        [8, 16],
        [3, 2],
    )
    assert (total["panel"], layer["panel"]) == ("complexity", "layers"), (
        "identities differ between seeds, curves do not"
    )
    assert (total["y"], total["low"], total["high"], total["runs"]) == ([4], [1], [8], 3)


def test_groups_of_one_name_are_told_apart_by_what_differs(tmp_path):
    for root, rate in (("one", 0.1), ("two", 0.2)):
        live_runs.make(tmp_path / root / "a" / "x-s0", lr=rate, batch_size=5)
    told = RunBrowser([tmp_path / "one", tmp_path / "two"]).update()
    assert sorted(group["label"] for group in told["groups"]) == ["a/x (lr=0.1)", "a/x (lr=0.2)"]


def test_labels_name_all_that_differs_and_follow_the_groups(tmp_path):
    def add(name, **config):
        live_runs.log(live_runs.make(tmp_path / "a" / f"x-s0-{name}", **config), (1, 1.0))

    study = RunBrowser([tmp_path])
    add("00000000", a=1, b=1, c=1, note="x" * 100)
    assert [group["label"] for group in study.update()["groups"]] == ["a/x"]
    add("00000001", a=1, b=1, c=2, note="x" * 100)
    assert [group["label"] for group in study.update()["groups"]] == ["a/x (c=1)", "a/x (c=2)"]
    add("00000002", a=1, b=2, c=2, d=4, note="x" * 100)
    add("00000003", a=2, b=2, c=2, d=4, note="x" * 99 + "y")
    labels = [group["label"] for group in study.update()["groups"]]
    assert len(set(labels)) == 4 and labels[3].startswith("a/x (a=2, b=2, c=2"), labels


def test_copies_of_a_run_are_runs_of_one_group(tmp_path):
    for root in ("one", "two"):
        live_runs.log(live_runs.make(tmp_path / root / "a" / "x-s0", lr=0.1), (1, 1.0))
    told = RunBrowser([tmp_path / "one", tmp_path / "two"]).update()
    (group,) = told["groups"]
    assert [told["runs"][run]["seed"] for run in group["runs"]] == [0, 0]
    assert told["curves"][0]["runs"] == 2 and told["curves"][0]["count"] == [2]


def test_a_run_whose_config_changes_moves_to_its_group(tmp_path):
    paths = [live_runs.make(tmp_path / "a" / f"x-s{seed}", seed, lr=0.1) for seed in range(2)]
    study = RunBrowser([tmp_path])
    assert len(study.update()["groups"]) == 1
    shutil.rmtree(paths[1])
    live_runs.make(paths[1], 1, lr=0.2)
    assert [group["label"] for group in study.update()["groups"]] == ["a/x (lr=0.1)", "a/x (lr=0.2)"]


def test_runs_whose_config_cannot_be_read_are_not_averaged(tmp_path):
    for seed in range(2):
        path = live_runs.make(tmp_path / "a" / f"x-s{seed}", seed, lr=0.1 + seed)
        (path / "config.toml").write_text("nonsense [")
    told = RunBrowser([tmp_path]).update()
    assert sorted(group["label"] for group in told["groups"]) == ["a/x-s0", "a/x-s1"]
    assert {run["seed"] for run in told["runs"].values()} == {None}


def test_the_newest_value_is_told_though_others_of_its_column_are_the_extremes(tmp_path):
    path = live_runs.make(tmp_path / "a" / "x-s0", total=200_000)
    live_runs.log(path, *((n, [1.0, 9.0, 5.0, 4.0][n % 4]) for n in range(150_000, 150_012)))
    client = Client(RunBrowser([tmp_path]))
    client.ask()
    assert next(iter(client.curves.values()))[-1][:2] == (150_011, 4.0)
    live_runs.log(path, (150_012, 3.0))
    client.ask()
    assert [row[0] for row in next(iter(client.curves.values()))] == [150_000, 150_001, 150_012]


def test_runs_may_appear_later_and_go_again(tmp_path):
    client = Client(RunBrowser([tmp_path / "later"]))
    assert client.ask()["groups"] == []
    path = live_runs.make(tmp_path / "later" / "a" / "x-s0")
    live_runs.log(path, (1, 0.5))
    told = client.ask()
    assert not told["reset"] and [run["step"] for run in told["runs"].values()] == [1]
    assert list(client.curves.values()) == [[(1, 0.5, 0.5, 0.5)]]
    shutil.rmtree(path)
    assert client.ask()["reset"] and not client.runs and not client.curves


def test_a_cursor_of_another_server_tells_everything(run):
    study = RunBrowser([run])
    for cursor in ("", "nonsense", "00000000-1", "00000000-99"):
        assert study.update(cursor)["reset"] and study.update(cursor)["curves"]
    cursor = study.update()["cursor"]
    assert not study.update(cursor)["reset"]
    assert study.update(cursor[:-1] + "999")["reset"], "from the future"


def test_a_run_that_outgrows_its_grid_is_told_anew(tmp_path):
    path = live_runs.make(tmp_path / "a" / "x-s0", total=None)
    live_runs.log(path, *((n, float(n)) for n in range(1000)))
    write_status(path, state="done", step=999, total_steps=None, attempt=1)
    client = Client(RunBrowser([tmp_path]))
    client.ask()
    live_runs.log(path, *((n, float(n)) for n in range(1000, 9000)))
    write_status(path, state="done", step=8999, total_steps=None, attempt=1)
    assert client.ask()["curves"][0]["from"] == 0
    (rows,) = client.curves.values()
    assert rows[0][0] == 0 and rows[-1][0] == 8999 and len(rows) < 5000


def test_only_four_groups_are_drawn_until_somebody_chooses(tmp_path):
    for name in "abcdef":
        live_runs.log(live_runs.make(tmp_path / "s" / f"{name}-s0"), (1, 1.0))
    study = RunBrowser([tmp_path])
    told = study.update()
    assert len(told["groups"]) == 6 == len(told["runs"]) and len(told["shown"]) == 4
    assert len(told["curves"]) == 4
    other = next(group["key"] for group in told["groups"] if group["key"] not in told["shown"])
    asked = study.update("", [other, "unknown"])
    assert asked["shown"] == [other] and [curve["group"] for curve in asked["curves"]] == [other]


def test_an_event_with_a_number_that_json_does_not_know_is_told_without_it(run):
    written = log_room.Log(run / "events.jsonl", 1)
    written.append(
        {"step": 3, "kind": "eval", "text": "validation", "time": 0.0, "loss": float("nan"), "of": [math.inf]}
    )
    written.close()
    body = b'{"attempt":1,"kind":"eval","loss":NaN,"of":[Infinity],"step":4,"text":"of an older version"}'
    with open(run / "events.jsonl", "ab") as file:
        file.write(body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body))
    (events,) = RunBrowser([run.parent]).update()["events"].values()
    assert events[0]["loss"] == "nan" and events[0]["of"] == ["inf"] and events[0]["step"] == 3
    assert events[1]["loss"] is None and events[1]["of"] == [None] and events[1]["step"] == 4


def test_numbers_keep_seven_digits_and_what_is_not_finite_becomes_none():
    values = np.array([0.0, 1 / 3, -1.23456789e-12, 9.87654321e20, np.nan, np.inf, -np.inf])
    assert finite_json(values) == [0.0, 0.3333333, -1.234568e-12, 9.876543e20, None, None, None]
    extremes = [5e-324, 1e-310, 1.7976931348623157e308, -1e-300]
    assert finite_json(np.array(extremes)) == pytest.approx(extremes, rel=5e-7, abs=0)
    assert math.copysign(1, finite_json(np.array([-0.0]))[0]) == 1
