"""Does local complexity (LC) help to set the learning rate?

The idea: LC at training points rises while a net fits and falls afterwards, without labels; a policy may wait for the
peak and then decay (`lc_wsd`), keep the rate while LC falls (`lc_hold`), or hold the speed of the fall (`lc_servo`).
The belief to be beaten (H3): whatever such a policy gains, another run's learning rates give as well, and so does the
best plain schedule; the feedback is worth nothing.

THE PLAN, written down after the pilot (seeds 100 to 104, which are not used again) and before the main runs of each
task.

- Tasks: `digits`, `mnist`, `cifar10`, and `vgg_bn` as the case in which LC is not expected to fall. A task is
  admitted where, with the rate kept constant, LC rises by 2 of the changes that count (`PeakRule.extent`) in every
  seed of the pilot and its peak is declared before the deadline, at 80 % of the budget, in at least 4 of 5: elsewhere
  every LC policy is its deadline schedule, and comparing it says nothing. The peak rate, the same for all arms, is the
  largest of 1e-3, 3e-3, 1e-2, ... below the suggestion of the range test at which the task is admitted.
- Arms: see `ARMS`. All share the peak rate; a linear warm-up over 1 % of the updates, but for `one_cycle`, which has
  its own; and, where they end in one, the same last fall over 20 %. `greedy` may not exceed the peak rate. Otherwise
  they are the library's defaults: nothing was tuned. Runs of one seed share initial weights, batch order and measured
  images.
- Budget: 1 update counts as 3 passes of its images, a reading of the signal as 1 + 10 passes of 128 images. Arms that
  listen, and their yoked twins, have as many updates fewer as the readings cost; their steps to a threshold are
  counted in updates of the others.
- Two families of runs: weight decay as AdamW has it, times the rate (`coupled`), and decoupled from the schedule
  (`fixed`): a result that only the first shows is one of the decay.
- End points: accuracy on test images after the budget; robust accuracy after the budget (PGD-10 with the margin loss,
  512 test images); updates until robust accuracy first reaches a threshold, runs that never do counting as the
  budget.
- Comparisons, one family per task and decay: each LC arm against its yoked twin (told what the LC arm of the other
  seed of its pair heard) and against the best baseline of that end point, chosen on the same runs, which favours the
  baseline: 3 arms x 2 references x 3 end points = 18. Mean paired difference with its 95 % BCa interval, exact
  Wilcoxon signed-rank test with Holm's correction over the 18, Cliff's delta, equivalence where the 90 % interval
  lies within the margin. Fewer than 10 pairs: intervals only. Beside it stands in how many pairs the two had the same
  rates: where that is all of them the policy did what its schedule does anyway, and the comparison is empty.
- Claim: LC feedback helps on a task if an LC arm is better than both its yoked twin and the best baseline in the same
  end point, under both decays. Feedback is without effect where an arm is equivalent to its twin; an arm is harmless
  where it is better than, or equivalent to, the best baseline. Everything else is exploratory.
- Pairs and margins (`MARGINS`): 20 pairs on digits, 10 on the others; margins from the pilot's spread of a pair.

The pilots: on `digits` LC rose by 2.3 to 3.1 and fell by 4.4 to 5.9 changes that count, its peak was declared at 42 to
62 % of the budget in 5 of 5 seeds, and a pair had a spread of up to 0.031 (robust accuracy), 0.0048 (test accuracy)
and 650 updates. `lc_hold` kept the rate to its deadline in 4 of 5 seeds, so that comparison may be empty. Not
admitted: a rate of 3e-3 (rise 1.4, 2.0, 2.8 in 3 seeds), and, the first choice, initial weights of 3 times the default
at 3e-3 (1.1 to 2.9; a peak in 1 of 5). On `mnist`, 4 seeds: rise 3.6 to 7.6, fall 4.8 to 5.8, peak at 22 to 38 % in
all 4; spread 0.042, 0.020 and 278 updates. Not admitted there: 3e-3 (rise 0.9, one seed). On `cifar10`: rise 3.2 to
5.5, fall 3.4 to 3.9, peak at 47 to 60 % in all 5; spread 0.031, 0.020 and 1,727 updates, so that its margins are wide:
a quarter of the robust accuracy, of the budget. Not admitted there: 3e-3 and 1e-2 (rise 1.9 and 1.7, one seed each),
initial weights of 3 times the default (1.6 to 2.5, 5 seeds) and 2 times (1.4, one seed), and the `cnn` of
`cifar10_small` with and without its hidden layer, initial weights of 1.5 and 2 times the default, at 1e-3, where LC
falls and then stands. Trials that were not admitted were not kept; `pilot digits --lr 3e-3` repeats one.

Changed on 2026-11-27, while the runs of `digits` were under way, before any end point of theirs was looked at and
before the first run of `mnist`: how the shape is counted, and with it the numbers of the pilots and "in every seed" for
"in the mean"; the margins of `digits`, of robust accuracy from 0.02 to 0.025 and of updates from 300 to 450, whose
spread had been taken at another threshold; the threshold of `mnist` from 0.4 to 0.2, at which its pilot had been read;
the meaning of harmless, which was "equivalent to its twin"; the count of equal rates. What would have come out without
these changes stands with the verdicts, and those with the commands in artifacts/lr_policies/README.md. The attack on
`vgg_bn` was cut from 512 to 128 images after one run, of which it had taken half the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import grokkit as gk
from grokkit import RunConfig, spec
from grokkit.analysis.arms import BEST, add_best_baseline, default_pairs, find_best_baselines
from grokkit.analysis.comparison import compare_all
from grokkit.analysis.outcomes import LARGER_IS_BETTER, compute_outcomes, find_same_rates
from grokkit.analysis.tables import read_table
from grokkit.config.overrides import apply_cli_overrides, parse_seeds
from grokkit.config.run_config import Spec
from grokkit.errors import UsageError
from grokkit.names import FigureData
from grokkit.policies.peak import PeakRule
from grokkit.trajectory import Run, find_runs

SIGNAL = {"points": 128, "directions": 10}
"""What every policy that listens hears; how often is the task's, so that probes take 2 to 2.5 % of its updates."""

