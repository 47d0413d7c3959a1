"""A study that registers its own model, policy and measure, as the golden run keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from grokkit import Reading
from grokkit.measures import Context
from grokkit.measures import register as register_measure
from grokkit.measures.base import chosen, logits_of, tensor_of
from grokkit.models import register
from grokkit.policies import Decision, Observation
from grokkit.policies import register as register_policy
from grokkit.training.config import RunConfig, part


@register("golden_net")
def golden_net(input_shape: tuple[int, int, int], classes: int, *, width: int = 8) -> nn.Module:
    """One hidden layer with dropout."""
    size = math.prod(input_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes))


@register_measure("golden_margin")
@dataclass(frozen=True)
class Margin:
    """Mean difference between the largest logit and the second."""

    probe_sets: tuple[str, ...] = ("train", "test")

    def __call__(self, context: Context) -> Reading:
        """Dims (probe_set,); unit: logits."""
        probes = chosen(context, self.probe_sets)
        values = []
        for probe in probes.values():
            top = logits_of(context.model, tensor_of(probe, context.model)).topk(2, dim=1).values
            values.append(float((top[:, 0] - top[:, 1]).mean()))
        counts = tuple(len(probe) for probe in probes.values())
        coords = {"probe_set": tuple(probes)}
        return Reading("golden_margin", np.array(values), ("probe_set",), coords, "logits", n=counts)


@register_policy("golden_halving")
@dataclass(frozen=True)
class Halving:
    """Halve the rate at every second reading."""

    reading: str = "log_density"

    def init(self) -> dict[str, Any]:
        return {"heard": 0}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        heard = state["heard"] + (self.reading in observation.readings)
        return Decision(0.5 ** (heard // 2), {"heard": heard})


def arm() -> RunConfig:
    """The one arm."""
    return RunConfig(
        experiment="golden", variant="own_model", data=part("digits", size=8, train=120, test=60),
        model=part("golden_net", width=6), batch_size=50, steps=24, records=3, precision="float32",
        probes={"train": 16, "test": 16, "random": 8}, measures=(part("golden_margin"), part("weight_norm")),
        attributions=(part("saliency", images=2),), policy=part("golden_halving"),
        signal={"every": 4, "points": 8, "directions": 4},
    )  # fmt: skip
