"""CIFAR-10: 50,000 training and 10,000 test images of 32x32 RGB pixels in 10 classes."""

from __future__ import annotations

import os
from pathlib import Path

from grokkit.data import register
from grokkit.data.archive import Standard
from grokkit.data.base import Dataset, to_images, to_labels
from grokkit.data.download import cache_archive

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STANDARD = Standard("cifar10", (3, 32, 32), CLASSES, ("cifar-10-batches-py", "cifar-10-python.tar.gz"))


@register("cifar10")
def cifar10(
    root: str | os.PathLike[str] | None = None, train: int | None = None, test: int | None = None, seed: int = 0
) -> Dataset:
    """Load CIFAR-10 (Krizhevsky 2009), images (3, 32, 32).

    Args:
        root: folder with `cifar10.npz`; None = the environment's GROKKIT_DATA, else `./data`. If the file is missing,
            torchvision downloads the official archive there (170 MB, checksummed), which is decoded once and
            cached as `cifar10.npz` (184 MB).
        train, test, seed: stratified subsets, see `Dataset.subset`.

    Raises:
        DataError: the download failed, or the file is malformed or holds another dataset.
    """
    return cache_archive(_STANDARD, root, _fetch).subset(train, test, seed)


def _fetch(folder: Path) -> Dataset:
    from torchvision.datasets import CIFAR10

    train, test = (CIFAR10(folder, train=split, download=True) for split in (True, False))
    return Dataset(
        "cifar10",
        to_images(train.data),
        to_labels(train.targets),
        to_images(test.data),
        to_labels(test.targets),
        CLASSES,
        findings=(),  # looked for when the cached file is read
    )
