"""A run's diary, and what two runs differ in."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

import grokkit as gk
from grokkit.analysis.compare_runs import SOURCE_LINES, compare_runs
from grokkit.cli import main
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.log import Log
from tests.runs import SMALL
from tests.test_layers import HEAVY

PLAIN = SMALL.replace(measures=(gk.spec("weight_norm"),), attributions=(), signal={}, policy="constant")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Some runs that differ in one thing each."""
    root = tmp_path_factory.mktemp("runs")
    late = PLAIN.replace(policy=gk.spec("cosine", warmup=0.5))
    made = {
        "base": gk.train(PLAIN, runs=root, device="cpu", experiment="a = 1\nb = 2\n").path,
        "twin": gk.train(PLAIN, runs=root / "twin", device="cpu", experiment="a = 1\nb = 3\n").path,
        "seed": gk.train(PLAIN.replace(seed=1), runs=root, device="cpu").path,
        "data": gk.train(
            PLAIN.replace(data=gk.spec("digits", size=8, train=100, test=60)), runs=root, device="cpu"
        ).path,
        "late": gk.train(late, runs=root, device="cpu").path,
    }
    return made


def test_a_note_tells_time_step_numbers_and_commit(runs, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    run = str(runs["base"])
    assert main(["note", run]) == 0 and "the diary is empty" in capsys.readouterr().out
    with RunLock(runs["base"]):  # as its writer would
        assert main(["note", run, "first\nin two lines"]) == 0
        assert main(["note", run, "second"]) == 0
    capsys.readouterr()
    assert main(["note", run]) == 0
    told = capsys.readouterr().out
    assert told == (runs["base"] / "diary.md").read_text()
    loss = f"{gk.open_run(run).newest_metrics()['test_set.loss']:.4g}"
    head = rf"- \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d, step 24, .*test_set\.loss {loss}.*, commit {commit}"
    assert re.fullmatch(f"{head}\n  first\n  in two lines\n{head}\n  second\n", told), told
    assert gk.open_run(run).verify() == []
    assert main(["note", run, "  "]) == 2 and "the text of a note is empty" in capsys.readouterr().err


def test_a_note_needs_no_git(runs, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["note", str(runs["seed"]), "words"]) == 0
    assert "commit" not in (runs["seed"] / "diary.md").read_text()


def told(runs, a: str, b: str) -> dict:
    return compare_runs(gk.open_run(runs[a]), gk.open_run(runs[b]))


def test_twins_differ_in_nothing_but_their_source(runs) -> None:
    found = told(runs, "base", "twin")
    assert not any(found[part] for part in ("config", "environment", "data", "results"))
    assert "-b = 2\n+b = 3" in found["experiment"] and " a = 1" in found["experiment"]
    for part in ("metrics", "snapshots"):
        assert (found[part]["identical_up_to"], found[part]["differs_at"], found[part]["differs_in"]) == (24, None, [])
    assert found["snapshots"]["compared"] == 6


def test_another_seed_differs_from_the_initial_weights_on(runs) -> None:
    found = told(runs, "base", "seed")
    assert found["config"] == {"seed": [0, 1]} and found["data"] == {}
    assert found["snapshots"]["differs_at"] == 0 and found["snapshots"]["identical_up_to"] is None
    assert found["results"].keys() >= {"test_set.loss", "batch.loss"} and "state" not in found["results"]


def test_other_data_differ_in_their_hash(runs) -> None:
    found = told(runs, "base", "data")
    assert found["config"] == {"data.train": [120, 100]}
    hashes = [gk.open_run(runs[name]).environment["data"]["hash"] for name in ("base", "data")]
    assert found["data"]["hash"] == hashes and found["data"]["train"] == [120, 100]


def test_runs_that_part_later_are_identical_up_to_there(runs) -> None:
    """A constant rate against one that warms up: weights agree at step 0 alone, snapshots are at 0, 1, 2, 5, 11, 24."""
    found = told(runs, "base", "late")
    assert (found["snapshots"]["identical_up_to"], found["snapshots"]["differs_at"]) == (0, 1)
    a, b = (gk.open_run(runs[name]).metrics for name in ("base", "late"))
    both = a.merge(b, on=["step", "split", "metric"])
    assert found["metrics"]["differs_at"] == both[both.value_x != both.value_y].step.min()
    assert found["metrics"]["compared"] == len(both)


def test_of_a_repeated_step_the_newest_attempt_counts(runs, tmp_path) -> None:
    shutil.copytree(runs["twin"], tmp_path / "twin")
    log = Log(tmp_path / "twin" / "metrics.jsonl", attempt=2)
    log.append({"step": 11, "split": "test_set", "metric": "loss", "value": -1.0})
    log.close()
    found = told({"base": runs["base"], "twin": tmp_path / "twin"}, "base", "twin")["metrics"]
    assert (found["identical_up_to"], found["differs_at"], found["differs_in"]) == (10, 11, ["test_set.loss"])


def test_snapshots_of_different_formats_are_not_compared(runs, tmp_path) -> None:
    for name in ("base", "twin"):
        shutil.copytree(runs[name], tmp_path / name)
    for step in (0, 1):
        with h5py.File(tmp_path / "twin" / "snapshots" / f"{step:012d}.h5", "r+") as file:
            file.attrs["version"] = 0
            file["digest"][()] = 0
    found = told({name: tmp_path / name for name in ("base", "twin")}, "base", "twin")["snapshots"]
    assert (found["compared"], found["differs_at"]) == (4, None)


def test_the_verb_says_it_in_words_and_in_json(runs, capsys) -> None:
    a, b = str(runs["base"]), str(runs["seed"])
    assert main(["diff", a, str(runs["twin"])]) == 0
    said = capsys.readouterr().out
    assert "config: the same" in said and "snapshots  bit-identical up to step 24, the last one in common (6 " in said
    assert main(["diff", a, b]) == 0
    said = capsys.readouterr().out
    assert re.search(r"config +a +b\nseed +0 +1\n", said) and "snapshots  different from step 0 on: weights" in said
    assert "-b = 2" in said
    assert main(["diff", a, b, "--as-json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == {"seed": [0, 1]}
    assert main(["diff", a, "nowhere"]) == 4 and "nowhere is not a run folder" in capsys.readouterr().err


def test_a_long_difference_of_sources_is_cut(runs, tmp_path) -> None:
    for name in ("base", "twin"):
        shutil.copytree(runs[name], tmp_path / name)
    (tmp_path / "twin" / "experiment.py").write_text("\n".join(f"x{i} = {i}" for i in range(200)))
    lines = told({name: tmp_path / name for name in ("base", "twin")}, "base", "twin")["experiment"].splitlines()
    assert len(lines) == SOURCE_LINES + 1 and re.fullmatch(r"\.\.\. 14\d more lines", lines[-1])


@pytest.mark.parametrize("verb", ["note", "diff", "sweep"])
def test_these_verbs_import_nothing_heavy(runs, verb) -> None:
    base, twin = str(runs["base"]), str(runs["twin"])
    words = {"note": [base], "diff": [base, twin], "sweep": ["--help"]}[verb]
    code = (
        "import sys\nfrom grokkit.cli import main\n"
        f"try:\n    main({[verb, *words]!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("LOADED []"), done.stdout[-300:]
