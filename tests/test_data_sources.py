"""Datasets by name, from archives and from class folders: known answers, the cache, and what bad input is told."""

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import sys
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as official

from grokkit import data, seeding
from grokkit.data import archive
from grokkit.data.base import Dataset, sample_stratified, to_images, to_labels
from grokkit.data.probes import probe_sets
from grokkit.errors import DataError, UnknownNameError, UsageError


def bytes_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def small(name="toy", train=12, test=6, classes=3):
    labels = [np.arange(count, dtype=np.int64) % classes for count in (train, test)]
    words = tuple("abcdefgh"[:classes])
    return Dataset(name, bytes_of(train, 3, 4, 5), labels[0], bytes_of(test, 3, 4, 5, seed=1), labels[1], words)


def like_mnist(train=60, test=30):
    labels = [np.arange(count, dtype=np.int64) % 10 for count in (train, test)]
    x_train, x_test = bytes_of(train, 1, 28, 28), bytes_of(test, 1, 28, 28, seed=1)
    return Dataset("mnist", x_train, labels[0], x_test, labels[1], tuple("0123456789"))


def same(left, right):
    return left.hash == right.hash and left.classes == right.classes


# ---- Dataset


def test_moments_equal_numpy_over_several_blocks():
    x = bytes_of(2500, 2, 3, 3)
    x[:, 1] //= 7
    y = np.zeros(2500, np.int64)
    made = Dataset("toy", x, y, x[:1], y[:1], ("a",), findings=())
    pixels = x.astype(np.float64) / 255
    np.testing.assert_allclose(made.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(made.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    assert made.input_shape == (2, 3, 3)


def test_moments_of_half_black_half_white_are_one_half():
    x = np.zeros((2, 1, 1, 1), np.uint8)
    x[1] = 255
    made = Dataset("toy", x, np.zeros(2, np.int64), x, np.zeros(2, np.int64), ("a",), findings=())
    assert made.mean == (0.5,) and made.std == (0.5,)


def test_a_constant_channel_has_no_standard_deviation_to_divide_by():
    x = bytes_of(4, 3, 2, 2)
    x[:, 1] = 9
    made = Dataset("toy", x, np.zeros(4, np.int64), x, np.zeros(4, np.int64), ("a",), findings=())
    with pytest.raises(DataError, match="channel 1 of 'toy' is constant"):
        _ = made.std
    assert made.mean[1] == pytest.approx(9 / 255)


def test_the_hash_covers_pixels_labels_and_classes_but_not_the_name():
    base = small()
    assert len(base.hash) == 16 and int(base.hash, 16) >= 0
    assert small("other").hash == base.hash
    for field in ("x_train", "y_train", "x_test", "y_test"):
        parts = {key: getattr(base, key).copy() for key in archive.ARCHIVE_KEYS}
        parts[field].flat[0] ^= 1
        assert Dataset("toy", **parts, classes=base.classes).hash != base.hash, field
    parts = {key: getattr(base, key) for key in archive.ARCHIVE_KEYS}
    assert Dataset("toy", **parts, classes=("x", "y", "z")).hash != base.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((3, 1, 2, 2), np.float32)}, "x_train of 'toy' must be a uint8 array"),
        ({"x_test": [[1]]}, "got list"),
        ({"x_train": np.zeros((3, 2, 2), np.uint8)}, r"got uint8 of shape \(3, 2, 2\)"),
        ({"x_train": np.zeros((0, 1, 2, 2), np.uint8), "y_train": np.zeros(0, np.int64)}, "at least one image"),
        ({"y_train": np.zeros(3, np.int32)}, "got int32"),
        ({"y_train": np.zeros(4, np.int64)}, "one label per image"),
        ({"y_test": np.array([0, 1, 2])}, r"y_test of 'toy' must be class numbers in 0\.\.1; got 0\.\.2"),
        ({"y_train": np.array([0, -1, 1])}, r"got -1\.\.1"),
        ({"x_test": np.zeros((3, 1, 2, 3), np.uint8)}, "must have the same shape"),
    ],
)
def test_a_malformed_dataset_is_refused_with_what_came(change, message):
    x, y = np.zeros((3, 1, 2, 2), np.uint8), np.array([0, 1, 0])
    parts = {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | change
    with pytest.raises(DataError, match=message):
        Dataset("toy", **parts, classes=("a", "b"))


# ---- conversion


def test_every_layout_of_the_same_images_becomes_the_same_array():
    nchw = bytes_of(4, 3, 6, 5)
    for came in (nchw, nchw.transpose(0, 2, 3, 1), (nchw / 255).astype(np.float32), nchw.transpose(0, 2, 3, 1) / 255):
        made = to_images(came)
        assert made.dtype == np.uint8 and made.flags.c_contiguous
        np.testing.assert_array_equal(made, nchw)
    np.testing.assert_array_equal(to_images(nchw[:, 0]), nchw[:, :1])


def test_the_last_axis_wins_where_two_could_be_the_channels():
    came = bytes_of(2, 3, 4, 1)
    np.testing.assert_array_equal(to_images(came), came.transpose(0, 3, 1, 2))


def test_floats_are_rounded_not_cut():
    assert to_images(np.array([[[0.0, 0.999, 1.0, 99.6 / 255]]])).ravel().tolist() == [0, 255, 255, 100]


@pytest.mark.parametrize(
    ("came", "message"),
    [
        (np.zeros((2, 4, 4), np.int64), "must be uint8, or floats in .* got int64"),
        (np.zeros((2, 4, 4), bool), "got bool"),
        (np.full((2, 4, 4), 1.01), "got values from 1.01 to 1.01"),
        (np.full((2, 4, 4), -0.5), "got values from -0.5"),
        (np.full((2, 4, 4), np.nan), "must be finite"),
        (np.zeros((2, 5, 4, 4), np.uint8), r"got \(2, 5, 4, 4\)"),
        (np.zeros((2, 784), np.uint8), r"got \(2, 784\)"),
    ],
)
def test_other_pixels_are_refused(came, message):
    with pytest.raises(DataError, match=message):
        to_images(came)


def test_labels_come_from_any_integers_in_a_row_or_column():
    assert to_labels(np.array([[3], [1]], np.uint8)).tolist() == [3, 1]
    assert to_labels([2, 0]).dtype == np.int64
    for wrong in (np.eye(3, dtype=int), np.array([1.0]), np.array(["a"])):
        with pytest.raises(DataError, match="integer class numbers"):
            to_labels(wrong)


# ---- subsets


def test_a_subset_keeps_class_shares_and_repeats_nothing():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    rng = np.random.default_rng(3)
    for count in (1, 7, 10, 333, 999, 1000):
        chosen = sample_stratified(labels, count, rng)
        assert len(chosen) == len(set(chosen.tolist())) == count
        shares = np.bincount(labels[chosen], minlength=3)
        assert np.all(np.abs(shares - count * np.array([0.6, 0.3, 0.1])) < 1)
    assert np.bincount(labels[sample_stratified(labels, 10, rng)]).tolist() == [6, 3, 1]


def test_a_subset_is_in_random_order_and_reaches_every_sample():
    labels = np.repeat([0, 1], 50)
    seen = {int(i) for seed in range(40) for i in sample_stratified(labels, 10, np.random.default_rng(seed))}
    assert len(seen) == 100
    drawn = labels[sample_stratified(labels, 100, np.random.default_rng(0))]
    assert 0 < drawn[:20].sum() < 20


def test_subsets_depend_on_the_seed_alone_and_keep_images_with_their_labels():
    base = small(train=60, test=30)
    again, other = base.subset(9, 6, seed=4), base.subset(9, 6, seed=5)
    assert same(base.subset(9, 6, seed=4), again) and not same(again, other)
    assert np.bincount(again.y_train).tolist() == [3, 3, 3] and np.bincount(again.y_test).tolist() == [2, 2, 2]
    home = {x.tobytes(): y for x, y in zip(base.x_train, base.y_train, strict=True)}
    assert all(home[x.tobytes()] == y for x, y in zip(again.x_train, again.y_train, strict=True))
    assert base.subset() is base
    with pytest.warns(UserWarning, match="all 60 test images of 'toy' are also training images"):
        twins = Dataset("toy", base.x_train, base.y_train, base.x_train, base.y_train, base.classes).subset(9, 9)
    assert not np.array_equal(twins.x_train, twins.x_test)
    assert base.subset(test=6, seed=4).x_train is base.x_train


def test_fewer_images_than_asked_are_used_and_said_so():
    with pytest.warns(UserWarning, match="toy/train has only 12 images, 40 were requested; using all 12"):
        assert len(small().subset(train=40).x_train) == 12


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "9"])
def test_a_count_must_be_a_positive_int(count):
    with pytest.raises(UsageError, match="`train` must be an int of 1 or more or None for all; got"):
        small().subset(train=count)


