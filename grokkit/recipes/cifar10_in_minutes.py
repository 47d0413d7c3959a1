"""ResNet-9 on CIFAR-10 in 8 epochs: Adam, one-cycle, gradients clipped by value, about 90 % on a GPU in minutes.

The recipe of the well-known "90 % in 5 minutes" notebooks. It also runs on a CPU, where an epoch takes a quarter of
an hour.
"""

from __future__ import annotations

from grokkit.config.run_config import RunConfig, spec


def resnet9() -> RunConfig:
    """Train eight epochs of 125 batches of 400."""
    return RunConfig(
        experiment="cifar10_in_minutes",
        variant="resnet9",
        data=spec("cifar10"),
        model=spec("resnet9"),
        optimizer=spec("adam", lr=0.01, weight_decay=1e-4),
        policy=spec("one_cycle"),
        clip=spec("value", limit=0.1),
        batch_size=400,
        steps=1_000,
        augment=("crop4", "flip"),
        records=12,
        probes={"train": 512, "test": 512, "random": 256},
        measures=(
            spec("accuracy"),
            spec("local_complexity", radii=(0.05,), points=32),
            spec("weight_norm"),
            spec("logit_scale"),
        ),
    )
