"""The dataset class that every loader returns: checked uint8 images in a training and a test split.

Stratified subsets, an optional validation split, and conversion of arrays to this form.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from grokkit import seeding
from grokkit.data.plausibility import describe_lost_classes, find_implausible
from grokkit.errors import DataError, UsageError

CHANNEL_COUNTS = (1, 3)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one classification problem.

    Args:
        name: used in plots and as the source of probe sets.
        x_train, x_test: (N, C, H, W) uint8, 0..255 standing for pixels in [0, 1].
        y_train, y_test: (N,) int64 class numbers in 0..len(classes)-1.
        classes: one name per class.
        x_val, y_val: images held out of the training set, in the same form; None = no validation split.
        findings: what is plainly not meant in the content, one sentence each; None = look for it now and warn
            (`plausibility.find_implausible`). Every run that is trained on the dataset logs them.

    Raises:
        DataError: wrong dtype or shape, an empty split, a label out of range, or equal class names.

    Cost: looking for findings takes 0.2 s for CIFAR-10; datasets made from this one do not look again.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    x_val: np.ndarray | None = None
    y_val: np.ndarray | None = None
    findings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_classes(self.name, self.classes)
        splits = [("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)]
        if self.x_val is not None or self.y_val is not None:
            splits.append(("val", self.x_val, self.y_val))  # type: ignore[arg-type]  # the checks below accept anything
        for split, x, y in splits:
            _check_images(f"x_{split} of {self.name!r}", x)
            _check_labels(f"y_{split} of {self.name!r}", y, len(x), len(self.classes))
            if x.shape[1:] != self.x_train.shape[1:]:
                raise DataError(
                    f"training and {split} images of {self.name!r} must have the same shape (C, H, W); got "
                    f"{self.x_train.shape[1:]} and {x.shape[1:]}. Resize one of them"
                )
        if self.findings is None:
            words = {"train": "training", "val": "validation"}
            named = {words.get(split, split): (x, y) for split, x, y in splits}
            findings = find_implausible(self.name, named, self.classes)
            object.__setattr__(self, "findings", findings)
            _warn_of(findings)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of the training pixels per channel, pixels in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation (of the population) of the training pixels per channel, pixels in [0, 1].

        Raises:
            DataError: a channel is constant and cannot be normalised.
        """
        for channel, value in enumerate(self._moments[1]):
            if value == 0:
                raise DataError(
                    f"every channel of the training images needs a standard deviation above 0; channel "
                    f"{channel} of {self.name!r} is constant. Drop it, or check how the images were read"
                )
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Means and standard deviations, from exact integer sums over blocks to limit memory."""
        total = np.zeros(self.x_train.shape[1], np.int64)
        squares = np.zeros_like(total)
        for start in range(0, len(self.x_train), 1024):
            block = self.x_train[start : start + 1024]
            total += block.sum(axis=(0, 2, 3), dtype=np.int64)
            squares += np.square(block, dtype=np.uint32).sum(axis=(0, 2, 3), dtype=np.int64)
        count = self.x_train.size // self.x_train.shape[1]
        means = tuple(int(s) / count / 255 for s in total)
        variances = ((count * int(q) - int(s) ** 2) / count**2 for s, q in zip(total, squares, strict=True))
        return means, tuple(v**0.5 / 255 for v in variances)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 over all images, labels and class names (not the dataset's name)."""
        digest = hashlib.sha256(repr(self.classes).encode())
        held_out = [array for array in (self.x_val, self.y_val) if array is not None]
        for array in (self.x_train, self.y_train, self.x_test, self.y_test, *held_out):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """Return the dataset with at most `train` and `test` images, class shares preserved.

        Args:
            train, test: images to keep, 1 or more; None keeps all in their order. If there are fewer, all are kept,
                with a UserWarning.
            seed: selects the images; the two splits use separate random streams.

        A class that loses its last training image is a finding, with a UserWarning.

        Raises:
            UsageError: a count below 1 or not an int.
        """
        parts: dict[str, Any] = {}
        for split, count in (("train", train), ("test", test)):
            if count is None:
                continue
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            validate_count(split, count, 1, "or None for all")
            rng = np.random.default_rng(seeding.derive_seed(seed, "subset", split))
            chosen = sample_stratified(y, limit_to_available(count, len(y), f"{self.name}/{split}"), rng)
            parts |= {f"x_{split}": x[chosen], f"y_{split}": y[chosen]}
        return self._keep(parts) if parts else self

    def _keep(self, parts: dict[str, Any]) -> Dataset:
        """Return the dataset with these smaller splits; a class that loses its last training image is a finding."""
        kept = replace(self, **parts)
        lost = describe_lost_classes(self.name, self.y_train, kept.y_train, self.classes)
        return kept.with_findings(lost)

    def with_findings(self, findings: tuple[str, ...]) -> Dataset:
        """Return the dataset with more findings, after a UserWarning for each."""
        _warn_of(findings)
        return replace(self, findings=(*(self.findings or ()), *findings)) if findings else self

    def with_validation(self, count: int, seed: int = 0) -> Dataset:
        """Return the dataset with `count` training images moved to a validation split.

        Args:
            count: images to hold out, class shares preserved; at least 1, and fewer than the training images.
            seed: selects the images, with the random stream `validation`.

        Returns: a dataset whose training images keep their order.

        Raises:
            UsageError: an invalid count, or a validation split already exists.
        """
        validate_count("validation", count, 1)
        images = len(self.y_train)
        if count >= images:
            raise UsageError(
                f"`validation` must be an int in 1..{images - 1}, so that training images of {self.name!r} remain; "
                f"got {count}"
            )
        if self.y_val is not None:
            raise UsageError(f"{self.name!r} already has a validation split of {len(self.y_val)} images")
        held_out = sample_stratified(
            self.y_train, count, np.random.default_rng(seeding.derive_seed(seed, "validation"))
        )
        rest = np.delete(np.arange(images), held_out)
        x, y = self.x_train, self.y_train
        return self._keep({"x_train": x[rest], "y_train": y[rest], "x_val": x[held_out], "y_val": y[held_out]})

    def with_shuffled_labels(self, seed: int = 0) -> Dataset:
        """Return the dataset with the training labels permuted among the training images, as a negative control.

        Every class keeps its count; about 1 in `classes` images keeps its label by chance. Test and validation labels
        stay true.

        Args:
            seed: fixes the permutation, with the random stream `labels`.

        Source: Zhang, Bengio, Hardt, Recht and Vinyals, arXiv 1611.03530.
        """
        rng = np.random.default_rng(seeding.derive_seed(seed, "labels"))
        return replace(self, y_train=rng.permutation(self.y_train))


