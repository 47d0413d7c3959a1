"""Company never changes a run, never ends one, and hears how it ended."""

import io
import warnings

import pytest
from rich.console import Console

import grokkit as gk
from grokkit.callbacks.base import BaseCallback, CallbackList, LogLines, ProgressBar, as_callback_list
from grokkit.config.run_config import spec
from grokkit.errors import BudgetReached, Interrupted, NumericsError
from grokkit.training import slowdown
from grokkit.training.slowdown import SlowdownDetector
from tests.callbacks import PressesCtrlC, RecordsCalls
from tests.runs import SMALL, contents

BARE = SMALL.replace(measures=(), attributions=(), policy=spec("constant"), signal={})


class Breaks(BaseCallback):
    """Raises in the method `where`."""

    def __init__(self, where: str) -> None:
        self.calls = 0
        for name in ("start", "report", "event", "close"):
            setattr(self, name, self.fail if name == where else lambda *_: None)

    def fail(self, *_) -> None:
        self.calls += 1
        raise OSError("the terminal is gone")


@pytest.mark.parametrize("where", ["start", "report", "event", "close"])
def test_an_observer_that_raises_is_told_about_once_and_the_run_goes_on(tmp_path, where: str) -> None:
    breaks, records = Breaks(where), RecordsCalls()
    with pytest.warns(UserWarning, match=rf"Breaks failed in `{where}` \(OSError: the terminal is gone\)") as told:
        run = gk.train(BARE, runs=tmp_path, device="cpu", callback=CallbackList(breaks, records))
    assert run.status["state"] == "done" and breaks.calls == 1 and len(told) == 1
    assert records.calls[-1] == ("done", 24, "done at step 24"), "the others hear on"


