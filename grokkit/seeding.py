"""Named, independent random streams derived from one root seed: a new consumer does not change the others."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream `names` under the root `seed`; different names give independent seeds.

    >>> derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    True
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new generator on `device` for the stream `names`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *names))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global random states of torch (CPU and CUDA), NumPy and Python on exit."""
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
    """Seed the global generators from the stream `names` within the block, and restore their states on exit.

    For third-party code that draws from the global generators.
    """
    with preserved_rng():
        root = derive_seed(seed, *names)
        random.seed(root)
        np.random.seed(root % 2**32)  # noqa: NPY002
        if torch.cuda.is_initialized():
            torch.manual_seed(root)
        else:
            # torch.manual_seed would also queue this seed for CUDA's start, which may come after the state is restored.
            torch.default_generator.manual_seed(root)
        yield