RECORDS = 20
"""Evenly spaced steps at which the end points are measured; crossings are interpolated between them."""


def digits() -> RunConfig:
    """500 digits, an MLP with large initial weights, mean squared error, strong decay: robustness comes late."""
    return RunConfig(
        experiment="lr_policies",
        variant="digits",
        data=spec("digits", size=8, train=500),
        model=spec("mlp", widths=(128, 128, 128)),
        init_scale=2.0,
        loss="mse",
        optimizer=spec("adamw", lr=1e-3, weight_decay=0.3),
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
        data=spec("mnist", train=1000),
        model=spec("mlp", widths=(200, 200, 200)),
        init_scale=4.0,
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
        data=spec("cifar10", train=1000),
        init_scale=4.0,
        batch_size=100,
        steps=6_000,
        measures=_measures(epsilon=1 / 255),
        signal={"every": 200},
    )


def vgg_bn() -> RunConfig:
    """1,024 images of CIFAR-10 and a narrow VGG-11 with BatchNorm: local complexity is not expected to fall."""
    return cifar10().replace(
        variant="vgg_bn",
        data=spec("cifar10", train=1024),
        model=spec("vgg11_bn", width=8),
        init_scale=1.0,
        loss="cross_entropy",
        optimizer=spec("adamw", lr=5e-4, weight_decay=0.0),
        batch_size=128,
        steps=1_600,
        measures=_measures(epsilon=1 / 255, points=128),
        signal={"every": 150},
    )


