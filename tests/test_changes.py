"""What a manifest says holds on after a resume, and whoever meets an odd one says so and goes on."""

import errno
import json
import os
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import grokkit as gk
from grokkit.errors import DamagedError, GrokkitError, TrajectoryError, UsageError
from grokkit.trajectory import Run, checksummed, documents, durable, log, manifest, resume, snapshot, store, verify
from tests.test_manifest import as_killed, net, opened, recorded, records


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return recorded(tmp_path / "run")


def resumed(run: Run, *steps: int, state: str = "done") -> list[str]:
    """Go on with a run; the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder = opened(run.path, resume=True)
        recorder.restore()
        for step in steps:
            recorder.step(step)
        recorder.close(state)
    return [str(each.message) for each in caught]


def interrupted(path: Path) -> Run:
    recorder = opened(path)
    for step in (1, 2, 3):
        recorder.step(step)
        recorder.save(step)
    recorder.close("interrupted")
    return gk.open_run(path)


def snapshot_of(run: Run, step: int) -> Path:
    return run.path / "snapshots" / store.step_file_name(step)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_what_the_logs_said_at_an_end_holds_while_the_run_goes_on(run):
    recorder = opened(run.path, resume=True)
    recorder.restore()
    recorder.step(4)
    path = run.path / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"resumed", b"altered"))  # behind what is known
    assert not [each for each in run.verify() if "other things" in each]
    recorder.log(4, "train", loss=1.0)
    recorder.close("interrupted")
    resumed(run, state="interrupted")
    (line,) = [each for each in records(run, "ended") if each["state"] == "interrupted"][:1]
    with open(run.path / "metrics.jsonl", "r+b") as file:
        file.write(b"X")
    as_killed(run)
    assert line["logs"]["metrics.jsonl"]["bytes"] > 0
    # The newest end is gone with the kill; what older ones knew of the log is known on.
    assert [each for each in run.verify() if "metrics.jsonl" in each]


def test_a_log_that_is_cut_after_a_resume_is_told(run):
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        recorder.log(4, "train", loss=1.0)
    recorder = opened(run.path, resume=True)
    recorder.restore()
    recorder.step(4)
    recorder._writer.wait()
    os.truncate(run.path / "metrics.jsonl", 0)
    assert manifest.read_manifest(run.path).ended == {}
    assert [each for each in run.verify() if "metrics.jsonl was truncated: it has 0 bytes" in each]
    recorder.close("interrupted")


def test_a_torn_last_line_at_an_end_is_not_known_of(run, monkeypatch):
    with open(run.path / "metrics.jsonl", "ab") as file:
        whole = file.tell()
        file.write(b'{"step":4,"spl')
    manifest.add_end(run.path, "failed")
    assert records(run, "ended")[-1]["logs"]["metrics.jsonl"]["bytes"] == whole
    resumed(run, 4)
    assert not [each for each in run.verify() if "metrics" in each]


@pytest.mark.parametrize("size", [0, 1, 5, 100, 3000])
def test_whole_lines_are_measured_over_the_edges_of_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(manifest, "_BLOCK_BYTES", 7)
    text = (b"ab\ncdefghijklmnop\n\nq\n" * 200)[:size]
    (tmp_path / "log").write_bytes(text)
    whole = text[: text.rfind(b"\n") + 1]
    (tmp_path / "whole").write_bytes(whole)
    assert manifest.hash_log(tmp_path / "log") == {
        "bytes": len(whole),
        "sha256": manifest.hash_file(tmp_path / "whole"),
    }
    assert manifest.hash_log(tmp_path / "log", size)["sha256"] == manifest.hash_file(tmp_path / "log")


# --- snapshots that nobody listed -------------------------------------------------------------------------------------


def another(tmp_path: Path, step: int) -> Path:
    return snapshot_of(recorded(tmp_path / "other", seed=1, saves=step), step)


def test_a_snapshot_that_came_after_an_interruption_is_told_and_put_aside(tmp_path):
    run = interrupted(tmp_path / "run")
    shutil.copy(another(tmp_path, 4), snapshot_of(run, 4))
    assert run.verify() == [f"{snapshot_of(run, 4)} did not exist when the run ended: the manifest does not list it"]
    told = resumed(run)
    assert len(told) == 1 and "the manifest does not list it; it was moved to" in told[0]
    assert run.steps() == [0, 1, 2, 3] and run.verify() == []


def test_what_was_written_and_not_listed_before_a_kill_stays(tmp_path):
    """An attempt that goes on after an end may be killed between a snapshot and its line."""
    run = interrupted(tmp_path / "run")
    recorder = opened(run.path, resume=True)
    recorder.restore()
    recorder.step(4)
    recorder._writer.wait()
    copy = Path(shutil.copytree(run.path, tmp_path / "killed"))
    recorder.close()
    killed = Run(copy)
    as_killed(killed, ("snapshots/000000000004.h5", "measures/"))
    assert killed.verify() == []
    assert resumed(killed) == [] and killed.steps() == [0, 1, 2, 3, 4] and killed.unlisted() == []


@pytest.mark.parametrize("lines", ["all", "none of it", "no manifest"])
def test_a_snapshot_of_which_last_bits_differ_stays_whoever_listed_it(run, lines):
    """As on another machine; what was measured at it was measured at it."""
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        recorder.step(4)
    as_killed(run, () if lines == "all" else ("snapshots/000000000004.h5",))
    if lines == "no manifest":
        (run.path / "MANIFEST").unlink()
        status = json.loads((run.path / "status.json").read_text())
        del status["manifest"]
        (run.path / "status.json").write_text(json.dumps(status))
    digest = checksummed.try_read_digest(snapshot_of(run, 4))
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        recorder._context.model[1].weight.data += 1e-6
        recorder.step(4)
    assert checksummed.try_read_digest(snapshot_of(run, 4)) == digest and run.verify() == []
    assert [event["kind"] for event in run.events if event["kind"] in ("differs", "quarantined")] == ["differs"]


def test_a_found_snapshot_of_the_same_weights_stays(run):
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        recorder.step(4)
    as_killed(run, ("snapshots/000000000004.h5",))
    made = snapshot_of(run, 4).stat().st_ino
    assert resumed(run, 4) == [] and snapshot_of(run, 4).stat().st_ino == made


def test_a_snapshot_that_is_gone_is_told_ever_after(run):
    snapshot_of(run, 1).unlink()
    said = [f"{snapshot_of(run, 1)} is missing"]
    for step in (4, 5):
        assert run.verify() == said and resumed(run, step) == said


def test_a_snapshot_whose_line_is_damaged_is_the_runs_own(run):
    path = run.path / "MANIFEST"
    lines = path.read_bytes().splitlines(keepends=True)
    (at,) = (n for n, line in enumerate(lines) if b"snapshots/000000000002.h5" in line)
    lines[at] = lines[at].replace(b'"step":2', b'"step":7')
    path.write_bytes(b"".join(lines))
    said = [f"line {at + 1} of {path} is damaged"]
    assert run.verify() == said
    assert resumed(run, 4) == [] and run.steps() == [0, 1, 2, 3, 4] and run.verify() == said


# --- states -----------------------------------------------------------------------------------------------------------


def test_states_that_were_deleted_are_told_once(run):
    shutil.rmtree(run.path / "resume")
    assert [each for each in run.verify() if "resume/0.h5 is missing" in each]
    told = resumed(run, 1)
    assert [each for each in told if "resume/0.h5 is missing" in each]
    assert [each for each in told if "resume/1.h5 is missing" in each]
    assert run.verify() == [] and resumed(run) == []
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        recorder.step(2)
        recorder.save(2)
    assert run.unlisted() == [] and run.verify() == []
    (run.path / "resume" / "0.h5").unlink()
    assert run.verify() == [f"{run.path / 'resume' / '0.h5'} is missing"]


# --- the manifest itself ----------------------------------------------------------------------------------------------


def test_a_manifest_that_is_gone_is_told_by_resume_and_ever_after(run):
    (run.path / "MANIFEST").unlink()
    assert [each for each in run.verify() if each.endswith("MANIFEST is missing")]
    told = resumed(run, 4)
    assert told == [f"{run.path}/MANIFEST is missing"]
    said = [f"{run.path}/MANIFEST was missing when the run was resumed: the files found then were added to it"]
    assert run.verify() == said and resumed(run) == [] and run.verify() == said


def test_a_manifest_that_was_cut_is_told_by_resume_and_ever_after(run):
    path = run.path / "MANIFEST"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:10])
    had = len(path.read_bytes())
    told = resumed(run, 4)
    assert told == [f"{path} was truncated: it has {had} bytes and had {len(content)}"]
    lost = f"{path} had {had} of its {len(content)} bytes"
    said = [f"{lost} when the run was resumed: the files found then were added to it"]
    assert run.verify() == said and run.unlisted() == [] and run.steps() == [0, 1, 2, 3, 4]


def test_a_manifest_that_was_cut_to_an_earlier_end_puts_nothing_aside(tmp_path):
    run = interrupted(tmp_path / "run")
    at = (run.path / "MANIFEST").stat().st_size
    resumed(run, 4, 5)
    os.truncate(run.path / "MANIFEST", at)
    assert len(run.verify()) == 1
    assert len(resumed(run)) == 1 and run.steps() == [0, 1, 2, 3, 4, 5] and run.unlisted() == []


def test_states_of_two_runs_and_no_manifest_are_not_guessed_among(run, tmp_path):
    other = recorded(tmp_path / "other")
    shutil.copy(other.path / "resume" / "1.h5", run.path / "resume" / "1.h5")
    (run.path / "MANIFEST").unlink()
    with pytest.raises(TrajectoryError, match="two runs, and without MANIFEST it is unknown which one is this run"):
        opened(run.path, resume=True)
    assert not (run.path / "MANIFEST").exists()


@pytest.mark.parametrize("value", [-1, 1.5, "12", True, [1], 2**70])
def test_a_status_that_says_odd_things_of_the_manifest_is_one_that_cannot_be_read(run, value):
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps(status | {"manifest": value}))
    for go_on in (lambda: run.status, lambda: opened(run.path, resume=True)):
        with pytest.raises(TrajectoryError, match="`manifest` must be a whole number"):
            go_on()
    assert [each for each in run.verify() if "`manifest` must be a whole number" in each]


ODD = [
    {"kind": "snapshot"},
    {"kind": "snapshot", "name": 3, "step": 1, "digest": "0"},
    {"kind": "snapshot", "name": "snapshots/000000000009.h5", "step": "9", "digest": "0"},
    {"kind": "snapshot", "name": "snapshots/000000000009.h5", "step": -1, "digest": "0"},
    {"kind": "snapshot", "name": "snapshots/000000000009.h5", "step": 9},
    {"kind": "snapshot", "name": "/etc/passwd", "step": 1, "digest": "0"},
    {"kind": "snapshot", "name": "../other/snapshots/000000000000.h5", "step": 1, "digest": "0"},
    {"kind": "snapshot", "name": "x" * 301, "step": 1, "digest": "0"},
    {"kind": "snapshot", "name": "a\0b", "step": 1, "digest": "0"},
    {"kind": "resume", "name": "resume/0.h5", "step": 1, "digest": "0", "save": "last"},
    {"kind": "aside", "name": "snapshots/000000000000.h5"},
    {"kind": "aside", "name": "snapshots/000000000000.h5", "to": "../../x"},
    {"kind": "gone"},
    {"kind": "ended", "state": "done"},
    {"kind": "ended", "state": "over", "logs": {}},
    {"kind": "ended", "state": "done", "logs": {"metrics.jsonl": {"bytes": "all"}}},
    {"kind": "ended", "state": "done", "logs": {"../x": {"bytes": 0, "sha256": ""}}},
    {"kind": "resumed", "attempt": None},
    {"kind": "lost", "bytes": 1},
    {"kind": "began", "run": 3},
    {"kind": "began", "run": "x", "probes": {"../../x": "0"}},
    {"kind": "began", "run": "x", "sha256": ["config.toml"]},
    {"kind": "began", "run": "x", "probes": 0},
    {"kind": "began", "run": "x", "config": False},
    {"kind": "began", "run": "x", "probes": {"\ud800": "0"}},
    {"kind": "snapshot", "name": "\udc80", "step": 1, "digest": "0"},
    {"kind": "unheard of", "name": "a"},
    {"name": "snapshots/000000000000.h5"},
    {},
]


@pytest.mark.parametrize("record", ODD, ids=lambda record: str(record)[:60])
def test_an_odd_line_of_a_manifest_is_damage_and_changes_nothing(run, record):
    known = manifest.read_manifest(run.path)
    lines = (run.path / "MANIFEST").read_bytes().splitlines(keepends=True)
    odd = log.encode_line(json.dumps(record).encode())
    (run.path / "MANIFEST").write_bytes(b"".join([*lines[:2], odd, *lines[2:]]))
    status = json.loads((run.path / "status.json").read_text())
    status["manifest"] += len(odd)
    (run.path / "status.json").write_text(json.dumps(status))
    assert run.verify() == [f"line 3 of {run.path}/MANIFEST is damaged"]
    now = manifest.read_manifest(run.path)
    assert now.damaged == 1 and replace(now, damaged=0) == known and set(run.probes) == {"train", "test", "random"}
    assert resumed(run, 4) == []


def test_a_refused_resume_says_nothing_in_the_manifest(run):
    path = run.path / "MANIFEST"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    config, content = (run.path / "config.toml").read_text(), path.read_bytes()
    (run.path / "config.toml").write_text(config.replace("seed = 0", "seed = 1"))
    for _ in range(5):
        with pytest.raises(TrajectoryError, match="seed was 0 and is 1"):
            opened(run.path, resume=True)
    assert path.read_bytes() == content
    (run.path / "config.toml").write_text(config)
    assert [each for each in resumed(run, 4) if "MANIFEST was truncated" in each]


def test_the_manifest_of_another_run_behind_ones_own_counts_for_nothing(run, tmp_path):
    other = recorded(tmp_path / "other", seed=1)
    with open(run.path / "MANIFEST", "ab") as file:
        file.write((other.path / "MANIFEST").read_bytes())
    said = run.verify()
    assert f"{run.path}/MANIFEST contains the first line of another run" in said
    assert resumed(run, 4) == [] and run.steps() == [0, 1, 2, 3, 4] and not (run.path / "quarantine").exists()


def test_a_line_that_was_not_written_takes_no_snapshot_out_of_the_run(run, monkeypatch):
    recorder, write = opened(run.path, resume=True), os.write
    recorder.restore()
    recorder._writer.wait()
    monkeypatch.setattr(os, "write", lambda handle, line: 0 if b"000000000004" in line else write(handle, line))
    with pytest.raises(TrajectoryError, match="No space left on device"):
        recorder.step(4)
        recorder._writer.wait()
    monkeypatch.undo()
    with pytest.raises(TrajectoryError) if recorder._writer._job else nullcontext():
        recorder.close("interrupted")
    assert run.status["state"] in ("interrupted", "failed") and 4 in run.steps()
    assert run.verify() == [] and resumed(run, 5) == [] and run.steps() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("moment", ["files listed", "lines to be read", "lines read"])
def test_a_run_that_is_resumed_while_it_is_verified_has_no_strangers(run, monkeypatch, moment):
    read, rooms, recorders = manifest.read_manifest, store.iter_result_files, []

    def resumes():
        if not recorders:
            recorders.append(None)  # it reads them itself
            recorders[0] = opened(run.path, resume=True)
            recorders[0].restore()
            recorders[0].step(4)
            recorders[0]._writer.wait()

    def listed(path, *rest):
        yield from rooms(path, *rest)
        resumes() if moment == "files listed" else None

    def lines(path):
        resumes() if moment == "lines to be read" else None
        found = read(path)
        resumes() if moment == "lines read" else None
        return found

    monkeypatch.setattr(store, "iter_result_files", listed)
    monkeypatch.setattr(manifest, "read_manifest", lines)
    assert run.verify() == []
    assert 4 in run.steps()
    recorders.pop().close()


# --- verify and odd things --------------------------------------------------------------------------------------------


def replaced(path: Path, how: str) -> None:
    path.unlink(missing_ok=True)
    make = {"a folder": Path.mkdir, "a pipe": os.mkfifo, "a circle": lambda each: each.symlink_to(each.name)}
    make[how](path)


PLACES = (
    "MANIFEST",
    "metrics.jsonl",
    "events.jsonl",
    "config.toml",
    "environment.json",
    "status.json",
    "probes/train.h5",
    "snapshots/000000000003.h5",
    "resume/0.h5",
)


@pytest.mark.parametrize("how", ["a folder", "a pipe", "a circle"])
@pytest.mark.parametrize("place", PLACES)
def test_verify_names_whatever_lies_in_the_place_of_a_file(run, place, how):
    replaced(run.path / place, how)
    assert [each for each in run.verify() if place in each]
    with pytest.raises(GrokkitError):
        resumed(run)


@pytest.mark.parametrize("room", ["snapshots", "resume", "probes", "measures"])
def test_verify_names_a_folder_that_cannot_be_read(run, room, monkeypatch):
    listdir = os.listdir

    def refused(path):
        if Path(path) == run.path / room:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    told = run.verify()
    if room == "probes":  # the manifest says which there are
        assert told == []
    else:
        assert told == [f"{run.path / room} cannot be read: Permission denied"]


@pytest.mark.parametrize("name", ["config.toml", "environment.json"])
@pytest.mark.parametrize("text", ["", "[1", "\xff", "null", "[[a]]\nb = 1\n[a]\n"])
def test_nobody_goes_on_over_choices_that_cannot_be_read(run, name, text):
    (run.path / name).write_bytes(text.encode("latin-1"))
    for go_on in (lambda: opened(run.path, resume=True), lambda: gk.replay_run(run, ["logit_scale"], model=net())):
        with pytest.raises(TrajectoryError, match=name.replace(".", r"\.")):
            go_on()


def test_the_manifest_may_be_as_long_as_a_log(run, monkeypatch):
    def read_bytes(path, limit=documents.MAX_DOCUMENT_BYTES, offset=0):
        assert path.name != "MANIFEST" or limit == log.MAX_LOG_BYTES
        return documents.read_bytes(path, limit, offset)

    for module in (log, manifest, verify):
        monkeypatch.setattr(module, "read_bytes", read_bytes)
    assert run.verify() == [] and resumed(run, 4) == []


# --- names ------------------------------------------------------------------------------------------------------------

NOT_OURS = (
    "7.h5",
    "best.h5",
    "._000000000001.h5",
    "٠٠٠٠٠٠٠٠٠٠٠١.h5",
    "²²²²²²²²²²²².h5",
    "0000000000001.h5",
    "00000000001.h5",
    "000000000001.h5.bak",
    " 000000000001.h5",
    "-00000000001.h5",
)


@pytest.mark.parametrize("name", NOT_OURS)
def test_files_of_names_that_no_writer_gives_are_a_persons_own(run, name):
    (measure,) = run.measures()
    for folder in ("snapshots", f"measures/{measure}", "resume"):
        (run.path / folder / name).write_bytes(b"mine")
    assert run.steps() == [0, 1, 2, 3] and run.measures() == {measure: [0, 1, 2, 3]}
    assert run.verify() == [] and run.unlisted() == []
    assert resumed(run, 4) == [] and run.verify() == []
    assert (run.path / "snapshots" / name).read_bytes() == b"mine"


@pytest.mark.parametrize("step", [0, 7, 999999999999, 10**12, 2**63 - 1])
def test_every_name_that_a_writer_gives_is_its_own(step):
    assert checksummed.parse_step(store.step_file_name(step)) == step


@pytest.mark.parametrize("name", ["._train.h5", "mine.h5", "train.h5.bak"])
def test_a_persons_own_file_among_the_probes_is_left_alone(run, name):
    (run.path / "probes" / name).write_bytes(b"mine")
    assert set(run.probes) == {"train", "test", "random"} and run.verify() == [] and resumed(run, 4) == []
    assert gk.replay_run(run, ["logit_scale"], model=net(), steps=[0]) == 1


def test_a_probe_set_that_is_gone_is_no_smaller_run(run):
    (run.path / "probes" / "test.h5").unlink()
    with pytest.raises(TrajectoryError, match=r"test\.h5 is missing"):
        _ = run.probes


# --- lines that stand for more than one moment ------------------------------------------------------------------------


def test_between_a_resume_and_its_end_nobody_says_which_snapshots_belong(tmp_path):
    run = interrupted(tmp_path / "run")
    recorder = opened(run.path, resume=True)
    recorder.restore()
    recorder._writer.wait()
    shutil.copy(another(tmp_path, 4), snapshot_of(run, 4))
    assert run.verify() == []
    recorder.close("failed")
    assert run.verify() == []  # one that failed may have left files without lines


def test_a_replay_does_not_take_back_what_the_end_has_said(run, tmp_path):
    gk.replay_run(run, ["logit_scale"], model=net(), steps=[0])
    assert manifest.read_manifest(run.path).ended["state"] == "done"
    shutil.copy(another(tmp_path, 4), snapshot_of(run, 4))
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b"later lines are no fault")
    assert [each for each in run.verify() if "the manifest does not list it" in each]


def test_a_file_that_came_back_from_quarantine_is_read_as_one_that_nobody_listed(run):
    """By its own digest, not by that of the file that was put aside."""
    path = snapshot_of(run, 3)
    raw = path.read_bytes()
    path.write_bytes(raw[:-20])
    resumed(run, state="interrupted")  # a clean end would record its last step anew
    assert run.verify() == [] and run.steps() == [0, 1, 2]
    path.write_bytes(raw)
    assert run.verify() == [f"{path} did not exist when the run ended: the manifest does not list it"]
    as_killed(run)
    assert run.verify() == [] and resumed(run) == [] and run.verify() == []


def test_an_older_state_that_was_put_back_is_told(run):
    old = (run.path / "resume" / "0.h5").read_bytes()  # save 3
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        for step in (4, 5, 6):
            recorder.step(step)
            recorder.save(step)
    name = next(
        name for name in ("0.h5", "1.h5") if checksummed.read(run.path / "resume" / name, "resume")[1]["save"] == 6
    )
    (run.path / "resume" / name).write_bytes(old)
    assert run.verify() == [
        f"{run.path / 'resume' / name} is intact, but not the file that this run wrote under this name"
    ]


def test_a_state_beyond_its_line_is_listed_with_what_it_holds(run):
    as_killed(run)
    lines = (run.path / "MANIFEST").read_bytes().splitlines(keepends=True)
    newest = checksummed.read(run.path / "resume" / "0.h5", "resume")[1]
    kept = b"".join(line for line in lines if b'"save":3' not in line)
    (run.path / "MANIFEST").write_bytes(kept)
    as_killed(run)
    assert run.verify() == [] and resumed(run) == []
    record = manifest.read_manifest(run.path).files["resume/0.h5"]
    assert (record["save"], record["digest"]) == (
        newest["save"],
        checksummed.try_read_digest(run.path / "resume" / "0.h5"),
    )


def test_a_run_that_is_written_cannot_be_replayed(run):
    with opened(run.path, resume=True) as recorder:
        recorder.restore()
        with pytest.raises(TrajectoryError, match="is being written by"):
            gk.replay_run(run, ["logit_scale"], model=net())
        recorder.step(4)
    assert run.status["state"] == "done"


def test_a_killed_run_knows_how_long_its_manifest_was(run):
    recorder = opened(run.path, resume=True)
    recorder.restore()
    recorder.step(4)
    recorder._writer.wait()
    copy = Path(shutil.copytree(run.path, run.path.parent / "killed"))
    recorder.close()
    path, lines = copy / "MANIFEST", (copy / "MANIFEST").read_bytes().splitlines(keepends=True)
    assert Run(copy).status["state"] == "running" and Run(copy).status["manifest"] == path.stat().st_size
    path.write_bytes(b"".join(lines[:-1]))
    assert [each for each in Run(copy).verify() if "MANIFEST was truncated" in each]


@pytest.mark.parametrize("write", ["a save", "a snapshot", "a heartbeat"])
def test_nothing_is_written_over_a_run_that_was_taken_over(run, monkeypatch, write):
    recorder = opened(run.path, resume=True)
    recorder.restore()
    recorder._writer.wait()
    (run.path / "LOCK").write_text(json.dumps({"token": "another", "pid": 1, "host": "elsewhere"}))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(TrajectoryError, match="process 1 on elsewhere"):
        if write == "a save":
            recorder.save(3)
        elif write == "a snapshot":
            recorder.add_snapshot(9, recorder._context.model.state_dict())
        else:
            recorder._submit()
        recorder._writer.wait()
    with pytest.raises(TrajectoryError):
        recorder.close()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("write", ["a save", "a snapshot"])
def test_a_run_that_is_taken_over_amid_a_write_gets_nothing_of_it(run, monkeypatch, write):
    recorder, write_durably = opened(run.path, resume=True), durable._write_durably
    recorder.restore()
    recorder._writer.wait()
    before = sorted(run.path.rglob("*.h5")), (run.path / "resume" / "1.h5").read_bytes()

    def taken_over(path, *rest):
        (run.path / "LOCK").write_text(json.dumps({"token": "another", "pid": 1, "host": "elsewhere"}))
        write_durably(path, *rest)

    monkeypatch.setattr(durable, "_write_durably", taken_over)
    with pytest.raises(TrajectoryError, match="process 1 on elsewhere"):
        if write == "a save":
            recorder.save(3)
        else:
            recorder.add_snapshot(9, recorder._context.model.state_dict())
        recorder._writer.wait()
    with pytest.raises(TrajectoryError):
        recorder.close()
    assert (sorted(run.path.rglob("*.h5")), (run.path / "resume" / "1.h5").read_bytes()) == before


def test_the_first_file_of_a_form_is_read_back_before_it_has_its_name(tmp_path, monkeypatch):
    """A layout in which two arrays have each other's places is noticed before anyone relies on it."""
    form = {"of_this_test": np.arange(7, dtype=np.int16), "of_this_one": np.ones(7, np.int16)}
    skeleton, other = (
        checksummed._build_skeleton,
        {"data/of_this_test": "data/of_this_one", "data/of_this_one": "data/of_this_test"},
    )
    monkeypatch.setattr(
        checksummed, "_build_skeleton", lambda *key: tuple(other.get(each, each) for each in skeleton(*key))
    )
    with pytest.raises(TrajectoryError, match="the file does not read back as it was written"):
        checksummed.write(tmp_path / "f.h5", "reading", form, {})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    checksummed.write(tmp_path / "f.h5", "reading", form, {})
    assert checksummed.matches_digest(tmp_path / "f.h5", "reading")