# ---- validation


def test_a_validation_split_is_a_stratified_part_of_the_training_images_and_leaves_the_rest_in_order():
    base = small(train=60, test=30)
    held = base.with_validation(9, seed=4)
    assert len(held.y_train) == 51 and len(held.y_val) == 9 and held.x_test is base.x_test
    assert np.bincount(held.y_val).tolist() == [3, 3, 3]
    everything = {image.tobytes(): label for image, label in zip(base.x_train, base.y_train, strict=True)}
    assert len(everything) == 60, "the images of this test tell themselves apart"
    parts = (held.x_train, held.y_train), (held.x_val, held.y_val)
    found = {image.tobytes(): label for x, y in parts for image, label in zip(x, y, strict=True)}
    assert found == everything
    places = [next(i for i, x in enumerate(base.x_train) if np.array_equal(x, image)) for image in held.x_train]
    assert places == sorted(places)


def test_which_images_are_held_out_is_the_stream_validation_of_the_seed():
    base = small(train=60, test=30)
    chosen = sample_stratified(base.y_train, 9, np.random.default_rng(seeding.derive_seed(4, "validation")))
    assert np.array_equal(base.with_validation(9, seed=4).x_val, base.x_train[chosen])
    assert not np.array_equal(base.with_validation(9, seed=5).x_val, base.x_train[chosen])


