"""Runs, workers and queues that are killed: nothing is trained twice at a time, and the same command goes on to the
end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import grokkit as gk
from grokkit.sweep.child_process import PARENT_VARIABLE, is_log_locked, lock_log
from grokkit.sweep.local import LocalLauncher
from grokkit.sweep.plan import read_plan
from grokkit.sweep.run_status import SweepFolder, collect_statuses
from tests.runs import contents
from tests.test_sweep import (  # noqa: F401  (fixtures)
    Acted,
    Stage,
    folder,
    impatient,
    impostor,
    planned,
    real,
    work,
)

PATIENCE = 60.0


def until(found, what: str):
    """What `found` answers once it is true."""
    end = time.monotonic() + PATIENCE
    while not (answer := found()):
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.02)
    return answer


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


# One process


CHILD = """
import time
from grokkit.sweep.child_process import end_with_parent
end_with_parent()
print("here", flush=True)
time.sleep(60)
"""
STARTER = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=os.environ | {{{PARENT_VARIABLE!r}: str(os.getpid())}})
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_it_is_told_to_end_with() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    child = int(starter.stdout.readline())
    assert starter.stdout.readline() == "here\n" and is_alive(child)
    starter.kill()
    until(lambda: not is_alive(child), "end of the child")
    starter.communicate()


def test_a_process_whose_parent_is_gone_already_does_not_begin() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=os.environ | {PARENT_VARIABLE: "1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    code = "from grokkit.sweep.child_process import end_with_parent; end_with_parent(); print('here')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "here\n"


def test_a_log_is_held_by_the_process_that_prints_to_it(tmp_path) -> None:
    log = tmp_path / "log"
    assert not is_log_locked(log)
    with lock_log(log) as output:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=output)
    assert is_log_locked(log), "though the one that opened it has closed it"
    with lock_log(log) as output:
        assert output is None
    child.communicate()
    assert not is_log_locked(log)
    with lock_log(log) as output:
        assert output is not None


# The queue, with acted processes


def hold(run, after: str = "print('at it', flush=True); input()") -> subprocess.Popen:
    """A process that has the run's log, as one whose queue was killed."""
    log = SweepFolder(Path("runs"), "night").log_path(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    with lock_log(log) as output:
        return subprocess.Popen([sys.executable, "-c", after], stdin=subprocess.PIPE, stdout=output, text=True)


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_a_killed_queue_left_alive_is_waited_for_also_before_it_has_a_folder(folder, begun) -> None:  # noqa: F811
    plan = planned('experiment = "study.py:plain"\nseeds = "0-1"\n')
    left = hold(plan.runs[0])
    assert collect_statuses(plan, SweepFolder(Path("runs"), "night"))[plan.runs[0]].state == "running"

    class Later(Stage):
        def play(self, run, step, code):
            super().play(run, step, code)
            if run is plan.runs[1]:
                if begun:
                    super().play(plan.runs[0], 6, 0)
                left.communicate()

    stage = Later(plan)
    if begun:
        stage.play(plan.runs[0], 3, 75)
    stands, _ = work(plan, stage)
    again = [] if begun else [("train", "plain-0")]
    assert stage.started == [("train", "plain-1"), *again] and {each.state for each in stands.values()} == {"done"}


def test_a_run_elsewhere_that_ends_early_is_gone_on_with_while_others_still_run(folder) -> None:  # noqa: F811
    plan = planned('experiment = "study.py:plain"\nseeds = "0-1"\n')
    left = hold(plan.runs[0])

    class Slow(Acted):
        def poll(self):
            if self.key == "plain-1" and ("train", "plain-0") not in self._stage.started:
                if self._looks == 3:
                    left.communicate()
                assert self._looks < 500, "the other one is not started"
                self._looks += 1
                return None
            return super().poll()

    class Wide(Stage):
        def start(self, words, log):
            self.busy += 1
            return Slow(self, list(words), log)

    stage = Wide(plan, room=2)
    stands, _ = work(plan, stage)
    assert stage.started == [("train", "plain-1"), ("train", "plain-0")]
    assert {each.state for each in stands.values()} == {"done"}


def test_a_run_that_is_killed_again_and_again_is_given_up_also_if_its_process_lingers(folder) -> None:  # noqa: F811
    """As where a worker is killed, and the process below it is seen for a moment more."""
    plan = planned('experiment = "study.py:plain"\n')
    lingering = []

    class Lingering(Stage):
        def play(self, run, step, code):
            lingering.append(hold(run, "import time; time.sleep(0.2)"))
            assert len(lingering) < 9, "it is started for ever"

    stands, said = work(plan, Lingering(plan, {"plain-0": [(-1, -9)]}))
    for process in lingering:
        process.communicate()
    assert any(line.startswith("running in another process") for line in said)
    assert stands["plain-0"].state == "failed" and "given up after 3 attempts" in stands["plain-0"].reason


def test_the_processor_stays_taken_while_the_process_of_a_queue_that_died_goes_on(impostor, monkeypatch) -> None:  # noqa: F811
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    dead, heir = LocalLauncher([]), LocalLauncher([])
    orphan = dead.start(["long"], impostor / "one")
    assert orphan is not None and heir.start(["short"], impostor / "two") is None
    assert LocalLauncher([], at_once=2).start(["short"], impostor / "one") is None, "its log is held"
    orphan.stop()
    until(lambda: orphan.poll() is not None, "end of the process")
    after = heir.start(["short"], impostor / "two")
    assert after is not None
    until(lambda: after.poll() is not None, "end of the one after it")


# Real sweeps


def sweep(*more: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "grokkit", "sweep", "night.toml", *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(process: int) -> list[int]:
    return [
        int(each)
        for task in Path(f"/proc/{process}/task").iterdir()
        for each in (task / "children").read_text().split()
    ]


def check_bits() -> None:
    for run in read_plan(Path("night.toml")).runs:
        straight = gk.train(run.config, runs="straight", device="cpu", experiment=run.study.source)
        ours, theirs = contents(Path("runs") / run.config.run_name), contents(straight.path)
        of_attempts = {"events.jsonl", "manifest.jsonl"}  # they tell who wrote what, and when
        assert {name: ours[name] for name in ours.keys() - of_attempts} == {
            name: theirs[name] for name in theirs.keys() - of_attempts
        }


@pytest.fixture
def short(real) -> Path:  # noqa: F811
    """Two runs of 600 steps."""
    Path("night.toml").write_text('device = "cpu"\nexperiment = "study.py:whole"\nseeds = "0-1"\nsteps = 600\n')
    return real


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False], ids=["before they have folders", "while they train"])
def test_runs_that_outlive_their_queue_are_not_started_again(short, early) -> None:
    queue = sweep("--at-once", "2")
    runs = until(lambda: len(found := children(queue.pid)) == 2 and found, "two processes")
    if not early:
        until(lambda: len(list(Path("runs/small").glob("*/LOCK"))) == 2, "two runs under way")
    queue.kill()
    queue.communicate()
    assert all(map(is_alive, runs))
    again = sweep("--at-once", "2")
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0 and "started" not in said and "resumed" not in said, said
    logs = [each.read_text() for each in Path("runs/sweeps/night/logs").glob("*.txt")]
    assert all(log.count("== ") <= 1 for log in logs), "each was started once; the note of it may have been cut off"
    check_bits()


@pytest.mark.slow
def test_the_run_of_a_ray_worker_that_is_killed_ends_with_it_and_is_gone_on_with(short) -> None:
    pytest.importorskip("ray")
    queue = sweep("--launcher", "ray")
    lock = until(lambda: list(Path("runs/small").glob("*/LOCK")), "run under way")[0]
    run = until(lambda: lock.read_text() and gk.open_run(lock.parent).status["step"] >= 0, "lock") and _holder(lock)
    worker = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
    assert os.getpriority(os.PRIO_PROCESS, run) == os.getpriority(os.PRIO_PROCESS, 0), "no less of the cores"
    os.kill(worker, signal.SIGKILL)
    until(lambda: not is_alive(run), "end of the run's process")
    said = queue.communicate(timeout=200)[0]
    assert queue.returncode == 0 and "preempted" in said, said
    check_bits()


def _holder(lock: Path) -> int:
    import json

    return json.loads(lock.read_text())["pid"]
