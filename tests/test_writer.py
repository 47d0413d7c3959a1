"""The writing thread: order, errors at the next call, buffers; a writer's folder after its death; the lock's token."""

import fcntl
import os
import random
import threading
import time

import numpy as np
import pytest
import torch

import grokkit as gk
from grokkit.errors import Interrupted, TrajectoryError, UsageError
from grokkit.recording import recorder
from grokkit.recording.state import collect_state, get_random_state, load_state
from grokkit.seeding import preserved_rng
from grokkit.training import loop
from grokkit.trajectory import checksummed, durable, resume, snapshot, store
from grokkit.trajectory import run as run_folder
from grokkit.trajectory.lock import RunLock, is_held
from grokkit.trajectory.log import Log
from grokkit.trajectory.recover import recover
from grokkit.trajectory.snapshot import Staging
from grokkit.trajectory.writer import Writer
from tests.callbacks import PressesCtrlC
from tests.runs import SMALL


def test_one_job_at_a_time_in_order_beside_the_caller():
    writer, said, gate = Writer(), [], threading.Event()
    writer.submit(lambda: (gate.wait(5), said.append("first")))
    said.append("caller")
    gate.set()
    writer.submit(lambda: said.append(threading.current_thread() is threading.main_thread()))
    writer.close()
    assert said == ["caller", "first", False]


def fails():
    raise TrajectoryError("the disk is full")


def test_an_error_is_raised_once_by_the_next_call():
    writer, said = Writer(), []
    writer.submit(fails)
    with pytest.raises(TrajectoryError, match="full"):
        writer.submit(lambda: said.append("lost"))
    writer.submit(lambda: said.append("after"))
    writer.wait()
    writer.submit(fails)
    with pytest.raises(TrajectoryError, match="full"):
        writer.close()
    assert said == ["after"]


def test_what_is_being_written_is_not_touched_by_the_next_copy():
    writer, gate, seen = Writer(), threading.Event(), []
    first = writer.staging.stage({"x": torch.zeros(3)})
    writer.submit(lambda: (gate.wait(5), seen.append(first.arrays["f4"].tolist())))
    second = writer.staging.stage({"x": torch.ones(3)})
    gate.set()
    writer.submit(lambda: seen.append(second.arrays["f4"].tolist()))
    writer.close()
    assert seen == [[0, 0, 0], [1, 1, 1]]


def test_memory_is_allocated_once_and_grows_with_the_state():
    staging = Staging()
    small = staging.stage({"x": torch.zeros(3)})
    assert staging.stage({"x": torch.ones(3)}).arrays["f4"] is small.arrays["f4"]
    grown = staging.stage({"x": torch.ones(300), "half": torch.ones(5).half()})
    assert grown.arrays["f4"].sum() == 300 and grown.arrays["f2"].sum() == 5
    assert staging.stage({"x": torch.ones(3)}).arrays["f4"].tolist() == [1, 1, 1]


def test_seconds_are_those_of_the_jobs():
    writer = Writer()
    for _ in range(2):
        writer.submit(lambda: time.sleep(0.02))
    writer.close()
    assert writer.seconds >= 0.04


# --- runs -------------------------------------------------------------------------------------------------------------

BARE = SMALL.replace(measures=(), attributions=(), signal={}, policy=gk.spec("constant"))


def full_from(monkeypatch, number):
    """Every HDF5 file from the `number`-th on meets a full disk."""
    real, calls = durable._write_durably, []

    def write(path, pieces, reserve):
        calls.extend([path] if ".h5." in path.name else [])
        if ".h5." in path.name and len(calls) >= number:
            raise OSError(28, "No space left on device")
        real(path, pieces, reserve)

    monkeypatch.setattr(durable, "_write_durably", write)


def test_a_full_disk_ends_the_run_as_failed_and_keeps_what_was_written(tmp_path, monkeypatch):
    straight = gk.train(BARE, runs=tmp_path / "straight", device="cpu")
    full_from(monkeypatch, 7)
    with pytest.raises(TrajectoryError, match=r"could not write .*\.h5: No space left on device; nothing was changed"):
        gk.train(BARE, runs=tmp_path, device="cpu")
    run = gk.open_run(tmp_path / BARE.run_name)
    assert run.status["state"] == "failed" and "No space left" in run.status["reason"]
    assert run.verify() == [] and 0 < len(run.steps()) < len(straight.steps())
    monkeypatch.undo()
    done = gk.resume(run.path, device="cpu")
    assert done.status["state"] == "done"
    for step in straight.steps():
        left, right = (each.path / "snapshots" / store.step_file_name(step) for each in (done, straight))
        assert left.read_bytes() == right.read_bytes()


