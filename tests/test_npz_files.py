"""Arrays in .npz files: every dtype, layout and numbering is read right, warned of or refused; so is every damage."""

import io
import os
import re
import struct
import warnings
import zipfile

import numpy as np
import pytest

from grokkit import data
from grokkit.data import archive, download, foreign_files
from grokkit.errors import DataError, GrokkitError, UsageError

TRAIN, TEST, CLASSES = 60, 30, 3


def pixels(count: int, seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, 6, 5), np.uint8)


def arrays(**change) -> dict[str, np.ndarray]:
    return {
        "x_train": pixels(TRAIN, 0),
        "y_train": np.arange(TRAIN) % CLASSES,
        "x_test": pixels(TEST, 1),
        "y_test": np.arange(TEST) % CLASSES,
    } | change


def load(folder, said=(), **change):
    """The dataset in an archive of `arrays(**change)`; its warnings must match `said`."""
    np.savez(folder / "own.npz", **arrays(**change))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = data.load_data(folder / "own.npz")
    texts = [str(each.message) for each in caught]
    assert len(texts) == len(said) and all(re.search(*pair) for pair in zip(said, texts, strict=True)), texts
    assert made.findings == tuple(texts)
    return made


# ---- images

LAYOUTS = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.transpose(0, 2, 3, 1),
    "NCHW of one channel": lambda x: x[:, :1],
    "NHWC of one channel": lambda x: x[:, :1].transpose(0, 2, 3, 1),
    "NHW": lambda x: x[:, 0],
    "Fortran order": np.asfortranarray,
}
DTYPES = {
    "uint8": lambda x: x,
    "float16": lambda x: (x / 255).astype(np.float16),
    "float32": lambda x: (x / 255).astype(np.float32),
    "float64": lambda x: x / 255,
    "big-endian float32": lambda x: (x / 255).astype(">f4"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_every_layout_and_dtype_are_read_right(tmp_path, layout, dtype):
    change = {name: DTYPES[dtype](LAYOUTS[layout](arrays()[name])) for name in ("x_train", "x_test")}
    made = load(tmp_path, **change)
    grey = "one" in layout or layout == "NHW"
    for name in change:
        assert np.array_equal(getattr(made, name), arrays()[name][:, :1] if grey else arrays()[name])


WARNED = {
    "floats cast to bytes": (lambda x: (x > 127).astype(np.uint8), r"training images .*no values but 0 and 1"),
    "floats divided twice": (lambda x: x / 255 / 255, r"training images .*no values but 0 and 1"),
    "four bits": (lambda x: x // 16, r"training images .*no value above 15, nearly black"),
    "seventeen levels": (lambda x: x // 15, r"training images .*no value above 17, nearly black"),
    "one colour each": (lambda x: np.broadcast_to(x[..., :1, :1], x.shape), "60 of 60 training images .*single colour"),
    "black": (lambda x: x * 0, r"training images .*all black"),
    "normalised and cast": (lambda x: ((x / 255 - 0.5) / 0.2).astype(int).astype(np.uint8), "only values below 8"),
}


@pytest.mark.parametrize("what", WARNED)
def test_pixels_that_are_not_meant_are_warned_of(tmp_path, what):
    change, expected = WARNED[what]
    load(tmp_path, said=[expected], x_train=change(pixels(TRAIN, 0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x.astype(np.float32),
            r"must be finite and lie in \[0, 1\]; got values from 0 to 255\. Divide by 255",
        ),
        (lambda x: (x / 255 - 0.5) / 0.2, r"got values from -2\.5 to 2\.5\. .*undo the normalisation"),
        (lambda x: np.where(x == x.max(), np.nan, x / 255), "must be finite"),
        (lambda x: np.where(x == x.max(), np.inf, x / 255), "must be finite"),
        (lambda x: x.astype(np.int64), "got int64"),
        (lambda x: x.astype(np.int8), "got int8"),
        (lambda x: x.astype(np.uint16) * 257, "got uint16"),
        (lambda x: x > 127, "got bool"),
        (lambda x: x.astype(complex), "got complex128"),
        (lambda x: x.astype(str), "got <U"),
        (lambda x: x.astype(object), "allow_pickle=False"),
        (lambda x: np.concatenate([x, x[:, :1]], 1), r"got \(60, 4, 6, 5\)"),
        (lambda x: x[:, :2], r"got \(60, 2, 6, 5\)"),
        (lambda x: x.reshape(len(x), -1), r"got \(60, 90\)"),
        (lambda x: x[None], r"got \(1, 60, 3, 6, 5\)"),
        (lambda x: x.transpose(2, 3, 1, 0), r"must have shape .* got \(6, 5, 3, 60\)"),
        (lambda x: x[..., :4], "must have the same shape"),
        (lambda x: x[:, :1], "must have the same shape"),
        (lambda x: x[:-1], "one label per image"),
        (lambda x: x[:0], "at least one image"),
    ],
)
def test_other_pixels_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, x_train=change(pixels(TRAIN, 0)))


# ---- labels


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_from_zero_of_every_integer_dtype_are_read_right(tmp_path, dtype, shape):
    given = (np.arange(TRAIN) % CLASSES).astype(dtype).reshape(shape)
    made = load(tmp_path, y_train=given)
    assert made.y_train.dtype == np.int64 and made.y_train.tolist() == [i % 3 for i in range(TRAIN)]
    assert made.classes == ("0", "1", "2")


@pytest.mark.parametrize("start", [1, 5, -1])
def test_labels_that_do_not_start_at_zero_are_refused_unless_the_classes_have_names(tmp_path, start):
    change = {name: arrays()[name] + start for name in ("y_train", "y_test")}
    expected = rf"labels in .*own\.npz start at {start}; number the classes 0, 1, 2, .*or add their names as `classes`"
    with pytest.raises(DataError, match=expected):
        load(tmp_path, **change)
    names = np.array(["background", "a", "b", "c"])
    if start == 1:
        load(tmp_path, said=[r"no training image of 1 of 4 classes \('background'\)"], **change, classes=names)
    else:
        with pytest.raises(DataError, match=r"must be class numbers in 0\.\.3"):
            load(tmp_path, **change, classes=names)


def test_a_gap_is_warned_of_and_a_zero_in_the_test_labels_alone_too(tmp_path):
    gap = {name: arrays()[name] * 2 for name in ("y_train", "y_test")}
    load(tmp_path, said=[r"no training image of 2 of 5 classes \('1', '3'\)"], **gap)
    load(tmp_path, said=["no training image of 1 of 3 classes"], y_train=np.arange(TRAIN) % 2 + 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(TRAIN) % 3 + 0.0, r"got float64 of shape \(60,\)\. Convert them: whole floats with \.astype\(int\)"),
        (np.arange(TRAIN) % 2 > 0, r"got bool of shape \(60,\)"),
        (np.eye(3, dtype=int)[np.arange(TRAIN) % 3], r"of shape \(60, 3\)\. .*one row of scores .* \.argmax\(1\)"),
        ((np.arange(TRAIN) % 3)[None], r"got int64 of shape \(1, 60\)"),
        (np.array(list("abc") * 20), "got <U1"),
        (np.arange(TRAIN - 1) % 3, "one label per image"),
        (np.arange(TRAIN) % 3 * 10_000, "labels in .* reach 20000, but there are only 60 training images"),
        (np.arange(TRAIN, dtype=np.uint64) % 3 + np.uint64(2**63), "start at -9223372036854775808"),
        (np.array([0, 1, 2] * 20, object), "allow_pickle=False"),
    ],
)
def test_other_labels_are_refused(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, y_train=labels)


def test_equal_class_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="more than one is called 'cat'"):
        load(tmp_path, classes=np.array(["cat", "dog", "cat"]))


