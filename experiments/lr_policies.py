"""Does local complexity help to set the learning rate?

PRE-REGISTRATION PENDING: the pilot decides tasks, margins and numbers of pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import grokkit as gk
from grokkit import RunConfig, part
from grokkit.analysis.outcomes import outcomes
from grokkit.policies import Observation
from grokkit.training.choices import adjusted, seed_list
from grokkit.training.config import Part
from grokkit.trajectory import Run

SIGNAL = {"points": 128, "directions": 10}
"""What every policy that listens hears; how often is the task's, so that probes take 2 to 2.5 % of its updates."""

RECORDS = 20
"""Evenly spaced steps at which the end points are measured; crossings are interpolated between them."""


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
        measures=_measures(epsilon=0.1),
        signal={"every": 200},
    )


def mnist() -> RunConfig:
    """1,000 images of MNIST and a wider MLP, otherwise as `digits`."""
    return digits().replace(
        variant="mnist",
        data=part("mnist", train=1000),
        model=part("mlp", widths=(200, 200, 200)),
        init_scale=4.0,
        optimizer=part("adamw", lr=1e-3, weight_decay=0.3),
        batch_size=200,
        steps=9_000,
        probes={"train": 500, "test": 1000, "random": 0},
        measures=_measures(epsilon=0.05),
        signal={"every": 100},
    )


def cifar10() -> RunConfig:
    """1,000 images of CIFAR-10 and the same kind of MLP, with mean squared error and strong decay."""
    return mnist().replace(
        variant="cifar10",
        data=part("cifar10", train=1000),
        init_scale=3.0,
        optimizer=part("adamw", lr=1e-3, weight_decay=0.3),
        batch_size=100,
        steps=6_000,
        probes={"train": 500, "test": 1000, "random": 0},
        measures=_measures(epsilon=2 / 255),
        signal={"every": 200},
    )


def vgg_bn() -> RunConfig:
    """1,024 images of CIFAR-10 and a narrow VGG-11 with BatchNorm: local complexity is not expected to fall."""
    return cifar10().replace(
        variant="vgg_bn",
        data=part("cifar10", train=1024),
        model=part("vgg11_bn", width=8),
        init_scale=1.0,
        loss="cross_entropy",
        optimizer=part("adamw", lr=5e-4, weight_decay=0.0),
        batch_size=128,
        steps=1_600,
        signal={"every": 100},
    )


def _measures(epsilon: float) -> tuple[Part, ...]:
    return (
        part("accuracy"), part("loss"), part("weight_norm"),
        part("robust_accuracy", epsilons=(epsilon,), points=512),
    )  # fmt: skip


TASKS = {task.__name__: task for task in (digits, mnist, cifar10, vgg_bn)}
THRESHOLDS: dict[str, float] = {"digits": 0.4, "mnist": 0.2, "cifar10": 0.2}
"""Robust accuracy whose first crossing is an end point."""
DECAYS = ("coupled", "fixed")
"""Weight decay as AdamW has it, times the rate; or as it is at the base rate, whatever the policy does."""


@dataclass(frozen=True)
class Arm:
    """A policy under test.

    Args:
        policy: what sets the rate.
        quantity: what its signal reads; None: it has no signal, and its whole budget goes into training.
        donor: the arm whose news, of another seed, it is told; None: it hears its own run.
    """

    policy: Part
    quantity: str | None = None
    donor: str | None = None


def _behind_warmup(name: str, **options: Any) -> Part:
    """A policy that has no warm-up of its own, behind the one that all arms share."""
    return part("warmup", policy=part(name, **options), share=0.01)


def _yoked(arm: str) -> Arm:
    return Arm(ARMS[arm].policy, ARMS[arm].quantity, donor=arm)


ARMS = {
    "constant": Arm(_behind_warmup("constant")),
    "wsd": Arm(part("wsd")),
    "cosine": Arm(part("cosine", warmup=0.01)),
    "one_cycle": Arm(part("one_cycle")),
    "plateau": Arm(_behind_warmup("plateau")),
    "greedy": Arm(_behind_warmup("greedy", max_scale=1.0)),
    "lc_wsd": Arm(part("lc_wsd"), "density"),
    "lc_hold": Arm(part("lc_hold", shape="1-sqrt"), "density"),
    "lc_servo": Arm(part("lc_servo", shape="1-sqrt"), "density"),
    "loss_wsd": Arm(part("lc_wsd", reading="log_loss"), "loss"),
}
ARMS |= {f"yoked_{arm}": _yoked(arm) for arm in ("lc_wsd", "lc_hold", "lc_servo")}
"""All arms share warm-up, peak rate and, where they have one, the shape of the last fall; nothing else was tuned."""


def probe_share(task: RunConfig, quantity: str | None) -> float:
    """Images that the signal sends forward over those of the updates between two readings, an update counted as 3."""
    if quantity is None:
        return 0.0
    passes = 1 + SIGNAL["directions"] if quantity == "density" else 1
    return SIGNAL["points"] * passes / (3 * task.batch_size * task.signal["every"])


