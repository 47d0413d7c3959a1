"""The plain way to training batches: a PIL image per sample, changed by torchvision, collated by a DataLoader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

WORKERS = 2
"""Worker processes of a plain loader: what free notebooks have cores for."""
ENDLESS = 1 << 40
"""Samples of a loader that is never meant to end."""


class PerSample(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's own datasets hand them out: one PIL image at a time through `transform`.

    Args:
        images: (N, C, H, W) uint8 with C = 1 or 3.
        labels: (N,) int64.
        transform: PIL image to tensor.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: transforms.Compose) -> None:
        last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self._images = last[..., 0] if last.shape[3] == 1 else last
        self._labels = labels
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def crop_and_flip(
    size: tuple[int, int], normalise: tuple[Sequence[float], Sequence[float]] | None = None, border: str = "reflect"
) -> transforms.Compose:
    """What `augment=("crop4", "flip")` does, sample by sample: the same distribution.

    Args:
        size: height and width of the images.
        normalise: mean and standard deviation per channel, in pixels (0..1); None leaves pixels in [0, 1].
        border: `reflect` as in "crop4", or `constant` as in "crop4:constant".
    """
    steps: list[nn.Module | transforms.ToTensor] = [
        transforms.RandomCrop(size, padding=4, padding_mode=border),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    return transforms.Compose(steps if normalise is None else [*steps, transforms.Normalize(*normalise)])


def make_plain_loader(
    samples: PerSample, batch_size: int, *, workers: int = WORKERS, endless: bool = False
) -> DataLoader[tuple[Tensor, Tensor]]:
    """A shuffling DataLoader with `workers` processes, in pinned memory where there is a GPU.

    Args:
        samples: see `PerSample`.
        batch_size: 1 or more; the ragged last batch of an epoch counts.
        workers: 0 works in this process, and draws from its global generators.
        endless: draw with replacement for ever, without the pause between epochs in which workers start anew.
    """
    generator = torch.Generator().manual_seed(0)
    sampler = RandomSampler(samples, replacement=endless, num_samples=ENDLESS if endless else None, generator=generator)
    return DataLoader(  # torch collates labels to tensors, which its types do not know
        samples,
        batch_size,  # type: ignore[arg-type]
        sampler=sampler,
        num_workers=workers,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )
