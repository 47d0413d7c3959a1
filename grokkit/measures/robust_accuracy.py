"""Measure accuracy under projected gradient descent, always with two losses so that gradient masking is visible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from grokkit.errors import UsageError
from grokkit.literals import AttackLoss
from grokkit.measures import register
from grokkit.measures.base import Context, select_labelled, to_tensor, wilson_interval
from grokkit.names import Reading
from grokkit.robustness import pgd
from grokkit.robustness.checks import check_count, check_distance


@register("robust_accuracy")
@dataclass(frozen=True)
class RobustAccuracy:
    """Share of images that stay correct under PGD with cross-entropy and under PGD with the margin loss.

    Cross-entropy alone overstates robustness when logits are large: its gradient underflows (softmax saturation). If
    its accuracy is much higher than under the margin attack, check `zero_gradient_share` in the settings.

    Args:
        epsilons: l_inf radii, in pixels in [0, 1].
        steps: attack iterations, of size 2.5 epsilon / steps, from a random start.
        points: images of each probe set that are attacked, the first ones.
        probe_sets: sets to attack.

    Cost: per epsilon, 2 * (steps + 2) forward and 2 * steps backward passes per image.
    """

    epsilons: tuple[float, ...] = (8 / 255,)
    steps: int = 10
    points: int = 256
    probe_sets: tuple[str, ...] = ("test",)

    def __post_init__(self) -> None:
        if not isinstance(self.epsilons, tuple | list) or not self.epsilons:
            raise UsageError(f"`epsilons` must be a tuple of one or more numbers in 0..1; got {self.epsilons!r}")
        for epsilon in self.epsilons:
            check_distance("epsilons", epsilon)
        check_count("steps", self.steps)

    def __call__(self, context: Context) -> Reading:
        """Measure robust accuracy. Dims (probe_set, epsilon, attack); unit: share of images."""
        probes = select_labelled(context, self.probe_sets, self.points)
        losses = get_args(AttackLoss)
        correct = np.zeros((len(probes), len(self.epsilons), len(losses)))
        zero_gradient = np.zeros_like(correct)
        for i, probe in enumerate(probes.values()):
            images, labels = to_tensor(probe, context.model), torch.from_numpy(probe.labels)
            for j, epsilon in enumerate(self.epsilons):
                for k, loss in enumerate(losses):
                    result = pgd(context.model, images, labels, epsilon, loss=loss, steps=self.steps, seed=context.seed)
                    correct[i, j, k] = int(result.correct.sum())
                    zero_gradient[i, j, k] = result.zero_gradient_share
        totals = np.array([len(probe) for probe in probes.values()])
        low, high = wilson_interval(correct, totals[:, None, None])
        attacks = tuple(f"pgd-{loss}" for loss in losses)
        return Reading(
            "robust_accuracy",
            correct / totals[:, None, None],
            ("probe_set", "epsilon", "attack"),
            {"probe_set": tuple(probes), "epsilon": self.epsilons, "attack": attacks},
            "share of images",
            n=tuple(int(count) for count in totals),
            low=low,
            high=high,
            settings={"zero_gradient_share": zero_gradient.tolist()},
        )