def test_a_dataset_without_validation_has_the_hash_it_always_had():
    base = small()
    digest = hashlib.sha256(repr(base.classes).encode())
    for array in (base.x_train, base.y_train, base.x_test, base.y_test):
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    assert base.hash == digest.hexdigest()[:16]
    held = base.with_validation(3)
    assert base.x_val is None and len({base.hash, held.hash, base.with_validation(3, seed=1).hash}) == 3
    changed = replace(held, x_val=255 - held.x_val)
    assert changed.hash != held.hash


def test_a_count_that_cannot_be_held_out_is_refused():
    for count in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match="`validation` must be an int of 1 or more"):
            small().with_validation(count)
    with pytest.raises(UsageError, match=r"`validation` must be an int in 1\.\.11, so that training images .*got 12"):
        small().with_validation(12)
    with pytest.raises(UsageError, match="already has a validation split of 3 images"):
        small().with_validation(3).with_validation(2)
    base = small()
    with pytest.raises(DataError, match="y_val of 'toy' must be an int64 array"):
        replace(base, x_val=base.x_train)
    with pytest.raises(DataError, match="training and val images of 'toy' must have the same shape"):
        replace(base, x_val=base.x_train[..., 1:], y_val=base.y_train)


def test_every_source_takes_validation_out_of_what_was_kept(tmp_path, monkeypatch):
    archive.write_npz(tmp_path / "mnist.npz", like_mnist(train=60, test=30))
    monkeypatch.setenv("GROKKIT_DATA", str(tmp_path))
    for source, options in ((tmp_path / "mnist.npz", {}), ("mnist", {}), ("digits", {"size": 8})):
        kept = data.load_data(source, train=30, seed=3, **options)
        held = data.load_data(source, train=30, seed=3, validation=6, **options)
        assert same(held, kept.with_validation(6, seed=3)) and len(held.y_train) == 24
        control = data.load_data(source, train=30, seed=3, validation=6, shuffle_labels=True, **options)
        assert np.array_equal(control.y_val, held.y_val), "validated on true labels"
        assert sorted(control.y_train) == sorted(held.y_train)
        assert not np.array_equal(control.y_train, held.y_train)
        assert same(data.load_data(source, train=30, seed=3, validation=None, **options), kept)
    with pytest.raises(UsageError, match="Did you mean 'validation'"):
        data.load_data(tmp_path / "mnist.npz", validaton=3)


