"""Busy is not damaged: files that are open, marked, locked, cut, changed or unreadable; and hostile ones."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.errors import DamagedError, TrajectoryError, UsageError
from grokkit.recording.recorder import Recorder
from grokkit.trajectory import Run, checksummed, hdf5, resume, snapshot, store
from grokkit.trajectory.recover import recover
from grokkit.trajectory.snapshot import Staging


def test_the_checksum_of_hdf5_s_own_notes():
    """Values of the reference implementation, lookup3.c's own examples."""
    assert hdf5.lookup3(b"") == 0xDEADBEEF
    assert hdf5.lookup3(b"Four score and seven years ago") == 0x17770551


@pytest.mark.parametrize("length", [1, 11, 12, 13, 24, 44])
def test_the_checksum_is_the_one_that_hdf5_writes(tmp_path, length):
    """The superblock of any file ends with it; other lengths differ from each other in every prefix."""
    with h5py.File(tmp_path / "a.h5", "w", libver=("v110", "v110")) as file:
        file["x"] = length
    raw = (tmp_path / "a.h5").read_bytes()
    assert hdf5.lookup3(raw[:44]) == int.from_bytes(raw[44:48], "little")
    assert len({hdf5.lookup3(raw[:n]) for n in range(length + 1)}) == length + 1


# --- a run that is stopped, and what a file of it may meet -----------------------------------------------------------