def test_what_numpy_cannot_convert_is_refused_as_well():
    for convert in (data.base.to_images, data.base.to_labels):
        with pytest.raises(DataError, match=r"must be convertible to one NumPy array; NumPy says of this list: "):
            convert([[1], [1, 2]])


# ---- standard datasets


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mnist", {}, r"which has images \(1, 28, 28\) of 10 classes; its x_train has images \(3, 6, 5\) of 10"),
        ("cifar10", {"x_train": np.zeros((TRAIN, 32, 32), np.uint8)}, r"its x_train has images \(1, 32, 32\) of 10"),
        (
            "mnist",
            {
                "x_train": pixels(TRAIN, 0, 784)[:, :, 0, 0].reshape(-1, 28, 28),
                "x_test": np.zeros((TEST, 28, 27), np.uint8),
            },
            r"its x_test has images \(1, 28, 27\)",
        ),
        (
            "mnist",
            {
                "x_train": np.zeros((TRAIN, 28, 28), np.uint8),
                "x_test": np.zeros((TEST, 28, 28), np.uint8),
                "classes": np.array(list("abcdefghijklmnopqrstuvwxyz")),
            },
            r"its x_train has images \(1, 28, 28\) of 26\. Rename the file and load it by its path; without it",
        ),
    ],
)
def test_a_named_dataset_of_another_shape_or_number_of_classes_is_refused(tmp_path, name, change, message):
    np.savez(tmp_path / f"{name}.npz", **arrays(**change))
    with pytest.raises(DataError, match=rf"{name}\.npz is not {name}, .*{message}"):
        data.load_data(name, root=tmp_path)


