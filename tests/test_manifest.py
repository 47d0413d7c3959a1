"""The manifest line by line: what is durable when, what is listed after a kill, and what a state has to be."""

import json
import os
import shutil
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.errors import DamagedError, MisplacedError, TrajectoryError
from grokkit.trajectory import Run, checksummed, hdf5, log, resume, snapshot, store
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.recover import recover
from grokkit.trajectory.snapshot import Staging

PROBES = gk.probe_sets(gk.load_data("digits", size=8), train=8, test=8)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def opened(path: Path, seed: int = 0, **options):
    options = {"measures": ["weight_norm"], "schedule": range(100)} | options
    return gk.record(path, net(seed), probes=PROBES, **options)


def recorded(path: Path, seed: int = 0, saves: int = 3) -> Run:
    with opened(path, seed) as recorder:
        for step in range(1, saves + 1):
            recorder.step(step)
            recorder.save(step)
    return gk.open_run(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return recorded(tmp_path / "run")


def as_killed(run: Run, dropped: tuple[str, ...] = ()) -> None:
    """As if the writer had been killed: no end, a running status, and no lines of these files."""
    lines = (run.path / "MANIFEST").read_bytes().splitlines(keepends=True)
    kept = [each for each in lines if b'"kind":"ended"' not in each and not any(d.encode() in each for d in dropped)]
    (run.path / "MANIFEST").write_bytes(b"".join(kept))
    status = json.loads((run.path / "status.json").read_text())
    status |= {"state": "running", "manifest": sum(map(len, kept))}
    (run.path / "status.json").write_text(json.dumps(status))


def records(run: Run, kind: str) -> list[dict]:
    return [record for record in log.read_log(run.path / "MANIFEST") if record["kind"] == kind]


def test_states_are_listed_with_their_ordinals(run):
    assert [record["save"] for record in records(run, "resume")] == [1, 2, 3]
    assert [checksummed.read(run.path / "resume" / name, "resume")[1]["save"] for name in resume.RESUME_FILES] == [3, 2]


def test_everything_of_which_status_speaks_is_durable_before_it(tmp_path, monkeypatch):
    said: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        said.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).split(".h5")[0].lstrip("."))
        fsync(handle)

    def replaced(source, target):
        said.append(f"-> {Path(target).name}")
        replace(source, target)

    with opened(tmp_path / "run", measures=[]) as recorder:
        recorder._writer.wait()
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)
        recorder.step(1)
        recorder._writer.wait()
        monkeypatch.undo()
    before = said[: said.index("-> status.json")]
    assert {"000000000001", "snapshots", "metrics.jsonl", "events.jsonl", "MANIFEST"} <= set(before)
    assert before.index("000000000001") < before.index("MANIFEST")


def test_a_replay_makes_its_lines_durable(run, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))[1]
    )
    gk.replay_run(run, ["logit_scale"], model=net())
    assert any(path.endswith("MANIFEST") for path in synced)


def test_a_line_beyond_what_status_knows_may_be_torn_by_a_machine_that_dies(run):
    as_killed(run)
    with open(run.path / "MANIFEST", "ab") as file:
        file.write(b'{"kind":"snapshot","half\n' + log.encode_line(b'{"kind":"aside","name":"x","to":"y"}'))
    assert run.verify() == []
    with opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 3
    assert run.verify() == [] and run.unlisted() == []
    assert len(records(run, "resume")) == 3, "lines before the torn one were cut"


def test_a_damaged_line_that_status_knows_is_told_and_stays(run):
    as_killed(run)
    lines = (run.path / "MANIFEST").read_bytes().splitlines(keepends=True)
    lines[-1] = lines[-1].replace(b'"step"', b'"stop"')
    (run.path / "MANIFEST").write_bytes(b"".join(lines))
    assert [p for p in run.verify() if f"line {len(lines)} of {run.path}/MANIFEST is damaged" in p]
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
    assert [p for p in run.verify() if f"line {len(lines)} of {run.path}/MANIFEST is damaged" in p]


def test_every_whole_file_without_a_line_is_listed_when_the_run_goes_on(run):
    (measure,) = run.measures()
    names = ("snapshots/000000000001.h5", f"measures/{measure}/000000000000.h5", "resume/0.h5")
    as_killed(run, names)
    assert run.verify() == [] and set(run.unlisted()) == set(names)
    with opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 3
    assert run.unlisted() == [] and run.verify() == []
    (found,) = (each for each in records(run, "resume") if each.get("found"))
    assert found["save"] == 3


def test_a_run_of_an_older_version_is_not_read_as_a_whole_to_go_on(run, monkeypatch):
    (run.path / "MANIFEST").unlink()
    status = json.loads((run.path / "status.json").read_text())
    del status["manifest"]
    (run.path / "status.json").write_text(json.dumps(status))
    read, looked_at = checksummed.read_with_digest, []
    monkeypatch.setattr(
        checksummed, "read_with_digest", lambda path, kind: (looked_at.append(path.name), read(path, kind))[1]
    )
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
    assert store.step_file_name(0) not in looked_at and store.step_file_name(3) in looked_at


