"""Named random streams drawn from one root seed, so that adding one consumer cannot move another."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` under the root `seed`; independent for different names.

    >>> stream(0, "order", 1) != stream(0, "order", 2)
    True
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device` for the stream `names`."""
    return torch.Generator(device).manual_seed(stream(seed, *names))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Hand the global random states of torch (CPU and CUDA), NumPy and Python back as they were."""
    python, legacy_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Run foreign code that draws from the global generators under the stream `names`; leave no trace."""
    with preserved_rng():
        root = stream(seed, *names)
        random.seed(root)
        np.random.seed(root % 2**32)  # noqa: NPY002
        if torch.cuda.is_initialized():
            torch.manual_seed(root)
        else:
            # torch.manual_seed would leave this seed for the moment CUDA starts, after the state was handed back.
            torch.random.default_generator.manual_seed(root)
        yield