def test_a_writer_that_lost_its_run_to_another_stops_before_it_publishes(tmp_path):
    lock = RunLock(tmp_path)
    lock.check()
    (tmp_path / "LOCK").write_text('{"host": "elsewhere", "pid": 7, "token": "other"}')
    with pytest.raises(TrajectoryError, match=r"another writer has taken over .* .process 7 on elsewhere"):
        snapshot.write_packed(tmp_path / "a.h5", 0, Staging().stage({"x": torch.ones(3)}), check=lock.check)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LOCK"]
    lock.close()


def test_what_a_killed_writer_left_is_put_aside_and_nothing_is_deleted(tmp_path):
    slots = resume.ResumeStore(tmp_path / "resume")
    for step in (10, 20):
        slots.save(resume.stage(step, {"x": torch.ones(30)}, Staging()))
        snapshot.write_snapshot(tmp_path / "snapshots" / store.step_file_name(step), step, {"x": torch.ones(30)})
    (tmp_path / "snapshots" / ".000000000030.h5.1234.tmp").write_bytes(b"half")
    newest = [tmp_path / "resume" / "1.h5", tmp_path / "snapshots" / store.step_file_name(20)]
    for path in newest:
        path.write_bytes(path.read_bytes()[:-50])
    said = recover(tmp_path)
    assert len(said) == 2
    for sentence, path in zip(said, newest, strict=True):
        assert sentence.startswith(f"{path} is damaged and was moved to ")
    kept = sorted(path.name for path in (tmp_path / "quarantine").iterdir())
    assert kept == ["resume-1.h5.0", "snapshots-000000000020.h5.0"]
    assert store.list_steps(tmp_path / "snapshots") == [10] and resume.ResumeStore(tmp_path / "resume").load()[0] == 10
    assert not list(tmp_path.rglob("*.tmp")) and recover(tmp_path) == []
    slots.save(resume.stage(30, {}, Staging()))
    (tmp_path / "resume" / "0.h5").write_bytes(b"")
    recover(tmp_path)
    assert "resume-0.h5.0" in {path.name for path in (tmp_path / "quarantine").iterdir()}


@pytest.mark.parametrize("slots", [["1.h5"], ["0.h5", "1.h5"]])
def test_a_run_with_damaged_slots_ends_with_the_bits_of_a_straight_one(tmp_path, slots):
    straight = gk.train(BARE, runs=tmp_path / "straight", device="cpu")
    path = tmp_path / BARE.run_name
    with pytest.raises(Interrupted):
        gk.train(BARE, runs=tmp_path, device="cpu", callback=PressesCtrlC(5))
    with pytest.raises(Interrupted):
        gk.resume(path, device="cpu", callback=PressesCtrlC(12))
    for name in slots:
        content = bytearray((path / "resume" / name).read_bytes())
        content[-40] ^= 1
        (path / "resume" / name).write_bytes(content)
    if len(slots) == 2:
        with pytest.warns(UserWarning, match="is damaged"), pytest.raises(TrajectoryError, match="remove them from"):
            gk.resume(path, device="cpu")
        with pytest.raises(TrajectoryError, match=r"resume-0\.h5\.0, resume-1\.h5\.0 were quarantined"):
            gk.resume(path, device="cpu")
        for state in (path / "quarantine").iterdir():
            state.unlink()
        done = gk.resume(path, device="cpu")
    else:
        with pytest.warns(UserWarning, match="is damaged and was moved to"):
            done = gk.resume(path, device="cpu")
    assert [e["kind"] for e in done.events].count("quarantined") == len(slots)
    last = (each.path / "snapshots" / store.step_file_name(SMALL.steps) for each in (done, straight))
    assert len({file.read_bytes() for file in last}) == 1
    assert done.metrics.equals(straight.metrics.assign(run=done.name))


