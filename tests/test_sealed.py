"""Sealed files: documented layout, every damage found, written once, whole or absent."""

import errno
import hashlib
import json
import os
import resource
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from grokkit.errors import TrajectoryError
from grokkit.trajectory import checksummed, durable

RNG = np.random.default_rng(0)
ARRAYS = {
    "f2": RNG.normal(size=(3, 2)).astype(np.float16),
    "f4": RNG.normal(size=(40, 30)).astype(np.float32),
    "f8": np.array([np.nan, -np.inf, -0.0, 5e-324]),
    "i8": np.array([-(2**63), 2**63 - 1]),
    "u1": np.arange(256, dtype=np.uint8),
    "b1": np.array([True, False]),
    "big_endian": np.arange(4, dtype=">i4"),
    "scalar": np.array(1.5),
    "empty": np.empty((0, 7), np.float32),
    "strided": np.arange(24).reshape(4, 6)[::2, ::-3],
    "group/inside": np.arange(3),
}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def bytes_of(array):
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def test_arrays_and_note_come_back_bit_for_bit(tmp_path):
    meta = {"word": "Grüße", "number": 2**80, "nothing": None, "infinite": float("inf"), "numpy": np.float32(0.5)}
    digest = checksummed.write(tmp_path / "a.h5", "reading", ARRAYS, meta)
    arrays, note = checksummed.read(tmp_path / "a.h5", "reading")
    assert {name: bytes_of(array) for name, array in arrays.items()} == {n: bytes_of(a) for n, a in ARRAYS.items()}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert note == meta
    assert checksummed.try_read_digest(tmp_path / "a.h5") == digest


def test_a_file_without_arrays_is_a_file(tmp_path):
    checksummed.write(tmp_path / "a.h5", "reading", {}, {"step": 1})
    assert checksummed.read(tmp_path / "a.h5", "reading") == ({}, {"step": 1})


