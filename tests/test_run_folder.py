"""Run folders: there at once or not at all, read from anywhere, one writer, every damage listed."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from grokkit.errors import TrajectoryError, UsageError
from grokkit.names import ProbeSet, Reading
from grokkit.trajectory import Run, find_runs, log, open_run, resume, run, snapshot, store
from grokkit.trajectory.lock import RunLock


def probe(name="train", first=0, source="digits/train"):
    images = (np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) + first).astype(np.uint8)
    return ProbeSet(name, images, np.array([1, -1]), source, np.array([5, 7]))


def new_run(path, **changes):
    parts = {
        "config": 'seed = 3\nname = "Grüße"\n',
        "environment": {"torch": "2"},
        "probes": [probe("random"), probe("test"), probe("train")],
        "status": {"state": "running", "step": 0},
    }
    run.create_run(path, **(parts | changes))
    return open_run(path)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def append(path, attempt, *records):
    written = log.Log(path, attempt)
    for record in records:
        written.append(record)
    written.close()


# --- creation and opening ---------------------------------------------------------------------------------------------


def test_a_new_run_holds_what_it_was_given(tmp_path):
    made = new_run(tmp_path / "runs" / "exp" / "a-s3", experiment="def study(): ...  # Grüße\n")
    texts = ["MANIFEST", "config.toml", "environment.json", "experiment.py", "probes", "status.json"]
    assert names_in(made.path) == texts
    assert made.name == "exp/a-s3"
    assert made.config == {"seed": 3, "name": "Grüße"} and made.environment == {"torch": "2"}
    status = made.status
    assert status.pop("updated") > 0 and status == {"state": "running", "step": 0}
    assert (made.path / "experiment.py").read_text(encoding="utf-8") == "def study(): ...  # Grüße\n"
    assert list(made.probes) == ["train", "test", "random"]
    assert {each.hash for each in made.probes.values()} == {probe().hash}
    assert made.steps() == [] and made.metrics.empty and made.events == [] and made.verify() == []
    assert names_in(made.path.parent) == ["a-s3"], "no draft is left"
    assert repr(made) == "Run('exp/a-s3', running, 0 snapshots)"


def test_probe_sets_come_back_bit_for_bit(tmp_path):
    floats = ProbeSet("mine", np.array([[np.nan, -0.0]], np.float32), np.array([4]), "uniform", np.array([-1]))
    back = new_run(tmp_path / "a", probes=[floats, probe()]).probes
    for sent in (floats, probe()):
        got = back[sent.name]
        assert (got.name, got.source, got.hash) == (sent.name, sent.source, sent.hash)
        for field in ("images", "labels", "indices"):
            assert getattr(got, field).dtype == getattr(sent, field).dtype
            assert getattr(got, field).tobytes() == getattr(sent, field).tobytes()


def failing_probes():
    yield probe()
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"probes": failing_probes()}, OSError), ({"status": {"x": {1}}}, TypeError), ({"config": "\ud800"}, ValueError)],
    ids=["probes", "status", "config"],
)
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, changes, error):
    with pytest.raises(error):
        new_run(tmp_path / "a", **changes)
    assert names_in(tmp_path) == []


def test_the_folder_cannot_be_seen_before_it_is_complete(tmp_path):
    def looking():
        assert not (tmp_path / "a").exists() and find_runs(tmp_path) == []
        yield probe()

    new_run(tmp_path / "a", probes=looking())
    assert [found.name for found in find_runs(tmp_path)] == [f"{tmp_path.name}/a"]


def test_an_existing_run_is_never_overwritten(tmp_path):
    made = new_run(tmp_path / "a")
    before = (made.path / "config.toml").read_bytes()
    with pytest.raises(TrajectoryError, match=r"a already exists; a run is never overwritten\. Resume it, remove it"):
        new_run(tmp_path / "a", config="seed = 4")
    assert (made.path / "config.toml").read_bytes() == before and names_in(tmp_path) == ["a"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, str(tmp_path / "missing")):
        with pytest.raises(TrajectoryError, match=r"is not a run folder: it has no status\.json"):
            open_run(path)


def test_the_status_is_replaced_as_a_whole(tmp_path):
    made = new_run(tmp_path / "a")
    run.write_status(made.path, state="done")
    assert made.status.keys() == {"state", "updated"} and "status.json" in names_in(made.path)
    (made.path / "status.json").write_text("{")
    with pytest.raises(TrajectoryError, match=r"status\.json cannot be read"):
        _ = made.status


def test_runs_are_found_in_order_and_drafts_are_not(tmp_path):
    for name in ("b", "exp/two", "exp/one"):
        new_run(tmp_path / name)
    for draft in (".c.123.tmp", "exp/.three.123.tmp"):
        (tmp_path / draft).mkdir()
        (tmp_path / draft / "status.json").write_text("{}")
    assert [str(found.path.relative_to(tmp_path)) for found in find_runs(tmp_path)] == ["b", "exp/one", "exp/two"]
    assert [found.name for found in find_runs(tmp_path / "exp" / "one")] == ["exp/one"]
    assert find_runs(tmp_path / "missing") == [] and isinstance(find_runs(str(tmp_path))[0], Run)


# --- snapshots and logs -----------------------------------------------------------------------------------------------


def test_snapshots_are_listed_by_step_and_loaded(tmp_path):
    made = new_run(tmp_path / "a")
    for step in (100, 0, 20):
        snapshot.write_snapshot(
            made.path / "snapshots" / store.step_file_name(step), step, {"w": torch.tensor([step]), "b": torch.ones(2)}
        )
    for stray in ("0001 (copy).h5", ".000000000050.h5.ab.tmp", "notes.txt"):
        (made.path / "snapshots" / stray).write_text("")
    assert made.steps() == [0, 20, 100]
    assert made.load(20)["w"].tolist() == [20] and list(made.load(20, ["b"])) == ["b"]
    with pytest.raises(TrajectoryError, match=r"has no snapshot at step 30; the nearest is 20"):
        made.load(30)


def metric(step, value, split="train", name="loss"):
    return {"step": step, "split": split, "metric": name, "value": value}


def test_of_a_repeated_step_the_newest_attempt_counts(tmp_path):
    made = new_run(tmp_path / "exp" / "a")
    path = made.path / "metrics.jsonl"
    append(path, 1, metric(1, 0.9), metric(2, 0.8), metric(2, 0.7, split="test"), metric(3, 0.6))
    append(path, 2, metric(2, 0.81), metric(10, 0.1))
    frame = made.metrics
    assert list(frame.columns) == ["run", "seed", "step", "split", "metric", "value"]
    assert frame.values.tolist() == [
        ["exp/a", 3, 1, "train", "loss", 0.9],
        ["exp/a", 3, 2, "test", "loss", 0.7],
        ["exp/a", 3, 2, "train", "loss", 0.81],
        ["exp/a", 3, 3, "train", "loss", 0.6],
        ["exp/a", 3, 10, "train", "loss", 0.1],
    ]


def test_an_older_attempt_never_hides_a_newer_one(tmp_path):
    made = new_run(tmp_path / "a")
    append(made.path / "metrics.jsonl", 2, metric(1, 2.0), metric(1, 2.5))
    append(made.path / "metrics.jsonl", 1, metric(1, 1.0))
    assert made.metrics["value"].tolist() == [2.5]


def test_policy_decisions_that_were_taken_again_are_left_out(tmp_path):
    made = new_run(tmp_path / "a")

    def event(step, kind, text=""):
        return {"step": step, "kind": kind, "text": text}

    append(made.path / "events.jsonl", 1, event(5, "policy", "kept"), event(9, "policy", "lost"), event(9, "stopped"))
    append(made.path / "events.jsonl", 2, event(5, "resumed"), event(9, "policy", "again"))
    assert [(e["step"], e["kind"], e["text"]) for e in made.events] == [
        (5, "policy", "kept"),
        (9, "stopped", ""),
        (5, "resumed", ""),
        (9, "policy", "again"),
    ]


# --- readings and attributions ----------------------------------------------------------------------------------------


def reading(**changes):
    parts = {
        "measure": "local_complexity",
        "values": np.array([[1.5, np.nan], [2.5, -np.inf]]),
        "dims": ("probe_set", "radius"),
        "coords": {"probe_set": ("train", "test"), "radius": (np.float64(0.005), 0.1)},
        "unit": "crossings",
        "n": (10, 20),
        "low": np.zeros((2, 2)),
        "settings": {"seed": 0, "live": np.int64(7), "check": {"ok": True}},
    }
    return Reading(**(parts | changes))


@pytest.mark.parametrize(
    "changes", [{}, {"low": None, "n": 5}, {"values": np.array(3.0), "dims": (), "low": None, "n": 1}]
)
def test_a_reading_comes_back_with_the_same_rows(tmp_path, changes):
    sent = reading(**changes)
    made = new_run(tmp_path / "a")
    store.write_reading(made.path / "measures" / "lc-1", 12, sent)
    assert made.measures() == {"lc-1": [12]}
    [(identity, step, got)] = made.readings()
    assert (identity, step) == ("lc-1", 12)
    pd.testing.assert_frame_equal(pd.DataFrame(got.rows()), pd.DataFrame(sent.rows()))
    assert got.values.dtype == sent.values.dtype and got.values.tobytes() == sent.values.tobytes()
    assert (got.low is None) == (sent.low is None) and got.high is None
    assert got.n == sent.n and got.settings == {"seed": 0, "live": 7, "check": {"ok": True}}
    assert store.read_reading(made.path / "measures" / "lc-1", 12).unit == "crossings"


def test_a_missing_reading_is_said(tmp_path):
    made = new_run(tmp_path / "a")
    with pytest.raises(TrajectoryError, match=r"has no 'lc-1'; it has nothing"):
        made.reading("lc-1", 5)
    write_value(made.path / "measures" / "lc-1", 4)
    with pytest.raises(TrajectoryError, match="has lc-1, but not at step 5; the nearest step is 4"):
        made.reading("lc-1", 5)
    with pytest.raises(TrajectoryError, match=r"has no 'l'; it has lc-1"):
        made.reading("l", 4)


def test_a_reading_is_found_by_the_name_of_its_measure_if_it_is_the_only_one(tmp_path):
    made = new_run(tmp_path / "a")
    for identity, step in (("robust_accuracy-1a", 4), ("robust_accuracy-2b", 9), ("robust-1a", 9)):
        write_value(made.path / "measures" / identity, step)
    assert made.reading("robust_accuracy", 4).values.tolist() == [4.0]
    assert made.reading("robust_accuracy", 9).values.tolist() == [9.0]
    assert made.reading("robust", 9).values.tolist() == [9.0]
    with pytest.raises(UsageError, match=r"whole number of optimizer updates; got 9\.0"):
        made.reading("robust", 9.0)
    write_value(made.path / "measures" / "robust_accuracy-1a", 9)
    with pytest.raises(TrajectoryError, match=r"2 of 'robust_accuracy' at step 9.*robust_accuracy-1a, robust_accuracy"):
        made.reading("robust_accuracy", 9)
    with pytest.raises(TrajectoryError, match=r"has no '\.\./measures/robust-1a'"):
        made.reading("../measures/robust-1a", 9)


def write_value(folder, step):
    store.write_reading(folder, step, Reading("m", np.array([float(step)]), ("probe_set",), {"probe_set": ["a"]}, "1"))


def test_an_attribution_comes_back(tmp_path):
    made = new_run(tmp_path / "a")
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    folder = made.path / "attributions" / "gradient-1"
    store.write_attribution(folder, 7, values, np.array([1, 0]), {"method": "gradient", "completeness": 1e-7})
    assert made.attributions() == {"gradient-1": [7]}
    assert made.attribution("gradient", 7)[0].tobytes() == values.tobytes()
    got, labels, note = made.attribution("gradient-1", 7)
    assert got.dtype == np.float32 and got.tobytes() == values.tobytes() and labels.tolist() == [1, 0]
    assert note == {"method": "gradient", "completeness": 1e-7, "step": 7}


def test_an_identity_is_stable_and_changes_with_parameters_and_probes():
    settings = {"radius": 0.005, "directions": 20}
    base = store.make_identity("lc", settings, [probe()])
    assert base == store.make_identity("lc", dict(reversed(settings.items())), iter([probe()]))
    assert base == "lc-3e808594", "stored readings of earlier versions would not be found again"
    others = {
        store.make_identity("lb", settings, [probe()]),
        store.make_identity("lc", settings | {"radius": 0.006}, [probe()]),
        store.make_identity("lc", settings | {"seed": 1}, [probe()]),
        store.make_identity("lc", settings, [probe(first=1)]),
        store.make_identity("lc", settings, [probe(source="digits/test")]),
        store.make_identity("lc", settings, [probe("test")]),
        store.make_identity("lc", settings, [probe(), probe("test")]),
        store.make_identity("lc", settings, []),
    }
    assert len(others - {base}) == 8


# --- verification and lock --------------------------------------------------------------------------------------------


def full_run(path):
    made = new_run(path, experiment="...")
    for step in (0, 10):
        snapshot.write_snapshot(
            made.path / "snapshots" / store.step_file_name(step), step, {"w": torch.arange(100.0) + step}
        )
        slot = resume.stage(step, {"w": torch.arange(100.0)}, snapshot.Staging())
        resume.ResumeStore(made.path / "resume").save(slot)
        store.write_reading(made.path / "measures" / "lc-1", step, reading())
        store.write_attribution(made.path / "attributions" / "g-1", step, np.ones((2, 3, 4, 4)), np.zeros(2), {})
    append(made.path / "metrics.jsonl", 1, metric(1, 0.5), metric(2, 0.4))
    append(made.path / "events.jsonl", 1, {"step": 1, "kind": "policy", "text": ""})
    return made


@pytest.mark.parametrize(
    "file",
    [
        "probes/test.h5",
        "snapshots/000000000010.h5",
        "resume/1.h5",
        "measures/lc-1/000000000000.h5",
        "attributions/g-1/000000000010.h5",
    ],
)
def test_verify_lists_the_one_damaged_file_and_nothing_else(tmp_path, file):
    made = full_run(tmp_path / "a")
    assert made.verify() == []
    raw = bytearray((made.path / file).read_bytes())
    raw[-9] ^= 1
    (made.path / file).write_bytes(raw)
    [problem] = made.verify()
    assert str(made.path / file) in problem and "damaged" in problem


@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl"])
def test_verify_lists_the_damaged_line(tmp_path, file):
    made = full_run(tmp_path / "a")
    raw = bytearray((made.path / file).read_bytes())
    raw[5] ^= 1
    (made.path / file).write_bytes(raw)
    assert made.verify() == [f"line 1 of {made.path / file} is damaged"]


@pytest.mark.parametrize("file", ["config.toml", "environment.json", "status.json"])
def test_verify_lists_a_note_that_cannot_be_read(tmp_path, file):
    made = full_run(tmp_path / "a")
    (made.path / file).write_bytes(b'{"\xff')
    [problem] = made.verify()
    assert f"{file} cannot be read" in problem


def test_a_second_writer_is_refused_and_told_who_holds_the_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; from grokkit.trajectory.lock import RunLock; RunLock(Path(sys.argv[1]))"
    )
    with RunLock(tmp_path):
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(TrajectoryError) as refused:
            RunLock(tmp_path)
        own = "a recorder of this process: close it, such as by `recorder.close()`"
        assert str(refused.value) == f"{tmp_path} is being written by {own}"
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid(), "the refused one changed the note"
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        told = f"{tmp_path} is being written by {holder}; wait for it or stop it"
        assert other.returncode != 0 and told in other.stderr
    RunLock(tmp_path).close()


def test_the_lock_of_a_dead_writer_is_free(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from grokkit.trajectory.lock import RunLock\n"
        "held = RunLock(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert json.loads((tmp_path / "LOCK").read_text())["pid"] != os.getpid()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_disk_that_knows_no_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(TrajectoryError, match="cannot be locked: No locks available; use a local disk"):
        RunLock(tmp_path)


def test_reading_a_run_needs_no_torch(tmp_path):
    made = full_run(tmp_path / "a")
    code = (
        "import sys; from grokkit.trajectory import find_runs\n"
        "run = find_runs(sys.argv[1])[0]; run.status, run.steps(), run.metrics, run.probes, list(run.readings())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(made.path.parent)], check=True)
