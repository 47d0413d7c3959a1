"""Check the arguments of an attack where they come in, for `pgd` and for the measures that use it."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from grokkit.errors import UsageError
from grokkit.literals import AttackNorm


def check_count(argument: str, count: Any) -> None:
    """Raise UsageError unless `count` is an int of at least 1."""
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise UsageError(f"`{argument}` must be an int of at least 1; got {count!r}")


def check_distance(argument: str, distance: Any, norm: AttackNorm = "linf", pixels: int = 1) -> None:
    """Raise UsageError unless `distance` can be one between two images in [0, 1].

    Args:
        argument: its name in the message.
        distance: 0 or more; at most 1 for `linf`, at most the root of `pixels` for `l2`.
        norm: in which it is a distance.
        pixels: values of one image, channels included.
    """
    largest = 1.0 if norm == "linf" else pixels**0.5
    if isinstance(distance, bool) or not isinstance(distance, Real) or not 0 <= float(distance) <= largest:
        raise UsageError(
            f"`{argument}` must be a number in 0..{largest:.4g}, an {norm} distance between images with pixels in "
            f"[0, 1]; got {distance!r}. Divide levels of 0..255 by 255: 8/255 is 0.031"
        )


def check_images(images: Any, labels: Any) -> None:
    """Raise UsageError unless `images` are floating tensors in [0, 1] and `labels` one class number for each."""
    for argument, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise UsageError(
                f"`{argument}` must be a torch tensor; got {type(value).__name__}. Convert it: "
                f"torch.as_tensor({argument})"
            )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(
            f"`labels` must be class numbers of an integer dtype; got {labels.dtype}. If they are whole numbers: "
            "labels.long(); if they are scores of the classes: labels.argmax(1)"
        )
    if not images.ndim or not len(images) or labels.shape != images.shape[:1]:
        raise UsageError(
            f"`labels` must hold one class per image, for one image or more; "
            f"got images {tuple(images.shape)} and labels {tuple(labels.shape)}"
        )
    found = f"got {images.dtype}"
    if images.is_floating_point():
        low, high = images.detach().min().item(), images.detach().max().item()
        if low >= 0 and high <= 1:
            return
        found = f"{found} in [{low:g}, {high:g}]"
    raise UsageError(
        f"`images` must be floating pixels in [0, 1]; {found}. Divide bytes by 255, and let the model normalise: "
        "Classifier(normalise, net)"
    )
