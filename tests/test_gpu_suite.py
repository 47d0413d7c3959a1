"""The GPU suite: what is finished is not done again, what is cut short is kept, and the whole of it in miniature."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench.gpu import __main__ as suite
from bench.gpu import long_run, results
from bench.gpu.results import Results, Setting
from grokkit.errors import UsageError
from grokkit.trajectory import open_run

ROOT = Path(__file__).parents[1]


def setting(out: Path, **changes) -> Setting:
    told = {"stage": "a", "out": out, "work": out / "work", "device": "cpu", "data": "cifar10", "small": False}
    return Setting(**told | {"seconds": 100.0} | changes)


def test_parts_are_kept_as_they_come_and_measured_once(tmp_path: Path) -> None:
    calls = []

    def part() -> list[dict[str, int]]:
        calls.append(1)
        return [{"value": len(calls)}]

    first = Results(setting(tmp_path), "title")
    first.part("one", part)
    first.part("broken", lambda: [{"value": 1 // 0}])
    kept = results.read(first.path)
    assert kept["parts"] == {"one": [{"value": 1}]} and not kept["complete"]
    assert kept["failed"].keys() == {"broken"}
    assert re.fullmatch(r"ZeroDivisionError: .* \(.*tests/test_gpu_suite.py:\d+\)", kept["failed"]["broken"])
    first.finish()
    assert not results.read(first.path)["complete"], "a part failed"

    again = Results(setting(tmp_path), "title")
    again.part("one", part)
    again.part("broken", part)
    again.finish()
    kept = results.read(again.path)
    assert len(calls) == 2 and kept["complete"] and kept["failed"] == {}
    assert kept["parts"] == {"one": [{"value": 1}], "broken": [{"value": 2}]}
    assert {"device", "torch", "date", "command", "seconds"} <= kept.keys()


def test_a_part_in_which_a_call_was_ended_is_measured_last(tmp_path: Path) -> None:
    order = []

    def part(name: str) -> list[dict[str, int]]:
        order.append(name)
        return [{}]

    def hangs() -> list[dict[str, int]]:
        raise KeyboardInterrupt  # no Exception: as if the process was ended

    first = Results(setting(tmp_path), "title")
    with pytest.raises(KeyboardInterrupt):
        first.part("hangs", hangs)
    assert results.read(first.path)["failed"] == {"hangs": results.ENDED}

    again = Results(setting(tmp_path), "title")
    again.part("hangs", partial(part, "hangs"))
    again.part("other", partial(part, "other"))
    assert results.read(again.path)["failed"] == {"hangs": results.ENDED}, "if this call is ended too"
    again.finish()
    kept = results.read(again.path)
    assert order == ["other", "hangs"] and kept["complete"] and kept["failed"] == {}


def test_the_summary_names_checks_that_do_not_hold_and_parts_that_failed(tmp_path: Path) -> None:
    found = Results(setting(tmp_path), "title")
    found.part("model one", lambda: [{"model": "one", "units_counted": 3, "units_that_differ": 3, "passes": False}])
    found.part("model two", lambda: [{"model": "two", "units_counted": 3, "units_that_differ": 0, "passes": True}])
    found.part("steps", lambda: [{}][1:2][0])
    told = suite.summary([setting(tmp_path), setting(tmp_path, stage="d")])
    assert "DOES NOT HOLD: model one" in told and "model two" not in told and "FAILED: steps: IndexError" in told
    assert "2 counts: 3 of 6 units differ" in told and "d: nothing was measured" in told and "a: partial" in told


def test_results_of_other_data_do_not_count(tmp_path: Path) -> None:
    first = Results(setting(tmp_path), "title")
    first.part("one", lambda: [{}])
    assert Results(setting(tmp_path, data="own.npz"), "title").parts == {}
    assert Results(setting(tmp_path), "title").parts == {"one": [{}]}


def test_a_part_that_no_time_is_left_for_is_named(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    found = Results(setting(tmp_path, seconds=50.0), "title")
    now[0] = 30.0
    found.part("long", lambda: [{}], needs=21)
    found.part("short", lambda: [{}], needs=20)
    assert found.failed == {"long": "not begun: 20 s were left, and it needs 21 s"} and list(found.parts) == ["short"]


class Child:
    """A process that ends by itself after `lasts` seconds or, if told, when it is asked to."""

    def __init__(self, lasts: float, *, obeys: bool = True) -> None:
        self.lasts, self.obeys = lasts, obeys
        self.heard: list[object] = []
        self.over = False

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None and not self.over and self.lasts > timeout:
            raise subprocess.TimeoutExpired("stage", timeout)
        self.over = True
        return 0

    def poll(self) -> int | None:
        return 0 if self.over else None

    def send_signal(self, number: int) -> None:
        self.heard.append(number)
        self.over = self.obeys

    def kill(self) -> None:
        self.heard.append("kill")
        self.over = True


def started(monkeypatch, child: Child) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(suite.subprocess, "Popen", lambda command: commands.append(command) or child)
    return commands


def test_a_stage_runs_in_a_process_with_the_time_that_is_left(tmp_path: Path, monkeypatch, capsys) -> None:
    child = Child(lasts=30)
    commands = started(monkeypatch, child)
    suite.go(setting(tmp_path, seconds=300.0), left=60.0)
    assert commands[0][-4:] == ["--child", "a", "--seconds", str(60 - suite.MARGIN)] and child.heard == []
    suite.go(setting(tmp_path, seconds=300.0), left=10.0)
    assert len(commands) == 1 and "no time is left" in capsys.readouterr().out


@pytest.mark.parametrize(("obeys", "heard"), [(True, [signal.SIGTERM]), (False, [signal.SIGTERM, "kill"])])
def test_a_stage_beyond_its_limit_is_asked_to_save_and_then_ended(tmp_path, monkeypatch, capsys, obeys, heard) -> None:
    child = Child(lasts=1000, obeys=obeys)
    started(monkeypatch, child)
    suite.go(setting(tmp_path), left=1000.0)
    assert child.heard == heard and "stopped at its limit" in capsys.readouterr().out


def test_a_finished_stage_is_left_alone_but_a_long_run_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    commands = started(monkeypatch, Child(lasts=1))
    for stage in "ae":
        Results(setting(tmp_path, stage=stage), "title").finish()
    suite.go(setting(tmp_path), left=1000.0)
    assert commands == [] and "finished already" in capsys.readouterr().out
    suite.go(setting(tmp_path, stage="e"), left=1000.0)
    suite.go(setting(tmp_path, data="other.npz"), left=1000.0)
    assert len(commands) == 2


def test_the_order_and_the_limits_are_as_told() -> None:
    assert list(suite.STAGES) == ["a", "c", "d", "b", "e"] and suite.SECONDS.keys() == suite.STAGES.keys()
    assert sum(suite.SECONDS.values()) <= 25 * 60 and max(suite.SECONDS.values()) <= 8 * 60


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"CUDA_VISIBLE_DEVICES": "-1", "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "torch finds no CUDA device here"), (("--device", "cpu"), "only the miniature can be had: add --small"),
        (("--device", "cpu", "--small", "--data", "none.npz"), "there is no file none.npz"),
        (("--device", "cpu", "--small", "--continue", "none.tar"), "there is no file none.tar to go on with"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_in_a_sentence(words, sentence: str) -> None:
    refused = called(*words)
    assert refused.returncode == 1 and sentence in refused.stderr and "Traceback" not in refused.stderr


MINIATURE = ("--device", "cpu", "--small")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
              for split, count in (("train", 96), ("test", 40))}  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays, y_train=np.arange(96) % 10, y_test=np.arange(40) % 10)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_suite_in_miniature(tiny: Path, tmp_path: Path) -> None:
    words = [*MINIATURE, "--data", str(tiny), "--out", str(tmp_path / "one"), "--work", str(tmp_path / "w1")]
    done = called(*words)
    assert done.returncode == 0, done.stderr
    found = {stage: json.loads((tmp_path / "one" / f"{stage}.json").read_text()) for stage in suite.STAGES}
    assert all(each["complete"] and not each["failed"] for each in found.values()), done.stderr
    assert not any(results.broken(each["parts"]) for each in found.values())
    exact = {(r["method"], r["radius"]): r["mean"] for r in found["a"]["parts"]["lc_by_precision"]
             if r["arithmetic"] == "float32, grokkit"}  # fmt: skip
    assert len(exact) == 3 and all(value > 0 for value in exact.values())
    assert all(path.is_file() for path in (tmp_path / "one").iterdir()), "what is brought back is files alone"
    assert {path.suffix for path in (tmp_path / "one").iterdir()} == {".json", ".png", ".pdf", ".csv", ".tar"}
    assert "finished already" in called(*words, "--stages", "a").stdout

    # elsewhere, with nothing but the archive, and the data in another place
    moved = shutil.copy(tiny, tmp_path / "elsewhere.npz")
    archive = tmp_path / "one" / "delayed_robustness.tar"
    other = [*MINIATURE, "--data", str(moved), "--out", str(tmp_path / "two"), "--work", str(tmp_path / "w2")]
    more = called(*other, "--stages", "e", "--continue", str(archive))
    assert more.returncode == 0, more.stderr
    first, second = (json.loads((tmp_path / out / "e.json").read_text()) for out in ("one", "two"))
    assert not second["failed"], second["failed"]
    first, second = (each["parts"]["run"][0] for each in (first, second))
    assert second["step"] > first["step"] and second["attempt"] == first["attempt"] + 1
    config = long_run.fitted(setting(tmp_path, small=True))
    run = open_run(tmp_path / "w2" / "runs" / config.run_name)
    assert 0 not in run.steps(), "its earlier snapshots stayed on the first machine"
    assert {0, 1} <= {step for steps in run.measures().values() for step in steps}


def packed_at(step: int, folder: Path) -> Path:
    run = folder / "made" / "study" / "run"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"step": step}))
    long_run.pack(run, folder / "run.tar")
    return folder / "run.tar"


def test_a_run_that_is_here_already_goes_on_itself_unless_the_archive_is_further(tmp_path: Path) -> None:
    archive = packed_at(7, tmp_path)
    run = tmp_path / "here" / "study" / "run"
    run.parent.mkdir(parents=True)
    long_run.bring_back(archive, run)
    status = run / "status.json"
    assert json.loads(status.read_text()) == {"step": 7} and [each.name for each in run.parent.iterdir()] == ["run"]
    status.write_text(json.dumps({"step": 9}))
    long_run.bring_back(archive, run)
    assert json.loads(status.read_text()) == {"step": 9}
    status.write_text(json.dumps({"step": 5}))
    with pytest.raises(UsageError, match=r"at step 7, and .* at 5; move that away"):
        long_run.bring_back(archive, run)
    with pytest.raises(UsageError, match="another run than other"):
        long_run.bring_back(archive, run.with_name("other"))