# ---- shuffled labels


def test_shuffled_labels_keep_images_counts_and_test_labels():
    base = small(train=60, test=30)
    control = base.with_shuffled_labels(seed=4)
    assert control.x_train is base.x_train and control.y_test is base.y_test
    assert np.array_equal(np.bincount(control.y_train), np.bincount(base.y_train))
    kept = float((control.y_train == base.y_train).mean())
    assert 0.1 < kept < 0.6, "about one in three keeps its label by chance"
    assert np.array_equal(control.y_train, base.with_shuffled_labels(seed=4).y_train)
    assert not np.array_equal(control.y_train, base.with_shuffled_labels(seed=5).y_train)
    assert control.hash != base.hash and control.name == base.name


def test_every_source_takes_shuffle_labels(tmp_path, monkeypatch):
    base = small(train=60, test=30)
    archive.write_npz(tmp_path / "toy.npz", base)
    archive.write_npz(tmp_path / "mnist.npz", like_mnist(train=60, test=30))
    for number, (image, label) in enumerate(zip(base.x_train, base.y_train, strict=True)):
        for split in ("train", "test"):
            place = tmp_path / "folder" / split / base.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            shown = image if split == "train" else 255 - image
            Image.fromarray(shown.transpose(1, 2, 0)).save(place / f"{number}.png")
    monkeypatch.setenv("GROKKIT_DATA", str(tmp_path))
    for source, options in (
        (tmp_path / "toy.npz", {}),
        (tmp_path / "folder", {}),
        ("mnist", {}),
        ("digits", {"size": 8}),
    ):
        true = data.load_data(source, train=30, seed=3, **options)
        control = data.load_data(source, train=30, seed=3, shuffle_labels=True, **options)
        assert np.array_equal(control.x_train, true.x_train) and np.array_equal(control.y_test, true.y_test)
        assert np.array_equal(control.y_train, true.with_shuffled_labels(3).y_train)
        assert not np.array_equal(control.y_train, true.y_train)
        assert same(data.load_data(source, train=30, seed=3, shuffle_labels=False, **options), true)
        held = probe_sets(control, train=30, test=0, random=0)["train"]
        assert np.array_equal(held.labels, control.y_train[held.indices])


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_shuffle_labels_is_a_bool(value):
    with pytest.raises(UsageError, match="`shuffle_labels` must be true or false; got"):
        data.load_data("digits", shuffle_labels=value)


# ---- load


def test_an_unknown_name_is_answered_with_the_nearest_and_the_other_way():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'cifar10'\?.*digits.*path of an \.npz file"):
        data.load_data("cifar-10")
    assert {"cifar10", "digits", "mnist"} <= set(data.names())


@pytest.mark.parametrize("word", ["gone.npz", "./gone", "some/where"])
def test_a_missing_path_is_a_data_error(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        data.load_data(word)


def test_a_path_takes_the_common_options_only(tmp_path):
    archive.write_npz(tmp_path / "own.npz", small(train=30))
    made = data.load_data(tmp_path / "own.npz", train=6, seed=2)
    assert made.name == "own" and len(made.x_train) == 6 and len(made.x_test) == 6
    with pytest.raises(
        UsageError, match=r"unknown option 'trian' of a dataset read from a path\. Did you mean 'train'\?"
    ):
        data.load_data(str(tmp_path / "own.npz"), trian=6)
    with pytest.raises(UsageError, match="unknown parameter 'root' of dataset 'digits'"):
        data.load_data("digits", root="x")


def test_a_registered_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "digits")
    assert data.load_data("digits").input_shape == (1, 8, 8)
    assert data.load_data("./digits").input_shape == (3, 4, 5)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"must end in \.npz"):
        data.load_data(tmp_path / "data.h5")


# ---- digits


def test_digits_split_all_scans_without_overlap():
    from sklearn.datasets import load_digits

    made = data.load_data("digits")
    assert made.x_train.shape == (500, 1, 8, 8) and made.x_test.shape == (1297, 1, 8, 8)
    scans, labels = load_digits(return_X_y=True)
    expected = sorted(
        (np.rint(scan / 16 * 255).astype(np.uint8).tobytes(), int(y)) for scan, y in zip(scans, labels, strict=True)
    )
    x, y = np.concatenate([made.x_train, made.x_test]), np.concatenate([made.y_train, made.y_test])
    assert sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)) == expected
    assert (x.min(), x.max()) == (0, 255)


def test_digits_are_fixed_by_the_seed_and_grow_by_prefix():
    base = data.load_data("digits")
    assert same(data.load_data("digits", train=None), base)
    assert not same(data.load_data("digits", seed=1), base)
    np.testing.assert_array_equal(data.load_data("digits", train=50).x_train, base.x_train[:50])
    assert len(data.load_data("digits", train=50).x_test) == 1747
    assert len(data.load_data("digits", test=100).x_test) == 100


def test_large_digits_equal_torch_bilinear_interpolation():
    little, large = data.load_data("digits"), data.load_data("digits", size=32)
    assert large.input_shape == (3, 32, 32)
    levels = torch.from_numpy(little.x_test).double().div(255).mul(16).round().mul(255 / 16)
    twin = torch.nn.functional.interpolate(levels, (32, 32), mode="bilinear", align_corners=False)
    for channel in range(3):
        gap = np.abs(twin[:, 0].numpy() - large.x_test[:, channel])
        assert gap.max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(little.y_test, large.y_test)


@pytest.mark.parametrize("options", [{"train": 1797}, {"train": 0}, {"size": 16}])
def test_digits_refuse_what_leaves_no_test_images_or_is_no_size(options):
    with pytest.raises(UsageError, match="must be"):
        data.load_data("digits", **options)


# ---- official downloads, from files in their layout


def pickled(content, path):
    """Write `content` in the old protocol of the official files; its checksum."""
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder and the address under which this machine serves it."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def cifar_root(tmp_path, mirror, monkeypatch):
    """Batches of ten images in torchvision's layout, its tables of checksums set to them."""
    root = tmp_path / "cache"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    listed = []
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {"data": bytes_of(10, 3072, seed=number), "labels": [(3 * i + number) % 10 for i in range(10)]}
        listed.append([name, pickled(batch, folder / name)])
    digest = pickled({"label_names": ["wrong"] * 10}, folder / "batches.meta")
    monkeypatch.setattr(official.CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(official.CIFAR10, "test_list", listed[5:])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digest}
    monkeypatch.setattr(official.CIFAR10, "meta", meta)
    monkeypatch.setattr(official.CIFAR10, "url", mirror[1] + "cifar-10-python.tar.gz")
    return root


def test_official_cifar10_batches_become_images_labels_and_one_cached_file(cifar_root):
    made = data.load_data("cifar10", root=cifar_root)
    assert made.x_train.shape == (50, 3, 32, 32) and made.x_test.shape == (10, 3, 32, 32)
    expected = np.concatenate([bytes_of(10, 3072, seed=i).reshape(10, 3, 32, 32) for i in range(5)])
    np.testing.assert_array_equal(made.x_train, expected)
    assert made.y_test.tolist() == [(3 * i + 5) % 10 for i in range(10)]
    assert made.classes[0] == "airplane" and made.classes[9] == "truck"
    assert sorted(path.name for path in cifar_root.iterdir()) == ["cifar-10-batches-py", "cifar10.npz"]