def test_a_file_that_was_put_aside_is_told_once_and_is_not_missing(run):
    path = run.path / "snapshots" / store.step_file_name(3)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="is damaged and was moved to"), opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 3
        assert run.steps() == [0, 1, 2]
    assert run.verify() == [] and run.steps() == [0, 1, 2, 3], "the last step is recorded anew from the resume state"


def test_the_newest_file_of_another_run_is_put_aside(run, tmp_path):
    other = recorded(tmp_path / "other", seed=1)
    target = run.path / "snapshots" / store.step_file_name(3)
    shutil.copy(other.path / "snapshots" / target.name, target)
    with (
        pytest.warns(UserWarning, match="is intact, but not the file that this run wrote under this name; it was"),
        opened(run.path, resume=True) as recorder,
    ):
        assert recorder.restore() == 3


def test_a_change_is_told_once(run):
    (run.path / "snapshots" / store.step_file_name(1)).unlink()
    with pytest.warns(UserWarning, match=r"000000000001\.h5 is missing"), opened(run.path, resume=True) as recorder:
        recorder.restore()
        recorder.step(4)
        recorder.step(5)
    assert [event["kind"] for event in run.events].count("changed") == 1


# --- states -----------------------------------------------------------------------------------------------------------


def forged(run: Run, **fields) -> None:
    """Another state in the newest one's place, whole and of this run."""
    arrays, note = checksummed.read(run.path / "resume" / "0.h5", "resume")
    checksummed.write(run.path / "resume" / "0.h5", "resume", arrays, {**note, **fields}, replace=True)


def test_another_state_of_the_same_ordinal_is_told_and_not_loaded(run):
    forged(run, step=7)
    assert [problem for problem in run.verify() if "is intact, but not the file" in problem]
    with pytest.warns(UserWarning, match="it was moved to"), opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 2


def test_a_state_that_was_saved_after_its_last_line_is_the_newest(run):
    forged(run, step=7, save=9)
    as_killed(run)
    assert run.verify() == []
    with opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 7


def test_a_state_of_another_run_counts_for_nobody(run, tmp_path):
    """Also where nobody has put it aside, as in the other processes of a team; and where no line speaks of it."""
    other = recorded(tmp_path / "other", saves=4)
    shutil.copy(other.path / "resume" / "1.h5", run.path / "resume" / "1.h5")
    found = resume.ResumeStore(run.path / "resume").load()
    assert found is not None and found[0] == 3
    as_killed(run, ("resume/1.h5",))
    assert run.verify() == [f"{run.path / 'resume' / '1.h5'} is the state of another run"]


def test_the_third_save_of_a_writer_replaces_the_first(tmp_path):
    slots = resume.ResumeStore(tmp_path / "resume")
    for step in (5, 6, 7, 8):
        slots.save(resume.stage(step, {}, Staging()))
    told = [checksummed.read(tmp_path / "resume" / name, "resume")[1] for name in resume.RESUME_FILES]
    assert [(note["step"], note["save"]) for note in told] == [(7, 3), (8, 4)]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [1, 4, 5])
def test_every_mark_of_an_open_file_is_seen_through(run, marks):
    path = run.path / "snapshots" / store.step_file_name(2)
    raw = bytearray(path.read_bytes())
    raw[11] |= marks
    raw[44:48] = hdf5.lookup3(bytes(raw[:44])).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(OSError):
        h5py.File(path, "r")  # as any other reader finds it
    assert run.load(2) and run.verify() == []


def test_verify_looks_into_the_layout_of_a_snapshot(run):
    path = run.path / "snapshots" / store.step_file_name(9)
    text = checksummed.canonical_json(
        {"name": ["w"], "dtype": ["float32"], "array": ["f4"], "offset": [3], "shape": [[2]]}
    )
    arrays = {"f4": np.arange(4, dtype=np.float32), "crc": np.zeros(1, np.uint32)}
    arrays["layout"] = np.frombuffer(text, np.uint8)
    checksummed.write(path, "snapshot", arrays, {"step": 9}, attributes={"layout": snapshot.hash_layout(text)})
    assert [problem for problem in run.verify() if "exceeds the array 'f4'" in problem]


def test_numbers_in_the_order_of_another_machine_are_damage(tmp_path):
    text = checksummed.canonical_json(
        {"name": ["w"], "dtype": ["float32"], "array": ["f4"], "offset": [0], "shape": [[2]]}
    )
    arrays = {"f4": np.arange(2, dtype=">f4"), "crc": np.zeros(1, np.uint32), "layout": np.frombuffer(text, np.uint8)}
    path = tmp_path / store.step_file_name(9)
    checksummed.write(path, "snapshot", arrays, {"step": 9}, attributes={"layout": snapshot.hash_layout(text)})
    with pytest.raises(DamagedError, match="its layout has a tensor of 'float32'"):
        snapshot.read_snapshot(path)


