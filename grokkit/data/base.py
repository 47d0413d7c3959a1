"""What every loader returns: a training and a test split of uint8 images, checked, with stratified subsets and, on
request, a validation split."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from grokkit import seeding
from grokkit.errors import DataError, UsageError

CHANNEL_COUNTS = (1, 3)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one classification problem.

    Args:
        name: the word used in plots and as the source of probe sets.
        x_train, x_test: (N, C, H, W) uint8, 0..255 standing for pixels in [0, 1].
        y_train, y_test: (N,) int64 class numbers in 0..len(classes)-1.
        classes: one name per class.
        x_val, y_val: images held out of the training set, in the form of the others; None = none were.

    Raises:
        DataError: a wrong dtype or shape, an empty split, a label out of range.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    x_val: np.ndarray | None = None
    y_val: np.ndarray | None = None

    def __post_init__(self) -> None:
        splits = [("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)]
        if self.x_val is not None or self.y_val is not None:
            splits.append(("val", self.x_val, self.y_val))  # type: ignore[arg-type]  # the checks below take anything
        for split, x, y in splits:
            _check_images(f"x_{split} of {self.name!r}", x)
            _check_labels(f"y_{split} of {self.name!r}", y, len(x), len(self.classes))
            if x.shape[1:] != self.x_train.shape[1:]:
                raise DataError(
                    f"training and {split} images of {self.name!r} must have one shape (C, H, W); got "
                    f"{self.x_train.shape[1:]} and {x.shape[1:]}. Resize one of them"
                )

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
        """Means and standard deviations, from exact integer sums in blocks that keep memory small."""
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
        """First 16 hex digits of the sha256 over all images, labels and class names; the name does not count."""
        digest = hashlib.sha256(repr(self.classes).encode())
        held_out = [array for array in (self.x_val, self.y_val) if array is not None]
        for array in (self.x_train, self.y_train, self.x_test, self.y_test, *held_out):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """The same dataset with at most `train` and `test` images, class shares kept.

        Args:
            train, test: images to keep, 1 or more; None keeps all in their order. More than there are: all,
                with a UserWarning.
            seed: chooses which; the two splits draw from streams of their own.

        Raises:
            UsageError: a count below 1 or not an int.
        """
        parts: dict[str, Any] = {}
        for split, count in (("train", train), ("test", test)):
            if count is None:
                continue
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            validate_count(split, count, 1, "or None for all")
            rng = np.random.default_rng(seeding.stream(seed, "subset", split))
            chosen = sample_stratified(y, require_available(count, len(y), f"{self.name}/{split}"), rng)
            parts |= {f"x_{split}": x[chosen], f"y_{split}": y[chosen]}
        return replace(self, **parts) if parts else self

    def with_validation(self, count: int, seed: int = 0) -> Dataset:
        """The same dataset with `count` training images taken out of the training split, to be validated on.

        Args:
            count: images to hold out, class shares kept; at least 1, and fewer than there are.
            seed: chooses which, by the stream `validation`.

        Returns: a dataset whose training images keep their order.

        Raises:
            UsageError: no such count, or a validation split is there already.
        """
        validate_count("validation", count, 1)
        images = len(self.y_train)
        if count >= images:
            raise UsageError(
                f"`validation` must be an int in 1..{images - 1}, so that training images of {self.name!r} remain; "
                f"got {count}"
            )
        if self.y_val is not None:
            raise UsageError(f"{self.name!r} has a validation split of {len(self.y_val)} images already")
        held_out = sample_stratified(self.y_train, count, np.random.default_rng(seeding.stream(seed, "validation")))
        rest = np.delete(np.arange(images), held_out)
        return replace(
            self,
            x_train=self.x_train[rest],
            y_train=self.y_train[rest],
            x_val=self.x_train[held_out],
            y_val=self.y_train[held_out],
        )

    def with_shuffled_labels(self, seed: int = 0) -> Dataset:
        """The same images with the training labels permuted among them: the negative control of a training set.

        Every class keeps its count; about 1 in `classes` images keeps its label by chance. Test and validation labels
        stay true.

        Args:
            seed: fixes the permutation, by the stream `labels`.

        Source: Zhang, Bengio, Hardt, Recht and Vinyals, arXiv 1611.03530.
        """
        rng = np.random.default_rng(seeding.stream(seed, "labels"))
        return replace(self, y_train=rng.permutation(self.y_train))


def sample_stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random indices of `count` samples, without repeats, in random order, with the class shares of `labels`.

    Args:
        labels: (N,) int.
        count: 0..N; shares are rounded by largest remainder (the earlier class wins a tie), so that no class is
            off by one or more from its exact share.
        rng: what draws.

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


def require_available(asked: int, there: int, source: str) -> int:
    """The smaller of two counts of images; says so where fewer are there than were asked for."""
    if asked > there:
        warnings.warn(
            f"{asked} images of {source} were asked for, {there} are there; all {there} are used", stacklevel=3
        )
    return min(asked, there)


def validate_count(option: str, count: Any, least: int, also: str = "") -> None:
    """Refuse a count that is no int or is below `least`."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < least:
        extra = f" {also}" if also else ""
        raise UsageError(f"`{option}` must be an int of {least} or more{extra}; got {count!r}")


def to_images(array: Any, what: str = "images") -> np.ndarray:
    """Images in the one form used here: (N, C, H, W) uint8, contiguous.

    Args:
        array: uint8, or floats in [0, 1], which become uint8 by rounding x * 255. Shape (N, H, W) is greyscale;
            (N, H, W, C) and (N, C, H, W) are told apart by the axis of length 1 or 3. Where both axes have such a
            length, the last axis is taken for the channels.
        what: the words that errors use for the array.

    Raises:
        DataError: another dtype, shape or range.
    """
    array = np.asarray(array)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in CHANNEL_COUNTS:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in CHANNEL_COUNTS:
        raise DataError(
            f"{what} must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; got {array.shape}"
        )
    return np.ascontiguousarray(_to_uint8(array, what))


def _to_uint8(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{what} must be uint8, or floats in [0, 1]; got {array.dtype}. Convert them first")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise DataError(
            f"{what} of a float dtype must be finite and lie in [0, 1]; got values from {array.min():g} to "
            f"{array.max():g}. Divide by 255, or undo the normalisation"
        )
    return np.rint(array * 255).astype(np.uint8)


def to_labels(array: Any, what: str = "labels") -> np.ndarray:
    """Class numbers as (N,) int64, from any integer dtype and shape (N,) or (N, 1); DataError otherwise."""
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{what} must be integer class numbers of shape (N,) or (N, 1); got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)


def _check_images(what: str, x: np.ndarray) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 4:
        came = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"{what} must be a uint8 array (N, C, H, W); got {came}. `to_images` converts")
    if x.size == 0:
        raise DataError(f"{what} must hold at least one image and one pixel; got shape {x.shape}")


def _check_labels(what: str, y: np.ndarray, images: int, classes: int) -> None:
    if not isinstance(y, np.ndarray) or y.dtype != np.int64 or y.shape != (images,):
        came = f"{y.dtype} of shape {y.shape}" if isinstance(y, np.ndarray) else type(y).__name__
        raise DataError(f"{what} must be an int64 array ({images},), one label per image; got {came}")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"{what} must be class numbers in 0..{classes - 1}; got {y.min()}..{y.max()}")
