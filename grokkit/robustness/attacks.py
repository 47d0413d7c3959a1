"""Attack pixels by projected gradient descent, with a saturating and a scale-free loss.

The accuracy under one attack is only an upper bound of the robust accuracy. Cross-entropy alone is misleading: if the
softmax reaches 1 in float32, its gradient is exactly 0 and the attack does not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.device.model_check import check_two_classes, compute_gradient, run_classifier
from grokkit.device.preserved_state import device_of, preserved_state, require_full_precision
from grokkit.errors import NumericsError, UsageError
from grokkit.interrupt import check_interrupt
from grokkit.literals import AttackLoss, AttackNorm
from grokkit.registry import did_you_mean
from grokkit.robustness.checks import check_count, check_distance, check_images
from grokkit.seeding import make_generator


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Result of an attack.

    Args:
        adversarial: (N, ...) pixels in [0, 1]: of all visited points of an image the one with the largest margin.
        correct: (N,) bool; True if the image is classified correctly at every visited point, the clean one included.
        clean_accuracy: share of the clean images that are classified correctly.
        zero_gradient_share: share of the images whose gradient is exactly 0 at the first step.
        saturated_share: share of the clean images whose true class has a softmax of exactly 1 in float32.
    """

    adversarial: Tensor
    correct: Tensor
    clean_accuracy: float
    zero_gradient_share: float
    saturated_share: float

    @property
    def accuracy(self) -> float:
        """Return the share of images that withstood this attack: an upper bound of the robust accuracy."""
        return _mean(self.correct)


class _Norm(NamedTuple):
    """Operations on a norm ball, per image: a random point of the unit ball, the steepest direction, the projection."""

    random_point: Callable[[torch.Size, torch.Generator], Tensor]
    steepest: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, float], Tensor]


def _euclidean_norms(images: Tensor) -> Tensor:
    """Return the Euclidean norm of each image, shaped to broadcast against the images."""
    norms: Tensor = images.flatten(1).norm(dim=1)
    return norms.view(-1, *[1] * (images.ndim - 1))


def _sample_l2_ball(shape: torch.Size, source: torch.Generator) -> Tensor:
    point = torch.randn(shape, generator=source)
    radius = torch.rand((), generator=source) ** (1 / point.numel())
    scaled: Tensor = point * (radius / point.norm())
    return scaled


def _steepest_l2_step(gradient: Tensor) -> Tensor:
    # A nearly saturated loss has gradients whose squares underflow: scale the largest entry to 1 first.
    largest = gradient.flatten(1).abs().amax(1).view(-1, *[1] * (gradient.ndim - 1))
    scaled = gradient / torch.where(largest > 0, largest, 1)
    return scaled / _euclidean_norms(scaled).clamp_min(1)


def _project_l2(offset: Tensor, epsilon: float) -> Tensor:
    return offset * (epsilon / _euclidean_norms(offset).clamp_min(torch.finfo(offset.dtype).tiny)).clamp_max(1)


NORMS = {
    "linf": _Norm(
        lambda shape, source: 2 * torch.rand(shape, generator=source) - 1,
        torch.sign,
        lambda offset, epsilon: offset.clamp(-epsilon, epsilon),
    ),
    "l2": _Norm(_sample_l2_ball, _steepest_l2_step, _project_l2),
}


def _compute_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) largest wrong logit minus the true one: negative if, and only if, the prediction is correct."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


ATTACK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "margin": _compute_margin,
}