def test_a_damaged_reading_and_a_damaged_snapshot_are_made_again(tmp_path):
    config = BARE.replace(measures=(gk.spec("accuracy"),))
    straight = gk.train(config, runs=tmp_path / "straight", device="cpu")
    with pytest.raises(Interrupted):
        gk.train(config, runs=tmp_path, device="cpu", callback=PressesCtrlC(20))
    path = tmp_path / config.run_name
    for slot in ("0.h5", "1.h5"):
        (path / "resume" / slot).unlink(missing_ok=True)
    (folder,) = (path / "measures").iterdir()
    for damaged in (path / "snapshots" / store.step_file_name(5), folder / store.step_file_name(5)):
        damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged and was moved to"):
        done = gk.resume(path, device="cpu")
    assert done.verify() == [] and len(list((path / "quarantine").iterdir())) == 2
    for step in straight.steps():
        for room in ("snapshots", f"measures/{folder.name}"):
            left, right = (each.path / room / store.step_file_name(step) for each in (done, straight))
            assert left.read_bytes() == right.read_bytes()


class Spent:
    def __init__(self, seconds):
        self.save_seconds = seconds


def test_slots_are_saved_by_the_clock_and_take_no_more_than_their_share(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    saves = loop.SaveTimer()
    assert not saves.is_due(Spent(0.0))
    now[0] += loop.SAVE_INTERVAL + 1
    assert saves.is_due(Spent(0.1)) and not saves.is_due(Spent(1.0)), "1 s of 31 is more than 2 %"
    assert not saves.is_due(Spent(0.4), Spent(0.4)), "the seeds of a stack together"
    saves.reset()
    assert not saves.is_due(Spent(0.1))
    now[0] += 500
    assert saves.is_due(Spent(10.0)) and not saves.is_due(Spent(11.0))
    now[0] += loop.MAX_SAVE_INTERVAL
    assert saves.is_due(Spent(1e9)), "dear slots are rare, but there are some"


def test_status_says_the_step_while_nothing_else_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "HEARTBEAT_SECONDS", 0.0)
    model = torch.nn.Linear(2, 2)
    with gk.record(tmp_path / "run", model, probes={}, measures=[], schedule=[0], config={"seed": 0}) as rec:
        for step in (1, 2):
            rec._writer.wait()
            rec.step(step)
        rec._writer.wait()
        assert gk.open_run(tmp_path / "run").status["step"] == 2


def test_snapshots_are_asked_for_while_the_one_before_is_written(tmp_path, monkeypatch):
    """The loop goes on while the disk is slow; no more than one file is in flight."""
    write, said = snapshot.write_packed, []

    def slow(path, step, packed, **options):
        said.append(f"begin {step}")
        time.sleep(0.05)
        write(path, step, packed, **options)
        said.append(f"end {step}")

    monkeypatch.setattr(snapshot, "write_packed", slow)
    model = torch.nn.Linear(2, 2)
    with gk.record(tmp_path / "run", model, probes={}, measures=[], schedule=range(4), config={"seed": 0}) as rec:
        for step in (1, 2, 3):
            with torch.no_grad():
                model.weight.fill_(step)
            rec.step(step)
            said.append(f"loop {step}")
            with torch.no_grad():
                model.weight.fill_(-1)
    assert [each for each in said if each[0] != "l"] == [f"{w} {s}" for s in range(4) for w in ("begin", "end")]
    assert said.index("loop 1") < said.index("end 1") and said.index("loop 2") > said.index("end 1")
    assert [float(state["weight"][0, 0]) for _, state in gk.open_run(tmp_path / "run").iter_snapshots([1, 2, 3])] == [
        1,
        2,
        3,
    ]


def recorded(tmp_path, model):
    return gk.record(tmp_path / "run", model, probes={}, measures=[], schedule=range(9), config={"seed": 0})


def test_a_recorder_whose_run_was_taken_over_publishes_nothing_more(tmp_path):
    rec = recorded(tmp_path, torch.nn.Linear(2, 2))
    rec.step(1)
    rec._writer.wait()
    (tmp_path / "run" / "LOCK").write_text('{"host": "elsewhere", "pid": 7, "token": "other"}')
    rec.step(2)
    with pytest.raises(TrajectoryError, match="another writer has taken"):
        rec.step(3)
    with pytest.raises(TrajectoryError, match="another writer has taken"):
        rec.close("failed")
    run = gk.open_run(tmp_path / "run")
    assert run.steps() == [0, 1] and run.status["state"] == "running", "its status is the other's"


