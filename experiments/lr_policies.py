"""Does local complexity help to set the learning rate?

PRE-REGISTRATION PENDING: the pilot decides tasks, margins and numbers of pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grokkit as gk
from grokkit import RunConfig, part
from grokkit.training.config import Part
from grokkit.training.signal import Signal

SIGNAL = {"every": 200, "points": 128, "directions": 10}
"""What every policy that listens to local complexity hears, and what its twins are charged for."""

RECORDS = 20
"""Evenly spaced steps at which the end points are measured, so that a crossing is found within 5 % of the budget."""


def digits() -> RunConfig:
    """500 digits, an MLP with large initial weights, mean squared error, strong decay: robustness comes late."""
    return RunConfig(
        experiment="lr_policies",
        variant="digits",
        data=part("digits", size=8, train=500),
        model=part("mlp", widths=(128, 128, 128)),
        init_scale=3.0,
        loss="mse",
        optimizer=part("adamw", lr=3e-3, weight_decay=0.3),
        batch_size=100,
        steps=8_000,
        precision="float32",
        probes={"train": 500, "test": 1297, "random": 0},
        measures=_measures(epsilon=0.1, points=1297),
    )


def mnist() -> RunConfig:
    """1,000 images of MNIST and a wider MLP, otherwise as `digits`."""
    return digits().replace(
        variant="mnist",
        data=part("mnist", train=1000),
        model=part("mlp", widths=(200, 200, 200)),
        init_scale=4.0,
        optimizer=part("adamw", lr=3e-3, weight_decay=0.3),
        batch_size=200,
        steps=9_000,
        probes={"train": 500, "test": 1000, "random": 0},
        measures=_measures(epsilon=0.1, points=1000),
    )


def cifar10() -> RunConfig:
    """1,024 images of CIFAR-10 and five convolutions without BatchNorm, cross-entropy, no decay."""
    return digits().replace(
        variant="cifar10",
        data=part("cifar10", train=1024),
        model=part("cnn"),
        init_scale=1.0,
        loss="cross_entropy",
        optimizer=part("adamw", lr=1e-3, weight_decay=0.0),
        batch_size=128,
        steps=4_000,
        probes={"train": 512, "test": 1000, "random": 0},
        measures=_measures(epsilon=1 / 255, points=512),
    )


def vgg_bn() -> RunConfig:
    """As `cifar10`, a narrow VGG-11 with BatchNorm: local complexity is not expected to fall."""
    return cifar10().replace(variant="vgg_bn", model=part("vgg11_bn", width=8), steps=1_500)


def _measures(epsilon: float, points: int) -> tuple[Part, ...]:
    return (
        part("accuracy"), part("loss"), part("weight_norm"),
        part("robust_accuracy", epsilons=(epsilon,), points=points),
    )  # fmt: skip


TASKS = {task.__name__: task for task in (digits, mnist, cifar10, vgg_bn)}


@dataclass(frozen=True)
class Arm:
    """A policy under test.

    Args:
        policy: what sets the rate.
        quantity: what its signal reads; None: it has no signal, and its whole budget goes into training.
        donor: the arm whose other seed's news it is told; None: it hears its own run.
    """

    policy: Part
    quantity: str | None = None
    donor: str | None = None


def _in_front(name: str, **options: Any) -> Part:
    """A policy that has no warm-up of its own, behind the one that all arms share."""
    return part("warmup", policy=part(name, **options), share=0.01)


ARMS = {
    "constant": Arm(_in_front("constant")),
    "wsd": Arm(part("wsd")),
    "wsd_linear": Arm(part("wsd", shape="linear")),
    "cosine": Arm(part("cosine", warmup=0.01)),
    "one_cycle": Arm(part("one_cycle")),
    "plateau": Arm(_in_front("plateau")),
    "greedy": Arm(_in_front("greedy", max_scale=1.0)),
    "lc_wsd": Arm(part("lc_wsd"), "density"),
    "lc_hold": Arm(part("lc_hold"), "density"),
    "lc_servo": Arm(part("lc_servo"), "density"),
    "loss_wsd": Arm(part("lc_wsd", reading="log_loss"), "loss"),
    "loss_hold": Arm(part("lc_hold", reading="log_loss"), "loss"),
    "yoked_lc_wsd": Arm(part("lc_wsd"), "density", donor="lc_wsd"),
    "yoked_lc_hold": Arm(part("lc_hold"), "density", donor="lc_hold"),
    "yoked_lc_servo": Arm(part("lc_servo"), "density", donor="lc_servo"),
}
OWN = [name for name, arm in ARMS.items() if arm.donor is None]


def probe_share(config: RunConfig, quantity: str | None) -> float:
    """Images that pass forward for the signal over those of the updates between two readings, an update for 3."""
    if quantity is None:
        return 0.0
    passes = 1 + SIGNAL["directions"] if quantity == "density" else 1
    return SIGNAL["points"] * passes / (3 * config.batch_size * SIGNAL["every"])


def config_of(task: RunConfig, arm: str, decay: str, seed: int, news: Any = ()) -> RunConfig:
    """One run: the arm's policy, its signal, and as many updates as its probes leave of the budget."""
    chosen = ARMS[arm]
    share = probe_share(task, chosen.quantity)
    steps = round(task.steps / (1 + share))
    signal = {} if chosen.quantity is None or chosen.donor else {**SIGNAL, "quantities": (chosen.quantity,)}
    policy = part("yoked", policy=chosen.policy, news=news) if chosen.donor else chosen.policy
    optimizer = dict(task.optimizer.options) | ({"fixed_decay": True} if decay == "fixed" else {})
    return task.replace(
        variant=f"{task.variant}-{decay}-{arm}", seed=seed, policy=policy, signal=signal, steps=steps,
        optimizer=part(task.optimizer.name, **optimizer),
        records=tuple(round(steps * k / RECORDS) for k in range(1, RECORDS + 1)),
    )  # fmt: skip


def train(config: RunConfig, runs: Path) -> gk.trajectory.Run:
    """The finished run: trained, gone on with, or as it is there."""
    path = runs / config.run_name
    return gk.resume(path, device="cpu") if path.exists() else gk.train(config, runs=runs, device="cpu")
