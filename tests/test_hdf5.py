"""Where the arrays of a sealed file lie, and what its own structure may say of it: nothing is believed unchecked."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from grokkit.errors import DamagedError, MisplacedError, TrajectoryError
from grokkit.trajectory import checksummed, hdf5
from grokkit.trajectory.checksummed import FORMAT, VERSION

KIND = "reading"


def sealed_by_h5py(
    path: Path, arrays: dict[str, np.ndarray], meta: bytes = b"{}", digest: str | None = None, **options: dict
) -> Path:
    """A file as grokkit's, made by h5py with superblock 0, which has no checksum; `options` of datasets by name."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["format"], file.attrs["kind"], file.attrs["version"] = np.bytes_(FORMAT), np.bytes_(KIND), VERSION
        file["meta"] = np.frombuffer(meta, np.uint8)
        file["digest"] = np.frombuffer((digest or checksummed.compute_digest(KIND, meta, arrays)).encode(), np.uint8)
        for name, array in arrays.items():
            file.create_dataset(f"data/{name}", data=array, **options.get(name, {}))
    return path


def offset(path: Path, name: str) -> int:
    with h5py.File(path, "r") as file:
        return int(file[name].id.get_offset())


def moved(path: Path, name: str, to: int) -> None:
    """Say that the array lies elsewhere."""
    raw, now, at = path.read_bytes(), offset(path, name).to_bytes(8, "little"), -1
    while (at := raw.find(now, at + 1)) >= 0:
        path.write_bytes(raw[:at] + to.to_bytes(8, "little") + raw[at + 8 :])
        with suppress(OSError, KeyError, RuntimeError):
            if offset(path, name) == to:
                return
    raise AssertionError(f"no address of {name}")


def shortened(path: Path, size: int) -> None:
    """Cut the file, and say so in its superblock."""
    raw = path.read_bytes()
    end = len(raw).to_bytes(8, "little")
    assert raw[:96].count(end) == 1
    path.write_bytes(raw[:96].replace(end, size.to_bytes(8, "little")) + raw[96:size])


def numbers(count: int = 4096) -> np.ndarray:
    return np.random.default_rng(0).normal(size=count)


def test_a_file_of_anothers_making_is_read_as_ours(tmp_path):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers(), "b": numbers() + 1})
    arrays, note = checksummed.read(path, KIND)
    assert note == {} and (arrays["b"] == numbers() + 1).all()


def test_an_array_that_reaches_beyond_the_end_is_damage(tmp_path):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers(), "b": numbers()})
    raw, to = path.read_bytes(), path.stat().st_size - 100
    path.write_bytes(raw.replace(offset(path, "data/b").to_bytes(8, "little"), to.to_bytes(8, "little")))
    with pytest.raises(DamagedError, match=r"which are not all in the file|invalid dataset size"):
        checksummed.read(path, KIND)


def test_arrays_that_lie_in_one_place_are_damage(tmp_path):
    arrays = {"a": numbers(), "b": numbers(), "c": numbers()}
    path = sealed_by_h5py(tmp_path / "f.h5", arrays)
    first, *others = sorted(arrays, key=lambda name: offset(path, f"data/{name}"))
    for name in others:
        moved(path, f"data/{name}", offset(path, f"data/{first}"))
    shortened(path, offset(path, f"data/{first}") + numbers().nbytes)
    with pytest.raises(DamagedError, match="its arrays have 98370 bytes, but the file has"):
        checksummed.read(path, KIND)


@pytest.mark.parametrize(
    "options", [{"chunks": (64,)}, {"chunks": (64,), "compression": "gzip"}, {"chunks": (64,), "shuffle": True}]
)
def test_an_array_in_chunks_is_damage_also_where_nothing_packs_it(tmp_path, options):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers()}, a=options)
    with pytest.raises(DamagedError, match="'data/a' is compressed, or stored outside of the file"):
        checksummed.read(path, KIND)


def test_an_array_in_another_file_is_damage(tmp_path):
    (tmp_path / "secret").write_bytes(numbers().tobytes())
    path = tmp_path / "f.h5"
    sealed_by_h5py(path, {"a": numbers()}, a={"external": [(tmp_path / "secret", 0, numbers().nbytes)]})
    with pytest.raises(DamagedError, match="'data/a' is compressed, or stored outside of the file"):
        checksummed.read(path, KIND)


@pytest.mark.parametrize("digits", [0, 63, 65, 4096])
def test_a_digest_of_another_length_is_damage(tmp_path, digits):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers()}, digest="0" * digits or "-")
    with pytest.raises(DamagedError, match="its digest does not have 64 digits"):
        checksummed.read_claimed_digest(path)


def test_a_long_attribute_is_not_read(tmp_path):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers()})
    with h5py.File(path, "r+", libver="earliest") as file:
        file.attrs["kind"] = np.bytes_(b"reading" + b"\0" * 60_000)
    with hdf5.open_untrusted(path) as file:
        assert set(file.attributes) == {"format", "version"}
    with pytest.raises(MisplacedError):
        checksummed.read(path, KIND)


def test_an_array_at_an_odd_place_is_copied_and_not_mapped(tmp_path):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers()})
    at = offset(path, "data/a") - 3
    moved(path, "data/a", at)
    wanted = path.read_bytes()[at : at + numbers().nbytes]
    with hdf5.open_untrusted(path) as file:
        found = file.map_array("data/a")
        assert not isinstance(found.base, np.memmap) and found.tobytes() == wanted and found.flags.aligned


def test_a_file_that_ends_while_it_is_read_is_damage(tmp_path):
    path = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers()})
    with pytest.raises(DamagedError, match="it ends too early"), hdf5.open_untrusted(path) as file:
        os.truncate(path, offset(path, "data/a") + 100)
        file.read_array("data/a")


@pytest.mark.parametrize("from_call", [1, 2, 3])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_after_the_file_was_opened_says_nothing_of_its_content(
    tmp_path, monkeypatch, from_call, number
):
    path, calls, preadv = sealed_by_h5py(tmp_path / "f.h5", {"a": numbers()}), [], os.preadv

    def fails(handle, buffers, at):
        calls.append(at)
        if len(calls) >= from_call:
            raise OSError(number, os.strerror(number))
        return preadv(handle, buffers, at)

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(TrajectoryError, match=f"in use or unreadable: {os.strerror(number)}") as refused:
        checksummed.read(path, KIND)
    assert not isinstance(refused.value, DamagedError)
