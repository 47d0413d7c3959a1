"""What is plainly not meant in the content of a dataset: found once, said in one sentence, an event of every run."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import grokkit as gk
from grokkit.config.run_config import RunConfig, spec
from grokkit.data.base import Dataset
from grokkit.errors import DataError

SPLITS = ("x_train", "y_train", "x_test", "y_test")


def noise(count: int, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (1, 6, 6))), np.uint8)


def arrays(train: int = 400, test: int = 100, classes: int = 10) -> dict[str, np.ndarray]:
    return {
        "x_train": noise(train, 0),
        "y_train": np.arange(train) % classes,
        "x_test": noise(test, 1),
        "y_test": np.arange(test) % classes,
    }


def make(names: tuple[str, ...] = tuple("0123456789"), **change: np.ndarray) -> tuple[Dataset, list[str]]:
    """The dataset made of arrays, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = Dataset("own", **{**arrays(), **change}, classes=names)
    said = [str(each.message) for each in caught]
    assert made.findings == tuple(said) and all(each.category is UserWarning for each in caught)
    assert all(each.filename == __file__ for each in caught), "the line that made the dataset is named"
    return made, said


def changed(field: str, change) -> np.ndarray:
    """The field of `arrays`, changed in place by `change`."""
    array = arrays()[field].copy()
    change(array)
    return array


def wrapped(count: int, seed: int) -> np.ndarray:
    """Normalised floats, cast to bytes."""
    return np.random.default_rng(seed).normal(size=(count, 1, 6, 6)).astype(np.int64).astype(np.uint8)


def set_rows(rows, value):
    def change(array: np.ndarray) -> None:
        array[rows] = value

    return change


