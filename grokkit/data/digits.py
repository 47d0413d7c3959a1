"""The 1,797 handwritten digits included in scikit-learn: no download, training takes seconds."""

from __future__ import annotations

import numpy as np

from grokkit import seeding
from grokkit.data import register
from grokkit.data.base import Dataset, validate_count
from grokkit.data.plausibility import describe_lost_classes
from grokkit.errors import UsageError

COUNT = 1797
SIDE = 8
TOP = 16
USUAL_TRAIN = 500
CLASSES = tuple("0123456789")


@register("digits")
def digits(train: int | None = USUAL_TRAIN, test: int | None = None, seed: int = 0, size: int = SIDE) -> Dataset:
    """Load handwritten digits, 10 classes (E. Alpaydin and C. Kaynak, UCI 1998; scikit-learn's `load_digits`).

    Args:
        train: training images, 1..1796; None = the default 500. They are the first of one permutation.
        test: stratified share of the remaining images; None = all the rest (1,297).
        seed: fixes the permutation and the test share.
        size: 8 = as scanned, (1, 8, 8); 32 = the size of CIFAR-10, (3, 32, 32), bilinear (half-pixel centres),
            the same in every channel. The 17 grey levels 0..16 are scaled to 0..255 and rounded.
    """
    from sklearn.datasets import load_digits

    train = USUAL_TRAIN if train is None else train
    validate_count("train", train, 1)
    if train >= COUNT:
        raise UsageError(f"`train` must be an int in 1..{COUNT - 1}, so that test images remain; got {train}")
    if size not in (8, 32):
        raise UsageError(f"`size` must be 8 or 32; got {size!r}")
    scans, labels = load_digits(return_X_y=True)
    images = scans.reshape(-1, 1, SIDE, SIDE) / TOP * 255
    if size == 32:
        grow = resize_bilinear(SIDE, size)
        images = np.repeat(grow @ images @ grow.T, 3, axis=1)
    pixels = np.rint(images).astype(np.uint8)
    order = np.random.default_rng(seeding.derive_seed(seed, "digits")).permutation(COUNT)
    first, rest = order[:train], order[train:]
    y = labels.astype(np.int64)
    whole = Dataset("digits", pixels[first], y[first], pixels[rest], y[rest], CLASSES, findings=())
    return whole.with_findings(describe_lost_classes("digits", y, y[first], CLASSES)).subset(test=test, seed=seed)


def resize_bilinear(source: int, target: int) -> np.ndarray:
    """Return the (target, source) matrix of 1-D bilinear interpolation: half-pixel centres, edges repeated."""
    positions = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    weights: np.ndarray = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(source)))
    return weights