PROBES = gk.probe_sets(gk.load_data("digits", size=8), train=8, test=8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def opened(path: Path, **options) -> Recorder:
    return gk.record(
        path,
        options.pop("model", None) or net(),
        probes=PROBES,
        measures=["weight_norm"],
        schedule=range(100),
        **options,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Stopped at step 2, with both states, three snapshots and three readings."""
    with opened(tmp_path / "run") as recorder:
        for step in (1, 2):
            recorder.step(step)
            recorder.save(step)
    return gk.open_run(tmp_path / "run")


def files_of(run: Run) -> list[Path]:
    return sorted(path for path in run.path.rglob("*.h5"))


def one_of_each(run: Run) -> list[tuple[Path, Callable[[], object]]]:
    """A file of every kind and a way to read it."""
    (measure,) = run.measures()
    return [
        (run.path / "snapshots" / store.step_file_name(2), lambda: run.load(2)),
        (run.path / "snapshots" / store.step_file_name(2), lambda: run.load(2, ["1.weight"])),
        (run.path / "snapshots" / store.step_file_name(2), lambda: run.trajectory("1.weight")),
        (run.path / "measures" / measure / store.step_file_name(2), lambda: run.reading(measure, 2)),
        (run.path / "resume" / "1.h5", lambda: resume.ResumeStore(run.path / "resume").load()),
        (run.path / "probes" / "test.h5", lambda: run.probes),
    ]


def open_here(path: Path) -> object:
    """By this process, with HDF5's default locking."""
    return h5py.File(path, "r")


def open_for_writing_here(path: Path) -> object:
    return h5py.File(path, "r+")


class Elsewhere:
    """Another process that has the file open in a mode; `killed`: it is killed with it open."""

    def __init__(self, path: Path, mode: str, killed: bool) -> None:
        code = (
            "import h5py, os, sys, time\n"
            f"file = h5py.File({str(path)!r}, {mode!r}, libver='latest')\n"
            "print('open', flush=True)\n"
            "time.sleep(100)"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        with self.process.stdout as said:
            assert said.readline() == b"open\n"
        if killed:
            self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


OPENERS = {
    "open here": open_here,
    "open for writing here": open_for_writing_here,
    "open elsewhere": lambda path: Elsewhere(path, "r", False),
    "open for writing elsewhere": lambda path: Elsewhere(path, "r+", False),
    "opened for writing by a killed process": lambda path: Elsewhere(path, "r+", True),
}


@pytest.mark.parametrize("how", OPENERS)
def test_a_file_that_somebody_has_open_is_read_and_stays_where_it_is(run, how):
    wanted = {step: run.load(step) for step in run.steps()}
    openers = [OPENERS[how](path) for path in (files_of(run) if "elsewhere" not in how else [one_of_each(run)[-2][0]])]
    try:
        for _, look in one_of_each(run):
            look()
        assert run.verify() == [] and recover(run.path) == []
        for step, state in wanted.items():
            assert all(torch.equal(state[name], tensor) for name, tensor in run.load(step).items())
        with opened(run.path, resume=True) as recorder:
            assert recorder.restore() == 2, "the run started again"
            recorder.step(3)
    finally:
        for each in openers:
            each.close()
    assert not (run.path / "quarantine").exists() and run.steps() == [0, 1, 2, 3]


def test_a_mark_that_does_not_match_its_checksum_is_damage(run):
    path = one_of_each(run)[0][0]
    raw = bytearray(path.read_bytes())
    raw[11] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError):
        run.load(2)


def refuse(number: int):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def states_of_a_file(path: Path, monkeypatch) -> dict[str, Callable[[], object]]:
    """What is no damage, and must move nothing."""

    def in_place_of(make: Callable[[], object]) -> Callable[[], object]:
        return lambda: (path.rename(path.with_suffix(".kept")), make())

    return {
        "the disk fails": lambda: monkeypatch.setattr(os, "preadv", refuse(errno.EIO)),
        "no right": lambda: monkeypatch.setattr(os, "open", refuse(errno.EACCES)),
        "too many files": lambda: monkeypatch.setattr(os, "open", refuse(errno.EMFILE)),
        "a stale handle": lambda: monkeypatch.setattr(os, "open", refuse(errno.ESTALE)),
        "HDF5 fails on the disk": lambda: monkeypatch.setattr(h5py, "File", refuse(errno.EIO)),
        "no memory": lambda: monkeypatch.setattr(np, "empty", lambda *_, **__: (_ for _ in ()).throw(MemoryError())),
        "a folder": in_place_of(lambda: path.mkdir()),
        "a pipe": in_place_of(lambda: os.mkfifo(path)),
        "a device": in_place_of(lambda: path.symlink_to("/dev/zero")),
    }


@pytest.mark.parametrize("state", states_of_a_file(Path(), None))
@pytest.mark.parametrize("place", range(6))
def test_what_cannot_be_read_is_not_taken_for_damage(run, monkeypatch, state, place):
    """Nothing is moved, and a run never starts again because its states cannot be read just now."""
    path, look = one_of_each(run)[place]
    states_of_a_file(path, monkeypatch)[state]()
    with pytest.raises(TrajectoryError, match="in use or unreadable: ") as refused:
        look()
    assert not isinstance(refused.value, DamagedError)
    if path.parent.name == "resume":
        with pytest.raises(TrajectoryError, match=r"in use or unreadable: |MANIFEST cannot be read"):
            recover(run.path)
        with pytest.raises(TrajectoryError):
            opened(run.path, resume=True)
    monkeypatch.undo()
    if (kept := path.with_suffix(".kept")).exists():
        path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)
    assert not (run.path / "quarantine").exists() and run.verify() == []
    with opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 2


@pytest.mark.parametrize("call", ["open", "pread", "preadv", "fstat"])
@pytest.mark.parametrize("place", range(6))
def test_a_disk_that_refuses_a_single_call_is_not_taken_for_damage(run, monkeypatch, call, place):
    """Each call in turn, of those that concern the file."""
    path, look = one_of_each(run)[place]
    real, refused = getattr(os, call), 0

    def concerns(subject) -> bool:
        return str(path) == (os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else str(subject))

    for number in range(8):
        calls = iter(range(1000))

        def refusing(subject, *arguments, calls=calls, number=number, **options):
            if concerns(subject) and next(calls) == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(subject, *arguments, **options)

        monkeypatch.setattr(os, call, refusing)
        try:
            look()
        except TrajectoryError as error:
            refused += 1
            assert "in use or unreadable: Input/output error" in str(error) and not isinstance(error, DamagedError)
        monkeypatch.undo()
    assert refused or call in ("pread", "preadv"), "no call was met"


def test_a_process_that_met_a_failing_disk_ends_as_any_other(run):
    """HDF5 keeps what it reads from as long as the error is kept, and must not free it after the interpreter."""
    code = (
        "import errno, os, sys; from pathlib import Path; from grokkit.trajectory import checksummed\n"
        "from grokkit.errors import TrajectoryError\n"
        "def fails(*_): raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
        "os.preadv = fails\n"
        "try:\n    checksummed.read(Path(sys.argv[1]), 'snapshot')\n"
        "except TrajectoryError:\n    print('refused', flush=True)"
    )
    path = one_of_each(run)[0][0]
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_probes_that_cannot_be_read_are_not_said_to_be_changed(run, monkeypatch):
    path = run.path / "probes" / "test.h5"
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda at, *rest, **more: refuse(errno.EIO)() if str(at) == str(path) else real(at, *rest, **more)
    )
    (problem,) = run.verify()
    assert "in use or unreadable" in problem


