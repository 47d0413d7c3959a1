"""Projected gradient descent on pixels, with a saturating and a scale-free loss.

An accuracy under one attack is an upper bound of the robust accuracy and nothing more. Cross-entropy alone
misleads: where the softmax reaches 1 in float32 its gradient is exactly 0 and the attack stands still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.device.preserved_state import device_of, full_precision, preserved_state
from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.interrupt import check_interrupt
from grokkit.registry import did_you_mean
from grokkit.seeding import generator


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found.

    Args:
        adversarial: (N, ...) pixels in [0, 1]: of all visited points of an image the one with the largest margin.
        correct: (N,) bool; True where the image is classified right at every visited point, the clean one included.
        clean_accuracy: share of the clean images that are classified right.
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
        """Share of the images that this attack could not turn: an upper bound of the robust accuracy."""
        return _mean_flag(self.correct)


class _Norm(NamedTuple):
    """The geometry of a unit ball, per image: a random point in it, the steepest direction, the way back into it."""

    random_point: Callable[[torch.Size, torch.Generator], Tensor]
    steepest: Callable[[Tensor], Tensor]
    into_ball: Callable[[Tensor, float], Tensor]


def _norms(images: Tensor) -> Tensor:
    """Euclidean length of each image, shaped to broadcast against the images."""
    return images.flatten(1).norm(dim=1).view(-1, *[1] * (images.ndim - 1))


def _random_in_l2(shape: torch.Size, source: torch.Generator) -> Tensor:
    point = torch.randn(shape, generator=source)
    radius = torch.rand((), generator=source) ** (1 / point.numel())
    return point * (radius / point.norm())


def _steepest_l2(gradient: Tensor) -> Tensor:
    # A nearly saturated loss has gradients whose squares underflow: bring the largest entry to 1 first.
    largest = gradient.flatten(1).abs().amax(1).view(-1, *[1] * (gradient.ndim - 1))
    scaled = gradient / torch.where(largest > 0, largest, 1)
    return scaled / _norms(scaled).clamp_min(1)


def _into_l2(offset: Tensor, epsilon: float) -> Tensor:
    return offset * (epsilon / _norms(offset).clamp_min(torch.finfo(offset.dtype).tiny)).clamp_max(1)


NORMS = {
    "linf": _Norm(
        lambda shape, source: 2 * torch.rand(shape, generator=source) - 1,
        torch.sign,
        lambda offset, epsilon: offset.clamp(-epsilon, epsilon),
    ),
    "l2": _Norm(_random_in_l2, _steepest_l2, _into_l2),
}


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) largest wrong logit minus the true one: negative where, and only where, the answer is right."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "margin": _margin,
}


@dataclass(frozen=True)
class _Plan:
    epsilon: float
    loss: str
    norm: str
    steps: int
    step_size: float | None
    random_start: bool

    @property
    def stride(self) -> float:
        """Length of a step in pixels: far enough to cross the ball and come back."""
        return 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    loss: str = "cross_entropy",
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> AttackResult:
    """Attack each image within `epsilon` and say which ones stay classified right at every point on the way.

    The clean image counts as a visited point, so an image that is misclassified clean is not robust; a tie
    between the true and another class counts as wrong.

    Args:
        model: classifier of pixels in [0, 1] with logits (N, classes); float32 or float64, run in eval mode.
        images: (N, ...) floating pixels in [0, 1].
        labels: (N,) true classes.
        epsilon: radius of the ball in pixels, 0 or more.
        loss: what is maximised; `cross_entropy`, or `margin`: the largest wrong logit minus the true one.
        norm: `linf` or `l2` over all pixels of an image.
        steps: gradient steps, at least 1.
        step_size: length of a step in pixels; 2.5 * epsilon / steps unless given.
        random_start: start at a random point of the ball, else at the clean image.
        seed: root of the random start, which is drawn image by image and so knows nothing of `batch_size`.
        batch_size: images per forward pass; the result does not depend on it beyond rounding.

    Returns:
        An AttackResult; its tensors lie where `images` do.

    Raises:
        UsageError: an argument outside its range, images outside [0, 1], labels the model does not have.
        ModelContractError: no logits of shape (N, classes), no gradient, or a half-precision model.
        NumericsError: logits that are not finite.

    Cost: steps + 2 forward and `steps` backward passes. Source: Madry et al., 2018 (arXiv 1706.06083); the margin
    loss is that of Carlini and Wagner, 2017 (arXiv 1608.04644).
    """
    plan = _Plan(epsilon, loss, norm, steps, step_size, random_start)
    _check_plan(plan, batch_size)
    _check_images(images, labels)
    source = generator(seed, "attack", loss, norm)
    with preserved_state(model) as net, torch.inference_mode(False), torch.enable_grad():
        place, dtype = device_of(net), full_precision(net, "an attack needs")
        parts = [
            _attack_batch(net, x.to(place, dtype), y.to(place, torch.int64).clone(), plan, source)
            for x, y in zip(images.detach().split(batch_size), labels.split(batch_size), strict=True)
        ]
    adversarial, margins, clean_right, still, saturated = (
        torch.cat(column).to(images.device) for column in zip(*parts, strict=True)
    )
    return AttackResult(adversarial, margins < 0, _mean_flag(clean_right), _mean_flag(still), _mean_flag(saturated))


def _attack_batch(
    net: nn.Module, clean: Tensor, labels: Tensor, plan: _Plan, source: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Worst point and its margin, and three flags: right when clean, no gradient at the first step, saturated."""
    norm, loss = NORMS[plan.norm], LOSSES[plan.loss]
    with torch.no_grad():
        logits = _logits(net, clean, labels)
    worst, margin = clean.clone(), _margin(logits, labels)
    clean_right = margin < 0
    saturated = logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1) == 1
    still = torch.empty(0)
    point = _start(clean, plan, source)
    for step in range(plan.steps + 1):
        point.requires_grad_(step < plan.steps)
        logits = _logits(net, point, labels)
        reached = _margin(logits.detach(), labels)
        worse = reached > margin
        worst[worse], margin[worse] = point.detach()[worse], reached[worse]
        if step == plan.steps:
            break
        gradient = _gradient(loss(logits, labels), point)
        if step == 0:
            still = (gradient == 0).flatten(1).all(1)
        offset = point.detach() + plan.stride * norm.steepest(gradient) - clean
        point = (clean + norm.into_ball(offset, plan.epsilon)).clamp(0, 1)
    return worst, margin, clean_right, still, saturated