def test_an_error_of_the_last_write_is_raised_by_close(tmp_path, monkeypatch):
    rec = recorded(tmp_path, torch.nn.Linear(2, 2))
    monkeypatch.setattr(snapshot, "write_packed", lambda *_, **__: fails())
    rec.step(1)
    with pytest.raises(TrajectoryError, match="the disk is full"):
        rec.close()
    status = gk.open_run(tmp_path / "run").status
    assert status["state"] == "failed" and "the disk is full" in status["reason"]
    RunLock(tmp_path / "run").close()  # it was given back


def test_what_is_put_aside_is_durable_in_both_folders(tmp_path, monkeypatch):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "000000000001.h5").write_bytes(b"damaged")
    synced = []
    monkeypatch.setattr(durable, "fsync_dir", lambda folder: synced.append(folder.name))
    recover(tmp_path)
    assert sorted(synced) == sorted(["quarantine", "snapshots", tmp_path.name]), "the new folder's own name, too"


def test_a_slot_holds_every_random_stream():
    model, device = torch.nn.Linear(2, 2), torch.device("cpu")

    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    with preserved_rng():
        kept = collect_state(model, None, {})
        first = draws()
        assert draws() != first
        load_state(kept, model, None, {})
        assert draws() == first
        assert get_random_state(device).keys() == {"python", "numpy", "cpu"}


def test_a_new_run_is_durable_under_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(run_folder, "fsync_dir", lambda folder: seen.append((folder, (tmp_path / "runs/a").exists())))
    run_folder.create_run(tmp_path / "runs/a", config="", environment={}, probes=[], status={"state": "starting"})
    assert seen == [(tmp_path / "runs", True)], "the folder above is synced when the name is there"


def test_a_wait_that_is_interrupted_does_not_forget_the_job(monkeypatch):
    """Otherwise the buffer that is being written would be used again."""
    writer, gate, said = Writer(), threading.Event(), []
    writer.submit(lambda: (gate.wait(5), said.append("written"), fails()))
    job = writer._job
    real = job.result
    monkeypatch.setattr(job, "result", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.wait()
    monkeypatch.setattr(job, "result", real)
    gate.set()
    with pytest.raises(TrajectoryError, match="full"):
        writer.submit(lambda: said.append("next"))
    assert said == ["written"]
    writer.close()


def test_snapshots_do_not_count_against_the_share_of_the_slots(tmp_path):
    with recorded(tmp_path, torch.nn.Linear(2, 2)) as rec:
        for step in range(1, 5):
            rec.step(step)
        rec._writer.wait()
        assert rec.save_seconds == 0.0 < rec._writer.seconds
        rec.save(4)
        rec._writer.wait()
        assert 0.0 < rec.save_seconds < rec._writer.seconds


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "input/output"), OSError(24, "many")])
def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch, error):
    """Otherwise healthy slots would be put aside and the run begun anew."""
    slots = resume.ResumeStore(tmp_path / "resume")
    slots.save(resume.stage(10, {"x": torch.ones(3)}, Staging()))

    def refuses(*_, **__):
        raise error

    monkeypatch.setattr(checksummed.h5py, "File", refuses)
    for look in (lambda: recover(tmp_path), resume.ResumeStore(tmp_path / "resume").load):
        with pytest.raises(TrajectoryError, match=r"0\.h5 cannot be read"):
            look()
    monkeypatch.undo()
    assert not (tmp_path / "quarantine").exists() and resume.ResumeStore(tmp_path / "resume").load()[0] == 10


def test_a_slot_of_a_newer_version_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checksummed, "VERSION", 3)
    checksummed._build_skeleton.cache_clear()
    resume.ResumeStore(tmp_path / "resume").save(resume.stage(10, {}, Staging()))
    monkeypatch.undo()
    checksummed._build_skeleton.cache_clear()
    with pytest.raises(TrajectoryError, match="format version 3, newer than 2: update grokkit"):
        recover(tmp_path)
    assert not (tmp_path / "quarantine").exists()


def test_an_error_that_a_loop_has_caught_still_ends_the_run_as_failed(tmp_path, monkeypatch):
    rec = recorded(tmp_path, torch.nn.Linear(2, 2))
    monkeypatch.setattr(snapshot, "write_packed", lambda *_, **__: fails())
    rec.step(1)
    with pytest.raises(TrajectoryError):
        rec.step(2)
    monkeypatch.undo()
    rec.step(3)
    with pytest.raises(TrajectoryError, match="the disk is full"):
        rec.close()
    assert gk.open_run(tmp_path / "run").status["state"] == "failed"