@pytest.mark.parametrize("depth", [200, *range(420, 500, 4), 2000, 100_000])
def test_a_state_that_is_nested_too_deep_is_damage(run, monkeypatch, depth):
    tree = '{"$":"list","items":[' * depth + "1" + "]}" * depth
    note = f'{{"save":9,"step":3,"run":"{manifest.read_run_id(run.path)}","tree":{tree}}}'.encode()
    arrays, _ = checksummed.read(run.path / "resume" / "0.h5", "resume")
    monkeypatch.setattr(checksummed, "canonical_json", lambda value: value)
    monkeypatch.setattr(checksummed, "matches_digest", lambda *_: True)  # no writer of ours would read such a one back
    text = {"layout": snapshot.hash_layout(arrays["layout"].tobytes())}
    checksummed.write(run.path / "resume" / "0.h5", "resume", arrays, note, attributes=text, replace=True)
    monkeypatch.undo()
    try:
        step, state = resume.ResumeStore(run.path / "resume").load()
    except DamagedError as error:
        assert "is damaged" in str(error)
    else:
        assert step == 2 and "model" in state, "the older one goes on"


@pytest.mark.parametrize("room", ["measures", "attributions"])
@pytest.mark.parametrize("name", ["{0}.bak", "{0} (1)", "{0} copy", "{0}-old", ".{0}"])
def test_a_persons_copy_of_a_folder_is_left_alone(tmp_path, room, name):
    with opened(tmp_path / "run", attributions=[gk.spec("saliency", images=2)], schedule=[1]) as recorder:
        recorder.step(1)
        recorder.save(1)
    run = gk.open_run(tmp_path / "run")
    (identity,) = run.measures() if room == "measures" else run.attributions()
    copy = run.path / room / name.format(identity)
    shutil.copytree(run.path / room / identity, copy)
    (run.path / room / "circle").symlink_to("circle")
    assert list(run.measures() if room == "measures" else run.attributions()) == [identity]
    assert run.verify() == [] and run.unlisted() == [] and resumed(run, 2) == [] and len(list(copy.iterdir())) == 2


