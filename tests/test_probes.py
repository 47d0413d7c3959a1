"""Probe sets: from which split, how drawn, and the same for the same seed."""

import numpy as np
import pytest
from scipy import stats

from grokkit import data
from grokkit.data.base import Dataset
from grokkit.data.probes import probe_sets
from grokkit.errors import UnknownNameError, UsageError


def marked(train=300, test=200):
    """Training pixels are even, test pixels odd; classes 0, 1, 2 in shares of 1/2, 3/10, 1/5."""
    rng = np.random.default_rng(0)
    parts = {}
    for split, count, odd in (("train", train, 0), ("test", test, 1)):
        parts[f"x_{split}"] = (rng.integers(0, 128, (count, 3, 4, 4)) * 2 + odd).astype(np.uint8)
        parts[f"y_{split}"] = np.repeat(np.arange(3), [count // 2, count * 3 // 10, count // 5])
    return Dataset("marked", **parts, classes=("a", "b", "c"))


def test_test_probes_come_from_test_data_and_train_probes_from_training_data():
    dataset = marked()
    sets = probe_sets(dataset, train=40, test=50, random=0)
    assert list(sets) == ["train", "test"]
    assert set(np.unique(sets["train"].images % 2)) == {0} and set(np.unique(sets["test"].images % 2)) == {1}
    for name, x, y in (("train", dataset.x_train, dataset.y_train), ("test", dataset.x_test, dataset.y_test)):
        drawn = sets[name]
        assert drawn.name == name and drawn.source == f"marked/{name}"
        np.testing.assert_array_equal(drawn.images, x[drawn.indices])
        np.testing.assert_array_equal(drawn.labels, y[drawn.indices])
        assert len(set(drawn.indices.tolist())) == len(drawn)


def test_probes_keep_the_class_shares():
    sets = probe_sets(marked(), train=40, test=50, random=0)
    assert np.bincount(sets["train"].labels).tolist() == [20, 12, 8]
    assert np.bincount(sets["test"].labels).tolist() == [25, 15, 10]


def test_noise_is_uniform_over_all_grey_levels_and_belongs_to_no_class():
    noise = probe_sets(marked(), train=0, test=0, random=500)["random"]
    assert noise.images.shape == (500, 3, 4, 4) and noise.images.dtype == np.uint8
    assert stats.chisquare(np.bincount(noise.images.ravel(), minlength=256)).pvalue > 1e-3
    assert set(noise.labels) == set(noise.indices) == {-1} and noise.source == "noise/uniform"


def test_probes_are_fixed_by_their_seed_and_one_set_does_not_move_another():
    hashes = {name: drawn.hash for name, drawn in probe_sets(marked(), train=9, test=9, random=9, seed=3).items()}
    assert hashes == {n: d.hash for n, d in probe_sets(marked(), train=9, test=9, random=9, seed=3).items()}
    assert probe_sets(marked(), train=0, test=9, random=0, seed=3)["test"].hash == hashes["test"]
    others = probe_sets(marked(), train=9, test=9, random=9, seed=4)
    assert all(others[name].hash != hashes[name] for name in hashes)
    equal_splits = probe_sets(
        Dataset("m", *(2 * (marked().x_train, marked().y_train)), ("a", "b", "c"), findings=()), train=9, test=9
    )
    assert not np.array_equal(equal_splits["train"].indices, equal_splits["test"].indices)


def test_fewer_images_than_asked_are_used_and_said_so():
    with pytest.warns(UserWarning, match="marked/test has only 200 images, 512 were requested; using all 200"):
        sets = probe_sets(marked(), train=0, random=0)
    assert sorted(sets["test"].indices.tolist()) == list(range(200))


def test_a_dataset_may_be_given_by_name():
    sets = probe_sets("digits", train=20, test=30, random=10, seed=1)
    assert {name: len(drawn) for name, drawn in sets.items()} == {"train": 20, "test": 30, "random": 10}
    assert sets["train"].source == "digits/train" and sets["random"].images.shape == (10, 1, 8, 8)
    assert sets["test"].hash == probe_sets(data.load_data("digits"), test=30, train=0, random=0, seed=1)["test"].hash
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        probe_sets("digit")


@pytest.mark.parametrize("count", [-1, 1.5, None, True])
def test_a_count_must_be_zero_or_more(count):
    with pytest.raises(UsageError, match="`random` must be an int of 0 or more"):
        probe_sets(marked(), train=0, test=0, random=count)