def test_it_goes_on_even_where_warnings_are_errors(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gk.train(BARE, runs=tmp_path, device="cpu", callback=Breaks("report")).status["state"] == "done"


def test_the_run_is_the_same_with_and_without_all_company(tmp_path) -> None:
    callbacks = CallbackList(
        LogLines(io.StringIO(), seconds=0.0),
        ProgressBar(Console(file=io.StringIO(), force_terminal=True)),
        BaseCallback(),
        RecordsCalls(),
    )
    with_it = gk.train(SMALL, runs=tmp_path / "a", device="cpu", callback=callbacks)
    alone = gk.train(SMALL, runs=tmp_path / "b", device="cpu")
    assert contents(with_it.path) == contents(alone.path)


def test_company_hears_every_event_and_the_end(tmp_path) -> None:
    records = RecordsCalls()
    run = gk.train(SMALL, runs=tmp_path / "done", device="cpu", callback=records)
    decided = [("policy", event["step"], event["text"]) for event in run.events if event["kind"] == "policy"]
    assert decided and [each for each in records.calls if each[0] == "policy"] == decided
    assert records.calls[0] == ("start", 0, 24) and records.calls[-2:] == [
        ("close", "training"),
        ("done", 24, "done at step 24"),
    ]

    records = RecordsCalls()
    with pytest.raises(Interrupted):
        gk.train(BARE, runs=tmp_path, device="cpu", callback=CallbackList(PressesCtrlC(9), records))
    kind, step, text = records.calls[-1]
    assert (kind, step) == ("interrupted", 8) and "grokkit resume" in text

    records = RecordsCalls()
    with pytest.raises(BudgetReached):
        gk.train(BARE, runs=tmp_path / "poor", device="cpu", price=1e6, budget=1e-3, callback=records)
    assert records.calls[-1][0] == "budget"

    records = RecordsCalls()
    wild = BARE.replace(optimizer=spec("sgd", lr=1e30))
    with pytest.raises(NumericsError):
        gk.train(wild, runs=tmp_path, device="cpu", callback=records)
    assert records.calls[-1][0] == "failed" and records.calls[-1][2].startswith("NumericsError: the training loss is")


def test_a_stack_and_processes_tell_their_end_too(tmp_path) -> None:
    records = RecordsCalls()
    gk.train_seeds(BARE, range(2), runs=tmp_path, device="cpu", callback=records)
    assert [each[0] for each in records.calls] == ["start", "close", "done"]
    assert as_callback_list(None)._callbacks == []


@pytest.mark.slow
def test_events_come_from_processes_with_their_seed(tmp_path) -> None:
    records = RecordsCalls()
    config = SMALL.replace(model=spec("cnn", channels=(4, 4, 4, 4, 8)), measures=(), attributions=(), batch_size=60)
    runs = gk.train_seeds(config, [0, 1], runs=tmp_path, device="cpu", callback=records)
    decided = {
        f"seed {seed}: {e['text']}" for seed, run in enumerate(runs) for e in run.events if e["kind"] == "policy"
    }
    assert decided and {text for kind, *_, text in records.calls if kind == "policy"} == decided
    assert [each[0] for each in records.calls].count("done") == 1


def test_the_device_stands_in_every_line() -> None:
    stream = io.StringIO()
    lines = LogLines(stream, seconds=0.0, device="cpu")
    lines.start("a run", 0, 10)
    lines.report(3, {"loss": 0.5})
    lines.event(4, "slow", "it is slow")
    lines.event(5, "measure_failed", "accuracy failed: ValueError: planted")
    lines.event(6, "policy", "in events.jsonl only")
    lines.event(4, "policy", "not for here")
    assert "step 3/10  cpu  " in stream.getvalue() and "step 4: it is slow\n" in stream.getvalue()
    assert "step 5: accuracy failed: ValueError: planted\n" in stream.getvalue() and "only" not in stream.getvalue()
    assert "not for here" not in stream.getvalue()
    stream = io.StringIO()
    live = ProgressBar(Console(file=stream, force_terminal=True, width=80), "cpu")
    live.start("a run", 0, 10)
    live.report(3, {"loss": 0.5})
    live.close()
    assert "cpu  loss 0.5" in stream.getvalue()


def told(*speeds: float, seconds: float = slowdown.MIN_SECONDS) -> list[str | None]:
    """What a run says that trains at these speeds, one stretch each."""
    watch, step, now = SlowdownDetector(), 0, 100.0
    said = [watch.check(step, now)]
    for speed in speeds:
        now += max(seconds, slowdown.MIN_STEPS / speed)
        step += max(slowdown.MIN_STEPS, round(speed * seconds))
        said.append(watch.check(step, now))
    return said


def test_a_run_at_less_than_half_of_its_first_speed_is_told_once() -> None:
    said = told(100, 100, 100, 100, 45, 45, 45, 45, 45)
    assert [each is not None for each in said] == [False] * 6 + [True] + [False] * 3
    assert said[6] == (
        "Training slowed from 100 to 45 steps/s. Usual causes: another process on the same device, thermal or power "
        "throttling, swapped memory"
    )


def test_a_short_dip_a_slow_start_and_a_slightly_slower_run_are_not_told() -> None:
    assert not any(told(100, 100, 100, 10, 100, 100, 10, 100))
    assert not any(told(10, 100, 100, 60, 60, 60, 60))
    assert not any(told(100, 100, 100, 51, 51, 51, 51))
    assert not any(told(1e4, 1e4, 1e4, 100, 100, 100, seconds=0.1)), "stretches too short to be told from noise"


def test_a_slow_run_has_an_event(tmp_path, monkeypatch) -> None:
    said = iter([None, "it is slow"])
    monkeypatch.setattr(SlowdownDetector, "check", lambda self, step, seconds: next(said, None))
    records = RecordsCalls()
    run = gk.train(BARE, runs=tmp_path, device="cpu", callback=records)
    (event,) = (event for event in run.events if event["kind"] == "slow")
    assert event["text"] == "it is slow" and ("slow", event["step"], "it is slow") in records.calls
