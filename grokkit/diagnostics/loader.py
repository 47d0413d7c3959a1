"""The usual PyTorch input pipeline, as a baseline: one PIL image per sample, torchvision transforms, a DataLoader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

WORKERS = 2
"""Worker processes of a plain loader: free notebooks have cores for two."""
ENDLESS = 1 << 40
"""Number of samples of an endless loader."""


class PerSample(Dataset[tuple[Tensor, int]]):
    """Dataset in the manner of torchvision: one PIL image at a time through `transform`.

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
    """Return the transform with the same distribution as `augment=("crop4", "flip")`, applied sample by sample.

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
    """Return a shuffling DataLoader with `workers` processes, with pinned memory if there is a GPU.

    Args:
        samples: see `PerSample`.
        batch_size: 1 or more; the last batch of an epoch may be smaller.
        workers: 0 loads in this process and draws from its global generators.
        endless: draw with replacement forever, without the pause between epochs in which workers restart.
    """
    generator = torch.Generator().manual_seed(0)
    sampler = RandomSampler(samples, replacement=endless, num_samples=ENDLESS if endless else None, generator=generator)
    return DataLoader(
        samples,  # type: ignore[arg-type]  # torch collates labels to tensors, which its type hints do not express
        batch_size,
        sampler=sampler,
        num_workers=workers,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )
