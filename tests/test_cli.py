"""The command line as a newcomer uses it: the pipeline on own data, one sentence and one exit code per mistake."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import grokkit as gk
from grokkit.cli import COMMANDS, main
from tests.runs import SMALL

STUDY = '''"""Two small arms."""
from grokkit import RunConfig, spec

def plain() -> RunConfig:
    return RunConfig(
        experiment="study", variant="plain", data=spec("digits", train=60), model=spec("cnn", channels=(4, 4, 4, 4, 8)),
        batch_size=20, steps=6, records=3, probes={"train": 8, "test": 8, "random": 4},
        measures=(spec("accuracy"),),
    )

def scaled() -> RunConfig:
    return plain().replace(variant="scaled", init_scale=2.0)
'''


@pytest.fixture
def study(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("study.py").write_text(STUDY)
    return tmp_path


def pictures(count: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ in brightness: uint8 (N, size, size, 3) and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    return (rng.integers(0, 120, (count, size, size, 3)) + 120 * labels[:, None, None, None]).astype(np.uint8), labels


def as_archive(folder: Path) -> str:
    x, y = pictures(80)
    np.savez(folder / "own.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return str(folder / "own.npz")


def as_class_folder(folder: Path) -> str:
    x, y = pictures(80)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        place = folder / "own" / ("train" if i < 60 else "test") / ("dark", "bright")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return str(folder / "own")


@pytest.mark.parametrize("make", [as_archive, as_class_folder], ids=["npz", "class folder"])
def test_the_whole_pipeline_on_own_data(study: Path, capsys, make) -> None:
    data = make(study)
    assert main(["train", "study.py:plain", "--data", data, "--device", "cpu"]) == 0
    (run,) = Path("runs/study").iterdir()
    assert gk.open_run(run).config["data"] == {"name": data, "train": 60}
    assert main(["lc", str(run), "--radius", "0.05", "0.5", "--points", "4", "--directions", "3"]) == 0
    assert main(["attribute", str(run), "--method", "saliency", "grad_cam", "--images", "2", "--device", "cpu"]) == 0
    assert main(["attack", str(run), "--epsilon", "0.1", "--steps", "2", "--points", "8"]) == 0
    capsys.readouterr()
    assert main(["figure", "phases", str(run)]) == 0
    assert main(["figure", "attributions", str(run), "--out", "drawn"]) == 0
    files = capsys.readouterr().out.split()
    assert len(files) == 6 and all(Path(file).stat().st_size > 1000 for file in files)
    assert main(["figure", "phases", "drawn/table.csv", "--out", "again"]) == 0
    assert Path("again/phases.png").read_bytes() == (run / "figures/phases.png").read_bytes()
    assert main(["figure", "layers", "study.py.csv"]) == 4
    assert main(["lc", str(run), "--preset", "humayun2024", "--points", "2", "--last", "1"]) == 0
    published = gk.table([run]).query("measure == 'local_complexity' and radius == 0.005")
    assert set(published["step"]) == {6} and set(published["n"]) == {2}
    assert main(["status", str(run), "--verify"]) == 0
    assert "every file matches its digest" in capsys.readouterr().out


def test_other_data_keep_shuffled_labels(study: Path) -> None:
    Path("control.py").write_text(STUDY.replace("train=60", "train=60, shuffle_labels=True"))
    data = as_archive(study)
    assert main(["train", "control.py:plain", "--data", data, "--device", "cpu"]) == 0
    (run,) = (gk.open_run(path) for path in Path("runs/study").iterdir())
    assert run.config["data"] == {"name": data, "train": 60, "shuffle_labels": True}
    true, held = np.load(data)["y_train"], run.probes["train"]
    shuffled = gk.load_data(data, train=60, shuffle_labels=True).y_train
    assert (held.labels == shuffled[held.indices]).all() and sorted(shuffled) == sorted(true)


def test_train_runs_every_variant_and_ls_lists_them(study: Path, capsys) -> None:
    assert main(["train", "study.py", "--seed", "3", "--steps", "4", "--device", "cpu", "--runs", "elsewhere"]) == 0
    names = sorted(path.name for path in Path("elsewhere/study").iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["plain-s3", "scaled-s3"]
    assert (Path("elsewhere/study") / names[0] / "experiment.py").read_text() == STUDY
    capsys.readouterr()
    assert main(["ls", "elsewhere", "--as-json"]) == 0
    assert capsys.readouterr().out.count('"done"') == 2


def test_every_verb_explains_itself(capsys) -> None:
    for verb in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        said = capsys.readouterr().out
        assert ended.value.code == 0 and "Try:" in said and f"grokkit {verb}" in said


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["trian"], 2, "Did you mean 'train'?"),
        (["train", "quickstrat"], 2, "Did you mean 'quickstart'?"),
        (["train", "missing.py"], 2, "experiment file not found: missing.py"),
        (["train", "study.py:plian", "--device", "cpu"], 2, "Did you mean 'plain'?"),
        (["train", "study.py", "--data", "digts", "--device", "cpu"], 2, "Did you mean 'digits'?"),
        (["train", "study.py", "--data", "missing.npz", "--device", "cpu"], 4, "missing.npz"),
        (["train", "study.py", "--data", "empty.npz", "--device", "cpu"], 4, "x_train"),
        (["train", "study.py", "--data", "floats.npz", "--device", "cpu"], 4, "lie in [0, 1]"),
        (["train", "study.py", "--data", "uneven.npz", "--device", "cpu"], 4, "y_train"),
        (["train", "study.py", "--steps", "0", "--device", "cpu"], 2, "`steps` must be an int of at least 1; got 0"),
        (["train", "fails.py", "--device", "cpu"], 2, "fails:arm failed: ZeroDivisionError"),
        (["train", "returns.py", "--device", "cpu"], 2, "returns:arm must return a RunConfig; got 3"),
        (["train", "study.py", "--runs", "/proc/nowhere", "--device", "cpu"], 4, "/proc/nowhere"),
        (["train", "study.py", "--device", "cuda"], 3, "no GPU is present; pass --device cpu"),
        (["resume", "nowhere"], 4, "nowhere is not a run folder"),
        (["status", "nowhere"], 4, "nowhere is not a run folder"),
        (["figure", "phases", "nowhere"], 2, "no runs found at nowhere"),
        (["model", "resnet81"], 2, "Did you mean 'resnet18'?"),
        (["model", "vgg11", "--input-shape", "1", "8", "8"], 2, "16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_with_one_sentence_and_its_code(
    study, capsys, monkeypatch, words, code, sentence
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("grokkit.device.select.count_physical_gpus", lambda: 0)
    x, y = pictures(10)
    np.savez("empty.npz", a=x)
    head = "from grokkit import RunConfig\ndef arm() -> RunConfig:\n    return "
    Path("fails.py").write_text(head + "1 / 0\n")
    Path("returns.py").write_text(head + "3\n")
    np.savez("floats.npz", x_train=x * 3.5, y_train=y, x_test=x, y_test=y)
    np.savez("uneven.npz", x_train=x, y_train=y[:-1], x_test=x, y_test=y)
    assert main(words) == code
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert not Path("runs").exists() or not any(Path("runs").rglob("*.h5"))


def test_usage_errors_of_flags_end_with_two(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "quickstart", "--stepz", "3"])
    assert ended.value.code == 2 and "--steps" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> gk.open_run:
    return gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path_factory.mktemp("runs"), device="cpu")


def test_figures_say_what_is_missing_and_which_verb_adds_it(small_run, capsys) -> None:
    assert main(["figure", "attributions", str(small_run.path)]) == 2
    assert "grokkit attribute" in capsys.readouterr().err
    assert main(["figure", "phasse", str(small_run.path)]) == 2
    assert "Did you mean 'phases'?" in capsys.readouterr().err


def test_a_damaged_snapshot_is_named_with_code_four(small_run, capsys) -> None:
    file = small_run.path / "snapshots" / "000000000024.h5"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-20])
        assert main(["lc", str(small_run.path), "--points", "4", "--last", "1"]) == 4
        assert "000000000024.h5 is damaged" in capsys.readouterr().err
        assert main(["status", str(small_run.path), "--verify"]) == 4
    finally:
        file.write_bytes(whole)


def test_a_loss_that_diverges_ends_with_five(study, capsys) -> None:
    Path("wild.py").write_text(STUDY.replace("batch_size", 'optimizer=spec("sgd", lr=1e30), batch_size'))
    assert main(["train", "wild.py:plain", "--device", "cpu"]) == 5
    assert "the training loss is" in capsys.readouterr().err


def test_impossible_counts_and_distances_are_refused(small_run, capsys) -> None:
    for words, sentence in (
        (["lc", "--points", "-3"], "at least 1 image"),
        (["lc", "--points", "0"], "at least 1 image"),
        (["attribute", "--images", "-1"], "at least 1 image"),
        (["attack", "--epsilon", "8"], "in 0..1"),
        (["attack", "--epsilon"], "in 0..1"),
        (["lc", "--last", "0"], "at least 1 snapshot"),
        (["lc", "--preset", "humayun24"], "Did you mean 'humayun2024'"),
    ):
        assert main([words[0], str(small_run.path), *words[1:], "--device", "cpu"]) == 2
        assert sentence in capsys.readouterr().err


def test_a_run_that_cannot_be_read_is_one_line_of_ls(small_run, tmp_path, capsys) -> None:
    import shutil

    shutil.copytree(small_run.path, tmp_path / "runs" / "good")
    for name, content in (("empty", "{}"), ("torn", "{"), ("list", "[]")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "status.json").write_text(content)
    assert main(["ls", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5 and sum("unreadable" in line for line in said) == 3 and sum(" done " in line for line in said)


def test_output_into_a_closed_pipe_is_no_error(tmp_path) -> None:
    words = f"{sys.executable} -m grokkit --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_a_run_that_exists_is_left_alone(study, capsys) -> None:
    words = ["train", "study.py:plain", "--device", "cpu"]
    assert main(words) == 0 and main(words) == 4
    assert "a run is never overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on(study) -> None:
    import signal
    import time

    Path("long.py").write_text(STUDY.replace("steps=6", "steps=100_000"))
    words = [sys.executable, "-m", "grokkit", "train", "long.py:plain", "--device", "cpu"]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        if any(Path("runs").rglob("metrics.jsonl")) and next(Path("runs").rglob("metrics.jsonl")).stat().st_size > 500:
            break
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 75 and "grokkit resume" in said
    (run,) = (gk.open_run(path.parent) for path in Path("runs").rglob("status.json"))
    assert run.status["state"] == "interrupted" and run.verify() == [] and 0 < run.status["step"] < 100_000


@pytest.mark.slow
def test_the_demo_works_in_an_empty_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "grokkit", "demo", "--steps", "60", "--device", "cpu"]
    first = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=True)
    assert len(list((tmp_path / "runs/quickstart/figures").glob("*.png"))) == 4
    assert (tmp_path / "runs/quickstart/figures/table.csv").stat().st_size > 1000 and "phases.png" in first.stdout
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=True)
    assert "phases.png" in again.stdout


def test_lc_prints_the_readings_of_the_table(tmp_path: Path, capsys) -> None:
    """Not a mean of them and of what is derived from them, under the unit of another."""
    run = gk.train(SMALL.replace(measures=(), attributions=(), records=2), runs=tmp_path, device="cpu")
    assert main(["lc", str(run.path), "--radius", "0.5", "--directions", "3", "--points", "8", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    title, header, last = next((lines[i], lines[i + 1], lines[-1]) for i, line in enumerate(lines) if "-" in line[:30])
    table = gk.table(run).query("measure == 'local_complexity' and layer == 'total' and step == step.max()")
    assert table.unit.iloc[0] in title
    printed = dict(zip(header.split(), last.split(), strict=True))
    for row in table.itertuples():
        assert printed[row.probe_set] == f"{row.value:.4g}"
