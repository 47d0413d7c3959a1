"""Requests to stop and to save: heard between batches, after a while, once; nothing measured is lost or taken twice."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import grokkit as gk
from grokkit import interrupt, replay
from grokkit.callbacks.base import BaseCallback
from grokkit.config.run_config import spec
from grokkit.errors import Interrupted
from grokkit.interrupt import StopRequest, StopRequested, check_interrupt
from grokkit.measures import base
from grokkit.recording import recorder
from grokkit.training import loop
from tests.runs import SMALL, contents


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_nothing_is_heard_outside_the_block_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    check_interrupt(grace=0)
    with StopRequest() as stop:
        check_interrupt(grace=0)
        press(signal.SIGTERM)
        assert stop.stop_requested and not stop.save_requested
    check_interrupt(grace=0)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_measure_may_go_on_for_the_grace_and_no_longer(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with StopRequest():
        press()
        check_interrupt()
        now[0] += interrupt.GRACE_SECONDS - 0.01
        check_interrupt()
        with pytest.raises(StopRequested):
            check_interrupt(grace=0)
        now[0] += 0.02
        with pytest.raises(StopRequested):
            check_interrupt()


def test_a_wish_to_save_that_comes_too_early_ends_no_command() -> None:
    """The signal comes while a verb is imported; the command that is not told of it would end with -10."""
    code = (
        "import os, signal, sys; from grokkit import cli\n"
        "cli.importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGUSR1) or sys.exit(7)\n"
        "cli.main(['doctor'])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


def test_usr1_asks_for_a_save_and_for_nothing_else() -> None:
    with StopRequest() as stop:
        press(signal.SIGUSR1)
        check_interrupt(grace=0)
        assert stop.save_requested and not stop.stop_requested


def test_who_listened_before_is_told_as_well() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest() as outer, StopRequest() as inner:
            press(signal.SIGTERM)
            assert inner.stop_requested and outer.stop_requested and heard == [], (
                "it may end the process: first all is saved"
            )
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_second_press_leaves_at_once() -> None:
    code = "\n".join(
        [
            "import os, signal",
            "from grokkit.interrupt import StopRequest",
            "with StopRequest():",
            "    os.kill(os.getpid(), signal.SIGINT)",
            "    print('on', flush=True)",
            "    os.kill(os.getpid(), signal.SIGINT)",
            "    print('still', flush=True)",
        ]
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 130 and ended.stdout == "on\n" and "press Ctrl-C again to exit at once" in ended.stderr


# --- inside analyses --------------------------------------------------------------------------------------------------

MODEL = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3))
IMAGES = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3

ANALYSES = {
    "logits": lambda model: base.predict_logits(model, IMAGES),
    "vertex": lambda model: gk.local_complexity(model, IMAGES, 0.1, 4),
    "tangent": lambda model: gk.complexity_spectrum(model, IMAGES, [0.1], 4),
    "bound": lambda model: gk.local_complexity(model, IMAGES, 0.1, 4, method="bound"),
    "ray": lambda model: gk.local_complexity(model, IMAGES, 0.1, 4, method="ray"),
    "segment": lambda model: gk.partition_segment(model, IMAGES[:20], IMAGES[20:]),
    "pgd": lambda model: gk.pgd(model, IMAGES, LABELS, 0.1, batch_size=8),
    "attribution": lambda model: gk.attribute(model, IMAGES, LABELS, "saliency", batch_size=8),
}


@pytest.mark.parametrize("name", list(ANALYSES))
def test_every_analysis_stops_within_one_forward_pass_and_leaves_no_trace(name: str, monkeypatch) -> None:
    calls = []
    handle = MODEL[1].register_forward_hook(lambda *_: calls.append(1))
    try:
        monkeypatch.setattr(interrupt, "GRACE_SECONDS", 0.0)
        monkeypatch.setattr(interrupt.check_interrupt, "__defaults__", (0.0,))
        random, mode = torch.get_rng_state(), MODEL.training
        with StopRequest():
            press()
            with pytest.raises(StopRequested):
                ANALYSES[name](MODEL)
        asked_first = len(calls)
        ANALYSES[name](MODEL)
        assert asked_first <= 2 and len(calls) >= 2 * asked_first
        assert MODEL.training == mode and torch.equal(torch.get_rng_state(), random)
        assert [len(module._forward_hooks) for module in MODEL] == [0, 1, 0, 0]
    finally:
        handle.remove()


# --- runs -------------------------------------------------------------------------------------------------------------


class Presses(BaseCallback):
    """Sends a signal when a measure is taken for the `at`-th time."""

    def __init__(self, monkeypatch, at: int, number: int = signal.SIGTERM) -> None:
        self.taken: list[tuple[int, str]] = []
        take = recorder.run_instrument

        def taking(run, step, subject, context):
            self.taken.append((step, recorder.instrument_name(subject)))
            if len(self.taken) == at:
                press(number)
            return take(run, step, subject, context)

        monkeypatch.setattr(recorder, "run_instrument", taking)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return gk.train(SMALL, runs=tmp_path_factory.mktemp("straight"), device="cpu")


@pytest.mark.parametrize("at", [1, 5, 12, 19, 30, 40])
def test_a_run_stopped_amid_its_measures_goes_on_with_the_next_one(straight, tmp_path: Path, monkeypatch, at) -> None:
    presses = Presses(monkeypatch, at)
    with pytest.raises(Interrupted, match="Resume with: grokkit resume"):
        gk.train(SMALL, runs=tmp_path, device="cpu")
    assert len(presses.taken) == at, "the measure under way was ended, no other begun"
    done = gk.resume(tmp_path / SMALL.run_name, device="cpu")
    assert len(set(presses.taken)) == len(presses.taken) == 48, "nothing was taken twice"
    mine, theirs = contents(done.path), contents(straight.path)
    mine["events.jsonl"] = [e for e in mine["events.jsonl"] if e["kind"] not in ("resumed", "restarted")]
    mine.pop("metrics.jsonl"), theirs.pop("metrics.jsonl")  # a repeated step is there twice, and counts once
    assert mine == theirs
    assert done.metrics.equals(straight.metrics.assign(run=done.name))


def test_a_save_that_is_asked_for_changes_nothing(straight, tmp_path: Path, monkeypatch) -> None:
    presses, saved = Presses(monkeypatch, 12, signal.SIGUSR1), []
    save = loop.save_state

    def saves(job, recorder, step, **how):
        saved.append(step)
        save(job, recorder, step, **how)

    monkeypatch.setattr(loop, "save_state", saves)
    run = gk.train(SMALL, runs=tmp_path, device="cpu")
    assert saved == [presses.taken[11][0], SMALL.steps]
    assert contents(run.path) == contents(straight.path)


def test_a_replay_that_is_stopped_says_so_and_goes_on(straight, tmp_path: Path, monkeypatch) -> None:
    bare = gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path, device="cpu")
    take, taken = replay.run_instrument, []

    def taking(run, step, subject, context):
        taken.append(step)
        if len(taken) == 4:
            press()
        return take(run, step, subject, context)

    monkeypatch.setattr(replay, "run_instrument", taking)
    with pytest.raises(Interrupted, match=r"Interrupted at snapshot 2/6 with 4 results added"):
        gk.replay_run(bare, [spec("accuracy"), spec("loss"), spec("weight_norm")])
    assert gk.replay_run(bare, [spec("accuracy"), spec("loss"), spec("weight_norm")]) == 14
    assert len(taken) == 18


def test_a_block_of_another_thread_that_ends_later_leaves_nobody_stopped() -> None:
    entered, over = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with StopRequest():
            entered.set()
            over.wait(5)

    with StopRequest() as stop:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        entered.wait(5)
        press()
        assert stop.stop_requested
    over.set()
    thread.join()
    check_interrupt(grace=0)
