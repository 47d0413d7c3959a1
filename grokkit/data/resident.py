"""Training batches from data resident on the device; batch number `step` is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grokkit import seeding
from grokkit.data import augment as augmentation
from grokkit.data.base import validate_count
from grokkit.errors import DataError, UsageError


class Batches:
    """Shuffled, augmented batches without a DataLoader: uint8 images on the device, selected by index.

    Every epoch visits every image once, in a new order; the smaller last batch of an epoch is used. The only state
    between calls is the cached order of the current epoch, so that a resumed run needs no data state.

    Args:
        images: (N, C, H, W) uint8, array or tensor, N >= 1.
        labels: (N,) int64.
        batch_size: 1 or more; above N every batch is the whole dataset.
        seed: root of the random streams `order` (per epoch, the same on every device), `augment` (per step, drawn on
            the device) and `altflip` (once, the same on every device).
        device: device of images, labels and batches.
        augment: specs such as `("crop4", "flip", "cutout8")`, see `parse_augment`; applied in this order.

    Raises:
        DataError: malformed images or labels.
        UsageError: a batch size below 1, an unknown augmentation or one that does not fit these images.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor,
        batch_size: int,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        augment: Sequence[str] = (),
    ) -> None:
        validate_count("batch_size", batch_size, 1)
        self.images = torch.as_tensor(images, device=device)
        self.labels = torch.as_tensor(labels, device=device)
        _check(self.images, self.labels)
        self.batch_size = min(batch_size, len(self.images))
        self.seed = seed
        self._augmentations = augmentation.parse_augment(augment)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        self._mirrored_on_even = torch.rand(len(self.images), generator=seeding.make_generator(seed, "altflip")) < 0.5
        self._mirrored_on_even = self._mirrored_on_even.to(self.images.device)
        # Fail here, not at step 1, if an augmentation does not fit.
        self._augment(torch.zeros(1, dtype=torch.int64, device=self.images.device), step=1)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, including the smaller last one."""
        return -(-len(self.images) // self.batch_size)

    def epoch(self, step: int) -> int:
        """Return the epoch (from 0) of optimizer update number `step` (from 1)."""
        return (step - 1) // self.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """Return the (B,) positions of the images in batch number `step`, on the device."""
        if step < 1:
            raise UsageError(f"`step` must be 1 or more, the number of the optimizer update; got {step}")
        start = (step - 1) % self.steps_per_epoch * self.batch_size
        return self._get_epoch_order(self.epoch(step))[start : start + self.batch_size]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch for optimizer update number `step`, a pure function of (seed, step).

        Args:
            step: 1 or more.

        Returns: x (B, C, H, W) float32 in [0, 1] and y (B,) int64, on the device; B = batch_size, or less in
            the last batch of an epoch.
        """
        chosen = self.indices(step)
        return to_pixels(self._augment(chosen, step)), self.labels.index_select(0, chosen)

    def _get_epoch_order(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            order = torch.randperm(len(self.images), generator=seeding.make_generator(self.seed, "order", epoch))
            on_gpu = self.images.is_cuda  # Pinned memory lets the copy be asynchronous.
            self._order = (epoch, (order.pin_memory() if on_gpu else order).to(self.images.device, non_blocking=on_gpu))
        return self._order[1]

    def _augment(self, chosen: Tensor, step: int) -> Tensor:
        # index_select copies whole images; `images[chosen]` copies pixel by pixel and takes ten times as long.
        x = self.images.index_select(0, chosen)
        if self._augmentations:
            generator = seeding.make_generator(self.seed, "augment", step, device=x.device)
            for change in self._augmentations:
                if change is augmentation.altflip:
                    x = change(x, mirrored=self._mirrored_on_even[chosen] ^ (self.epoch(step) % 2 == 1))
                else:
                    x = change(x, generator=generator)
        return x


def stack_batches(batches: Sequence[Batches], step: int) -> tuple[Tensor, Tensor]:
    """Return the stacked `at(step)` of several `Batches` over the same images, gathered in one call.

    Args:
        batches: K `Batches` with the same image and label tensors and different seeds.
        step: 1 or more.

    Returns: x (K, B, C, H, W) float32 in [0, 1] and y (K, B) int64.
    """
    first = batches[0]
    chosen = torch.stack([member.indices(step) for member in batches])
    if first._augmentations:
        images = torch.stack([member._augment(rows, step) for member, rows in zip(batches, chosen, strict=True)])
    else:
        images = torch.unflatten(first.images.index_select(0, chosen.flatten()), 0, chosen.shape)
    return to_pixels(images), first.labels[chosen]


def to_pixels(images: np.ndarray | Tensor, device: str | torch.device | None = None) -> Tensor:
    """Convert images to float32: uint8 0..255 is divided by 255 to [0, 1], float32 is returned unchanged.

    Args:
        images: (N, ...) uint8 or float32.
        device: None = their current device.

    Raises:
        DataError: unsupported dtype.
    """
    tensor = torch.as_tensor(images, device=device)
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float32).div_(255)
    if tensor.dtype != torch.float32:
        raise DataError(f"images must be uint8 in 0..255 or float32; got {tensor.dtype}. Convert them first")
    return tensor


def _check(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise DataError(f"images must be uint8 (N, C, H, W), N >= 1; got {images.dtype} {tuple(images.shape)}")
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise DataError(f"labels must be int64 ({len(images)},); got {labels.dtype} {tuple(labels.shape)}")
