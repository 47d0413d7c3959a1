"""Loss and accuracy on a whole split, at strict precision: correct / seen, plain and with test-time augmentation."""

from __future__ import annotations

from torch import Tensor, nn

from grokkit.data.resident import to_pixels
from grokkit.device.preserved_state import device_of
from grokkit.measures.base import predict_logits
from grokkit.measures.loss import get_loss
from grokkit.training.meter import Meter

EVAL_BATCH = 2048
"""Images converted to floats at a time."""

Split = tuple[Tensor, Tensor]
"""Images (N, C, H, W) uint8 and labels (N,) int64, on the device of the model."""


def evaluate_split(model: nn.Module, split: Split, loss: str, *, mirrored: bool = False) -> dict[str, float]:
    """`loss` (nats, or squared logits) and plain `accuracy` of `model` on the whole split; where `mirrored` also
    `accuracy_tta`, by the mean of the logits for each image and its mirror.

    Cost: one forward pass per image, two where `mirrored`; one wait for the device at the end.
    """
    plain, both = Meter(device_of(model)), Meter(device_of(model))
    for images, labels in zip(*(part.split(EVAL_BATCH) for part in split), strict=True):
        x = to_pixels(images)
        logits = predict_logits(model, x)
        value = get_loss(loss)(logits, labels)
        plain.add(value, logits, labels)
        if mirrored:
            both.add(value, (logits + predict_logits(model, x.flip(3))) / 2, labels)
    told = dict(zip(("loss", "accuracy"), plain.mean(), strict=True))
    return told | ({"accuracy_tta": both.mean()[1]} if mirrored else {})
