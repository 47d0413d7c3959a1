"""Runs that an earlier version wrote (tests/golden/make.py) open, resume, are measured and drawn by this one; and the
comparator that holds two golden sets against each other sees what it has to see."""

import shutil
import tarfile
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
import pytest

import grokkit as gk
from grokkit import figures, models
from grokkit.errors import UntrustedCodeError
from grokkit.trajectory import Run, find_runs
from tests.golden.compare import differences

mpl.use("Agg")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / "runs.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "runs"


@pytest.fixture
def runs(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "runs"))


def named(runs: Path, variant: str) -> Run:
    (path,) = runs.glob(f"*/{variant}-s0-*")
    return gk.open_run(path)


def test_the_code_of_a_stored_run_is_not_executed_unasked(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert "golden_net" not in models.names(), "this one has to be the first to meet it"
    with pytest.raises(UntrustedCodeError):
        gk.resume(named(runs / "stopped", "own_model").path, device="cpu")


def test_every_run_opens_whole_and_is_what_it_was(kept):
    found = [run for folder in (kept, kept / "stopped") for run in find_runs(folder)]
    assert len(found) == 27
    for run in found:
        assert run.verify() == [] and run.unlisted() == []
        assert run.load(run.steps()[-1]) and run.probes.keys() == {"train", "test", "random"}
        assert [reading.measure for _, _, reading in run.readings()] or not run.measures()
        assert len(run.metrics) and len(gk.table(run))
        for identity, steps in run.attributions().items():
            assert run.attribution(identity, steps[0])[0].ndim == 4
        assert gk.RunConfig.from_toml((run.path / "config.toml").read_text()).run_name == "/".join(run.path.parts[-2:])


def test_a_run_with_a_model_policy_and_measure_of_its_own_goes_on_where_its_code_is_trusted(runs):
    stopped, done = named(runs / "stopped", "own_model"), named(runs, "own_model")
    assert stopped.status["state"] == "interrupted" and stopped.status["step"] < 24
    resumed = gk.resume(stopped.path, device="cpu", trust=True)
    assert resumed.status["state"] == "done" and resumed.verify() == []
    mine, theirs = resumed.metrics, done.metrics
    assert (mine[["step", "split", "metric"]] == theirs[["step", "split", "metric"]]).all(axis=None)
    np.testing.assert_allclose(mine["value"], theirs["value"], rtol=1e-3, atol=1e-6)
    assert resumed.measures() == done.measures() and resumed.attributions() == done.attributions()


@pytest.mark.parametrize("variant", ["policy_lc_servo", "around_yoked", "resnet9", "stack", "decay_at_peak"])
def test_runs_of_every_kind_are_measured_anew(runs, variant):
    run = named(runs, variant)
    steps = run.steps()[-1:]
    taken = gk.replay_run(run, ["calibration", "oui"], ["input_x_gradient"], steps=steps, device="cpu")
    assert taken == 3 * len(steps) and run.verify() == []


def test_a_live_reading_and_a_later_one_have_one_identity(runs):
    run = named(runs, "every_measure")
    taken = [each["name"] if isinstance(each, dict) else each for each in run.config["measures"]]
    before = {path: path.read_bytes() for path in run.path.rglob("*.h5")}
    assert gk.replay_run(run, taken, device="cpu") == 0
    assert {path: path.read_bytes() for path in run.path.rglob("*.h5")} == before


def test_a_measure_of_the_runs_own_is_taken_where_its_code_is_trusted(runs):
    run = named(runs, "own_model")
    for folder in (run.path / "measures").glob("golden_margin-*"):
        shutil.rmtree(folder)
    (run.path / "MANIFEST").unlink()
    assert gk.replay_run(run, ["golden_margin"], device="cpu", trust=True) == len(run.steps())


@pytest.mark.parametrize("name", ["phases", "policy", "layers", "attributions", "calibration"])
def test_figures_are_drawn_of_them(kept, name):
    figure = figures.create(name, gk.figure_data([named(kept, "decay_at_peak"), named(kept, "every_measure")]))
    assert figure.axes


# --- the comparator ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    for name in ("before", "after"):
        folder = tmp_path / name
        folder.mkdir()
        with h5py.File(folder / "a.h5", "w") as file:
            file["meta"] = np.frombuffer(b'{"step":3,"unit":"logits"}', np.uint8)
            file["digest"], file["data/values"] = np.zeros(64, np.uint8), np.linspace(0, 1, 5, dtype=np.float32)
        np.savez(folder / "numbers.npz", counts=np.arange(4), density=np.ones(3))
        (folder / "table.csv").write_text("step,value\n0,1.5\n1,2.5\n")
        (folder / "log.jsonl").write_text('{"step":1,"kind":"policy","text":"words","time":1}\n')
    return tmp_path / "before", tmp_path / "after"


def test_two_sets_that_say_the_same_in_other_words_are_equal(pair):
    (pair[1] / "log.jsonl").write_text('{"step":1,"kind":"policy","text":"other words","time":2}\n')
    assert differences(*pair) == []


@pytest.mark.parametrize("fault", ["an array", "a dtype", "a row", "a row more", "a file", "metadata", "a log"])
def test_whatever_is_not_the_same_is_told(pair, fault):
    after = pair[1]
    if fault == "an array":
        with h5py.File(after / "a.h5", "r+") as file:
            file["data/values"][2] = np.nextafter(file["data/values"][2], np.float32(1))
    elif fault == "a dtype":
        np.savez(after / "numbers.npz", counts=np.arange(4, dtype=np.int32), density=np.ones(3))
    elif fault == "a row":
        (after / "table.csv").write_text("step,value\n0,1.5\n1,2.5000000000000004\n")
    elif fault == "a row more":
        (after / "table.csv").write_text("step,value\n0,1.5\n1,2.5\n2,3.5\n")
    elif fault == "a file":
        (after / "a.h5").unlink()
    elif fault == "metadata":
        with h5py.File(after / "a.h5", "r+") as file:
            file["meta"][8] = ord("4")
    else:
        (after / "log.jsonl").write_text('{"step":1,"kind":"event","text":"words","time":1}\n')
    assert len(differences(*pair)) == 1
