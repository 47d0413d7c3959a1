"""What the instruments cost, each apart; the outer one pays, and nothing is lost between attempts."""

import pytest
import torch

import grokkit as gk
from grokkit.recording.timers import Timers, summarize_timers
from tests.runs import SMALL


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_go_to_the_outer_instrument_and_the_rest_to_training() -> None:
    clock = Clock()
    costs = Timers(torch.device("cpu"), {"training": 1.0, "loss": 0.5}, clock)
    clock.now += 4
    with costs.section("signal"):
        clock.now += 1
        with costs.section("loss"):
            clock.now += 2
    with pytest.raises(ZeroDivisionError), costs.section("snapshots"):
        clock.now += 8
        raise ZeroDivisionError
    clock.now += 1
    with costs.section("snapshots"):
        clock.now += 1
    seconds = costs.seconds()
    assert seconds == {"training": 6.0, "snapshots": 9.0, "signal": 3.0, "loss": 0.5}
    assert list(seconds) == ["training", "snapshots", "signal", "loss"]
    text = summarize_timers(seconds)
    clock.now += 2
    with (shared := Timers(torch.device("cpu"), {"training": 1.0}, clock, runs=4)).section("loss"):
        clock.now += 8
    clock.now += 4
    assert shared.seconds() == {"training": 2.0, "loss": 2.0}, "a quarter of it each, beside what was paid before"
    assert (
        text == "training 6 s; instruments 208.3 % of the training time: snapshots 150.0 %, signal 50.0 %, loss 8.3 %"
    )


def test_every_run_tells_what_each_instrument_cost(tmp_path) -> None:
    run = gk.train(SMALL, runs=tmp_path, device="cpu")
    costs = run.status["costs"]
    instruments = {each.name for each in (*SMALL.measures, *SMALL.attributions)}
    assert costs.keys() == instruments | {"training", "snapshots", "signal", "evaluation", "resume slots"}
    assert all(seconds > 0 for seconds in costs.values())
