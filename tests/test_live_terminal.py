"""`grokkit watch`: what it says of a run, that it ends with it, and what it does not load."""

import io
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from grokkit.cli import main
from grokkit.live.follow import Follower
from grokkit.live.terminal import format_line, format_wall_time, render_sparkline, select_curves, watch_run
from grokkit.trajectory import open_run
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.run import write_status
from tests import live_runs


@pytest.fixture
def run(tmp_path):
    path = live_runs.make(tmp_path / "study" / "plain-s0", loss="cross_entropy")
    live_runs.log(path, *((n, 1.0 - n / 100) for n in range(1, 100)))
    live_runs.log(path, (99, 0.001), metric="learning_rate")
    live_runs.complexity(path, 50, 1.0, 2.0)
    live_runs.event(path, 40, "policy", "the rate is halved")
    return path


def ended(run, state="done", **more):
    write_status(run, state=state, step=99, total_steps=1000, attempt=1, costs={"training": 65.0}, **more)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([5, 5], "▁▁"),
        ([np.nan, 1, np.inf, 2], "·▁·█"),
        ([np.nan], "·"),
        ([0, 0, 4, 4, 8, 8], "▁▁▅▅██"),
    ],
)
def test_a_sparkline_shows_the_course(values, line):
    assert render_sparkline(np.array(values, dtype=float)) == line
    assert render_sparkline(np.repeat(values, 100), width=len(values)) == line


@pytest.mark.parametrize(("seconds", "words"), [(-3, "0 s"), (59.4, "59 s"), (65, "1 min 05 s"), (7800, "2 h 10 min")])
def test_durations_in_words(seconds, words):
    assert format_wall_time(seconds) == words


def test_a_finished_run_is_shown_once_with_all_there_is(run, capsys):
    ended(run, spent=0.125, reason="as planned")
    assert main(["watch", str(run)]) == 0
    out = capsys.readouterr().out
    for text in (
        "study/plain-s0  done",
        "step 99 of 1,000  10 %  ran 1 min 05 s  $0.12 spent",
        "loss, batches   ",
        "0.01  █",
        "LC at r = 0.1, 4 directions, test",
        "learning rate",
        "step       40  the rate is halved",
        "as planned",
    ):
        assert text in out, text
    assert all(len(line) <= 80 for line in out.splitlines()) and "\x1b" not in out


def test_a_number_of_another_step_than_the_run_s_names_it(run):
    write_status(run, state="done", step=99, total_steps=1000, attempt=1)
    live_runs.log(run, (90, 0.5), split="test_set", metric="accuracy")
    console = Console(file=io.StringIO(), width=120)
    watch_run(open_run(run), console)
    rows = {line.split("  ")[0]: line for line in console.file.getvalue().splitlines()}
    assert "step 50" in rows["LC at r = 0.1, 4 directions, test"] and "step 90" in rows["accuracy, test set"]
    assert "step" not in rows["loss, batches"]
    follower = Follower(open_run(run), maps=False)
    follower.refresh(1)
    assert "accuracy, test set 0.5 (step 90)" in format_line(follower)


def test_the_middle_radius_is_that_of_the_numbers_not_of_their_letters(run):
    for seed, radius in enumerate((2.0, 10.0, 30.0)):
        live_runs.complexity(run, 60, 5.0, seed=seed, radius=radius)
    follower = Follower(open_run(run), maps=False)
    follower.refresh(1)
    assert [t.choice for t in select_curves(follower) if t.panel == "complexity"] == ["r = 2, 4 directions"]


def test_no_run_is_an_error_and_not_a_wait(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 4
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_it_follows_a_run_and_ends_with_it(run, terminal):
    write_status(run, state="running", step=0, total_steps=1000, attempt=1)
    out, lock = io.StringIO(), RunLock(run)
    console = Console(file=out, force_terminal=terminal, width=100)
    thread = threading.Thread(target=watch_run, args=(open_run(run), console, 0.01, 0.0), daemon=True)
    thread.start()
    until(lambda: "0.01" in out.getvalue())
    live_runs.log(run, (100, 0.4321))
    until(lambda: "0.4321" in out.getvalue())
    assert thread.is_alive()
    ended(run)
    lock.close()
    thread.join(10)
    assert not thread.is_alive() and "study/plain-s0  done" in out.getvalue().replace("\x1b[1m", "").replace(
        "\x1b[0m", ""
    ).replace("\x1b[32m", "")
    if not terminal:
        assert "step 99 of 1,000  10 %" in out.getvalue() and "\x1b" not in out.getvalue()


def until(holds):
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it never came to that")


def test_a_terminal_shows_one_radius_and_no_layers(run):
    live_runs.complexity(run, 60, 5.0, seed=1, radius=0.5)
    follower = Follower(open_run(run), maps=False)
    follower.refresh(1)
    assert [(trace.panel, trace.choice) for trace in select_curves(follower)] == [
        ("loss", ""),
        ("complexity", "r = 0.1, 4 directions"),
        ("rate", ""),
    ]


def test_a_run_without_numbers_says_that_it_waits(tmp_path, capsys):
    path = live_runs.make(tmp_path / "a" / "empty-s0", total=None)
    ended(path, state="failed", reason="DataError: no images")
    assert main(["watch", str(path)]) == 0
    out = capsys.readouterr().out
    assert "waiting for the first value" in out and "DataError: no images" in out