def config_of(task: RunConfig, arm: str, decay: str, seed: int, news: Any = ()) -> RunConfig:
    """One run: the arm's policy, its signal, and as many updates as its probes leave of the budget.

    A yoked arm has its donor's number of updates, so that it repeats the donor's rates to the last one.
    """
    chosen = ARMS[arm]
    steps = round(task.steps / (1 + probe_share(task, chosen.quantity)))
    signal = {} if chosen.quantity is None or chosen.donor else _signal(task, chosen.quantity)
    optimizer = dict(task.optimizer.options) | ({"fixed_decay": True} if decay == "fixed" else {})
    return task.replace(
        variant=f"{task.variant}-{decay}-{arm}",
        seed=seed,
        policy=part("yoked", policy=chosen.policy, news=news) if chosen.donor else chosen.policy,
        signal=signal,
        steps=steps,
        optimizer=part(task.optimizer.name, **optimizer),
        records=tuple(round(steps * k / RECORDS) for k in range(1, RECORDS + 1)),
    )


def _signal(task: RunConfig, *quantities: str) -> dict[str, Any]:
    return {**SIGNAL, **task.signal, "quantities": quantities}


def train(config: RunConfig, runs: Path) -> Run:
    """The finished run: trained, gone on with, or as it is there."""
    path = runs / config.run_name
    return gk.resume(path, device="cpu") if path.exists() else gk.train(config, runs=runs, device="cpu")


def pairs_of(seeds: list[int]) -> Iterator[tuple[int, int]]:
    """Seeds two by two: each is the donor of the other's yoked arms. Raises ValueError for an odd number of them."""
    if len(seeds) % 2:
        raise ValueError(f"seeds are run in pairs, each the donor of the other; got {len(seeds)}: {seeds}")
    yield from zip(seeds[::2], seeds[1::2], strict=True)


def run_pair(task: RunConfig, decay: str, pair: tuple[int, int], runs: Path) -> Iterator[Run]:
    """All arms of two seeds; the yoked ones when their donors are done."""
    donors: dict[tuple[str, int], Run] = {}
    for arm, chosen in ARMS.items():
        for seed, other in (pair, pair[::-1]):
            news = gk.heard(donors[chosen.donor, other]) if chosen.donor else ()
            donors[arm, seed] = train(config_of(task, arm, decay, seed, news), runs)
            yield donors[arm, seed]


def shape_of(run: Run) -> dict[str, float]:
    """How far the signal of a run rose from its trough and fell from its peak, by the rule of the policies, in units of
    what counts as a change; and the share of the budget at which the peak was declared (NaN: never)."""
    rule = gk.policies.create("lc_wsd", warmup=0.0, decay_share=0.0)
    state, total = rule.init(), run.status["total_steps"]
    for step, readings in gk.heard(run):
        state = rule.update(Observation(step, total, 1.0, readings), state).state
    delta, peak = rule.delta(state), state["peak_step"]
    return {
        "rise": (state["peak"] - state["trough"]) / delta,
        "fall": (state["peak"] - state["last"]) / delta,
        "declared": float("nan") if peak is None else peak / total,
    }


def pilot(task: RunConfig, seeds: list[int], runs: Path) -> None:
    """Print what the pre-registration rests on: admission, spread, margins and numbers of pairs."""
    shapes, done = [], []
    for seed in seeds:
        watched = config_of(task, "constant", "coupled", seed).replace(signal=_signal(task, "density"))
        done.append(train(watched, runs))
        shapes.append({"seed": seed, **shape_of(done[-1])})
        done += [train(config_of(task, arm, "coupled", seed), runs) for arm in ("wsd", "lc_wsd", "lc_hold")]
    print(pd.DataFrame(shapes).round(2).to_string(index=False))
    rows = outcomes(gk.table(done), {task.variant: THRESHOLDS.get(task.variant, 0.0)})
    wide = rows.pivot(index=["outcome", "seed"], columns="arm", values="value")
    print(wide.groupby("outcome").agg(["mean", "std"]).round(4).T.to_string())
    for arm, reference in (("wsd", "constant"), ("lc_wsd", "wsd"), ("lc_hold", "wsd"), ("lc_hold", "constant")):
        spread = (wide[arm] - wide[reference]).groupby("outcome").std()
        print(f"{arm} - {reference}: SD of a pair " + ", ".join(f"{k} {v:.4f}" for k, v in spread.items()))


def main() -> None:
    """`pilot TASK`, `run TASK` and `collect TASK`."""
    words = argparse.ArgumentParser(description=main.__doc__)
    words.add_argument("what", choices=["pilot", "run"])
    words.add_argument("task", choices=list(TASKS))
    words.add_argument("--seeds", default="0-19", help="such as 0-19; two by two each other's donors")
    words.add_argument("--part", default="0/1", help="1/2: the second half of the pairs, for another process")
    words.add_argument("--decay", choices=DECAYS, default="coupled")
    words.add_argument("--data", help="an .npz file or a folder in place of the task's own data")
    words.add_argument("--lr", type=float, help="another peak rate, for a pilot")
    words.add_argument("--runs", type=Path, default=Path("runs"))
    asked = words.parse_args()
    task = adjusted(TASKS[asked.task](), asked.data, None, None)
    if asked.lr is not None:
        task = task.replace(optimizer=part(task.optimizer.name, **{**task.optimizer.options, "lr": asked.lr}))
    seeds = seed_list(asked.seeds)
    if asked.what == "pilot":
        pilot(task, seeds, asked.runs)
        return
    place, parts = map(int, asked.part.split("/"))
    for pair in list(pairs_of(seeds))[place::parts]:
        for run in run_pair(task, asked.decay, pair, asked.runs):
            print(run.name, flush=True)


if __name__ == "__main__":
    main()
