"""Find out before a run starts whether its model can train on its smallest batch."""

from __future__ import annotations

import torch
from torch import nn

from grokkit.data.resident import Batches, to_pixels
from grokkit.device.preserved_state import preserved_state
from grokkit.errors import UsageError

REFUSAL = "more than 1 value per channel"
"""Part of torch's error about BatchNorm in training mode on one value per channel, which has no variance."""


def check_smallest_batch(model: nn.Module, batches: Batches, steps: int, processes: int = 1) -> None:
    """Raise UsageError if a batch of one image occurs and the model cannot train on it.

    Args:
        model: images to logits, on the device of the batches; its state is not changed.
        batches: of the run.
        steps: updates of the run; the last, smaller batch of an epoch may come later.
        processes: among which each batch is divided.

    Cost: a forward pass of one image, only if there is such a batch.
    """
    images, size = len(batches.images), batches.batch_size
    whole_epoch = steps >= batches.steps_per_epoch
    if (_find_smallest(images, size, processes) if whole_epoch else size // processes) != 1:
        return
    reason = _try_one_image(model, batches)
    if reason is None:
        return
    batch = "the last batch of an epoch" if images % size else "a batch"
    share = "holds a single image" if processes == 1 else f"gives one of {processes} processes a single image"
    others = [other for other in range(size + 1, images + 1) if _find_smallest(images, other, processes) > 1]
    remedy = f"`batch_size` = {others[0]}, or " if others else ""
    raise UsageError(
        f"{batch} ({images} training images, `batch_size` = {size}) {share}, on which the model cannot train: {reason}."
        f" Choose {remedy}another number of training images"
    )


def _find_smallest(images: int, size: int, processes: int) -> int:
    """Return the images of the smallest share of a batch in an epoch."""
    return (images % size or size) // processes


def _try_one_image(model: nn.Module, batches: Batches) -> str | None:
    """Return torch's refusal to train on one image; None if there is none, or another failure: a step explains it."""
    with preserved_state(model) as net, torch.no_grad():
        net.train()
        try:
            net(to_pixels(batches.images[:1]))
        except Exception as error:
            return str(error).strip() if REFUSAL in str(error) else None
    return None