def sample_stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices of `count` samples without replacement, in random order, with the class shares of `labels`.

    Args:
        labels: (N,) int.
        count: 0..N; shares are rounded by largest remainder (ties go to the earlier class), so that no class differs by
            one or more from its exact share.
        rng: random generator.

    Returns: (count,) int64 positions in `labels`.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    whole, remainder = np.divmod(sizes * count, max(len(labels), 1))
    whole[np.argsort(-remainder, kind="stable")[: count - whole.sum()]] += 1
    drawn = [
        rng.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in zip(classes, whole, strict=True)
    ]
    return rng.permutation(np.concatenate([np.empty(0, np.int64), *drawn]))


def limit_to_available(requested: int, available: int, source: str) -> int:
    """Return the smaller of two counts of images; warn if fewer are available than requested."""
    if requested > available:
        warnings.warn(
            f"{source} has only {available} images, {requested} were requested; using all {available}", stacklevel=3
        )
    return min(requested, available)


def validate_count(option: str, count: Any, minimum: int, hint: str = "") -> None:
    """Raise UsageError if `count` is not an int or is below `minimum`; the message ends in `hint`."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < minimum:
        extra = f" {hint}" if hint else ""
        raise UsageError(f"`{option}` must be an int of {minimum} or more{extra}; got {count!r}")


def to_images(array: Any, description: str = "images") -> np.ndarray:
    """Convert images to the form used here: (N, C, H, W) uint8, contiguous.

    Args:
        array: uint8, or floats in [0, 1], which become uint8 by rounding x * 255. Shape (N, H, W) is greyscale;
            (N, H, W, C) and (N, C, H, W) are distinguished by the axis of length 1 or 3. If both axes have such a
            length, the last axis is the channel axis.
        description: name of the array in error messages.

    Raises:
        DataError: unsupported dtype, shape or range.
    """
    array = _to_array(array, description)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in CHANNEL_COUNTS:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in CHANNEL_COUNTS:
        raise DataError(
            f"{description} must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; got {array.shape}"
        )
    return np.ascontiguousarray(_to_uint8(array, description))


def _to_array(array: Any, description: str) -> np.ndarray:
    try:
        return np.asarray(array)
    except Exception as error:  # a ragged list, a tensor on another device, and whatever a foreign array raises
        raise DataError(
            f"{description} must be convertible to one NumPy array; NumPy says of this {type(array).__name__}: {error}"
        ) from error


def _to_uint8(array: np.ndarray, description: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{description} must be uint8, or floats in [0, 1]; got {array.dtype}. Convert them first")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise DataError(
            f"{description} of a float dtype must be finite and lie in [0, 1]; got values from {array.min():g} to "
            f"{array.max():g}. Divide by 255, or undo the normalisation"
        )
    levels: np.ndarray = np.rint(array * 255)
    return levels.astype(np.uint8)


def to_labels(array: Any, description: str = "labels") -> np.ndarray:
    """Convert class numbers of any integer dtype and shape (N,) or (N, 1) to (N,) int64; DataError otherwise."""
    array = _to_array(array, description)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{description} must be integer class numbers of shape (N,) or (N, 1); got {array.dtype} of shape "
            f"{array.shape}. Convert them: whole floats with .astype(int), one row of scores per image with "
            ".argmax(1), names with `classes, labels = numpy.unique(labels, return_inverse=True)`"
        )
    labels: np.ndarray = array.astype(np.int64)
    return labels


def _warn_of(findings: tuple[str, ...]) -> None:
    for finding in findings:
        warnings.warn(finding, stacklevel=4)


def _check_classes(name: str, classes: Any) -> None:
    listed = isinstance(classes, Iterable) and not isinstance(classes, str)
    if not listed or not all(isinstance(each, str) for each in classes):
        raise DataError(f"the classes of {name!r} must be a tuple of strings, one per class; got {classes!r}")
    repeated = sorted(each for each, count in Counter(classes).items() if count > 1)
    if repeated:
        raise DataError(
            f"the classes of {name!r} must have different names; more than one is called "
            f"{', '.join(map(repr, repeated))}. Rename or merge them"
        )


def _check_images(description: str, x: np.ndarray) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 4:
        actual = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"{description} must be a uint8 array (N, C, H, W); got {actual}. Convert it with `to_images`")
    if x.size == 0:
        raise DataError(f"{description} must hold at least one image and one pixel; got shape {x.shape}")


def _check_labels(description: str, y: np.ndarray, images: int, classes: int) -> None:
    if not isinstance(y, np.ndarray) or y.dtype != np.int64 or y.shape != (images,):
        actual = f"{y.dtype} of shape {y.shape}" if isinstance(y, np.ndarray) else type(y).__name__
        raise DataError(f"{description} must be an int64 array ({images},), one label per image; got {actual}")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"{description} must be class numbers in 0..{classes - 1}; got {y.min()}..{y.max()}")