def test_a_state_under_the_name_of_the_other_one_is_told(run):
    """The newest one, over an older one, looks like one that was saved after the manifest's last line."""
    one, other = (run.path / "resume" / name for name in resume.RESUME_FILES)
    one.write_bytes(other.read_bytes())
    assert [problem for problem in run.verify() if f"{one} is intact, but not the file" in problem]


def test_a_log_is_read_in_as_much_memory_as_it_has_bytes(run):
    tracemalloc.start()
    try:
        assert run.events == [] and run.verify() == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def half_written(path: Path) -> None:
    """Marked as open for writing, and HDF5's notes do not match their checksum: a program is amid a write."""
    raw = bytearray(path.read_bytes())
    raw[11] |= 1
    raw[44:48] = hdf5.lookup3(bytes(raw[:44])).to_bytes(4, "little")
    raw[raw.index(b"OHDR") + 20] ^= 8
    path.write_bytes(raw)


def test_a_file_amid_somebodys_write_stays_where_it_is(run):
    path = run.path / "resume" / "1.h5"
    half_written(path)
    with pytest.raises(TrajectoryError, match="a program has it open for writing, or was killed while it had"):
        opened(run.path, resume=True)
    assert path.exists() and not (run.path / "quarantine").exists()


def damages(raw: bytes) -> dict[str, bytes]:
    """What is damage: bytes that are not those that were written, or too few of them."""
    flipped = {
        f"bit of byte {at} flipped": bytes(b ^ (4 if n == at else 0) for n, b in enumerate(raw))
        for at in (0, 9, 30, len(raw) - 20)
    }
    return flipped | {
        "empty": b"",
        "cut to 40": raw[:40],
        "cut in half": raw[: len(raw) // 2],
        "the last byte gone": raw[:-1],
        "zeros": bytes(len(raw)),
        "text": b"not HDF5" * 50,
    }


@pytest.mark.parametrize("damage", damages(bytes(100)))
def test_damage_is_told_and_put_aside_and_the_other_state_goes_on(run, damage):
    path = run.path / "resume" / "1.h5"
    raw = path.read_bytes()
    path.write_bytes(dict(zip(damages(bytes(100)), damages(raw).values(), strict=True))[damage])
    assert any(str(path) in problem for problem in run.verify())
    with pytest.warns(UserWarning, match="was moved to"), opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 1
    assert [each.name for each in (run.path / "quarantine").iterdir()] == ["resume-1.h5.0"]


def test_a_run_is_never_begun_again_over_states_that_were_put_aside(run):
    for name in resume.RESUME_FILES:
        path = run.path / "resume" / name
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="was moved to"):
        recorder = opened(run.path, resume=True)
    with recorder, pytest.raises(TrajectoryError, match="remove them from"):
        recorder.restore()
    with opened(run.path, resume=True) as recorder, pytest.raises(TrajectoryError, match="remove them from"):
        recorder.restore()  # nor by the next attempt
    with opened(run.path, resume=True) as recorder, pytest.raises(UsageError, match="call `restore`"):
        recorder.step(3)
    for state in (run.path / "quarantine").iterdir():
        state.unlink()
    with opened(run.path, resume=True) as recorder:
        assert recorder.restore() == 0


