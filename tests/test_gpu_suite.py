"""The GPU suite: what is finished is not done again, what is cut short is kept, and the whole of it in miniature."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import __main__ as suite
from bench.gpu import long_run, results
from bench.gpu.common import offer_data, tf32
from bench.gpu.results import Results, Setting
from grokkit.data import load_data
from grokkit.device.preserved_state import strict_precision
from grokkit.errors import UsageError
from grokkit.interrupt import StopRequest
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
    kept = results.read(first.setting.path)
    assert kept["parts"] == {"one": [{"value": 1}], "broken": []} and not kept["complete"]
    assert kept["failed"].keys() == {"broken"} and kept["running"] is None
    assert re.fullmatch(
        r"ZeroDivisionError: .* \(at tests/test_gpu_suite.py:\d+: .*1 // 0.*\)", kept["failed"]["broken"]
    )
    first.finish()
    assert not results.read(first.setting.path)["complete"], "a part failed"

    again = Results(setting(tmp_path), "title")
    again.part("one", part)
    again.part("broken", part)
    again.finish()
    kept = results.read(again.setting.path)
    assert len(calls) == 2 and kept["complete"] and kept["failed"] == {} and kept["unfinished"] == []
    assert kept["parts"] == {"one": [{"value": 1}], "broken": [{"value": 2}]}
    assert {"device", "torch", "date", "command", "seconds", "code"} <= kept.keys()


def killed_in(part: str, out: Path, rows: int = 0) -> Results:
    """Results of a process that was ended while it measured `part`, after so many of its rows."""

    def measured():
        yield from ({"row": number} for number in range(rows))
        raise KeyboardInterrupt  # no Exception, as if the process was ended

    found = Results(setting(out), "title")
    with pytest.raises(KeyboardInterrupt):
        found.part(part, measured)
    return found


def test_rows_of_a_part_that_is_cut_short_are_kept_and_the_part_is_measured_again(tmp_path: Path) -> None:
    killed_in("long", tmp_path, rows=2)
    kept = results.read(setting(tmp_path).path)
    assert kept["parts"] == {"long": [{"row": 0}, {"row": 1}]} and kept["unfinished"] == ["long"]
    again = Results(setting(tmp_path), "title")
    again.part("long", lambda: [{"row": 5}])
    again.measured_last()
    again.finish()
    assert again.complete and again.parts == {"long": [{"row": 5}]}


def test_a_part_in_which_a_call_was_ended_is_measured_last(tmp_path: Path) -> None:
    order = []

    def part(name: str) -> list[dict[str, int]]:
        order.append(name)
        return [{}]

    killed_in("hangs", tmp_path)
    again = Results(setting(tmp_path), "title")
    again.part("hangs", partial(part, "hangs"))
    again.part("other", partial(part, "other"))
    assert results.read(again.setting.path)["ended"] == ["hangs"], "if this call is ended too"
    again.measured_last()
    again.finish()
    assert order == ["other", "hangs"] and again.complete and again.ended == []


def test_a_fresh_process_leaves_alone_what_the_one_before_it_died_of(tmp_path: Path) -> None:
    first = Results(setting(tmp_path), "title")
    first.part("broken", lambda: [{"value": 1 // 0}])
    killed_in("deadly", tmp_path)
    after = Results(setting(tmp_path), "title", fresh=False)
    for name in ("broken", "deadly", "other"):
        after.part(name, lambda name=name: [{"name": name}])
    after.measured_last()
    after.finish()
    assert after.parts["other"] == [{"name": "other"}] and not after.complete
    assert after.failed == {"deadly": "the process died while this was measured"}, "the first error was tried again"
    new = Results(setting(tmp_path), "title")
    new.part("deadly", lambda: [{}])
    assert new.failed == {} and new.parts["deadly"] == [{}]


def test_a_device_that_answers_no_more_ends_the_process_and_nothing_else_does(tmp_path: Path, monkeypatch) -> None:
    found = Results(setting(tmp_path), "title")
    monkeypatch.setattr(results, "clean_up", lambda device: False)
    with pytest.raises(SystemExit) as left:
        found.part("fatal", lambda: [{"value": 1 // 0}])
    assert left.value.code == results.SICK
    assert results.read(setting(tmp_path).path)["failed"].keys() == {"fatal"}
    monkeypatch.undo()
    assert results.clean_up("cpu")


def test_warnings_of_a_part_are_kept_once(tmp_path: Path) -> None:
    def part() -> list[dict[str, int]]:
        for _ in range(3):
            warnings.warn("the step runs without a graph", stacklevel=1)
        return [{}]

    found = Results(setting(tmp_path), "title")
    found.part("one", part)
    assert results.read(setting(tmp_path).path)["warned"] == {"one": ["the step runs without a graph"]}


def test_the_summary_names_checks_that_do_not_hold_and_parts_that_failed(tmp_path: Path) -> None:
    found = Results(setting(tmp_path), "title")
    found.part("model one", lambda: [{"model": "one", "passes": False}])
    found.part("model two", lambda: [{"model": "two", "passes": True}])
    found.part("measures", lambda: [{}][1:2][0])
    told = suite.summary([setting(tmp_path), setting(tmp_path, stage="d")])
    assert "NOT PASSED, model one" in told and "model two" not in told and "FAILED, measures: IndexError" in told
    assert "checks: 1 of 2 passed" in told and "d: nothing was measured" in told and "a: partial" in told


def test_results_of_another_device_or_other_data_do_not_count(tmp_path: Path, monkeypatch) -> None:
    first = Results(setting(tmp_path), "title")
    first.part("one", lambda: [{}])
    assert Results(setting(tmp_path, data="own.npz"), "title").parts == {}
    assert Results(setting(tmp_path), "title").parts == {"one": [{}]}
    monkeypatch.setattr(results, "device_name", lambda device: "another")
    assert Results(setting(tmp_path), "title").parts == {}


def test_a_part_that_no_time_is_left_for_is_named(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    found = Results(setting(tmp_path, seconds=50.0), "title")
    now[0] = 30.0
    found.part("long", lambda: [{}], needs=21)
    found.part("short", lambda: [{}], needs=20)
    found.finish()
    assert found.left_out == {"long": "20 s were left, and it needs 21 s"} and list(found.parts) == ["short"]
    assert found.failed == {} and not found.complete


class Child:
    """A process that ends by itself with `code` after `lasts` seconds or, if told, when it is asked to."""

    pid = -1

    def __init__(self, lasts: float, *, code: int = 0, obeys: bool = True) -> None:
        self.lasts, self.code, self.obeys = lasts, code, obeys
        self.heard: list[object] = []
        self.over = False

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None and not self.over and self.lasts > timeout:
            raise subprocess.TimeoutExpired("stage", timeout)
        self.over = True
        return self.code

    def poll(self) -> int | None:
        return self.code if self.over else None

    def send_signal(self, number: int) -> None:
        self.heard.append(number)
        self.over = self.obeys


def started(monkeypatch, *children: Child) -> list[list[str]]:
    """The commands of the processes that are started; each of them is the next child."""
    commands: list[list[str]] = []
    waiting = iter(children)
    monkeypatch.setattr(suite.subprocess, "Popen", lambda command, **_: commands.append(command) or next(waiting))
    return commands


def at(seconds: float) -> float:
    return suite.time.monotonic() + seconds


def told_in(command: list[str], word: str) -> str:
    return command[command.index(word) + 1]


def test_a_stage_runs_in_a_process_with_the_time_that_is_left(tmp_path: Path, monkeypatch, capsys) -> None:
    child = Child(lasts=30)
    commands = started(monkeypatch, child)
    suite.go(setting(tmp_path, seconds=300.0), at(90.0))
    assert told_in(commands[0], "--child") == "a" and child.heard == [] and "--after-death" not in commands[0]
    assert float(told_in(commands[0], "--seconds")) == pytest.approx(90 - suite.GRACE - suite.START, abs=1)
    suite.go(setting(tmp_path, seconds=300.0), at(10.0))
    assert len(commands) == 1 and "no time is left" in capsys.readouterr().out


@pytest.mark.parametrize(("obeys", "killed"), [(True, []), (False, [(-1, signal.SIGKILL)])])
def test_a_stage_beyond_its_limit_is_asked_to_save_and_then_ended(tmp_path, monkeypatch, capsys, obeys, killed) -> None:
    child = Child(lasts=1000, obeys=obeys)
    commands, ended = started(monkeypatch, child), []

    def killpg(pid: int, number: int) -> None:
        ended.append((pid, number))
        child.over = True

    monkeypatch.setattr(suite.os, "killpg", killpg)
    suite.go(setting(tmp_path), at(1000.0))
    assert child.heard == [signal.SIGTERM] and ended == killed and len(commands) == 1
    assert "stopped at its limit" in capsys.readouterr().out


def test_a_stage_whose_process_died_goes_on_in_a_fresh_one_but_not_for_ever(tmp_path, monkeypatch, capsys) -> None:
    commands = started(monkeypatch, Child(1, code=-11), Child(1, code=results.SICK), Child(1))
    suite.go(setting(tmp_path), at(1000.0))
    assert ["--after-death" in command for command in commands] == [False, True, True]
    assert "ended with code -11" in capsys.readouterr().out
    commands = started(monkeypatch, *(Child(1, code=1) for _ in range(20)))
    suite.go(setting(tmp_path), at(1000.0))
    assert len(commands) == suite.DEATHS


def test_a_finished_stage_is_left_alone(tmp_path: Path, monkeypatch, capsys) -> None:
    commands = started(monkeypatch, Child(lasts=1))
    Results(setting(tmp_path), "title").finish()
    suite.go(setting(tmp_path), at(1000.0))
    assert commands == [] and "finished already" in capsys.readouterr().out
    suite.go(setting(tmp_path, data="other.npz"), at(1000.0))
    assert len(commands) == 1


def test_what_the_command_says_of_itself_can_be_printed() -> None:
    assert "--continue" in called("--help").stdout


def test_the_order_and_the_limits_are_as_told() -> None:
    assert list(suite.STAGES) == ["a", "c", "d", "b", "e"] and suite.SECONDS.keys() == suite.STAGES.keys()
    assert sum(suite.SECONDS.values()) <= 25 * 60 and max(suite.SECONDS.values()) <= 8 * 60


def called(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": "-1", "PATH": "", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "torch finds no CUDA device here"),
        (("--device", "cpu"), "only the miniature can be had: add --small"),
        (("--device", "cpu", "--small", "--data", "none.npz"), "there is no .npz file none.npz"),
        (("--device", "cpu", "--small", "--continue", "none.tar"), "there is no file none.tar to go on with"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(words, sentence: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *words])
    with pytest.raises(SystemExit) as refused:  # which Python prints as it is, with exit code 1
        command.main()
    assert sentence in refused.value.code


MINIATURE = ("--device", "cpu", "--small")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{split}": rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        for split, count in (("train", 96), ("test", 40))
    }
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays, y_train=np.arange(96) % 10, y_test=np.arange(40) % 10)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_suite_in_miniature(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    words = [*MINIATURE, "--data", str(tiny), "--out", str(out), "--work", str(tmp_path / "w1")]
    done = called(*words)
    assert done.returncode == 0, done.stderr
    found = {stage: json.loads((out / f"{stage}.json").read_text()) for stage in suite.STAGES}
    assert not any(each["failed"] for each in found.values()), done.stderr
    assert {stage for stage, each in found.items() if each["complete"]} == set(suite.STAGES) - {"e"}
    assert found["e"]["left_out"].keys() == {"the rest of the run"}
    rows = [row for each in found.values() for part in each["parts"].values() for row in part]
    assert sum("passes" in row for row in rows) > 20 and all(row.get("passes", True) for row in rows)
    exact = {
        (r["method"], r["radius"]): r["mean"]
        for r in found["a"]["parts"]["lc_by_precision"]
        if r["arithmetic"] == "float32, grokkit"
    }
    assert len(exact) == 3 and all(value > 0 for value in exact.values())
    assert all(path.is_file() for path in out.iterdir()), "what is brought back is files alone"
    assert {path.suffix for path in out.iterdir()} == {".json", ".png", ".pdf", ".gz"}
    assert "finished already" in called(*words, "--stages", "d").stdout

    # elsewhere, with nothing but the archive, and the data in another place
    moved = shutil.copy(tiny, tmp_path / "elsewhere.npz")
    other = [*MINIATURE, "--data", str(moved), "--out", str(tmp_path / "two"), "--work", str(tmp_path / "w2")]
    more = called(*other, "--stages", "e", "--continue", str(out / "delayed_robustness.tar.gz"))
    assert more.returncode == 0, more.stderr
    second = json.loads((tmp_path / "two" / "e.json").read_text())
    assert not second["failed"], second["failed"]
    one, two = (each["parts"]["run"][0] for each in (found["e"], second))
    assert two["step"] > one["step"] and two["attempt"] == one["attempt"] + 1 and two["run"] == one["run"]
    run = open_run(tmp_path / "w2" / "runs" / "delayed_robustness" / one["run"].rpartition("/")[2])
    assert 0 not in run.steps(), "its earlier snapshots stayed on the first machine"
    assert {0, 1} <= {step for steps in run.measures().values() for step in steps}


def packed_at(step: int, folder: Path) -> Path:
    run = folder / "made" / "study" / "run"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"step": step}))
    long_run.pack(run, folder / "run.tar.gz")
    return folder / "run.tar.gz"


def test_a_run_that_is_here_already_goes_on_itself_unless_the_archive_is_further(tmp_path: Path) -> None:
    archive, folder = packed_at(7, tmp_path), tmp_path / "here" / "study"
    run = long_run.brought_back(archive, folder)
    status = run / "status.json"
    assert json.loads(status.read_text()) == {"step": 7} and list(folder.iterdir()) == [run]
    status.write_text(json.dumps({"step": 9}))
    assert long_run.brought_back(archive, folder) == run and json.loads(status.read_text()) == {"step": 9}
    status.write_text(json.dumps({"step": 5}))
    with pytest.raises(UsageError, match=r"at step 7, and .* at 5; move that away"):
        long_run.brought_back(archive, folder)
    long_run.pack(tmp_path / "here", archive)
    with pytest.raises(UsageError, match="does not hold one run"):
        long_run.brought_back(archive, folder)


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_a_long_run_is_asked_to_stop_only_once_it_listens(before) -> None:
    """In a terminal, and in the background, where a shell starts programs deaf to Ctrl-C."""
    kept = signal.signal(signal.SIGINT, before)
    try:
        with long_run.stopping(0.01):
            time.sleep(0.3)  # an unheard Ctrl-C would end this test, or be lost
            with StopRequest() as stop:
                start = time.monotonic()
                while not stop.stop_requested and time.monotonic() - start < 30:
                    time.sleep(0.01)
        assert stop.stop_requested
    finally:
        signal.signal(signal.SIGINT, kept)


def test_tf32_is_switched_so_that_torch_still_reads_its_switches() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with tf32():
        assert matmul.allow_tf32 and cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
        assert matmul.fp32_precision == cudnn.conv.fp32_precision == "tf32"
        with strict_precision():
            assert not matmul.allow_tf32 and not cudnn.allow_tf32
        assert matmul.allow_tf32 and cudnn.allow_tf32
    assert (matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


def test_data_under_any_name_is_what_the_loader_of_cifar10_finds(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GROKKIT_DATA", "")
    for _ in range(2):
        offer_data(setting(tmp_path, data=str(tiny)))
        assert len(load_data("cifar10").y_train) == 96