def test_plain_h5py_reads_the_documented_layout(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    checksummed.write(tmp_path / "a.h5", "reading", {"values": array}, {"b": 1, "a": [2]})
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert sorted(file) == ["data", "digest", "meta"]
        assert (file.attrs["format"], file.attrs["kind"], file.attrs["version"]) == (b"grokkit", b"reading", 2)
        note, digest, values = file["meta"][()].tobytes(), file["digest"][()].tobytes().decode(), file["data/values"]
        assert values.chunks is None and values.compression is None
        np.testing.assert_array_equal(values[()], array)
    assert json.loads(note) == {"a": [2], "b": 1} and note == b'{"a":[2],"b":1}'.ljust(64)
    by_hand = hashlib.sha256(b"reading" + note + b"values<f4(2, 3)" + array.tobytes()).hexdigest()
    assert digest == by_hand


def test_the_digest_knows_kind_note_names_types_shapes_and_bits():
    base = {"x": np.zeros(4, np.float32)}
    others = [
        checksummed.compute_digest("reading", b"{}", base),
        checksummed.compute_digest("probes", b"{}", base),
        checksummed.compute_digest("reading", b"{ }", base),
        checksummed.compute_digest("reading", b"{}", {"y": base["x"]}),
        checksummed.compute_digest("reading", b"{}", {"x": base["x"].astype(np.int32)}),
        checksummed.compute_digest("reading", b"{}", {"x": base["x"].reshape(2, 2)}),
        checksummed.compute_digest("reading", b"{}", {"x": -base["x"]}),
    ]
    assert len(set(others)) == len(others)


def damaged(raw, rng):
    """A copy of `raw` with one flipped bit, cut short, or with a block of zeros; damage favours HDF5's own metadata."""
    copy = bytearray(raw)
    at = int(rng.integers(min(len(raw), 4000) if rng.random() < 0.6 else len(raw)))
    kind = rng.integers(4)
    if kind == 0:
        del copy[at:]
    elif kind == 1:
        length = int(rng.choice([16, 512, 4096]))
        copy[at : at + length] = bytes(len(copy[at : at + length]))
    else:
        copy[at] ^= 1 << int(rng.integers(8))
    return bytes(copy)


def test_damage_is_an_error_or_harmless_but_never_wrong_data(tmp_path):
    path, rng = tmp_path / "a.h5", np.random.default_rng(1)
    checksummed.write(path, "reading", ARRAYS, {"step": 3, "list": list(range(50))})
    raw, wanted = path.read_bytes(), {name: bytes_of(array) for name, array in ARRAYS.items()}
    errors = 0
    for _ in range(150):
        path.write_bytes(damaged(raw, rng))
        checksummed.try_read_digest(path)
        try:
            arrays, note = checksummed.read(path, "reading")
        except TrajectoryError as error:
            assert str(path) in str(error)
            errors += 1
        else:
            assert {name: bytes_of(array) for name, array in arrays.items()} == wanted
            assert note == {"step": 3, "list": list(range(50))}
    assert errors > 100


def test_every_flipped_bit_of_data_and_note_is_found(tmp_path):
    path = tmp_path / "a.h5"
    checksummed.write(path, "reading", {"x": np.arange(5, dtype=np.uint8) + 200}, {"step": 77})
    raw = path.read_bytes()
    for content in (b'{"step":77}', bytes(range(200, 205)), checksummed.try_read_digest(path)[:4].encode()):
        start = raw.index(content)
        for place in range(8 * len(content)):
            copy = bytearray(raw)
            copy[start + place // 8] ^= 1 << place % 8
            path.write_bytes(copy)
            with pytest.raises(TrajectoryError, match="damaged"):
                checksummed.read(path, "reading")


def test_the_same_content_again_is_fine_and_other_content_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    digest = checksummed.write(path, "reading", {"x": np.arange(3)}, {"step": 1})
    raw, inode = path.read_bytes(), path.stat().st_ino
    assert checksummed.write(path, "reading", {"x": np.arange(3)}, {"step": 1}) == digest
    for arrays, meta in (({"x": np.arange(4)}, {"step": 1}), ({"x": np.arange(3)}, {"step": 2})):
        with pytest.raises(TrajectoryError, match=r"exists with other content; written files are never changed"):
            checksummed.write(path, "reading", arrays, meta)
    assert path.read_bytes() == raw and path.stat().st_ino == inode and listing(tmp_path) == ["a.h5"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("another writer's")
    with pytest.raises(TrajectoryError, match="nothing was changed"):
        durable.write_atomic(path, b"mine", replace=False)
    assert path.read_text() == "another writer's" and listing(tmp_path) == ["a.h5"]


@contextmanager
def file_size_limit(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("replace", [False, True])
def test_a_write_that_stops_half_way_leaves_nothing(tmp_path, replace):
    if replace:
        checksummed.write(tmp_path / "a.h5", "resume", {}, {"step": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with file_size_limit(1000), pytest.raises(TrajectoryError, match=r"a\.h5: File too large; nothing was changed"):
        checksummed.write(tmp_path / "a.h5", "resume", ARRAYS, {}, replace=replace)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, call):
    checksummed.write(tmp_path / "old.h5", "resume", {}, {"step": 1})
    raw = (tmp_path / "old.h5").read_bytes()
    monkeypatch.setattr(os, call, full_disk)
    target, replace = ("new.h5", False) if call == "link" else ("old.h5", True)
    with pytest.raises(TrajectoryError, match="No space left on device; nothing was changed"):
        checksummed.write(tmp_path / target, "resume", ARRAYS, {"step": 2}, replace=replace)
    assert listing(tmp_path) == ["old.h5"] and (tmp_path / "old.h5").read_bytes() == raw


def test_a_folder_that_cannot_be_made_durable_is_said(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def second_fails(handle):
        calls.append(handle)
        full_disk() if len(calls) == 2 else real(handle)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(TrajectoryError, match="did not confirm a new name"):
        checksummed.write(tmp_path / "a.h5", "resume", {}, {})
    assert listing(tmp_path) == ["a.h5"]


def test_file_and_folder_are_made_durable_in_this_order(tmp_path, monkeypatch):
    real, said = os.fsync, []

    def noted(handle):
        said.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to see which file is synced")
    monkeypatch.setattr(os, "fsync", noted)
    checksummed.write(tmp_path / "a.h5", "resume", {}, {})
    assert len(said) == 2 and said[0].startswith(".a.h5.") and said[1] == tmp_path.name


def test_missing_foreign_and_newer_files_are_told_apart(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(TrajectoryError, match=r"a\.h5 is missing"):
        checksummed.read(path, "reading")
    checksummed.write(path, "reading", {}, {})
    with pytest.raises(TrajectoryError, match="not a grokkit snapshot file"):
        checksummed.read(path, "snapshot")
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 3
    with pytest.raises(TrajectoryError, match="format version 3, newer than 2: update grokkit"):
        checksummed.read(path, "reading")
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(TrajectoryError, match="not a grokkit reading file"):
        checksummed.read(path, "reading")
    path.write_text("not HDF5")
    with pytest.raises(TrajectoryError, match="is damaged"):
        checksummed.read(path, "reading")
    assert checksummed.try_read_digest(path) is None


def test_what_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        checksummed.write(tmp_path / "a.h5", "reading", {}, {"x": {1}})
    assert listing(tmp_path) == []


def test_a_damaged_file_is_made_good_when_its_content_is_written_again(tmp_path):
    path, arrays = tmp_path / "a.h5", {"x": np.arange(50.0)}
    checksummed.write(path, "reading", arrays, {})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(np.arange(50.0).tobytes()) + 30] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(TrajectoryError, match="damaged"):
        checksummed.read(path, "reading")
    checksummed.write(path, "reading", arrays, {})
    assert path.read_bytes() == whole


def test_the_reserve_of_the_disk_is_for_the_small_notes(tmp_path, monkeypatch):
    """Where it is all that is left, status.json is written and a snapshot is not."""
    real = os.statvfs(tmp_path)

    class Nearly:
        f_frsize, f_bavail = real.f_frsize, durable.RESERVE_BYTES // real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda path: Nearly)
    durable.write_atomic(tmp_path / "status.json", b"{}")
    with pytest.raises(TrajectoryError, match="No space left"):
        checksummed.write(tmp_path / "a.h5", "reading", {}, {})
    assert listing(tmp_path) == ["status.json"]
