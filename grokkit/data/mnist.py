"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28x28 greyscale."""

from __future__ import annotations

import os
from pathlib import Path

from grokkit.data import register
from grokkit.data.archive import Standard
from grokkit.data.base import Dataset, to_images, to_labels
from grokkit.data.download import cache_archive

CLASSES = tuple("0123456789")
_STANDARD = Standard("mnist", (1, 28, 28), CLASSES, ("MNIST",))


@register("mnist")
def mnist(
    root: str | os.PathLike[str] | None = None, train: int | None = None, test: int | None = None, seed: int = 0
) -> Dataset:
    """Load MNIST (LeCun, Cortes and Burges 1998), images (1, 28, 28).

    Args:
        root: folder with `mnist.npz`; None = the environment's GROKKIT_DATA, else `./data`. If the file is missing,
            torchvision downloads the official files there (checksummed), which are decoded once and cached as
            `mnist.npz` (55 MB).
        train, test, seed: stratified subsets, see `Dataset.subset`.

    Raises:
        DataError: the download failed, or the file is malformed or holds another dataset.
    """
    return cache_archive(_STANDARD, root, _fetch).subset(train, test, seed)


def _fetch(folder: Path) -> Dataset:
    from torchvision.datasets import MNIST

    train, test = (MNIST(folder, train=split, download=True) for split in (True, False))
    return Dataset(
        "mnist",
        to_images(train.data.numpy()),
        to_labels(train.targets.numpy()),
        to_images(test.data.numpy()),
        to_labels(test.targets.numpy()),
        CLASSES,
        findings=(),  # looked for when the cached file is read
    )