def _measures(epsilon: float, points: int = 512) -> tuple[Spec, ...]:
    return (
        spec("accuracy"),
        spec("loss"),
        spec("weight_norm"),
        spec("robust_accuracy", epsilons=(epsilon,), points=points),
    )


def _full(task: RunConfig) -> RunConfig:
    """All training images of a task's data, for a GPU. Nothing is registered of it: a pilot has to come first."""
    changes = {"data": spec(task.data.name), "batch_size": 1_000, "steps": 3 * task.steps}
    return task.replace(variant=f"{task.variant}_full", **changes)


TASKS = {task.__name__: task for task in (digits, mnist, cifar10, vgg_bn)}
TASKS |= {"mnist_full": lambda: _full(mnist()), "cifar10_full": lambda: _full(cifar10())}
THRESHOLDS = {"digits": 0.55, "mnist": 0.2, "cifar10": 0.08}
"""Robust accuracy whose first crossing is an end point."""
MARGINS = {
    ("digits", "test_accuracy"): 0.005,
    ("digits", "robust_accuracy"): 0.025,
    ("digits", "steps_to_robust"): 450.0,
    ("mnist", "test_accuracy"): 0.02,
    ("mnist", "robust_accuracy"): 0.04,
    ("mnist", "steps_to_robust"): 300.0,
    ("cifar10", "test_accuracy"): 0.02,
    ("cifar10", "robust_accuracy"): 0.03,
    ("cifar10", "steps_to_robust"): 1600.0,
}
"""Differences that do not matter, by task and end point. With a spread s of a pair, as in the pilot, and n pairs, two
equal arms are found equivalent in 4 of 5 studies if the margin is 2.93 s / sqrt(n); rounded up."""
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

    policy: Spec
    quantity: str | None = None
    donor: str | None = None


def _behind_warmup(name: str, **options: Any) -> Spec:
    """A policy that has no warm-up of its own, behind the one that all arms share."""
    return spec("warmup", policy=spec(name, **options), share=0.01)


def _yoked(arm: str) -> Arm:
    return Arm(ARMS[arm].policy, ARMS[arm].quantity, donor=arm)


ARMS = {
    "constant": Arm(_behind_warmup("constant")),
    "wsd": Arm(spec("wsd")),
    "cosine": Arm(spec("cosine", warmup=0.01)),
    "one_cycle": Arm(spec("one_cycle")),
    "plateau": Arm(_behind_warmup("plateau")),
    "greedy": Arm(_behind_warmup("greedy", max_scale=1.0)),
    "lc_wsd": Arm(spec("lc_wsd"), "density"),
    "lc_hold": Arm(spec("lc_hold", shape="1-sqrt"), "density"),
    "lc_servo": Arm(spec("lc_servo", shape="1-sqrt"), "density"),
    "loss_wsd": Arm(spec("lc_wsd", reading="log_loss"), "loss"),
}
ARMS |= {f"yoked_{arm}": _yoked(arm) for arm in ("lc_wsd", "lc_hold", "lc_servo")}


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
        policy=spec("yoked", policy=chosen.policy, news=news) if chosen.donor else chosen.policy,
        signal=signal,
        steps=steps,
        optimizer=spec(task.optimizer.name, **optimizer),
        records=tuple(round(steps * k / RECORDS) for k in range(1, RECORDS + 1)),
    )


def _signal(task: RunConfig, *quantities: str) -> dict[str, Any]:
    return {**SIGNAL, **task.signal, "quantities": quantities}


def train(config: RunConfig, runs: Path) -> Run:
    """The finished run: trained, gone on with, or as it is there."""
    path = runs / config.run_name
    return gk.resume(path) if path.exists() else gk.train(config, runs=runs)


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
            news = gk.signal_history(donors[chosen.donor, other]) if chosen.donor else ()
            donors[arm, seed] = train(config_of(task, arm, decay, seed, news), runs)
            yield donors[arm, seed]