def test_a_disk_that_takes_no_reading_ends_the_run(tmp_path, monkeypatch):
    probes = gk.probe_sets(gk.load_data("digits", size=8), train=8, test=8, random=0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    rec = gk.record(tmp_path / "run", model, probes=probes, measures=["accuracy"], schedule=range(9))
    monkeypatch.setattr(recorder, "run_instrument", lambda *_: fails())
    with pytest.raises(TrajectoryError, match="the disk is full"):
        rec.step(1)
    rec.close("failed")


def test_a_reader_that_looks_whether_a_run_lives_keeps_no_writer_out(tmp_path):
    RunLock(tmp_path).close()
    looking = open(tmp_path / "LOCK")  # noqa: SIM115
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.1, looking.close).start()
    lock = RunLock(tmp_path)
    assert looking.closed and is_held(tmp_path)
    lock.close()


def test_the_status_of_a_resumed_run_says_its_step_at_once(tmp_path):
    model = torch.nn.Linear(2, 2)
    with recorded(tmp_path, model) as rec:
        rec.step(1)
        rec.save(1)
    rec = gk.record(tmp_path / "run", model, probes={}, measures=[], schedule=range(9), config={"seed": 0}, resume=True)
    assert rec.restore() == 1
    rec._writer.wait()
    assert gk.open_run(tmp_path / "run").status["step"] == 1
    rec.close()


def test_a_slot_is_only_loaded_into_what_it_was_saved_of(tmp_path):
    model = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(model.parameters())
    plain, clock = torch.optim.SGD(model.parameters(), lr=1.0), torch.optim.lr_scheduler.StepLR(adam, 5)
    with gk.record(tmp_path / "run", model, adam, probes={}, measures=[], schedule=[0], seed=0) as rec:
        rec.save(0, clock=clock)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.weight.data.add_(1)

    def again(optimizer, **parts):
        with gk.record(tmp_path / "run", model, optimizer, probes={}, measures=[], schedule=[0], resume=True) as rec:
            return rec.restore(**parts)

    with pytest.raises(UsageError, match="also holds clock, optimizer, and nothing was passed to load it"):
        again(None)
    with pytest.raises(UsageError, match="holds no meter; it was saved by a run without it"):
        again(adam, clock=clock, meter=plain)
    assert torch.equal(model.weight, before["weight"] + 1)
    assert again(adam, clock=clock) == 0 and torch.equal(model.weight, before["weight"])


def channels_last():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1)]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(512, 10))
    model = model.to(memory_format=torch.channels_last)
    return (
        model,
        torch.optim.AdamW(model[4:].parameters(), fused=True),
        torch.optim.AdamW(model[:3].parameters(), fused=True),
    )


def steps_of(model, *optimizers):
    for _ in range(3):
        model.zero_grad()
        model(torch.ones(4, 1, 8, 8)).square().mean().backward()
        for each in optimizers:
            each.step()
    return [parameter.clone() for parameter in model.parameters()]


def test_an_optimizer_that_is_a_part_goes_on_like_the_recorders_own(tmp_path):
    model, head, body = channels_last()
    steps_of(model, head, body)
    with gk.record(tmp_path / "run", model, head, probes={}, measures=[], schedule=[0], seed=0) as rec:
        rec.save(0, body=body)
    straight = steps_of(model, head, body)
    model, head, body = channels_last()
    with gk.record(tmp_path / "run", model, head, probes={}, measures=[], schedule=[0], resume=True) as rec:
        rec.restore(body=body)
    assert all(map(torch.equal, straight, steps_of(model, head, body)))


def test_a_slot_that_does_not_fit_loads_nothing(tmp_path):
    model = torch.nn.Linear(2, 2)
    with gk.record(
        tmp_path / "run", model, torch.optim.SGD(model.parameters()), probes={}, measures=[], schedule=[0]
    ) as rec:
        with pytest.raises(UsageError, match="`optimizer` is reserved for the recorder's own optimizer"):
            rec.save(0, optimizer=torch.optim.SGD(model.parameters()))
        rec.save(0)
    wide = torch.nn.Linear(3, 2)
    split = [{"params": [model.weight]}, {"params": [model.bias]}]
    for other, groups, told in (
        (wide, wide.parameters(), r"another model: 'weight' is \[2, 2\] in the saved one and \[2, 3\] in the given"),
        (
            torch.nn.Linear(2, 2, bias=False),
            [torch.ones(1, requires_grad=True)],
            "'bias' is .* and missing in the given",
        ),
        (model, split, "another optimizer: its groups hold other numbers"),
    ):
        before = [each.clone() for each in other.parameters()]
        rec = gk.record(
            tmp_path / "run", other, torch.optim.SGD(groups), probes={}, measures=[], schedule=[0], resume=True
        )
        with rec, pytest.raises(UsageError, match=told):
            rec.restore()
        assert all(map(torch.equal, before, other.parameters()))