@dataclass(frozen=True)
class _Attack:
    epsilon: float
    loss: AttackLoss
    norm: AttackNorm
    steps: int
    step_size: float | None
    random_start: bool

    @property
    def stride(self) -> float:
        """Return the length of a step in pixels: far enough to cross the ball and come back."""
        return 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    loss: AttackLoss = "cross_entropy",
    norm: AttackNorm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> AttackResult:
    """Attack each image within `epsilon` and return which ones stay classified correctly at every visited point.

    The clean image counts as a visited point, so an image that is misclassified clean is not robust; a tie between
    the true and another class counts as wrong.

    Args:
        model: classifier of pixels in [0, 1] with logits (N, classes); float32 or float64, run in eval mode.
        images: (N, ...) floating pixels in [0, 1].
        labels: (N,) true classes, of an integer dtype.
        epsilon: radius of the ball, for pixels in [0, 1]: 0..1 for `linf`, 0..sqrt(pixels of an image) for `l2`.
        loss: maximised function; `cross_entropy`, or `margin`: the largest wrong logit minus the true one.
        norm: `linf` or `l2` over all pixels of an image.
        steps: gradient steps, at least 1.
        step_size: length of a step, in the same range; default 2.5 * epsilon / steps.
        random_start: start at a random point of the ball, else at the clean image.
        seed: root of the random start, which is drawn image by image and so is independent of `batch_size`.
        batch_size: images per forward pass; the result does not depend on it beyond rounding.

    Returns:
        An AttackResult; its tensors are on the device of `images`.

    Raises:
        UsageError: an argument outside its range, images outside [0, 1], labels the model does not have.
        ModelContractError: no logits of shape (N, classes), no gradient, or a half-precision model.
        NumericsError: logits that are not finite.

    Cost: steps + 2 forward and `steps` backward passes. Source: Madry et al., 2018 (arXiv 1706.06083); the margin
    loss is that of Carlini and Wagner, 2017 (arXiv 1608.04644).
    """
    check_images(images, labels)
    for argument, count in (("steps", steps), ("batch_size", batch_size)):
        check_count(argument, count)
    attack, rows = _Attack(epsilon, loss, norm, int(steps), step_size, random_start), int(batch_size)
    _validate_attack(attack, images)
    source = make_generator(seed, "attack", loss, norm)
    with preserved_state(model) as net, torch.enable_grad():
        device, dtype = device_of(net), require_full_precision(net, "an attack needs")
        parts = [
            _attack_batch(net, x.to(device, dtype), y.to(device, torch.int64).clone(), attack, source)
            for x, y in zip(torch.split(images.detach(), rows), torch.split(labels, rows), strict=True)
        ]
    adversarial, margins, clean_correct, zero_gradient, saturated = (
        torch.cat(column).to(images.device) for column in zip(*parts, strict=True)
    )
    return AttackResult(adversarial, margins < 0, _mean(clean_correct), _mean(zero_gradient), _mean(saturated))


def _attack_batch(
    net: nn.Module, clean: Tensor, labels: Tensor, attack: _Attack, source: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the worst point, its margin, and three flags: clean correct, zero gradient at first step, saturated."""
    norm, loss = NORMS[attack.norm], ATTACK_LOSSES[attack.loss]
    with torch.no_grad():
        logits = _predict_logits(net, clean, labels)
    worst, margin = clean.clone(), _compute_margin(logits, labels)
    clean_correct = margin < 0
    saturated = logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1) == 1
    zero_gradient = torch.empty(0)
    point = _start_point(clean, attack, source)
    for step in range(attack.steps + 1):
        point.requires_grad_(step < attack.steps)
        logits = _predict_logits(net, point, labels)
        point_margin = _compute_margin(logits.detach(), labels)
        is_worse = point_margin > margin
        worst[is_worse], margin[is_worse] = point.detach()[is_worse], point_margin[is_worse]
        if step == attack.steps:
            break
        gradient = compute_gradient(loss(logits, labels).sum(), point)
        if step == 0:
            zero_gradient = (gradient == 0).flatten(1).all(1)
        offset = point.detach() + attack.stride * norm.steepest(gradient) - clean
        point = (clean + norm.project(offset, attack.epsilon)).clamp(0, 1)
    return worst, margin, clean_correct, zero_gradient, saturated


def _start_point(clean: Tensor, attack: _Attack, source: torch.Generator) -> Tensor:
    if not attack.random_start:
        return clean.clone()
    offsets = torch.stack([NORMS[attack.norm].random_point(image.shape, source) for image in clean])
    return (clean + attack.epsilon * offsets.to(clean)).clamp(0, 1)


def _predict_logits(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    check_interrupt()
    # A copy, because a model may modify its input in place.
    logits = run_classifier(net, images.clone())
    check_two_classes(logits, "an attack needs")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UsageError(f"`labels` must be in 0..{logits.shape[1] - 1} (the model's classes); got {low}..{high}")
    if not torch.isfinite(logits).all():
        raise NumericsError(
            "the model returned logits that are not finite; the result of an attack would be meaningless"
        )
    return logits


def _validate_attack(attack: _Attack, images: Tensor) -> None:
    for argument, value, allowed in (("loss", attack.loss, list(ATTACK_LOSSES)), ("norm", attack.norm, list(NORMS))):
        if value not in allowed:
            raise UsageError(
                f"`{argument}` must be one of {', '.join(allowed)}; got {value!r}.{did_you_mean(value, allowed)}"
            )
    for argument, distance in (("epsilon", attack.epsilon), ("step_size", attack.step_size)):
        if distance is not None or argument == "epsilon":
            check_distance(argument, distance, attack.norm, images[0].numel())


def _mean(flags: Tensor) -> float:
    return flags.float().mean().item()