def pilot(task: RunConfig, seeds: list[int], runs: Path) -> None:
    """Print what the pre-registration rests on: admission, spread, margins and numbers of pairs."""
    shapes, done = [], []
    for seed in seeds:
        watched = config_of(task, "constant", "coupled", seed).replace(signal=_signal(task, "density"))
        done.append(train(watched, runs))
        shapes.append({"seed": seed, **PeakRule().extent(gk.signal_history(done[-1]), watched.steps)})
        done += [train(config_of(task, arm, "coupled", seed), runs) for arm in ("wsd", "lc_wsd", "lc_hold")]
    print(pd.DataFrame(shapes).round(2).to_string(index=False))
    threshold = THRESHOLDS.get(task.variant, 0.5)
    print(f"steps_to_robust: to a robust accuracy of {threshold}")
    rows = compute_outcomes(gk.table(done), {task.variant: threshold})
    wide = rows.pivot(index=["outcome", "seed"], columns="arm", values="value")
    print(wide.groupby("outcome").agg(["mean", "std"]).round(4).T.to_string())
    for arm, reference in (("wsd", "constant"), ("lc_wsd", "wsd"), ("lc_hold", "wsd"), ("lc_hold", "constant")):
        spread = (wide[arm] - wide[reference]).groupby("outcome").std()
        print(f"{arm} - {reference}: SD of a pair " + ", ".join(f"{k} {v:.4f}" for k, v in spread.items()))


def collect(task: str, seeds: list[int], runs: Path, folder: Path) -> None:
    """Add the finished runs of a task and these seeds to its table, their decisions to another; those that are there
    stay. The pilot's seeds go into a folder of their own."""
    found = [run for run in find_runs(runs) if str(run.config["variant"]).split("-")[0] == task]
    finished = [run for run in found if run.config["seed"] in seeds and run.status["state"] == "done"]
    if not finished:
        raise UsageError(f"there is no finished run of {task} with one of these seeds below {runs}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.csv.gz" for name in (task, f"{task}_decisions")]
    tables, decided = ([pd.read_csv(path)] if path.exists() else [] for path in paths)
    known = {run for each in tables for run in each["run"]}
    new = [run for run in finished if run.name not in known]
    told = [
        {"run": run.name, "step": event["step"], "lr": event["lr"], "text": event["text"]}
        for run in new
        for event in run.events
        if event["kind"] == "policy"
    ]
    decisions = pd.concat([*decided, pd.DataFrame(told, columns=["run", "step", "lr", "text"])], ignore_index=True)
    table = pd.concat([*tables, *(_thinned(gk.table([run])) for run in new)], ignore_index=True)
    for rows, path in zip((table, decisions), paths, strict=True):
        # unrounded, because ties between runs count; of a fixed time, so that the same rows are the same bytes
        rows.to_csv(path, index=False, compression={"method": "gzip", "mtime": 0})
    print(f"{paths[0]}: {table['run'].nunique()} runs, {len(table)} rows, {len(new)} runs are new")


def _is_collected(task: RunConfig, decay: str, pair: tuple[int, int], names: set[str]) -> bool:
    """Whether all runs of a pair are among these names. Of a yoked run, whose config holds its news, variant and seed
    are enough: those of its donor are looked at."""
    short = {name.rpartition("-")[0] for name in names}
    configs = [config_of(task, arm, decay, seed) for arm in ARMS for seed in pair]
    return all(
        config.run_name in names or (config.policy.name == "yoked" and config.run_name.rpartition("-")[0] in short)
        for config in configs
    )


def _thinned(table: pd.DataFrame) -> pd.DataFrame:
    """What of a run's table the figure and the end points need, and every fifth learning rate and the last."""
    rates = table[table["measure"] == "learning_rate"].sort_values("step")
    rates = rates[[k % 5 == 0 or k == len(rates) - 1 for k in range(len(rates))]]
    measured = table["measure"].isin(("accuracy", "robust_accuracy", "weight_norm")) & (table["measure_id"] != "log")
    whole = table["layer"].isin(("", "total"))
    return pd.concat([table[measured & whole], table[table["measure"] == "log_density"], rates])