# --- hostile files ----------------------------------------------------------------------------------------------------

SECRET = b"of another file " * 4


def hostile(path: Path, kind: str, change: Callable[[h5py.File], None], meta: bytes = b'{"step": 3}') -> None:
    """A file of the form, with one array that `change` makes; its digest is right over what HDF5 reads."""
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["format"], file.attrs["kind"], file.attrs["version"] = np.bytes_("grokkit"), np.bytes_(kind), 2
        file["meta"] = np.frombuffer(meta, np.uint8)
        file.create_group("data")
        change(file)
    try:
        with h5py.File(path, "r+") as file:
            arrays = {name: np.asarray(file["data"][name][()]) for name in file["data"]}
            digest = checksummed.compute_digest(kind, meta, arrays)
            file["digest"] = np.frombuffer(digest.encode(), np.uint8)
    except (OSError, MemoryError, TypeError, RuntimeError, KeyError, ValueError):
        with h5py.File(path, "r+") as file:
            file["digest"] = np.zeros(64, np.uint8)


def external(file: h5py.File) -> None:
    other = Path(file.filename).with_suffix(".secret")
    other.write_bytes(SECRET)
    file["data"].create_dataset("values", shape=(64,), dtype="u1", external=[(str(other), 0, 64)])


def virtual(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_suffix(".secret"), "w") as other:
        other["x"] = np.frombuffer(SECRET, np.uint8)
        layout = h5py.VirtualLayout(shape=(64,), dtype="u1")
        layout[:] = h5py.VirtualSource(other["x"])
    file["data"].create_virtual_dataset("values", layout)


def linked(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_suffix(".secret"), "w") as other:
        other["x"] = np.frombuffer(SECRET, np.uint8)
    file["data"]["values"] = h5py.ExternalLink(str(Path(file.filename).with_suffix(".secret")), "/x")


def linked_within(file: h5py.File) -> None:
    file["data"]["values"] = h5py.SoftLink("/meta")


def unallocated(file: h5py.File) -> None:
    file["data"].create_dataset("values", shape=(1 << 33,), dtype="f8", fillvalue=1.0)


def packed(file: h5py.File) -> None:
    file["data"].create_dataset("values", data=np.zeros(1 << 20, np.uint8), chunks=(1 << 16,), compression="gzip")


def in_a_circle(file: h5py.File) -> None:
    for name in "abcdefgh":
        file["data"][name] = file["data"]


def texts(file: h5py.File) -> None:
    file["data"]["values"] = ["text of any length"]


def records(file: h5py.File) -> None:
    file["data"]["values"] = np.zeros(3, [("a", "f4"), ("b", "i8")])


def references(file: h5py.File) -> None:
    file["data"]["values"] = np.array([file["meta"].ref], dtype=h5py.ref_dtype)