FINDINGS = {
    "a class without training images": (
        {"y_train": np.where(np.arange(400) % 10 == 3, 4, np.arange(400) % 10)},
        "'own' has no training image of 1 of 10 classes ('3'), and a net cannot learn what it never sees. Add images, "
        "leave the class out, or number the classes 0, 1, 2, ... without gaps",
    ),
    "more classes than can be listed": (
        {"y_train": np.arange(400) % 3, "y_test": np.arange(100) % 3},
        "'own' has no training image of 7 of 10 classes ('3', '4', '5', '6', '7' and 2 more), and a net cannot learn",
    ),
    "a class without test images": (
        {"y_test": np.arange(100) % 9},
        "'own' has training images but no test image of 1 of 10 classes ('9'), so that its accuracy says nothing about "
        "that. Add test images",
    ),
    "floats cast to bytes": (
        {"x_train": (noise(400, 0) / 255).astype(np.uint8)},
        "the training images of 'own' hold no values but 0 and 1, nearly black in 0..255: floats in [0, 1] that were "
        "cast to uint8? Give the floats, or multiply by 255 before the cast",
    ),
    "nothing but black": (
        {"x_train": np.zeros((400, 1, 6, 6), np.uint8)},
        "the training images of 'own' are all black.",
    ),
    "test images of another scale": (
        {"x_test": noise(100, 1) // 16},
        "the test images of 'own' hold no value above 15, nearly black in 0..255. Scale them to 0..255, or give floats "
        "in [0, 1]",
    ),
    "normalised floats cast to bytes": (
        {"x_train": wrapped(400, 0)},
        "the training images of 'own' hold only values below 8 and above 247: normalised floats that were cast to "
        "uint8? Undo the normalisation before the cast",
    ),
    "images of one colour": (
        {"x_train": changed("x_train", set_rows(slice(0, 5), np.arange(5)[:, None, None, None]))},
        "5 of 400 training images of 'own' are of a single colour. Check how they were read, or leave them out",
    ),
    "the same image with two labels": (
        {"x_train": changed("x_train", set_rows(1, arrays()["x_train"][0]))},
        "2 of 400 (0.5 %) training images of 'own' are equal to others with another label. Check how images and labels "
        "were paired",
    ),
    "a test image in the training set": (
        {"x_test": changed("x_test", set_rows(7, arrays()["x_train"][9]))},
        "1 of 100 (1 %) test images of 'own' are also training images, so that the test accuracy is not that of "
        "unseen images. Remove them from one of the two",
    ),
    "a validation image in the training set": (
        {"x_val": arrays()["x_train"][:3], "y_val": np.arange(3)},
        "all 3 validation images of 'own' are also training images, so that the validation accuracy",
    ),
    "the training set twice": (
        {"x_test": arrays()["x_train"], "y_test": arrays()["y_train"]},
        "all 400 test images of 'own' are also training images",
    ),
}


@pytest.mark.parametrize("what", FINDINGS)
def test_a_finding_is_warned_of_once_in_one_sentence(what):
    change, expected = FINDINGS[what]
    _, said = make(**change)
    assert len(said) == 1 and said[0].startswith(expected), said


def test_a_single_class_and_image_numbers_as_labels_are_found():
    zeros = {"y_train": np.zeros(400, np.int64), "y_test": np.zeros(100, np.int64)}
    assert make(("only",), **zeros)[1] == [
        "'own' has a single class, so that any net is right about every image. Check the labels"
    ]
    said = make(tuple(map(str, range(400))), y_train=np.arange(400))[1]
    assert said[1] == (
        "'own' has 400 classes and only 400 training images. Check that the labels are class numbers, not the numbers "
        "of the images"
    )


WELL = {
    "noise": {},
    "black and white": {"x_train": (noise(400, 0) > 127) * np.uint8(255), "x_test": noise(100, 1)},
    "four levels": {"x_train": noise(400, 0) // 64 * 85},
    "repeated with the same label": {
        "x_train": np.repeat(noise(40, 0), 10, 0),
        "y_train": np.repeat(np.arange(40) % 10, 10),
    },
    "four images of one colour in 400": {
        "x_train": changed("x_train", set_rows(slice(0, 4), np.arange(4)[:, None, None, None]))
    },
    "one pixel": {"x_train": np.arange(400).reshape(-1, 1, 1, 1).astype(np.uint8), "x_test": noise(100, 1, 1, 1, 1)},
    "one test image in 2,000 is known": {
        "x_test": np.concatenate([arrays()["x_train"][:2], noise(1998, 3)]),
        "y_test": np.arange(2000) % 10,
    },
}


@pytest.mark.parametrize("what", [what for what in WELL if what != "one pixel"])
def test_what_may_be_meant_is_not_warned_of(what):
    assert make(**WELL[what])[1] == []


def test_images_of_one_pixel_are_not_called_constant():
    assert not any("single colour" in each for each in make(**WELL["one pixel"])[1])


def test_real_images_have_no_findings(real_cifar, real_mnist, tmp_path):
    for name, real in (("cifar10", real_cifar), ("mnist", real_mnist)):
        np.savez(tmp_path / f"{name}.npz", **real)
        assert gk.load_data(name, root=tmp_path).findings == ()
    assert gk.load_data("digits").findings == ()


def test_what_is_made_of_a_dataset_keeps_its_findings_and_is_not_warned_of_again():
    made, said = make(**FINDINGS["a class without training images"][0])
    for other in (made.subset(train=200, test=50), made.with_validation(100), made.with_shuffled_labels()):
        assert other.findings == tuple(said)
    assert replace(made, name="other").findings == tuple(said) and made.hash == replace(made, findings=()).hash


def test_a_training_set_that_loses_a_class_says_so_and_a_test_set_may():
    made, _ = make()
    expected = (
        r"the 5 training images that are kept of the 400 of 'own' show none of 5 of 10 classes \(.*\), and a net "
        "cannot learn what it never sees. Keep more training images"
    )
    with pytest.warns(UserWarning, match=expected):
        small = made.subset(train=5)
    assert len(small.findings) == 1 and made.subset(test=5).findings == ()
    with pytest.warns(UserWarning, match="the 6 training images that are kept of the 400"):
        made.with_validation(394)
    with pytest.warns(UserWarning, match=r"the 12 training images that are kept of the 1797 of 'digits' show none of"):
        digits = gk.load_data("digits", train=12)
    assert len(digits.findings) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b", "a"), r"must have different names; more than one is called 'a'\. Rename or merge them"),
        ("abc", r"must be a tuple of strings, one per class; got 'abc'"),
        ((0, 1, 2), r"must be a tuple of strings, one per class; got \(0, 1, 2\)"),
    ],
)
def test_class_names_are_different_strings(names, message):
    with pytest.raises(DataError, match=f"the classes of 'own' {message}"):
        Dataset("own", **arrays(classes=3), classes=names)


def test_every_finding_is_an_event_of_a_run_that_is_trained_on_the_data(tmp_path):
    x = {**arrays(), "x_test": arrays()["x_train"], "y_test": arrays()["y_train"] % 9}
    np.savez(tmp_path / "own.npz", **x)
    config = RunConfig(
        experiment="small",
        data=spec(str(tmp_path / "own.npz"), train=100, validation=20),
        model=spec("mlp", widths=(4,)),
        steps=4,
        records=2,
        measures=(spec("accuracy"),),
        probes={"train": 8, "test": 8, "random": 0},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = gk.train(config, runs=tmp_path, device="cpu")
        seeds = gk.train_seeds(config.replace(variant="seeds"), range(2), runs=tmp_path, device="cpu")
    said = [str(each.message) for each in caught]
    assert len(said) == 4 and said[:2] == said[2:], "once for each load"
    for each in (run, *seeds):
        found = [event for event in each.events if event["kind"] == "data"]
        assert [(event["step"], event["text"]) for event in found] == [(0, text) for text in said[:2]]
    plain = gk.train(config.replace(data=spec("digits"), variant="plain"), runs=tmp_path, device="cpu")
    assert not [event for event in plain.events if event["kind"] == "data"]
