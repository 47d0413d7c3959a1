"""Does local complexity (LC) help to set the learning rate?

The idea: LC at training points rises while a net fits and falls afterwards, without labels; a policy may wait for the
peak and then decay (`lc_wsd`), keep the rate while LC falls (`lc_hold`), or hold the speed of the fall (`lc_servo`).
The belief to be beaten (H3): whatever such a policy gains, another run's learning rates give as well, and so does the
best plain schedule; the feedback is worth nothing.

THE PLAN, written down after the pilot (seeds 100 to 104, which are not used again) and before the main runs.

- Tasks: `digits`, `mnist`, `cifar10`, and `vgg_bn` as the case in which LC is not expected to fall. A task is admitted
  where, with the rate kept constant, LC rises by 2 of the changes that count (`shape_of`) in the mean of the pilot's
  seeds and its peak is declared before the deadline, at 80 % of the budget, in at least 4 of 5 seeds: elsewhere every
  LC policy is its deadline schedule, and comparing it says nothing. The peak rate, the same for all arms, is the
  largest of 1e-3, 3e-3, 1e-2, ... below the suggestion of the range test at which the task is admitted.
- Arms: see `ARMS`. All have a linear warm-up over 1 % of the budget and library defaults otherwise; no arm was tuned.
  Each pair of seeds shares initial weights, batch order and measured images among all arms.
- Budget: 1 update counts as 3 passes of its images, a reading of the signal as 1 + 10 passes of 128 images; arms that
  listen have as many updates fewer as their readings cost, and their steps are counted in updates of the others.
- Two families of runs: weight decay as AdamW has it, times the rate (`coupled`), and decoupled from the schedule
  (`fixed`): a result that only the first shows is one of the decay.
- End points: accuracy on test images after the budget; robust accuracy after the budget (PGD-10 with the margin loss,
  512 test images); updates until robust accuracy first reaches a threshold, runs that never do counting as the budget.
- Comparisons, one family per task and decay: each LC arm against its yoked twin (told what the LC arm of the other seed
  of its pair heard) and against the best baseline of that end point, chosen on the same runs, which favours the
  baseline: 3 arms x 2 references x 3 end points = 18. Mean paired difference with its 95 % BCa interval, exact Wilcoxon
  signed-rank test with Holm's correction over the 18, Cliff's delta, equivalence where the 90 % interval lies within
  the margin. Fewer than 10 pairs: intervals only.
- Claim: LC feedback helps on a task if an LC arm is better than both its yoked twin and the best baseline in the same
  end point, under both decays. It is harmless if it is equivalent to its twin. Everything else is exploratory.
- Margins and numbers of pairs follow from the spread of paired differences in the pilot (`MARGINS`): digits 20 pairs,
  mnist 10.
- The pilot of `digits`: rise 2.05 to 2.77, fall 1.17 to 1.83 changes that count, peak declared at 42 to 62 % of the
  budget in 5 of 5 seeds; spread of a pair at most 0.031 (robust accuracy), 0.0048 (test accuracy), 411 updates. At a
  rate of 3e-3 it rose by 1.2 only, and with initial weights of 3 times the default, the first choice, by 1.8 at 3e-3
  with a peak in 3 of 5 seeds: not admitted.
- The pilot of `mnist`, 4 seeds: rise 2.97 to 5.25, fall 1.15 to 1.69, peak declared at 22 to 38 % in all 4; spread of a
  pair at most 0.042, 0.020 and 278 updates. At 3e-3 it rose by 0.9 (one seed): not admitted.
- Not admitted either, on CIFAR-10 without BatchNorm at 1e-3: the `cnn` of `cifar10_small` with and without its hidden
  layer, and with initial weights of 1.5 and 2 times the default; LC falls and then stands (one seed each).

`python experiments/lr_policies.py pilot digits --seeds 100-104`, then `run digits --seeds 0-19` and the same with
`--decay fixed`, `collect digits`, `report digits`. What came out stands in artifacts/lr_policies.
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
from grokkit.analysis.arms import usual_pairs, with_best
from grokkit.analysis.comparison import comparisons
from grokkit.analysis.outcomes import LARGER_IS_BETTER, outcomes
from grokkit.analysis.tables import read_table
from grokkit.names import FigureData
from grokkit.policies import Observation
from grokkit.training.choices import adjusted, seed_list
from grokkit.training.config import Part
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
        data=part("digits", size=8, train=500),
        model=part("mlp", widths=(128, 128, 128)),
        init_scale=2.0,
        loss="mse",
        optimizer=part("adamw", lr=1e-3, weight_decay=0.3),
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
        signal={"every": 150},
    )


def _measures(epsilon: float) -> tuple[Part, ...]:
    return (
        part("accuracy"), part("loss"), part("weight_norm"),
        part("robust_accuracy", epsilons=(epsilon,), points=512),
    )  # fmt: skip


TASKS = {task.__name__: task for task in (digits, mnist, cifar10, vgg_bn)}
THRESHOLDS = {"digits": 0.55, "mnist": 0.4}
"""Robust accuracy whose first crossing is an end point."""
MARGINS = {
    ("digits", "test_accuracy"): 0.005, ("digits", "robust_accuracy"): 0.02, ("digits", "steps_to_robust"): 300.0,
    ("mnist", "test_accuracy"): 0.02, ("mnist", "robust_accuracy"): 0.04, ("mnist", "steps_to_robust"): 300.0,
}  # fmt: skip
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
    rows = outcomes(gk.table(done), {task.variant: THRESHOLDS.get(task.variant, 0.5)})
    wide = rows.pivot(index=["outcome", "seed"], columns="arm", values="value")
    print(wide.groupby("outcome").agg(["mean", "std"]).round(4).T.to_string())
    for arm, reference in (("wsd", "constant"), ("lc_wsd", "wsd"), ("lc_hold", "wsd"), ("lc_hold", "constant")):
        spread = (wide[arm] - wide[reference]).groupby("outcome").std()
        print(f"{arm} - {reference}: SD of a pair " + ", ".join(f"{k} {v:.4f}" for k, v in spread.items()))


def collect(task: str, runs: Path, folder: Path) -> None:
    """Put the finished runs of a task into its table, their decisions into another; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = [run for run in find_runs(runs) if _is_of(run, task) and run.status["state"] == "done"]
    path = folder / f"{task}.csv.gz"
    parts = [*([read_table(path)] if path.exists() else []), *(_thinned(gk.table([run])) for run in finished)]
    table = pd.concat(parts, ignore_index=True).drop_duplicates(["run", "measure", "probe_set", "attack", "step"])
    # of a fixed time, so that the same rows are the same bytes
    table.to_csv(path, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})
    told = folder / f"{task}_decisions.csv.gz"
    events = [{"run": run.name, "step": event["step"], "lr": event["lr"], "text": event["text"]}
              for run in finished for event in run.events if event["kind"] == "policy"]  # fmt: skip
    rows = pd.concat([*([pd.read_csv(told)] if told.exists() else []), pd.DataFrame(events)], ignore_index=True)
    rows.drop_duplicates(["run", "step"]).to_csv(told, index=False, compression={"method": "gzip", "mtime": 0})
    print(f"{path}: {table['run'].nunique()} runs, {len(table)} rows")


