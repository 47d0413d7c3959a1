"""Fixtures shared by all tests: one torch thread, real images where they are to be had, figures closed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
SHARED_DATA = Path(os.environ.get("GROKKIT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def _real(file: str) -> dict[str, np.ndarray]:
    path = SHARED_DATA / file
    if not path.exists():
        pytest.skip(f"needs {file} in ../shared/data or in the folder that GROKKIT_DATA names")
    with np.load(path) as archive:
        return {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}


@pytest.fixture(scope="session")
def real_cifar() -> dict[str, np.ndarray]:
    """Official CIFAR-10 pixels: uint8, NHWC; skips where the file is absent."""
    return _real("cifar10_official_6k.npz")


@pytest.fixture(scope="session")
def real_mnist() -> dict[str, np.ndarray]:
    """Official MNIST pixels: uint8, (N, 28, 28); skips where the file is absent."""
    return _real("mnist_10k.npz")