def test_a_second_load_reads_only_the_cache(cifar_root, monkeypatch):
    first = data.load_data("cifar10", root=cifar_root)
    for file in (cifar_root / "cifar-10-batches-py").iterdir():
        file.unlink()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setenv("GROKKIT_DATA", str(cifar_root))
    assert same(data.load_data("cifar10"), first)
    assert same(data.load_data(cifar_root / "cifar10.npz"), first)
    assert len(data.load_data("cifar10", train=20).x_train) == 20


def test_a_batch_with_a_wrong_checksum_is_never_used(cifar_root):
    with open(cifar_root / "cifar-10-batches-py" / "data_batch_3", "ab") as file:
        file.write(b"x")
    left = r"damaged or incomplete: .*Delete \S+/cifar-10-batches-py and try again .* place an .*cifar10\.npz.* --data"
    with pytest.raises(DataError, match=left):
        data.load_data("cifar10", root=cifar_root)
    assert not (cifar_root / "cifar10.npz").exists()


# tarfile warns on Python 3.12 and 3.13 about a coming change of its default, from within torchvision.
@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_cifar10_is_downloaded_checked_and_unpacked(cifar_root, mirror, tmp_path, monkeypatch):
    expected = data.load_data("cifar10", root=cifar_root)
    packed = mirror[0] / "cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(cifar_root / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(official.CIFAR10, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    assert same(data.load_data("cifar10", root=tmp_path / "elsewhere"), expected)
    packed.write_bytes(packed.read_bytes() + b"x")
    with pytest.raises(DataError, match="corrupted"):
        data.load_data("cifar10", root=tmp_path / "third")


@pytest.fixture
def mnist_mirror(mirror, monkeypatch):
    """The four compressed files behind a mirror, torchvision's table of checksums set to them."""
    mirror, address = mirror
    resources = []
    for split, count in (("train", 20), ("t10k", 10)):
        images = struct.pack(">IIII", 2051, count, 28, 28) + bytes_of(count, 28, 28, seed=count).tobytes()
        labels = struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
        for name, content in ((f"{split}-images-idx3-ubyte.gz", images), (f"{split}-labels-idx1-ubyte.gz", labels)):
            (mirror / name).write_bytes(gzip.compress(content))
            resources.append((name, hashlib.md5((mirror / name).read_bytes()).hexdigest()))
    monkeypatch.setattr(official.MNIST, "resources", resources)
    monkeypatch.setattr(official.MNIST, "mirrors", [address])
    return mirror


def test_mnist_is_downloaded_checked_decoded_and_cached(mnist_mirror, tmp_path):
    made = data.load_data("mnist", root=tmp_path / "cache")
    np.testing.assert_array_equal(made.x_train[:, 0], bytes_of(20, 28, 28, seed=20))
    assert made.y_test.tolist() == list(range(10)) and made.classes == tuple("0123456789")
    assert made.input_shape == (1, 28, 28)
    assert same(archive.read_npz(tmp_path / "cache" / "mnist.npz"), made)


def test_a_download_that_does_not_match_its_checksum_is_refused(mnist_mirror, tmp_path):
    (mnist_mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match=r"mnist could not be downloaded.*place an archive"):
        data.load_data("mnist", root=tmp_path / "cache")
    assert not (tmp_path / "cache" / "mnist.npz").exists()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [lambda good: good[:-5], lambda good: b"", lambda good: b"<html>not found</html>"])
def test_a_damaged_official_file_is_named_as_such_not_as_a_failed_download(mnist_mirror, tmp_path, name, damage):
    data.load_data("mnist", root=tmp_path / "cache")
    (tmp_path / "cache" / "mnist.npz").unlink()
    file = tmp_path / "cache" / "MNIST" / "raw" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        DataError, match=r"mnist cannot be read from .*damaged or incomplete: .*Delete \S+/MNIST and try"
    ):
        data.load_data("mnist", root=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "MNIST")
    assert len(data.load_data("mnist", root=tmp_path / "cache").y_train) == 20, "the remedy works"