def _collected(path: Path) -> set[tuple[str, int]]:
    """Variant and seed of the runs whose numbers are there."""
    if not path.exists():
        return set()
    runs = read_table(path)[["run", "seed"]].drop_duplicates()
    return {(run.split("/")[-1].rsplit("-s", 1)[0], int(seed)) for run, seed in runs.itertuples(index=False)}


def _is_of(run: Run, task: str) -> bool:
    return str(run.config["variant"]).split("-")[0] == task


def _thinned(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure and the end points need, and every fifth learning rate."""
    rates = table[table["measure"] == "learning_rate"]
    measured = table["measure"].isin(("accuracy", "robust_accuracy", "weight_norm")) & (table["measure_id"] != "log")
    whole = table["layer"].isin(("", "total"))
    return pd.concat([table[measured & whole], table[table["measure"] == "log_density"], rates[::5], rates[-1:]])


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
        print(*gk.figures.save(drawn, figures / f"{task}-{decay}"), sep="\n")
        ends = with_best(outcomes(rows, THRESHOLDS), LARGER_IS_BETTER)
        told.append(comparisons(ends, usual_pairs(ends["arm"]), LARGER_IS_BETTER, MARGINS))
    verdicts = pd.concat(told, ignore_index=True)
    verdicts.to_csv(folder / f"{task}_verdicts.csv", index=False, float_format="%.6g")
    columns = ["decay", "outcome", "arm", "reference", "n", "mean", "low", "high", "p_holm", "cliffs_delta", "verdict"]
    print(verdicts[columns].round(4).to_string(index=False))


def main() -> None:
    """pilot TASK: what the plan rests on; run TASK; collect TASK: its numbers into artifacts; report TASK."""
    words = argparse.ArgumentParser(description=main.__doc__)
    words.add_argument("what", choices=["pilot", "run", "collect", "report"])
    words.add_argument("task", choices=list(TASKS))
    words.add_argument("--seeds", default="0-19", help="such as 0-19; two by two each other's donors")
    words.add_argument("--part", default="0/1", help="1/2: the second half of the pairs, for another process")
    words.add_argument("--decay", choices=DECAYS, default="coupled")
    words.add_argument("--data", help="an .npz file or a folder in place of the task's own data")
    words.add_argument("--lr", type=float, help="another peak rate, for a pilot")
    words.add_argument("--runs", type=Path, default=Path("runs"))
    words.add_argument("--out", type=Path, default=Path("artifacts/lr_policies"))
    words.add_argument("--figures", type=Path, default=Path("paper_figures/lr_policies"))
    asked = words.parse_args()
    if asked.what == "collect":
        return collect(asked.task, asked.runs, asked.out)
    if asked.what == "report":
        return report(asked.task, asked.out, asked.figures)
    task = adjusted(TASKS[asked.task](), asked.data, None, None)
    if asked.lr is not None:
        task = task.replace(optimizer=part(task.optimizer.name, **{**task.optimizer.options, "lr": asked.lr}))
    seeds = seed_list(asked.seeds)
    if asked.what == "pilot":
        return pilot(task, seeds, asked.runs)
    place, parts = map(int, asked.part.split("/"))
    kept = _collected(asked.out / f"{asked.task}.csv.gz")
    for pair in list(pairs_of(seeds))[place::parts]:
        if all((f"{asked.task}-{asked.decay}-{arm}", seed) in kept for arm in ARMS for seed in pair):
            continue
        for run in run_pair(task, asked.decay, pair, asked.runs):
            print(run.name, flush=True)


if __name__ == "__main__":
    main()