def test_no_step_is_taken_before_a_saved_state_is_restored(tmp_path):
    model = torch.nn.Linear(2, 2)
    with gk.record(tmp_path / "run", model, probes={}, measures=[], schedule=[0]) as rec:
        rec.save(0)
    with gk.record(tmp_path / "run", model, probes={}, measures=[], schedule=[0], resume=True) as rec:
        with pytest.raises(UsageError, match="holds a resume state: call `restore` before"):
            rec.step(1)
        rec.restore()
        rec.step(1)


def test_a_disk_that_fails_at_step_0_leaves_no_folder(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise TrajectoryError("the disk is full")

    monkeypatch.setattr(snapshot, "write_packed", fails)
    model = torch.nn.Linear(2, 2)
    probes = gk.probe_sets(gk.load_data("digits", size=8), train=8, test=8, random=0)
    with pytest.raises(TrajectoryError, match="the disk is full"):
        gk.record(tmp_path / "run", model, probes=probes, measures=["weight_norm"], schedule=[0])
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_keeps_no_lock_that_was_given_back(tmp_path):
    lock = RunLock(tmp_path)
    inherited = os.dup(lock._file.fileno())  # a fork has the same open file
    lock.close()
    RunLock(tmp_path).close()
    os.close(inherited)
    lock = RunLock(tmp_path)
    lock._pid += 1  # as in the forked process itself
    inherited = os.dup(lock._file.fileno())
    lock.close()
    with pytest.raises(TrajectoryError, match="is being written by"):
        RunLock(tmp_path)
    os.close(inherited)


def test_a_folder_that_is_removed_while_it_is_written_is_not_called_taken_over(tmp_path):
    lock = RunLock(tmp_path)
    (tmp_path / "LOCK").unlink()
    with pytest.raises(TrajectoryError, match="LOCK is missing or empty: the folder was removed"):
        lock.check()
    lock.close()


def test_a_log_that_cannot_be_written_is_closed_with_the_disks_own_error(tmp_path, monkeypatch):
    made = Log(tmp_path / "log.jsonl", 1)
    full = open("/dev/full", "wb")  # noqa: SIM115
    made._file.close()
    monkeypatch.setattr(made, "_file", full)
    with pytest.raises(TrajectoryError, match="No space left on device"):
        made.append({"step": 1})
    with pytest.raises(TrajectoryError, match="did not confirm"):
        made.close()
    assert full.closed


def test_a_step_that_is_no_number_is_refused_wherever_it_is_told(tmp_path):
    with recorded(tmp_path, torch.nn.Linear(2, 2)) as rec:
        for told in (lambda: rec.log("3", "batch", loss=1.0), lambda: rec.event("3", "note", "text")):
            with pytest.raises(UsageError):
                told()
    assert len(gk.open_run(tmp_path / "run").metrics) == 0


def test_a_heartbeat_waits_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "HEARTBEAT_SECONDS", 0.0)
    gate = threading.Event()
    with gk.record(tmp_path / "run", torch.nn.Linear(2, 2), probes={}, measures=[], schedule=[0], seed=0) as rec:
        rec._writer.submit(lambda: gate.wait(5))
        rec.step(1)
        assert not gate.is_set() and rec._writer.is_busy
        gate.set()


def test_a_replay_makes_a_damaged_reading_again(tmp_path):
    run = gk.train(BARE.replace(measures=(gk.spec("accuracy"),)), runs=tmp_path, device="cpu")
    (folder,) = (run.path / "measures").iterdir()
    whole = (folder / store.step_file_name(5)).read_bytes()
    (folder / store.step_file_name(5)).write_bytes(whole[:-9])
    with pytest.warns(UserWarning, match="is damaged and was moved to"):
        assert gk.replay_run(run, ["accuracy"]) == 1
    assert (folder / store.step_file_name(5)).read_bytes() == whole and run.verify() == []