HOSTILE = {
    each.__name__: each
    for each in (
        external,
        virtual,
        linked,
        linked_within,
        unallocated,
        packed,
        in_a_circle,
        texts,
        records,
        references,
    )
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("kind", ["snapshot", "reading", "resume"])
def test_no_file_reads_another_one_or_more_than_it_holds(tmp_path, how, kind):
    path = tmp_path / store.step_file_name(3)
    hostile(path, kind, HOSTILE[how])
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            checksummed.read(path, kind)
        with pytest.raises(DamagedError):
            snapshot.read_snapshot(path, verify=False) if kind == "snapshot" else checksummed.read(path, kind)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", ["packed", "unallocated"])
def test_a_note_or_a_digest_that_is_packed_or_not_there_is_not_unpacked(tmp_path, how):
    path = tmp_path / store.step_file_name(3)
    options = {"chunks": (1 << 20,), "compression": "gzip"} if how == "packed" else {"fillvalue": 32}
    for name in ("meta", "digest"):
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.attrs["format"], file.attrs["kind"], file.attrs["version"] = b"grokkit", b"reading", 2
            file.create_dataset(name, shape=(3 << 30,), dtype="u1", **options)
            file["digest" if name == "meta" else "meta"] = np.zeros(64, np.uint8)
        with pytest.raises(DamagedError):
            checksummed.read(path, "reading")
        assert checksummed.try_read_digest(path) is None or name == "meta"


def test_a_note_that_is_too_long_is_refused(tmp_path, monkeypatch):
    path = tmp_path / store.step_file_name(3)
    checksummed.write(path, "reading", {}, {"step": 3, "words": "x" * 5000})
    assert checksummed.read(path, "reading")[1]["step"] == 3
    monkeypatch.setattr(hdf5, "MAX_METADATA_BYTES", 4096)
    with pytest.raises(DamagedError, match="its metadata has"):
        checksummed.read(path, "reading")


@pytest.mark.parametrize("meta", [b"[1]", b"null", b"{", b"[" * 100000, b'{"step": ' + b"9" * 9999 + b"}", b"\xff"])
def test_a_note_that_is_no_table_is_damage(tmp_path, meta):
    path = tmp_path / store.step_file_name(3)
    checksummed.write(path, "reading", {}, {"step": 3})
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs["format"], file.attrs["kind"], file.attrs["version"] = b"grokkit", b"reading", 2
        file["meta"] = np.frombuffer(meta, np.uint8)
        file["digest"] = np.frombuffer(checksummed.compute_digest("reading", meta, {}).encode(), np.uint8)
    with h5py.File(path, "r+") as file:
        for name, value in (("format", "grokkit"), ("kind", "reading")):
            file.attrs[name] = np.bytes_(value)
    with pytest.raises(DamagedError):
        checksummed.read(path, "reading")


GOOD = {"name": "w", "dtype": "float32", "array": "f4", "offset": 0, "shape": [2]}
LAYOUTS = {
    "offset beyond the array": {"offset": 3},
    "an offset before it": {"offset": -1},
    "an offset that is no number": {"offset": "0"},
    "an offset of half a number": {"offset": 0.0},
    "an offset that is true": {"offset": True},
    "a shape that is too large": {"shape": [1 << 40]},
    "a shape below 0": {"shape": [-1, -2]},
    "a shape that overflows": {"shape": [1 << 62, 1 << 62]},
    "a shape that is no list": {"shape": 2},
    "another dtype": {"dtype": "float64"},
    "a dtype that is none": {"dtype": "nn"},
    "a dtype that is a function": {"dtype": "load"},
    "a dtype that is no text": {"dtype": 3},
    "an array that is not there": {"array": "i8", "dtype": "int64"},
    "the layout itself as an array": {"array": "layout", "dtype": "uint8"},
    "a name that is no text": {"name": 3},
}


@pytest.mark.parametrize("what", LAYOUTS)
@pytest.mark.parametrize("kind", ["snapshot", "resume"])
def test_a_layout_is_believed_in_nothing(tmp_path, what, kind):
    """Digest, hash and checksums are right; what the layout says is not."""
    path = tmp_path / ("0.h5" if kind == "resume" else store.step_file_name(3))
    entry = GOOD | LAYOUTS[what]
    text = checksummed.canonical_json({key: [value] for key, value in entry.items()})
    arrays = {"f4": np.arange(4, dtype=np.float32), "crc": np.zeros(1, np.uint32)}
    arrays["layout"] = np.frombuffer(text, np.uint8)
    note = {"step": 3, "save": 1, "tree": {"$": "tensor", "key": "w"}}
    checksummed.write(path, kind, arrays, note, attributes={"layout": snapshot.hash_layout(text)})
    looks: list[Callable[[], object]] = [lambda: resume.ResumeStore(tmp_path).load()]
    if kind == "snapshot":
        looks = [
            lambda: snapshot.read_snapshot(path),
            lambda: snapshot.read_snapshot(path, verify=False),
            lambda: snapshot.read_snapshot(path, ["w"], verify=False),
        ]
    for look in looks:
        with pytest.raises(DamagedError, match="is damaged"):
            look()


def test_two_tensors_of_one_name_are_damage(tmp_path):
    path = tmp_path / store.step_file_name(3)
    text = checksummed.canonical_json({key: [value, value] for key, value in GOOD.items()})
    arrays = {"f4": np.arange(4, dtype=np.float32), "crc": np.zeros(2, np.uint32)}
    arrays["layout"] = np.frombuffer(text, np.uint8)
    checksummed.write(path, "snapshot", arrays, {"step": 3}, attributes={"layout": snapshot.hash_layout(text)})
    with pytest.raises(DamagedError, match="two tensors of the same name"):
        snapshot.read_snapshot(path)


def test_a_good_layout_of_that_form_is_read(tmp_path):
    path = tmp_path / store.step_file_name(3)
    text = checksummed.canonical_json({key: [value] for key, value in GOOD.items()})
    arrays = {"f4": np.arange(4, dtype=np.float32), "crc": np.zeros(1, np.uint32)}
    arrays["layout"] = np.frombuffer(text, np.uint8)
    checksummed.write(path, "snapshot", arrays, {"step": 3}, attributes={"layout": snapshot.hash_layout(text)})
    assert snapshot.read_snapshot(path)["w"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("arrays", [{}, {"values": np.ones(5)}, {"values": np.ones(2), "low": np.ones(3)}])
@pytest.mark.parametrize("change", [{}, {"n": None}, {"dims": 3}, {"coords": {}}, {"measure": ...}])
def test_a_reading_that_no_measure_writes_is_damage(run, arrays, change):
    """Its digest is right, its content is none."""
    (measure,) = run.measures()
    path = run.path / "measures" / measure / store.step_file_name(2)
    good, note = checksummed.read(path, "reading")
    note = {name: value for name, value in (note | change).items() if value is not ...}
    checksummed.write(path, "reading", arrays, note, replace=True)
    with pytest.raises(DamagedError, match="is damaged: its content is not valid for its kind"):
        run.reading(measure, 2)
    assert good


def test_maps_and_probes_that_nobody_writes_are_damage(run):
    maps = run.path / "attributions" / "saliency-00000000"
    checksummed.write(maps / store.step_file_name(2), "attribution", {"values": np.ones(3)}, {"step": 2})
    with pytest.raises(DamagedError, match="content is not valid for its kind"):
        run.attribution(maps.name, 2)
    path = run.path / "probes" / "test.h5"
    arrays, note = checksummed.read(path, "probes")
    for change in ({"images": np.ones(3)}, {"labels": np.ones(7)}, {"more": np.ones(3)}):
        checksummed.write(path, "probes", arrays | change, note, replace=True)
        with pytest.raises(DamagedError, match="content is not valid for its kind"):
            assert run.probes


def test_attributes_of_any_length_are_not_read(tmp_path):
    path = tmp_path / store.step_file_name(3)
    checksummed.write(path, "reading", {}, {"step": 3})
    with h5py.File(path, "r+") as file:
        file.attrs["kind"] = "a text of variable length, which lies in a heap"
    with pytest.raises(TrajectoryError, match="is not a grokkit reading file"):
        checksummed.read(path, "reading")


def test_a_state_in_a_tree_that_refers_to_nothing_is_an_error(tmp_path):
    slots = resume.ResumeStore(tmp_path / "resume")
    slots.save(resume.stage(1, {"x": torch.ones(2)}, Staging()))
    path = tmp_path / "resume" / "0.h5"
    arrays, note = checksummed.read(path, "resume")
    for tree in ({"$": "tensor", "key": "7"}, {"$": "nonsense"}, {"no": 1}, {"$": "dict", "items": [[1]]}, 7):
        checksummed.write(path, "resume", arrays, {**note, "tree": tree}, replace=True)
        with pytest.raises(TrajectoryError):
            resume.ResumeStore(tmp_path / "resume").load()
    assert json.dumps(note)