def test_a_damaged_official_archive_is_named_as_such(cifar_root, tmp_path):
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"damaged or incomplete: .*Delete \S+/cifar-10-python\.tar\.gz and try again"):
        data.load_data("cifar10", root=tmp_path / "third")


def test_an_empty_folder_of_an_earlier_attempt_is_no_damaged_download(tmp_path, monkeypatch):
    monkeypatch.setattr(official.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    for _ in range(2):
        with pytest.raises(DataError, match=r"mnist could not be downloaded into .*Try again with a network"):
            data.load_data("mnist", root=tmp_path)
    assert (tmp_path / "MNIST" / "raw").is_dir()


# ---- .npz


def test_an_archive_round_trips_and_leaves_no_temporary_file(tmp_path):
    archive.write_npz(tmp_path / "deep" / "toy.npz", small())
    assert same(archive.read_npz(tmp_path / "deep" / "toy.npz"), small())
    archive.write_npz(tmp_path / "deep" / "toy.npz", small(train=15))
    assert same(archive.read_npz(tmp_path / "deep" / "toy.npz"), small(train=15))
    assert os.listdir(tmp_path / "deep") == ["toy.npz"]


def test_a_write_that_fails_keeps_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    archive.write_npz(tmp_path / "toy.npz", small())

    def torn(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(OSError, match="disk full"):
        archive.write_npz(tmp_path / "toy.npz", small(train=30))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["toy.npz"] and same(archive.read_npz(tmp_path / "toy.npz"), small())


def test_an_archive_without_class_names_counts_them_over_both_splits(tmp_path):
    x = bytes_of(3, 4, 4)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.uint8([0, 1, 3]), x_test=x[::-1] / 256, y_test=[[0], [3], [2]])
    with pytest.warns(UserWarning) as caught:
        made = data.load_data(tmp_path / "a.npz")
    assert [str(each.message).partition(",")[0] for each in caught] == [
        "'a' has no training image of 1 of 4 classes ('2')",
        "'a' has training images but no test image of 1 of 4 classes ('1')",
    ]
    assert made.classes == ("0", "1", "2", "3") and made.y_test.tolist() == [0, 3, 2]
    np.testing.assert_array_equal(np.rint(made.x_train[::-1, 0] / 256 * 255), made.x_test[:, 0])


def test_missing_keys_are_named_with_those_present(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=bytes_of(3, 4, 4), labels=[1])
    with pytest.raises(DataError, match="missing: y_train, x_test, y_test; present: x_train, labels"):
        data.load_data(tmp_path / "a.npz")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("an archive was unpickled",))


