"""Runs in other formats: everything is in them, nothing is overwritten, what is missing is said with its remedy."""

import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import grokkit as gk
from grokkit.analysis.export import iter_scalars
from grokkit.cli import main
from grokkit.live.page import inline_files
from grokkit.training.loop import train
from tests import live_runs
from tests.runs import SMALL


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [train(SMALL.replace(seed=seed), runs=root, device="cpu") for seed in (0, 1)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_tables_are_the_tidy_table(runs, tmp_path, capsys):
    folder = str(runs[0].path.parent)
    assert (
        main(["export", folder, "--csv"]) == 0 and main(["export", folder, "--parquet", "--out", "deep.parquet"]) == 0
    )
    assert capsys.readouterr().out.split() == ["small.csv", "deep.parquet"]
    expected = gk.table(runs)
    assert set(expected.measure) >= {"learning_rate", "local_complexity", "loss"} and expected.run.nunique() == 2
    pd.testing.assert_frame_equal(pd.read_parquet("deep.parquet"), expected)
    pd.testing.assert_frame_equal(gk.figure_data("small.csv").table, expected)


def test_every_snapshot_becomes_a_safetensors_file(runs):
    from safetensors import safe_open

    run = runs[0]
    assert main(["export", str(run.path), "--safetensors", "--out", "weights"]) == 0
    for step in run.steps():
        with safe_open(f"weights/step-{step:012d}.safetensors", framework="pt") as file:
            assert file.metadata() == {"run": run.name, "seed": "0", "step": str(step)}
            stored = run.load(step)
            assert set(file.keys()) == set(stored)
            assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in stored.items())


def test_event_files_hold_every_finite_number(runs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["export", *(str(run.path) for run in runs), "--tensorboard", "--out", "board"]) == 0
    for run in runs:
        found = EventAccumulator(str(tmp_path / "board" / run.name), size_guidance={"scalars": 0})
        found.Reload()
        rows = gk.table(run)
        assert sum(len(found.Scalars(tag)) for tag in found.Tags()["scalars"]) == np.isfinite(rows.value).sum()
        lc = found.Scalars("local_complexity/train/total/radius=0.5")
        expected = rows.query(
            "measure == 'local_complexity' and probe_set == 'train' and layer == 'total' and radius == 0.5"
        )
        assert [(event.step, event.value) for event in lc] == [
            (row.step, pytest.approx(row.value)) for row in expected.itertuples()
        ]


def test_event_files_tell_the_numbers_of_a_measure_with_dims_of_its_own_apart(tmp_path):
    path = live_runs.make(tmp_path / "a" / "b-s0")
    live_runs.reading(path, 3, "spread", [[1.0, np.nan, 3.0]], probe_set=("test",), quantile=(0.1, 0.5, 0.9))
    assert list(iter_scalars(gk.open_run(path))) == [("spread/test", 3, 1.0), ("spread/test/3", 3, 3.0)]


@pytest.mark.parametrize("form", ["html", "csv", "parquet", "safetensors", "tensorboard"])
def test_what_exists_is_never_overwritten(runs, form, tmp_path, capsys):
    (tmp_path / "there").write_text("mine")
    assert main(["export", str(runs[0].path), f"--{form}", "--out", "there"]) == 2
    assert capsys.readouterr().err == (
        "grokkit export: there already exists and is never overwritten; remove it, or pass another --out\n"
    )
    assert (tmp_path / "there").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("form", "package"), [("parquet", "pyarrow"), ("safetensors", "safetensors"), ("tensorboard", "tensorboard")]
)
def test_a_missing_package_is_said_with_the_line_that_installs_it(runs, form, package, monkeypatch, capsys):
    for name in [
        name for name in sys.modules if name.split(".")[0] == package or name.startswith("torch.utils.tensorboard")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "safetensors":
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(["export", str(runs[0].path), f"--{form}"]) == 2
    assert f"needs {package}, which is not installed: pip install 'grokkit[{form}]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUN"], "give exactly one of --html, --csv, --parquet, --safetensors, --tensorboard; got 0"),
        (["RUN", "--csv", "--html"], "got 2"),
        (["nowhere", "--csv"], "no runs found at nowhere"),
        (["--csv"], "no runs found at nothing"),
    ],
)
def test_wrong_words_are_answered_by_a_sentence(runs, words, sentence, capsys):
    assert main(["export", *(str(runs[0].path) if word == "RUN" else word for word in words)]) == 2
    assert sentence in capsys.readouterr().err


def inlined(path):
    text = path.read_text()
    return text, json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_in_one_file_holds_all_data_and_names_no_other_file(runs, tmp_path):
    assert main(["export", str(runs[0].path.parent), "--html"]) == 0
    text, told = inlined(tmp_path / "small.html")
    assert not re.search(r'(src|href)="(?!data:)', text), "no other file is asked for"
    assert "default-src 'none'" in text and "connect-src" not in text
    assert str(runs[0].path.parent.parent) not in text, "a file that is handed on names no folder"
    assert {curve["panel"] for curve in told["curves"]} >= {
        "loss",
        "accuracy",
        "complexity",
        "layers",
        "robust",
        "rate",
    }
    assert all(curve["runs"] == 2 for curve in told["curves"])
    ((run, maps),) = told["maps"].items()
    assert len(told["pictures"]) == sum(1 + len(each["steps"]) for each in maps)
    assert all(
        name.split("/")[1] == run and uri.startswith("data:image/png;base64,") for name, uri in told["pictures"].items()
    )
    (loss,) = (c for c in told["curves"] if (c["panel"], c["role"]) == ("loss", "batch"))
    frame = (
        pd.concat([run.metrics for run in runs]).query("split == 'batch' and metric == 'loss'").groupby("step").value
    )
    assert loss["x"] == list(frame.mean().index) and loss["y"] == pytest.approx(list(frame.mean()), rel=1e-6)
    assert loss["low"] == pytest.approx(list(frame.min()), rel=1e-6)


def test_no_text_of_a_run_can_end_the_page_s_script(tmp_path):
    path = live_runs.make(tmp_path / "a" / "x-s0")
    live_runs.event(path, 1, "policy", "</script><script>alert(1)</script><!-- ")
    assert main(["export", str(path), "--html", "--out", "x.html"]) == 0
    text, told = inlined(tmp_path / "x.html")
    assert "<script>alert" not in text and "<!-- " not in text
    ((event,),) = told["events"].values()
    assert event["text"] == "</script><script>alert(1)</script><!-- "


def test_numbers_that_json_cannot_hold_are_refused_rather_than_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        inline_files({"x": math.nan})