def _start(clean: Tensor, plan: _Plan, source: torch.Generator) -> Tensor:
    if not plan.random_start:
        return clean.clone()
    offsets = torch.stack([NORMS[plan.norm].random_point(image.shape, source) for image in clean])
    return (clean + plan.epsilon * offsets.to(clean)).clamp(0, 1)


def _logits(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    check_interrupt()
    # A copy, because a model may work in place on what it is given.
    logits = net(images.clone())
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelContractError(
            f"the model must return logits of shape ({len(images)}, classes) with two classes or more; got {came}. "
            "Wrap it in a module that returns those"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UsageError(f"`labels` must be in 0..{logits.shape[1] - 1} (the model's classes); got {low}..{high}")
    if not torch.isfinite(logits).all():
        raise NumericsError("the model returned logits that are not finite; an attack on them would mean nothing")
    return logits


def _gradient(loss: Tensor, point: Tensor) -> Tensor:
    gradient = torch.autograd.grad(loss.sum(), point, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise ModelContractError(
            "the model's logits have no gradient with respect to its input, which gradient attacks need; "
            "remove `detach` or `no_grad` from its forward pass"
        )
    return gradient


def _check_plan(plan: _Plan, batch_size: int) -> None:
    for argument, value, allowed in (("loss", plan.loss, list(LOSSES)), ("norm", plan.norm, list(NORMS))):
        if value not in allowed:
            raise UsageError(
                f"`{argument}` must be one of {', '.join(allowed)}; got {value!r}.{did_you_mean(value, allowed)}"
            )
    for argument, count in (("steps", plan.steps), ("batch_size", batch_size)):
        if count < 1:
            raise UsageError(f"`{argument}` must be at least 1; got {count}")
    for argument, length in (("epsilon", plan.epsilon), ("step_size", plan.stride)):
        if not 0 <= length < float("inf"):
            raise UsageError(f"`{argument}` must be a finite number of pixels, 0 or more; got {length}")


def _check_images(images: Tensor, labels: Tensor) -> None:
    if not len(images) or labels.shape != images.shape[:1]:
        raise UsageError(
            f"`labels` must hold one class per image, for one image or more; "
            f"got images {tuple(images.shape)} and labels {tuple(labels.shape)}"
        )
    low, high = images.detach().min().item(), images.detach().max().item()
    if not images.is_floating_point() or not (low >= 0 and high <= 1):
        raise UsageError(
            f"`images` must be floating pixels in [0, 1]; got {images.dtype} in [{low:g}, {high:g}]. "
            "Divide bytes by 255, and let the model normalise: Classifier(normalise, net)"
        )


def _mean_flag(flags: Tensor) -> float:
    return flags.float().mean().item()