def report(task: str, folder: Path, figures: Path) -> None:
    """Draw the figure of each decay and write the verdicts."""
    path = folder / f"{task}.csv.gz"
    data = gk.figure_data([path])
    told = []
    for decay in DECAYS:
        rows = data.table[data.table["run"].str.contains(f"/{task}-{decay}-", regex=False)]
        if rows.empty:
            continue
        chosen = FigureData(rows, {}, data.events)
        drawn = gk.figures.create("policies", chosen, margins=MARGINS, thresholds=THRESHOLDS)
        print(*gk.figures.save_figure(drawn, figures / f"{task}-{decay}"), sep="\n")
        ends = add_best_baseline(compute_outcomes(rows, THRESHOLDS), LARGER_IS_BETTER)
        compared = compare_all(ends, default_pairs(ends["arm"]), LARGER_IS_BETTER, MARGINS)
        best = {outcome: arm for (_, _, outcome), arm in find_best_baselines(ends, LARGER_IS_BETTER).items()}
        other = compared.reference.where(compared.reference != BEST, compared.outcome.map(best).fillna(BEST))
        told.append(
            compared.assign(against=other, same_rates=find_same_rates(rows, zip(compared.arm, other, strict=True)))
        )
    verdicts = pd.concat(told, ignore_index=True)
    verdicts.to_csv(folder / f"{task}_verdicts.csv", index=False, float_format="%.6g")
    columns = "decay outcome arm against n same_rates mean low high p_holm cliffs_delta within_margin verdict"
    print(verdicts[columns.split()].round(4).to_string(index=False))


def main() -> None:
    """pilot TASK: what the plan rests on; run TASK; collect TASK: its numbers into artifacts; report TASK."""
    words = argparse.ArgumentParser(description=main.__doc__)
    words.add_argument("what", choices=["pilot", "run", "collect", "report"])
    words.add_argument("task", choices=list(TASKS))
    words.add_argument("--seeds", default="0-19", help="such as 0-19; two by two each other's donors")
    words.add_argument("--part", default="1/1", help="1/2 and 2/2: half of the pairs each, for two processes")
    words.add_argument("--decay", choices=DECAYS, default="coupled")
    words.add_argument("--data", help="an .npz file or a folder in place of the task's own data")
    words.add_argument("--lr", type=float, help="another peak rate, for a pilot")
    words.add_argument("--runs", type=Path, default=Path("runs"))
    words.add_argument("--out", type=Path, default=Path("artifacts/lr_policies"))
    words.add_argument("--figures", type=Path, default=Path("paper_figures/lr_policies"))
    asked = words.parse_args()
    if asked.what == "collect":
        return collect(asked.task, parse_seeds(asked.seeds), asked.runs, asked.out)
    if asked.what == "report":
        return report(asked.task, asked.out, asked.figures)
    task = apply_cli_overrides(TASKS[asked.task](), asked.data, None, None)
    if asked.lr is not None:
        task = task.replace(optimizer=spec(task.optimizer.name, **{**task.optimizer.options, "lr": asked.lr}))
    seeds = parse_seeds(asked.seeds)
    if asked.what == "pilot":
        return pilot(task, seeds, asked.runs)
    place, parts = map(int, asked.part.split("/"))
    if not 1 <= place <= parts:
        words.error(f"--part must be such as 1/2 or 2/2; got {asked.part}")
    path = asked.out / f"{asked.task}.csv.gz"
    kept = set(read_table(path)["run"]) if path.exists() else set()
    for pair in list(pairs_of(seeds))[place - 1 :: parts]:
        if _is_collected(task, asked.decay, pair, kept):
            continue
        for run in run_pair(task, asked.decay, pair, asked.runs):
            print(run.name, flush=True)


if __name__ == "__main__":
    main()
