"""Look for what is plainly not meant in a dataset's content: classes without images, wrong scales, leaks.

Each finding is one sentence with counts and a remedy. `Dataset` warns about them once, when it is made from files or
arrays, and every run that is trained on it has them as events of the kind `data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

DARK = 63
"""A split whose brightest value is this or less is dark: less than a quarter of 0..255."""

CONSTANT_SHARE = 0.01
"""Share of images of a single colour above which they are reported."""

EQUAL_SHARE = 0.001
"""Share of equal images above which they are reported: fewer change an accuracy by less than 0.1 %."""

WRAPPED = 8
"""Values below this and at the other end of 0..255, and none between, are normalised floats that were cast."""

SAMPLE = 1000
"""Images whose values are counted."""

MANY_CLASSES = 100
"""From here on, fewer than two training images per class are reported."""

LISTED = 5
"""Most class names listed in a finding."""

LabelledImages = tuple[np.ndarray, np.ndarray]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""


def find_implausible(name: str, splits: Mapping[str, LabelledImages], classes: Sequence[str]) -> tuple[str, ...]:
    """Return what is plainly not meant in a dataset, one sentence each; empty if nothing is.

    Args:
        name: of the dataset.
        splits: `training`, `test` and perhaps `validation` images with their labels, each of at least one image.
        classes: one name per class.

    Cost: two passes over the pixels: 0.2 s for the 60,000 images of CIFAR-10, 0.1 s for those of MNIST.
    """
    y_train = splits["training"][1]
    findings = [*_find_empty_classes(name, splits, classes), *_find_odd_classes(name, y_train, classes)]
    for split, (x, _) in splits.items():
        findings += _find_odd_pixels(f"{split} images of {name!r}", x)
    if splits["training"][0].max() <= 1:  # most such images are equal, for that reason alone
        return tuple(findings)
    hashes = {split: _hash_images(x) for split, (x, _) in splits.items()}
    findings += _find_conflicts(name, hashes["training"], y_train)
    for split, found in hashes.items():
        if split != "training":
            findings += _find_shared(name, split, found, hashes["training"])
    return tuple(findings)


def describe_lost_classes(name: str, before: np.ndarray, after: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the finding that a smaller training set has no image of a class that had some; empty if it has.

    Args:
        name: of the dataset.
        before, after: (N,) labels of the training images, and of those that are kept.
        classes: one name per class.
    """
    lost = np.setdiff1d(before, after)
    if not len(lost):
        return ()
    return (
        f"the {len(after)} training images that are kept of the {len(before)} of {name!r} show none of "
        f"{_count(lost, classes)}, and a net cannot learn what it never sees. Keep more training images",
    )


def _find_empty_classes(name: str, splits: Mapping[str, LabelledImages], classes: Sequence[str]) -> Iterator[str]:
    trained = np.unique(splits["training"][1])
    empty = np.setdiff1d(np.arange(len(classes)), trained)
    if len(empty):
        yield (
            f"{name!r} has no training image of {_count(empty, classes)}, and a net cannot learn what it never sees. "
            "Add images, leave the class out, or number the classes 0, 1, 2, ... without gaps"
        )
    untested = np.setdiff1d(trained, splits["test"][1])
    if len(untested):
        yield (
            f"{name!r} has training images but no test image of {_count(untested, classes)}, so that its accuracy says "
            "nothing about that. Add test images"
        )


def _find_odd_classes(name: str, y_train: np.ndarray, classes: Sequence[str]) -> Iterator[str]:
    if len(classes) == 1:
        yield f"{name!r} has a single class, so that any net is right about every image. Check the labels"
    if len(classes) >= MANY_CLASSES and len(classes) > len(y_train) / 2:
        yield (
            f"{name!r} has {len(classes)} classes and only {len(y_train)} training images. Check that the labels are "
            "class numbers, not the numbers of the images"
        )


def _find_odd_pixels(images: str, x: np.ndarray) -> Iterator[str]:
    pixels = x.reshape(len(x), x.shape[1], -1)
    highest, lowest = pixels.max(2), pixels.min(2)
    top = int(highest.max())
    constant = int((highest == lowest).all(1).sum()) if pixels.shape[2] > 1 else 0
    if top == 0:
        yield f"the {images} are all black. Check how they were read"
    elif top == 1:
        yield (
            f"the {images} hold no values but 0 and 1, nearly black in 0..255: floats in [0, 1] that were cast to "
            "uint8? Give the floats, or multiply by 255 before the cast"
        )
    elif top <= DARK:
        yield (
            f"the {images} hold no value above {top}, nearly black in 0..255. Scale them to 0..255, or give floats in "
            "[0, 1]"
        )
    elif constant > CONSTANT_SHARE * len(x):
        yield f"{constant} of {len(x)} {images} are of a single colour. Check how they were read, or leave them out"
    elif _is_wrapped(x):
        yield (
            f"the {images} hold only values below {WRAPPED} and above {255 - WRAPPED}: normalised floats that were "
            "cast to uint8? Undo the normalisation before the cast"
        )


def _is_wrapped(x: np.ndarray) -> bool:
    counts = np.bincount(x[:: -(-len(x) // SAMPLE)].ravel(), minlength=256)
    return bool(counts[1:WRAPPED].any() and counts[256 - WRAPPED :].any() and not counts[WRAPPED:-WRAPPED].any())


def _hash_images(x: np.ndarray) -> np.ndarray:
    """Return (N,) int64 hashes, equal for equal images and else different, but for a chance of N^2 / 2^64."""
    return np.fromiter((hash(image.tobytes()) for image in x), np.int64, len(x))


def _find_conflicts(name: str, hashes: np.ndarray, labels: np.ndarray) -> Iterator[str]:
    order = np.lexsort((labels, hashes))
    h, y = hashes[order], labels[order]
    conflicting = h[1:][(h[1:] == h[:-1]) & (y[1:] != y[:-1])]
    count = int(np.isin(hashes, conflicting).sum())
    if count > EQUAL_SHARE * len(labels):
        yield (
            f"{_format_share(count, len(labels))} training images of {name!r} are equal to others with another label. "
            "Check how images and labels were paired"
        )


def _find_shared(name: str, split: str, hashes: np.ndarray, trained: np.ndarray) -> Iterator[str]:
    count = int(np.isin(hashes, trained).sum())
    if count > EQUAL_SHARE * len(hashes):
        yield (
            f"{_format_share(count, len(hashes))} {split} images of {name!r} are also training images, so that the "
            f"{split} accuracy is not that of unseen images. Remove them from one of the two"
        )


def _format_share(count: int, total: int) -> str:
    return f"{count} of {total} ({100 * count / total:.2g} %)" if count < total else f"all {total}"


def _count(numbers: np.ndarray, classes: Sequence[str]) -> str:
    listed = ", ".join(repr(classes[number]) for number in numbers[:LISTED])
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"{len(numbers)} of {len(classes)} classes ({listed}{more})"