def test_nothing_in_an_archive_is_unpickled(tmp_path):
    x, y = bytes_of(2, 4, 4), np.array([0, 1])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.array([Bomb(), Bomb()]), x_test=x, y_test=y)
    with pytest.raises(DataError, match="allow_pickle=False"):
        data.load_data(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04torn"])
def test_a_damaged_archive_is_a_data_error(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz (cannot be read as an \.npz archive|is empty)"):
        data.load_data(tmp_path / "a.npz")


def test_a_bare_array_and_odd_class_names_are_refused(tmp_path):
    with open(tmp_path / "bare.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        data.load_data(tmp_path / "bare.npz")
    parts = {key: getattr(small(), key) for key in archive.ARCHIVE_KEYS}
    np.savez(tmp_path / "odd.npz", **parts, classes=3)
    with pytest.raises(DataError, match="must be a 1-D array of strings"):
        data.load_data(tmp_path / "odd.npz")


# ---- class folders


def write_images(root, mode="RGB", sizes=((5, 4),), names=("cat", "dog"), suffix="png"):
    for start, split in enumerate(("train", "test")):
        for number, word in enumerate(names):
            folder = root / split / word
            folder.mkdir(parents=True)
            for i, (width, height) in enumerate(sizes):
                shape = (height, width, 3) if mode == "RGB" else (height, width)
                Image.fromarray(bytes_of(*shape, seed=100 * start + 10 * number + i)).save(folder / f"{i}.{suffix}")


def test_class_folders_become_labelled_images(tmp_path, monkeypatch):
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "train" / ".DS_Store").write_bytes(b"")
    (tmp_path / "pets" / "train" / "cat" / ".hidden").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    made = data.load_data("pets")
    assert made.name == "pets" and made.classes == ("cat", "dog") and made.input_shape == (3, 4, 5)
    np.testing.assert_array_equal(made.x_train[1], bytes_of(4, 5, 3, seed=10).transpose(2, 0, 1))
    assert made.y_train.tolist() == [0, 1]


def test_only_all_grey_folders_stay_grey(tmp_path):
    write_images(tmp_path, mode="L")
    grey = data.load_data(tmp_path)
    assert grey.input_shape == (1, 4, 5)
    Image.fromarray(bytes_of(4, 5, 3)).save(tmp_path / "test" / "dog" / "colour.png")
    mixed = data.load_data(tmp_path)
    assert mixed.input_shape == (3, 4, 5)
    np.testing.assert_array_equal(mixed.x_train, np.repeat(grey.x_train, 3, axis=1))


def test_the_first_image_of_another_size_is_named(tmp_path):
    write_images(tmp_path, sizes=((5, 4), (5, 4), (4, 5)))
    with pytest.raises(DataError, match=r"0\.png has 5x4, .*cat/2\.png has 4x5\. Resize"):
        data.load_data(tmp_path)


def test_folders_that_are_not_a_dataset_are_told_why(tmp_path):
    with pytest.raises(DataError, match="there is no train/"):
        data.load_data(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(DataError, match="no class folders"):
        data.load_data(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="only in train: cat"):
        data.load_data(tmp_path)
    (tmp_path / "test" / "cat").mkdir()
    with pytest.raises(DataError, match="at least one image"):
        data.load_data(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / "test" / "cat" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt cannot be read as an image"):
        data.load_data(tmp_path)


def test_a_torn_image_is_named(tmp_path):
    write_images(tmp_path, sizes=((50, 40),))
    torn = tmp_path / "train" / "dog" / "0.png"
    torn.write_bytes(torn.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"dog/0\.png cannot be decoded"):
        data.load_data(tmp_path)


def test_sixteen_bit_images_are_not_cut_to_eight_in_silence(tmp_path):
    write_images(tmp_path)
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "train" / "cat" / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has Pillow mode 'I;16'"):
        data.load_data(tmp_path)


# ---- real pixels


def test_real_cifar_has_the_published_mean(real_cifar, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **real_cifar)
    made = data.load_data("cifar10", root=tmp_path)
    assert made.classes[3] == "cat" and len(made.x_train) == len(real_cifar["x_train"])
    np.testing.assert_allclose(made.mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    np.testing.assert_allclose(made.std, (0.2470, 0.2435, 0.2616), atol=0.01)


def test_labels_that_are_names_are_refused_with_the_way_to_number_them():
    with pytest.raises(DataError, match=r"names with `classes, labels = numpy\.unique\(labels, return_inverse=True\)`"):
        to_labels(np.array(["cat", "dog"]))


@pytest.mark.parametrize(
    ("path", "reason"), [("x" * 300 + "/a", "File name too long"), ("a\0b/c", "embedded null byte")]
)
def test_a_path_that_no_file_can_have_is_named_once_with_the_reason(path, reason):
    with pytest.raises(DataError) as caught:
        data.load_data(path)
    assert str(caught.value) == f"{path!r} cannot be opened: {reason}. Check the path and its permissions"


@pytest.mark.parametrize("classes", [None, 2, "ab", (0, 1)])
def test_class_names_of_another_type_are_refused(classes):
    x, y = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4), np.arange(2)
    with pytest.raises(DataError, match="must be a tuple of strings, one per class; got"):
        Dataset("own", x, y, x + 32, y, classes)
