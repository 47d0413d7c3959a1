"""The slow obvious twin of the training loop: PyTorch as its tutorials write it, image by image through a DataLoader.

Nothing of grokkit is imported, so that a mistake in grokkit's batches, schedule, clipping or evaluation cannot hide in
both. Schedules are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


@dataclass(frozen=True)
class Recipe:
    """What a newcomer writes at the top of the script.

    Args:
        optimizer: `adam`, or `sgd` with Nesterov momentum 0.9.
        lr: highest rate of the schedule.
        weight_decay: of the optimizer, an L2 term in the gradient.
        schedule: `one_cycle` (torch's defaults) or `triangle`: linear from 0 to the peak, linear to 0.
        epochs, batch_size: the ragged last batch is trained on too.
        peak: share of the updates before the highest rate.
        cycle_momentum: whether one_cycle moves the momentum as well, which is torch's default.
        clip_value: largest size of a gradient's component; None: as they come.
        crop: pixels of reflected border for a random crop; 0: none.
        flip: left to right, half of the time.
        cutout: side of a black square; 0: none.
    """

    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    epochs: int
    batch_size: int
    peak: float = 0.3
    cycle_momentum: bool = False
    clip_value: float | None = None
    crop: int = 0
    flip: bool = False
    cutout: int = 0


@dataclass(frozen=True)
class Epoch:
    """One row of the curve: `epoch` from 1, mean training loss (nats) while it ran, test accuracy after it."""

    epoch: int
    train_loss: float
    test_accuracy: float


class Images(Dataset):
    """(N, H, W, C) or (N, H, W) uint8 images as PIL pictures, each through the transform whenever it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = transforms.functional.to_pil_image(self.images[index])
        return self.transform(picture), int(self.labels[index])


class Cutout:
    """Blacken a square whose centre is uniform over the image; what hangs over the border is lost."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        top, left = y - self.size // 2, x - self.size // 2
        image[:, max(top, 0) : max(top + self.size, 0), max(left, 0) : max(left + self.size, 0)] = 0
        return image


def train(
    model: nn.Module,
    train_set: tuple[np.ndarray, np.ndarray],
    test_set: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    *,
    seed: int,
    order: Callable[[int], Sequence[int]] | None = None,
) -> list[Epoch]:
    """Train `model` in place and return its curve.

    Args:
        model: normalised images (N, C, H, W) to logits.
        train_set, test_set: images (N, H, W, C) or (N, H, W) uint8 and labels (N,).
        recipe: the choices.
        seed: of torch's global generator, which shuffles and augments.
        order: epoch from 0 to the order of its images, instead of shuffling.
    """
    torch.manual_seed(seed)
    normalise = transforms.Normalize(*moments(train_set[0]))
    pictures = Images(*train_set, transforms.Compose([*augmentations(recipe, train_set[0].shape[1:3]), normalise]))
    test_loader = DataLoader(Images(*test_set, transforms.Compose([transforms.ToTensor(), normalise])), batch_size=1000)
    optimizer = build_optimizer(model, recipe)
    scheduler = build_schedule(optimizer, recipe, updates=recipe.epochs * -(-len(pictures) // recipe.batch_size))
    curve = []
    for epoch in range(recipe.epochs):
        sampler = None if order is None else [int(index) for index in order(epoch)]
        loader = DataLoader(pictures, recipe.batch_size, shuffle=sampler is None, sampler=sampler, drop_last=False)
        loss = train_epoch(model, loader, optimizer, scheduler, recipe.clip_value)
        curve.append(Epoch(epoch + 1, loss, accuracy(model, test_loader)))
    return curve


def train_epoch(
    model: nn.Module, loader: DataLoader, optimizer: Optimizer, scheduler: LRScheduler, clip_value: float | None
) -> float:
    """One pass; the mean loss over its images."""
    model.train()
    total, seen = 0.0, 0
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip_value)
        optimizer.step()
        scheduler.step()
        total, seen = total + loss.item() * len(labels), seen + len(labels)
    return total / seen


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Correct over seen."""
    model.eval()
    correct, seen = 0, 0
    for images, labels in loader:
        correct += int((model(images).argmax(1) == labels).sum())
        seen += len(labels)
    return correct / seen


def moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, pixels in [0, 1]."""
    flat = images.reshape(-1, images.shape[3] if images.ndim == 4 else 1)
    return list(flat.mean(axis=0, dtype=np.float64) / 255), list(flat.std(axis=0, dtype=np.float64) / 255)


def augmentations(recipe: Recipe, size: tuple[int, int]) -> list[Callable]:
    """From a PIL picture of (height, width) `size` to a tensor in [0, 1]."""
    chosen: list[Callable] = []
    if recipe.crop:
        chosen.append(transforms.RandomCrop(size, padding=recipe.crop, padding_mode="reflect"))
    if recipe.flip:
        chosen.append(transforms.RandomHorizontalFlip())
    chosen.append(transforms.ToTensor())
    return chosen + ([Cutout(recipe.cutout)] if recipe.cutout else [])


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Adam or SGD with torch's defaults for all that the recipe leaves open."""
    if recipe.optimizer == "adam":
        return Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        rest = {"momentum": 0.9, "nesterov": True, "weight_decay": recipe.weight_decay}
        return SGD(model.parameters(), lr=recipe.lr, **rest)
    raise ValueError(f"`optimizer` must be adam or sgd; got {recipe.optimizer!r}")


def build_schedule(optimizer: Optimizer, recipe: Recipe, updates: int) -> LRScheduler:
    """torch's own schedule over `updates` updates."""
    if recipe.schedule == "one_cycle":
        momentum = recipe.cycle_momentum
        return OneCycleLR(optimizer, recipe.lr, updates, pct_start=recipe.peak, cycle_momentum=momentum)
    if recipe.schedule == "triangle":
        rise = round(recipe.peak * updates)
        return LambdaLR(optimizer, lambda update: min((update + 1) / rise, (updates - update) / (updates - rise)))
    raise ValueError(f"`schedule` must be one_cycle or triangle; got {recipe.schedule!r}")