def test_a_part_of_a_named_dataset_is_welcome(tmp_path, real_mnist):
    np.savez(tmp_path / "mnist.npz", **{key: array[:200] for key, array in real_mnist.items()})
    assert len(data.load_data("mnist", root=tmp_path).y_train) == 200


# ---- doors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer, .*git lfs pull"),
        (b"/annex/objects/SHA256E-s1--0.npz\n", "is a git-annex pointer, .*git annex get"),
        (b"<!DOCTYPE html>\n<html>", r"is text \(HTML, XML or JSON\), not the data: its download failed"),
        (b"\xef\xbb\xbf\r\n<HTML lang=en>", r"is text \(HTML, XML or JSON\)"),
        (b'{"error": "not found"}', r"is text \(HTML, XML or JSON\)"),
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00", "is compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "is a single array"),
        (b"\x80\x04\x95", "is a pickle, which is not read"),
        (b"\x89PNG\r\n", r"it is not a zip file \(it begins with b'\\x89PNG"),
        (b"PK\x03\x04torn", "cannot be read as an .npz archive of plain arrays: BadZipFile"),
    ],
)
def test_files_that_are_no_archives_are_named_for_what_they_are(tmp_path, content, message):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"own\.npz .*{message}|own\.npz {message}"):
        data.load_data(tmp_path / "own.npz")


def archive_of(write=np.savez, **change) -> bytes:
    file = io.BytesIO()
    write(file, **arrays(**change))
    return file.getvalue()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_read_right_or_refused_and_raises_nothing_else(tmp_path, write):
    """Cut anywhere, or one byte changed, in the headers above all; the checksums of zip keep the pixels honest."""
    good, rng, refused = archive_of(write), np.random.default_rng(0), 0
    expected = arrays()
    starts = [match.start() for match in re.finditer(b"PK|NUMPY", good)]
    for turn in range(300):
        at = int(rng.integers(len(good))) if turn % 3 else int(rng.choice(starts) + rng.integers(0, 60))
        at = min(at, len(good) - 1)
        torn = good[:at] if turn % 2 else good[:at] + bytes([good[at] ^ int(rng.integers(1, 256))]) + good[at + 1 :]
        (tmp_path / "own.npz").write_bytes(torn)
        try:
            made = data.load_data(tmp_path / "own.npz")
        except DataError as error:
            refused += 1
            assert "own.npz" in str(error)
        else:
            assert all(np.array_equal(getattr(made, name), array) for name, array in expected.items())
    assert refused > 200


def patched(content: bytes, offset_local: int, offset_central: int, value: int) -> bytes:
    """The archive with a field of two bytes set in every header of a member."""
    content = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", offset_local), (b"PK\x01\x02", offset_central)):
        for match in re.finditer(re.escape(mark), bytes(content)):
            struct.pack_into("<H", content, match.start() + offset, value)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (patched(archive_of(), 8, 10, 97), "NotImplementedError"),
        (patched(archive_of(), 6, 8, 1), "RuntimeError: .*encrypted"),
    ],
    ids=["unknown compression", "encrypted"],
)
def test_archives_that_zipfile_cannot_unpack_are_refused(tmp_path, content, message):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"own\.npz cannot be read as an \.npz archive of plain arrays: {message}"):
        data.load_data(tmp_path / "own.npz")


@pytest.mark.parametrize("shape", [(10**15, 28, 28), (61, 3, 6, 5), (59, 3, 6, 5), (-60, 3, 6, 5)])
def test_a_header_that_declares_another_size_is_refused_before_memory_is_taken(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as file:
        for name, array in arrays().items():
            with file.open(f"{name}.npy", "w") as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                if name == "x_train":
                    np.lib.format.write_array_header_1_0(member, header)
                    member.write(array.tobytes())
                else:
                    np.lib.format.write_array(member, array)
    with pytest.raises(DataError, match=r"x_train declares the shape \(.*bytes, and holds 5,400"):
        data.load_data(tmp_path / "own.npz")


def test_an_array_that_grows_beyond_reason_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "PLAUSIBLE_BYTES", 100_000)
    (tmp_path / "own.npz").write_bytes(
        archive_of(np.savez_compressed, x_train=np.zeros((TRAIN, 3, 100, 100), np.uint8))
    )
    with pytest.raises(
        DataError, match=r"x_train in .*own\.npz would grow from [\d,]+ to 1,800,128 bytes when unpacked"
    ):
        data.load_data(tmp_path / "own.npz")


def test_too_little_memory_is_a_data_error(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 9 PiB")

    np.savez(tmp_path / "own.npz", **arrays())
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(DataError, match="MemoryError: Unable to allocate 9 PiB"):
        data.load_data(tmp_path / "own.npz")


def test_arrays_in_a_folder_of_the_archive_are_not_found_and_named(tmp_path):
    np.savez(tmp_path / "own.npz", **{f"data/{name}": array for name, array in arrays().items()})
    with pytest.raises(DataError, match=r"missing: x_train, .*; present: data/x_train, data/y_train"):
        data.load_data(tmp_path / "own.npz")


def test_what_cannot_be_opened_is_refused_with_the_reason(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", **arrays())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(foreign_files, "open", refuse, raising=False)
    with pytest.raises(DataError, match=r"own\.npz cannot be opened: Permission denied\. Check its permissions"):
        data.load_data(tmp_path / "own.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz is not a regular file"):
        data.load_data(tmp_path / "pipe.npz")


@pytest.mark.parametrize(
    "path", ["a\0b.npz", f"{'n' * 300}.npz", "own.npz/deeper.npz", "~nobody-here/own.npz", "loop.npz"]
)
def test_odd_paths_are_data_errors(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", **arrays())
    os.symlink("loop.npz", "loop.npz")
    for call in (data.load_data, data.check_dataset_options):
        with pytest.raises(GrokkitError):
            call(path)


@pytest.mark.parametrize("value", [5, None, b"own.npz", np.zeros(2)])
def test_what_is_no_path_is_a_usage_error(value):
    with pytest.raises(UsageError, match="`source` must be a string or a path; got"):
        data.load_data(value)
    if value is not None and not isinstance(value, np.ndarray):
        with pytest.raises(UsageError, match="`root` must be a string or a path; got"):
            data.load_data("mnist", root=value)


def test_a_file_that_cannot_be_cached_is_a_data_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    made = data.Dataset("toy", *(arrays()[key] for key in archive.ARCHIVE_KEYS), ("a", "b", "c"))
    monkeypatch.setattr(download, "write_npz", full)
    toy = archive.Standard("toy", (3, 6, 5), ("a", "b", "c"), ())
    with pytest.raises(DataError, match=r"toy\.npz cannot be written: No space left on device\. Make room or choose"):
        download.cache_archive(toy, tmp_path, lambda folder: made)
