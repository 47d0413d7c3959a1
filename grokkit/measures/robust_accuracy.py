"""Accuracy under projected gradient descent, always with two losses so that gradient masking can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from grokkit.errors import UsageError
from grokkit.measures import register
from grokkit.measures.base import Context, select_labelled, to_tensor, wilson_interval
from grokkit.names import Reading
from grokkit.robustness import pgd


@register("robust_accuracy")
@dataclass(frozen=True)
class RobustAccuracy:
    """Share of images that stay right under PGD with cross-entropy and under PGD with the margin loss.

    Cross-entropy alone overstates robustness when logits are large: its gradient underflows (science: softmax
    saturation). Where it exceeds the margin attack by much, `zero_gradient_share` in the settings says why.

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
        if not self.epsilons or not all(0 <= epsilon <= 1 for epsilon in self.epsilons):
            raise UsageError(
                f"`epsilons` are pixel distances in 0..1, one or more (8/255 is 0.031); got {self.epsilons}"
            )

    def __call__(self, context: Context) -> Reading:
        """Dims (probe_set, epsilon, attack); unit: share of images."""
        probes = select_labelled(context, self.probe_sets, self.points)
        losses = ("cross_entropy", "margin")
        correct = np.zeros((len(probes), len(self.epsilons), len(losses)))
        zero_gradient = np.zeros_like(correct)
        for i, probe in enumerate(probes.values()):
            images, labels = to_tensor(probe, context.model), torch.from_numpy(probe.labels)
            for j, epsilon in enumerate(self.epsilons):
                for k, loss in enumerate(losses):
                    found = pgd(context.model, images, labels, epsilon, loss=loss, steps=self.steps, seed=context.seed)
                    correct[i, j, k] = int(found.correct.sum())
                    zero_gradient[i, j, k] = found.zero_gradient_share
        seen = np.array([len(probe) for probe in probes.values()])
        low, high = wilson_interval(correct, seen[:, None, None])
        attacks = tuple(f"pgd-{loss}" for loss in losses)
        return Reading(
            "robust_accuracy",
            correct / seen[:, None, None],
            ("probe_set", "epsilon", "attack"),
            {"probe_set": tuple(probes), "epsilon": self.epsilons, "attack": attacks},
            "share of images",
            n=tuple(int(count) for count in seen),
            low=low,
            high=high,
            settings={"zero_gradient_share": zero_gradient.tolist()},
        )
