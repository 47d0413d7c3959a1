"""Loss and accuracy on a whole split, in strict precision, plain and with test-time augmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grokkit.data.resident import to_pixels
from grokkit.device.preserved_state import device_of
from grokkit.literals import LossName
from grokkit.measures.base import predict_logits
from grokkit.measures.loss import get_loss
from grokkit.training.meter import Meter

EVAL_BATCH = 2048
"""Images per forward pass."""

Split = tuple[Tensor, Tensor]
"""Images (N, C, H, W) uint8 and labels (N,) int64, on the device of the model."""


def evaluate_split(model: nn.Module, split: Split, loss: LossName, *, mirrored: bool = False) -> dict[str, float]:
    """Compute `loss` (nats, or squared logits) and `accuracy` of `model` on the whole split.

    If `mirrored`, also `accuracy_tta`: by the mean of the logits for each image and its mirror.

    Cost: one forward pass per image, two if `mirrored`; one wait for the device at the end.
    """
    plain, averaged = Meter(device_of(model)), Meter(device_of(model))
    for images, labels in zip(*(torch.split(tensor, EVAL_BATCH) for tensor in split), strict=True):
        x = to_pixels(images)
        logits = predict_logits(model, x)
        value = get_loss(loss)(logits, labels)
        plain.add(value, logits, labels)
        if mirrored:
            averaged.add(value, (logits + predict_logits(model, x.flip(3))) / 2, labels)
    result = dict(zip(("loss", "accuracy"), plain.mean(), strict=True))
    return result | ({"accuracy_tta": averaged.mean()[1]} if mirrored else {})
