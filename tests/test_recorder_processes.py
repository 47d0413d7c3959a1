"""A recorder and its process: forks, locks, recorders that nobody holds, runs moved aside, paths, and odd disks."""

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.errors import GrokkitError, Interrupted, TrajectoryError, UsageError
from grokkit.trajectory import Run, checksummed, find_runs
from grokkit.trajectory import run as run_folder
from grokkit.trajectory.lock import RunLock, is_held
from tests.runs import SMALL

PROBES = gk.probe_sets(gk.load_data("digits", size=8), train=8, test=8)
TINY = SMALL.replace(measures=(), attributions=(), signal={}, policy=gk.spec("constant"), steps=4, records=2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def opened(path, **options):
    return gk.record(path, net(), probes=PROBES, measures=["weight_norm"], schedule=range(100), **options)


def in_a_fork(work, seconds: float = 20.0) -> int:
    """Exit code of a forked process that does `work`; one that hangs is killed, and its code is -9."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -9


# --- forks ------------------------------------------------------------------------------------------------------------


def writing(recorder, what: str) -> None:
    calls = {
        "step": lambda: recorder.step(1),
        "log": lambda: recorder.log(1, "batch", loss=1.0),
        "event": lambda: recorder.event(1, "mine", "text"),
        "save": lambda: recorder.save(1),
        "restore": recorder.restore,
        "add_snapshot": lambda: recorder.add_snapshot(1, {}),
        "discard": recorder.discard,
    }
    calls[what]()


@pytest.mark.parametrize("what", ["step", "log", "event", "save", "restore", "add_snapshot", "discard"])
def test_writing_in_a_fork_raises_at_once(tmp_path, what):
    def writes() -> None:
        with pytest.raises(UsageError, match=rf"is written by process {parent}, and this is process {os.getpid()}"):
            writing(recorder, what)

    parent = os.getpid()
    with opened(tmp_path / "run") as recorder:
        before = {path: path.read_bytes() for path in recorder.path.rglob("*") if path.is_file()}
        assert in_a_fork(writes) == 0
        assert before == {path: path.read_bytes() for path in recorder.path.rglob("*") if path.is_file()}
        recorder.step(1)
    assert gk.open_run(tmp_path / "run").status["state"] == "done"


@pytest.mark.parametrize("how", ["close", "with", "sys.exit", "error", "dropped"])
def test_the_end_of_a_fork_says_nothing_of_the_living_run(tmp_path, how):
    recorder = opened(tmp_path / "run")
    path = recorder.path
    status = (path / "status.json").read_bytes()

    def ends() -> None:
        nonlocal recorder
        if how == "close":
            recorder.close("failed", "not so")
        elif how == "with":
            with recorder:
                pass
        elif how == "sys.exit":
            with recorder:
                sys.exit(0)
        elif how == "error":
            with pytest.raises(ValueError), recorder:
                raise ValueError
        else:
            del recorder
            gc.collect()

    assert in_a_fork(ends) == 0
    assert (path / "status.json").read_bytes() == status
    assert is_held(path) and gk.open_run(path).state == "running"
    recorder.step(1)
    recorder.close()
    assert gk.open_run(path).status["state"] == "done" and not is_held(path)


def test_a_worker_of_a_data_loader_does_no_harm(tmp_path):
    def work(queue) -> None:
        queue.put(os.getpid())

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with opened(tmp_path / "run") as recorder:
        worker = context.Process(target=work, args=(queue,))
        worker.start()
        assert queue.get() == worker.pid
        worker.join(20)
        assert worker.exitcode == 0
        recorder.step(1)
    assert gk.open_run(tmp_path / "run").status["state"] == "done"


def test_a_fork_keeps_no_lock_of_a_dead_run(tmp_path):
    """The process that recorded is killed; a worker that it forked lives on."""
    code = (
        "import os, sys, time; from pathlib import Path; from grokkit.trajectory.lock import RunLock\n"
        "held = RunLock(Path(sys.argv[1]))\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.close(1); os.close(2); time.sleep(60); os._exit(0)\n"
        "print(child, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert is_held(tmp_path)
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives
        end = time.monotonic() + 20
        while is_held(tmp_path) and time.monotonic() < end:  # until it has come to forget
            time.sleep(0.01)
        assert not is_held(tmp_path)
        RunLock(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_fork_does_not_give_back_the_lock_of_its_parent(tmp_path):
    with RunLock(tmp_path) as lock:
        assert in_a_fork(lock.close) == 0
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_second_recorder_of_a_notebook_is_told_to_close_the_first(tmp_path):
    first = opened(tmp_path / "run")
    with pytest.raises(TrajectoryError, match="by a recorder of this process: close it"):
        opened(tmp_path / "run", resume=True)
    first.close()
    opened(tmp_path / "run", resume=True).close()


def test_a_recorder_that_nobody_holds_closes_itself(tmp_path):
    recorder = opened(tmp_path / "run")
    recorder.step(1)
    recorder.save(1)
    del recorder
    gc.collect()
    run = gk.open_run(tmp_path / "run")
    assert run.status["state"] == "interrupted" and "without being closed" in run.status["reason"]
    assert not is_held(run.path) and run.verify() == []
    with opened(run.path, resume=True) as again:
        assert again.restore() == 1


@pytest.mark.slow
def test_a_script_that_ends_without_closing_leaves_a_run_that_says_so(tmp_path):
    code = (
        "import sys, torch, grokkit as gk\n"
        "probes = gk.probe_sets(gk.load_data('digits', size=8), train=8, test=8)\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "recorder = gk.record(sys.argv[1], net, probes=probes, measures=[])\n"
        "recorder.step(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    run = gk.open_run(tmp_path / "run")
    assert run.state in ("interrupted", "killed") and run.steps() == [0, 1] and run.verify() == []


# --- overwrite --------------------------------------------------------------------------------------------------------


def test_a_run_is_moved_aside_where_that_is_asked_for(tmp_path):
    for number in (1, 2):
        with opened(tmp_path / "run") if number == 1 else _warned(tmp_path / "run", number - 1) as recorder:
            recorder.step(number)
    with _warned(tmp_path / "run", 2):
        pass
    kept = [gk.open_run(tmp_path / f".run.replaced-{number}") for number in (1, 2)]
    assert [run.steps() for run in kept] == [[0, 1], [0, 2]] and all(run.verify() == [] for run in kept)
    assert [run.path.name for run in find_runs(tmp_path)] == ["run"]


def _warned(path: Path, number: int):
    with pytest.warns(UserWarning, match=rf"was moved to .*\.run\.replaced-{number}"):
        return opened(path, overwrite=True)


def test_overwrite_needs_nothing_to_be_there_and_takes_nothing_that_is_no_run_or_is_written(tmp_path):
    opened(tmp_path / "new", overwrite=True).close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"mine")
    with pytest.raises(TrajectoryError, match="is not a run folder"):
        opened(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "one.png").read_bytes() == b"mine"
    with opened(tmp_path / "live") as live:
        with pytest.raises(TrajectoryError, match="is being written"):
            opened(tmp_path / "live", overwrite=True)
        live.step(1)
    assert gk.open_run(tmp_path / "live").steps() == [0, 1]


def test_training_again_moves_the_run_aside(tmp_path):
    first = gk.train(TINY, runs=tmp_path, device="cpu")
    with pytest.raises(TrajectoryError, match="overwrite=True renames the existing run"):
        gk.train(TINY, runs=tmp_path, device="cpu")
    with pytest.warns(UserWarning, match="replaced-1"):
        again = gk.train(TINY, runs=tmp_path, device="cpu", overwrite=True)
    assert again.path == first.path and again.status["state"] == "done"
    kept = Run(first.path.with_name(f".{first.path.name}.replaced-1"))
    assert kept.verify() == [] and kept.steps() == again.steps()


def test_a_choice_that_cannot_be_moves_nothing(tmp_path):
    first = gk.train(TINY, runs=tmp_path, device="cpu")
    with pytest.raises(GrokkitError):
        gk.train(TINY, runs=tmp_path, device="a toaster", overwrite=True)
    assert first.verify() == [] and len(list(first.path.parent.iterdir())) == 1


# --- paths ------------------------------------------------------------------------------------------------------------


def test_home_is_expanded_and_paths_are_absolute_from_where_they_come_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with opened("~/runs/mine") as recorder:
        assert recorder.path == tmp_path / "home" / "runs" / "mine"
    with opened("beside/mine") as recorder:
        assert recorder.path == tmp_path / "beside" / "mine"
    assert gk.open_run("~/runs/mine").path == tmp_path / "home" / "runs" / "mine"
    assert gk.open_run("beside/mine").path.is_absolute()
    assert [run.path for run in find_runs("~/runs")] == [tmp_path / "home" / "runs" / "mine"]
    assert gk.train(TINY, runs="~/trained", device="cpu").path.parent.parent == tmp_path / "home" / "trained"
    gk.open_run("~/runs/mine").pack("~/packed.h5")
    assert (tmp_path / "home" / "packed.h5").exists() and not (tmp_path / "~").exists()
    with pytest.raises(UsageError, match="nobody-of-this-name"):
        gk.open_run("~nobody-of-this-name/run")


def test_a_change_of_directory_does_not_end_a_run(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with opened("runs/mine") as recorder:
        monkeypatch.chdir(tmp_path / "elsewhere")
        recorder.step(1)
        recorder.save(1)
    run = gk.open_run(tmp_path / "runs" / "mine")
    assert run.steps() == [0, 1] and run.verify() == [] and list((tmp_path / "elsewhere").iterdir()) == []


class ChangesDirectory:
    """An observer that leaves, and then stops the run."""

    def __init__(self, to: Path) -> None:
        self.to = to

    def start(self, title, done, total): ...

    def report(self, step, values):
        os.chdir(self.to)
        os.kill(os.getpid(), signal.SIGINT)

    def event(self, step, kind, text): ...

    def close(self, summary=""): ...


def test_a_run_on_data_by_a_relative_path_goes_on_from_another_folder(tmp_path, monkeypatch):
    data = gk.load_data("digits", size=8)
    import numpy as np

    np.savez(
        tmp_path / "mine.npz",
        x_train=data.x_train[:120],
        y_train=data.y_train[:120],
        x_test=data.x_test[:60],
        y_test=data.y_test[:60],
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = TINY.replace(data=gk.spec("mine.npz"), steps=24)
    with pytest.raises(Interrupted):
        gk.train(config, runs="runs", device="cpu", callback=ChangesDirectory(tmp_path / "elsewhere"))
    assert Path.cwd() == tmp_path / "elsewhere"
    done = gk.resume(tmp_path / "runs" / config.run_name, device="cpu")
    assert done.status["state"] == "done" and done.config["data"]["name"] == "mine.npz"
    monkeypatch.chdir(tmp_path)
    straight = gk.train(config, runs="straight", device="cpu")
    assert done.metrics.equals(straight.metrics.assign(run=done.name))


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_link_that_was_made_although_the_answer_says_that_it_exists_is_no_error(tmp_path, monkeypatch):
    """As on NFS, where the first answer is lost and the call is sent again."""
    link = os.link

    def twice(source, target, **options):
        link(source, target, **options)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", twice)
    digest = checksummed.write(tmp_path / "a.h5", "reading", {}, {"step": 1})
    assert checksummed.try_read_digest(tmp_path / "a.h5") == digest and len(list(tmp_path.iterdir())) == 1


def test_another_file_under_the_name_is_still_an_error(tmp_path, monkeypatch):
    link = os.link

    def too_late(source, target, **options):
        Path(target).write_bytes(b"another writer's")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", too_late)
    with pytest.raises(TrajectoryError, match="File exists; nothing was changed"):
        checksummed.write(tmp_path / "a.h5", "reading", {}, {"step": 1})
    assert (tmp_path / "a.h5").read_bytes() == b"another writer's"


def says(number: int):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_hard_links_gets_a_sentence_with_the_remedy(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", says(number))
    with pytest.raises(TrajectoryError, match="does not support hard links; write runs to a local disk"):
        opened(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_make_folders_durable_gets_a_sentence_with_the_remedy(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def of_files(handle):
        says(number)() if os.path.isdir(f"/proc/self/fd/{handle}") else fsync(handle)

    monkeypatch.setattr(os, "fsync", of_files)
    with pytest.raises(TrajectoryError, match="cannot make folders durable; write runs to a local disk"):
        opened(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_gets_a_sentence_with_the_remedy(tmp_path, monkeypatch, number):
    from grokkit.trajectory import lock

    monkeypatch.setattr(lock.fcntl, "flock", says(number))
    with pytest.raises(TrajectoryError, match=r"cannot be locked: .*; use a local disk"):
        opened(tmp_path / "run")


def test_a_log_on_a_full_disk_does_not_keep_the_reason_from_the_status(tmp_path, monkeypatch):
    fsync = os.fsync

    def logs_fail(handle):
        says(errno.ENOSPC)() if os.readlink(f"/proc/self/fd/{handle}").endswith(".jsonl") else fsync(handle)

    recorder = opened(tmp_path / "run")
    recorder.log(1, "batch", loss=1.0)
    recorder._writer.wait()
    monkeypatch.setattr(os, "fsync", logs_fail)
    with pytest.raises(TrajectoryError, match="No space left"):
        recorder.close()
    monkeypatch.undo()
    status = gk.open_run(tmp_path / "run").status
    assert status["state"] == "failed" and "No space left on device" in status["reason"]


def test_two_that_make_one_run_at_a_time_are_told_apart(tmp_path, monkeypatch):
    """The second one finds the name free and then taken."""
    gate, told = threading.Barrier(2), list[str]()
    publish = run_folder.write_atomic

    def together(path, content, **options):
        publish(path, content, **options)
        if path.name == "status.json" and path.parent.name.endswith(".tmp"):
            gate.wait(10)

    monkeypatch.setattr(run_folder, "write_atomic", together)

    def makes() -> None:
        try:
            run_folder.create_run(tmp_path / "run", config="", environment={}, probes=(), status={"state": "starting"})
        except TrajectoryError as error:
            told.append(str(error))

    threads = [threading.Thread(target=makes) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1 and "already exists" in told[0] and [path.name for path in tmp_path.iterdir()] == ["run"]


# --- the lock, and what lies in its place ----------------------------------------------------------------------------


def test_a_living_run_is_never_moved_aside(tmp_path):
    """One waits for the lock of a run that another one moves away and records anew meanwhile."""
    from grokkit.trajectory.recover import rename_existing_run

    opened(tmp_path / "run").close()
    path, told = gk.open_run(tmp_path / "run").path, list[str]()
    first = RunLock(path)

    def moves() -> None:
        try:
            told.append(str(rename_existing_run(path)))
        except TrajectoryError as error:
            told.append(str(error))

    thread = threading.Thread(target=moves)
    thread.start()
    time.sleep(0.15)
    path.rename(path.with_name(".run.replaced-1"))
    with opened(path) as living:
        living.step(1)
        first.close()
        thread.join()
        assert len(told) == 1 and "is being written by a recorder of this process" in told[0]
        living.step(2)
    assert gk.open_run(path).steps() == [0, 1, 2] and not path.with_name(".run.replaced-2").exists()


def test_a_run_is_locked_from_its_first_moment(tmp_path, monkeypatch):
    rename, seen = Path.rename, []

    def named(self, target):
        made = rename(self, target)
        if Path(target) == tmp_path / "run":
            seen.append(is_held(tmp_path / "run"))
        return made

    monkeypatch.setattr(Path, "rename", named)
    with opened(tmp_path / "run"):
        pass
    assert seen == [True] and not is_held(tmp_path / "run")


def test_a_run_that_was_withdrawn_amid_a_write_does_not_come_back(tmp_path, monkeypatch):
    """The recorder's thread is between its look at the lock and the status when the folder goes."""
    begun, go_on, write = threading.Event(), threading.Event(), run_folder.write_status

    def slow(path, **fields):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            go_on.wait(10)
        write(path, **fields)

    monkeypatch.setattr(run_folder, "write_status", slow)
    recorder = opened(tmp_path / "run", initial=False)
    assert begun.wait(10)
    recorder._lock.remove_folder()
    go_on.set()
    with pytest.raises(TrajectoryError):
        recorder.close()
    assert not (tmp_path / "run").exists()


def test_a_recorder_is_not_copied(tmp_path):
    import copy
    import pickle

    with opened(tmp_path / "run") as recorder:
        for copies in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(UsageError, match="cannot be copied or pickled"):
                copies(recorder)
        gc.collect()
        recorder.step(1)
    assert gk.open_run(tmp_path / "run").status["state"] == "done"


@pytest.mark.parametrize("note", [b"\xff\xfe", b"[1]", b'{"pid":1}', b"[" * 100000, b"", b"null"])
def test_whatever_stands_in_lock_its_holder_is_told_in_words(tmp_path, note):
    recorder = opened(tmp_path / "run")
    (recorder.path / "LOCK").write_bytes(note)
    with pytest.raises(
        TrajectoryError, match=r"is being written by (an unknown process|process 1 on an unknown machine)"
    ):
        opened(recorder.path, resume=True)
    with pytest.raises(TrajectoryError, match=r"taken|missing or empty"):
        recorder.close()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_whatever_lies_in_the_place_of_lock_is_told(tmp_path, make):
    opened(tmp_path / "run").close()
    (tmp_path / "run" / "LOCK").unlink()
    make(tmp_path / "run" / "LOCK")
    with pytest.raises(TrajectoryError, match="cannot be locked"):
        opened(tmp_path / "run", resume=True)
    assert gk.open_run(tmp_path / "run").steps() == [0]


def test_where_nothing_may_be_written_a_sentence_says_so(tmp_path, monkeypatch):
    opened(tmp_path / "run").close()
    real = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    run = gk.open_run(tmp_path / "run")
    assert run.verify() == [] and run.load(0)
    for write in (
        lambda: opened(run.path, resume=True),
        lambda: gk.replay_run(run, ["logit_scale"], model=net()),
        lambda: opened(run.path, overwrite=True),
    ):
        with pytest.raises(TrajectoryError, match="Read-only file system; copy the run to a writable folder"):
            write()


def test_a_name_that_is_too_long_is_a_sentence(tmp_path):
    with pytest.raises(TrajectoryError, match="cannot hold a run: File name too long"):
        opened(tmp_path / ("x" * 250))
    assert list(tmp_path.iterdir()) == []