def test_a_reading_that_cannot_be_read_just_now_is_not_taken_for_one_that_is_there(run):
    (measure,) = run.measures()
    path = run.path / "measures" / measure / store.step_file_name(1)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TrajectoryError, match="in use or unreadable"):
        gk.replay_run(run, ["weight_norm"], model=net())


def test_no_reading_is_there_before_the_weights_that_it_was_taken_of(tmp_path, monkeypatch):
    write, seen = snapshot.write_packed, []

    def late(path, step, packed, **options):
        import time

        time.sleep(0.2)
        return write(path, step, packed, **options)

    from grokkit.recording import recorder as recorders

    take = recorders.run_instrument

    def looks(run_path, step, subject, context):
        seen.append((run_path / "snapshots" / store.step_file_name(step)).exists())
        take(run_path, step, subject, context)

    monkeypatch.setattr(snapshot, "write_packed", late)
    monkeypatch.setattr(recorders, "run_instrument", looks)
    with opened(tmp_path / "run") as recorder:
        recorder.step(1)
    assert seen == [True, True]


def test_a_link_of_the_pattern_is_removed_and_not_what_it_leads_to(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("a person's own")
    link = run.path / ".weights.1a2b3c4d.tmp"
    link.symlink_to(tmp_path / "mine")
    assert recover(run.path) == [] and not link.is_symlink()
    assert (tmp_path / "mine" / "file").read_text() == "a person's own"


def test_a_holder_on_another_machine_is_no_recorder_of_this_process(tmp_path):
    with RunLock(tmp_path):
        note = json.loads((tmp_path / "LOCK").read_text())
        assert note["host"] == socket.gethostname()
        (tmp_path / "LOCK").write_text(json.dumps(note | {"host": "elsewhere"}))
        with pytest.raises(TrajectoryError, match=rf"by process {os.getpid()} on elsewhere; wait for it or stop it"):
            RunLock(tmp_path)


def test_a_folder_that_came_between_the_look_and_the_rename_is_put_back(tmp_path, monkeypatch):
    run = recorded(tmp_path / "run")
    lock, rename = RunLock(run.path), os.rename

    def meanwhile(source, target):
        if Path(source) == run.path and not (tmp_path / "mine").exists():
            rename(run.path, tmp_path / "mine")
            recorded(tmp_path / "theirs")
            rename(tmp_path / "theirs", run.path)
        rename(source, target)

    monkeypatch.setattr(os, "rename", meanwhile)
    lock.remove_folder()
    assert gk.open_run(run.path).verify() == [] and (tmp_path / "mine").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run"]


def test_a_whole_file_of_another_kind_is_misplaced_and_a_foreign_one_too(tmp_path):
    path = tmp_path / store.step_file_name(3)
    checksummed.write(path, "reading", {}, {"step": 3})
    with pytest.raises(MisplacedError):
        checksummed.read(path, "snapshot")
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(MisplacedError):
        checksummed.read(path, "snapshot")


def test_a_torn_last_line_is_cut_before_the_next_one_is_written(run):
    whole = (run.path / "MANIFEST").read_bytes()
    (run.path / "MANIFEST").write_bytes(whole + b'{"kind":"reading","na')
    gk.replay_run(run, ["logit_scale"], model=net(), steps=[0])
    now = (run.path / "MANIFEST").read_bytes()
    assert now.startswith(whole) and log.find_damaged_lines(run.path / "MANIFEST") == []
    assert now.count(b"\n") == whole.count(b"\n") + 1 and run.unlisted() == []


def test_a_line_that_does_not_fit_on_the_disk_is_an_error(run, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:10]))
    with pytest.raises(TrajectoryError, match=r"could not write .*MANIFEST: No space left on device"):
        gk.replay_run(run, ["logit_scale"], model=net(), steps=[0])


def test_maps_of_another_recording_are_told_by_a_read(tmp_path):
    kept = [gk.spec("saliency", images=2), gk.spec("saliency", images=3), gk.spec("input_x_gradient", images=2)]
    with opened(tmp_path / "run", attributions=kept, measures=[], schedule=[1]) as recorder:
        recorder.step(1)
    run = gk.open_run(tmp_path / "run")
    one, two, other = (tmp_path / "run" / "attributions" / name for name in sorted(run.attributions(), reverse=True))
    for source in (two, other):
        shutil.copy(source / store.step_file_name(0), one / store.step_file_name(0))
        with pytest.raises(MisplacedError, match="but its name requires"):
            run.attribution(one.name, 0)
    arrays, note = checksummed.read(other / store.step_file_name(0), "attribution")
    del note["identity"]  # as an older version wrote it
    checksummed.write(one / store.step_file_name(0), "attribution", arrays, note, replace=True)
    with pytest.raises(MisplacedError, match="holds method 'input_x_gradient'"):
        run.attribution(one.name, 0)