@pytest.mark.parametrize("name", ["Copy of {0}", "copy-{0}", "old_{0}", "backup"])
def test_a_copy_of_a_folder_that_looks_like_ours_is_told_and_left_alone(run, name):
    (identity,) = run.measures()
    copy = Path(shutil.copytree(run.path / "measures" / identity, run.path / "measures" / name.format(identity)))
    assert len(run.verify()) == 4 and all(str(copy) in each for each in run.verify())
    assert resumed(run, 4) == [] and len(list(copy.iterdir())) == 4 and not (run.path / "quarantine").exists()


def test_snapshots_of_a_version_without_manifests_are_the_runs_own(run, tmp_path):
    """It goes on with a run, writes no lines, and a status that does not speak of them."""
    longer = recorded(tmp_path / "longer", saves=5)
    for step in (4, 5):
        shutil.copy(snapshot_of(longer, step), snapshot_of(run, step))
    status = json.loads((run.path / "status.json").read_text())
    del status["manifest"]
    (run.path / "status.json").write_text(json.dumps(status))
    assert run.verify() == [] and resumed(run, 6) == []
    assert run.steps() == [0, 1, 2, 3, 4, 5, 6] and run.verify() == [] and run.unlisted() == []


def test_the_manifest_of_another_run_moves_nothing(run, tmp_path):
    other = recorded(tmp_path / "other")
    shutil.copy(other.path / "MANIFEST", run.path / "MANIFEST")
    before = sorted(run.path.rglob("*.h5"))
    for _ in range(2):
        with pytest.raises(TrajectoryError, match="belong to two different runs: restore"):
            opened(run.path, resume=True)
    assert sorted(run.path.rglob("*.h5")) == before
    assert [each for each in run.verify() if "is the state of another run" in each]


