"""Draw the fixed probe sets on which measures are computed: training images, test images and noise."""

from __future__ import annotations

import numpy as np

from grokkit import seeding
from grokkit.data import load_data
from grokkit.data.base import Dataset, limit_to_available, sample_stratified, validate_count
from grokkit.names import ProbeSet


def probe_sets(
    data: Dataset | str, *, train: int = 512, test: int = 512, random: int = 512, seed: int = 0
) -> dict[str, ProbeSet]:
    """Draw the probe sets `train`, `test` and `random` for a dataset.

    Args:
        data: a Dataset, or a source for `load_data`.
        train: images from the training split, class shares preserved; 0 omits the set. If there are fewer, all are
            used, with a UserWarning.
        test: the same from the test split.
        random: images of independent pixels, uniform in 0..255, labels and indices -1; 0 omits the set.
        seed: fixes every set; each uses a separate random stream.

    Returns: the sets by name. `source` is `<dataset>/train`, `<dataset>/test` or `noise/uniform`; `indices` are
        positions in that split of `data`.

    Raises:
        UsageError: a negative count.
    """
    for option, count in (("train", train), ("test", test), ("random", random)):
        validate_count(option, count, 0)
    dataset = data if isinstance(data, Dataset) else load_data(data)
    sets = {}
    if train:
        sets["train"] = _draw_probe_set("train", dataset, dataset.x_train, dataset.y_train, train, seed)
    if test:
        sets["test"] = _draw_probe_set("test", dataset, dataset.x_test, dataset.y_test, test, seed)
    if random:
        sets["random"] = _make_noise(dataset.input_shape, random, seed)
    return sets


def _draw_probe_set(name: str, dataset: Dataset, x: np.ndarray, y: np.ndarray, count: int, seed: int) -> ProbeSet:
    source = f"{dataset.name}/{name}"
    indices = sample_stratified(y, limit_to_available(count, len(y), source), _rng(seed, name))
    return ProbeSet(name, x[indices], y[indices], source, indices)


def _make_noise(shape: tuple[int, int, int], count: int, seed: int) -> ProbeSet:
    images = _rng(seed, "random").integers(0, 256, (count, *shape), dtype=np.uint8)
    no_index = np.full(count, -1, np.int64)
    return ProbeSet("random", images, no_index, "noise/uniform", no_index.copy())


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(seeding.derive_seed(seed, "probes", name))