@pytest.mark.parametrize("name", [".hidden", "..", "", "a/b", "a\nb"])
def test_a_name_that_cannot_be_one_of_a_folder_is_not_registered(name):
    with pytest.raises(UsageError, match="cannot be the name of a measure"):
        gk.measures.register(name)(lambda context: None)


def test_every_listed_file_is_verified_whatever_its_folder_is_called(run):
    folder = run.path / "measures" / "a folder.of an odd name"
    (identity,) = run.measures()
    arrays, note = checksummed.read(run.path / "measures" / identity / store.step_file_name(1), "reading")
    digest = checksummed.write(folder / store.step_file_name(1), "reading", arrays, {**note, "identity": folder.name})
    manifest.add_file(run.path, folder / store.step_file_name(1), "reading", 1, digest)
    assert run.verify() == []
    raw = bytearray((folder / store.step_file_name(1)).read_bytes())
    raw[-30] ^= 1
    (folder / store.step_file_name(1)).write_bytes(raw)
    assert [each for each in run.verify() if "is damaged" in each]


def test_a_damaged_line_behind_a_runs_end_is_told(run):
    with open(run.path / "MANIFEST", "ab") as file:
        file.write(b"garbage\n")
    number = (run.path / "MANIFEST").read_bytes().count(b"\n")
    assert run.verify() == [f"line {number} of {run.path}/MANIFEST is damaged"]
    assert resumed(run, 4) == [] and run.verify() == []


def test_one_folder_that_cannot_be_read_hides_no_damage_elsewhere(run):
    shutil.rmtree(run.path / "measures")
    (run.path / "measures").symlink_to("measures")
    raw = bytearray(snapshot_of(run, 1).read_bytes())
    raw[-30] ^= 1
    snapshot_of(run, 1).write_bytes(raw)
    told = run.verify()
    assert [each for each in told if "measures cannot be read" in each]
    assert [each for each in told if f"{snapshot_of(run, 1)} is damaged" in each]


def test_a_file_in_the_place_of_quarantine_is_told(run):
    snapshot_of(run, 3).write_bytes(b"damaged")
    (run.path / "quarantine").write_text("mine")
    with pytest.raises(TrajectoryError, match="could not be moved to"):
        opened(run.path, resume=True)


def test_a_link_that_leads_nowhere_is_told_as_one(run):
    snapshot_of(run, 9).symlink_to("nowhere")
    assert any("it is a broken symbolic link" in each for each in run.verify())
