"""Stage c: how long training takes, to 90 and 94 %, and how many images a second, against a plain DataLoader loop."""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import grokkit as gk
from bench.gpu.common import data_part
from bench.gpu.results import Results, Rows, Setting, settle
from grokkit.figures.theme import FULL, save, themed
from grokkit.models.profile import profile
from grokkit.recipes import cifar10_accuracy, cifar10_in_minutes, cifar10_speed
from grokkit.seeding import seeded
from grokkit.training.build import build_data, build_model, facts_of
from grokkit.training.evaluation import evaluated
from grokkit.training.loader import PerSample, crop_and_flip, plain_loader
from grokkit.training.loop import MIRRORING, Job, build

TITLE = "time to 90 % and 94 % for resnet9, resnet18 and speednet; images/s by execution, precision and input"
RECIPES = {
    "resnet9, 8 epochs": (cifar10_in_minutes.resnet9, 60),
    "resnet9, 24 epochs": (cifar10_accuracy.resnet9, 100),
    "resnet18, 26 epochs": (cifar10_accuracy.resnet18, 120),
    "speednet, 8 epochs": (cifar10_speed.speednet, 45),
}
"""Recipe and seconds that a run of it may need."""
LR = 1e-3
"""Rate of the plain loop, which nobody asks for its accuracy."""
WARM_UP = 12
"""Steps of a job that is thrown away: libraries load, algorithms are chosen, kernels are compiled."""
WAYS = [
    *(
        (512, precision, execution)
        for execution in ("eager", "graph", "compile")
        for precision in ("float32", "bfloat16")
    ),
    *((size, "bfloat16", execution) for size in (128, 2048) for execution in ("eager", "graph")),
]
"""Batch size, precision and execution of what images/s are measured of: the cheap ones and the common size first."""


def measure(results: Results) -> None:
    setting = results.setting
    for name, (make, needs) in RECIPES.items():
        results.part(f"{name}, seed 0", partial(timed_run, setting, make()), needs=needs)
    base = cifar10_accuracy.resnet9()
    for workers in (0,) if setting.small else (2, 8):
        results.part(f"DataLoader, {workers} workers", partial(plain_loop, setting, base, workers), needs=40)
    for way in WAYS[:1] if setting.small else WAYS:
        size, precision, execution = way
        changed = base.replace(batch_size=size, precision=precision, execution=execution)
        name = f"resident, {size}, {precision}, {execution}"
        results.part(name, partial(speed_of, setting, changed), needs=60 if execution == "compile" else 15)
    for seed in () if setting.small else (1, 2):
        for name, (make, needs) in RECIPES.items():
            results.part(f"{name}, seed {seed}", partial(timed_run, setting, make().replace(seed=seed)), needs=needs)
    save(curves(results.parts), setting.out / "accuracy_over_time")
    save(bars(throughputs(results.parts)), setting.out / "images_per_second")


def headline(parts: dict[str, Rows]) -> Rows:
    """How each timed run ended, and images/s of each way to train."""
    shown = ("images_per_s", "tflop_per_s", "epoch", "accuracy", "accuracy_tta", "seconds_to_90", "seconds_to_94",
             "seconds", "warm_up_seconds")  # fmt: skip
    return [{"run": name, **{key: rows[-1][key] for key in shown if key in rows[-1]}} for name, rows in parts.items()]


def timed_run(setting: Setting, config: gk.RunConfig) -> Rows:
    """A row per epoch: training seconds so far (evaluation not counted), plain test accuracy. The warm-up, on a job
    that is thrown away, is a row of its own, epoch 0. The last row has the accuracy with TTA, and sums."""
    config = fitted(setting, config)
    with seeded(config.seed, "training"):
        start = time.perf_counter()
        run_steps(build(config, torch.device(setting.device)), 1, WARM_UP)
        settle(setting.device)
        rows: Rows = [{"epoch": 0, "seconds": 0.0, "warm_up_seconds": time.perf_counter() - start}]
        job = build(config, torch.device(setting.device))
        spent, done = 0.0, 0
        while done < config.steps:
            first, done = done + 1, min(done + job.batches.steps_per_epoch, config.steps)
            settle(setting.device)
            start = time.perf_counter()
            run_steps(job, first, done)
            settle(setting.device)
            spent += time.perf_counter() - start
            mirrored = done == config.steps and not MIRRORING.isdisjoint(config.augment)
            told = evaluated(job.model, job.test_set, config.loss, mirrored=mirrored)
            rows.append({"epoch": len(rows), "step": done, "seconds": spent, **told})
    images = sum(len(job.batches.indices(step)) for step in range(1, config.steps + 1))
    rows[-1] |= {"images_per_s": images / spent, "execution": job.update.execution, "precision": job.precision,
                 "tflop_per_s": 6 * macs(job) * images / spent / 1e12, **seconds_to(rows),
                 "warm_up_seconds": rows[0]["warm_up_seconds"]}  # fmt: skip
    return rows


def seconds_to(rows: Rows) -> dict[str, float | None]:
    """Training seconds until the end of the first epoch with 90 and 94 % of the test set right, plain; None: never."""
    told = [row for row in rows if "accuracy" in row]
    return {
        f"seconds_to_{percent}": next((row["seconds"] for row in told if row["accuracy"] >= percent / 100), None)
        for percent in (90, 94)
    }


def run_steps(job: Job, first: int, last: int) -> None:
    """Updates number `first` to `last` as the training loop makes them, with nothing recorded."""
    job.model.train()
    for step in range(first, last + 1):
        x, y = job.batches.at(step)
        loss, logits = job.update(x, y)
        job.meter.add(loss, logits, y)
        job.policy.step()


def macs(job: Job) -> int:
    return profile(job.model.net, job.dataset.input_shape).macs


def fitted(setting: Setting, config: gk.RunConfig) -> gk.RunConfig:
    """The recipe on the stage's data; the miniature has a narrow net and a handful of steps."""
    config = config.replace(data=data_part(setting))
    if not setting.small:
        return config
    return config.replace(model=gk.part(config.model.name, width=8), batch_size=32, steps=6)


def plain_loop(setting: Setting, config: gk.RunConfig, workers: int) -> Rows:
    """The net and batch of a recipe in the loop of a tutorial: PIL images one by one, changed by torchvision,
    float32, a loss read at every step. The seconds of the whole recipe are extrapolated from some steps."""
    config = fitted(setting, config)
    dataset = build_data(config)
    count = 4 if setting.small else 100
    model = build_model(config, facts_of(dataset)).to(setting.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    samples = PerSample(dataset.x_train, dataset.y_train, crop_and_flip(dataset.input_shape[1:]))
    batches = iter(plain_loader(samples, config.batch_size, workers=workers, endless=True))
    start = 0.0
    for number in range(count + WARM_UP):
        if number == WARM_UP:
            settle(setting.device)
            start = time.perf_counter()
        x, y = (part.to(setting.device, non_blocking=True) for part in next(batches))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    settle(setting.device)
    seconds = (time.perf_counter() - start) / count
    return [{
        "batch_size": config.batch_size, "precision": "float32", "execution": "eager", "workers": workers,
        "images_per_s": config.batch_size / seconds, "measured_steps": count,
        "extrapolated_seconds_of_the_recipe": seconds * config.steps,
    }]  # fmt: skip


def speed_of(setting: Setting, config: gk.RunConfig) -> Rows:
    """Images/s of one way to train, batches included, and of the batches alone."""
    config = fitted(setting, config)
    job = build(config, torch.device(setting.device))
    count = 4 if setting.small else 60
    start = time.perf_counter()
    run_steps(job, 1, WARM_UP)
    settle(setting.device)
    warm = time.perf_counter()
    run_steps(job, WARM_UP + 1, WARM_UP + count)
    settle(setting.device)
    end = time.perf_counter()
    for step in range(1, count + 1):
        job.batches.at(step)
    settle(setting.device)
    made = time.perf_counter() - end
    # ragged batches at the end of an epoch count as what they hold
    images = sum(len(job.batches.indices(step)) for step in range(WARM_UP + 1, WARM_UP + count + 1))
    return [{
        "batch_size": config.batch_size, "precision": job.precision, "execution": job.update.execution,
        "images_per_s": images / (end - warm), "tflop_per_s": 6 * macs(job) * images / (end - warm) / 1e12,
        "batches_alone_images_per_s": images / made, "warm_up_seconds": warm - start,
    }]  # fmt: skip


@themed
def curves(parts: dict[str, Rows]) -> Figure:
    """Test accuracy over training seconds, a line per run."""
    figure = Figure(figsize=(0.7 * FULL, 2.6), layout="constrained")
    axes = figure.subplots()
    colours = {name: f"C{place}" for place, name in enumerate(RECIPES)}
    for name, rows in parts.items():
        recipe = name.rpartition(", seed")[0]
        if recipe in colours:
            shown = [row for row in rows if "accuracy" in row]
            label = recipe if name.endswith("seed 0") else None
            axes.plot([r["seconds"] for r in shown], [r["accuracy"] for r in shown], color=colours[recipe], label=label)
    for target in (0.90, 0.94):
        axes.axhline(target, color="0.5", lw=0.6)
    axes.set(xlabel="training seconds, evaluation not counted", ylabel="test accuracy, plain")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def throughputs(parts: dict[str, Rows]) -> dict[str, float]:
    """Images/s of each loop, the plain ones first."""
    found = {
        name: rows[0]["images_per_s"] for name, rows in parts.items() if name.startswith(("DataLoader", "resident"))
    }
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith("DataLoader"), item[1])))


@themed
def bars(found: dict[str, float]) -> Figure:
    """Images/s of each way to train resnet9."""
    figure = Figure(figsize=(0.8 * FULL, 0.24 * len(found) + 0.8), layout="constrained")
    axes = figure.subplots()
    colours = ["0.6" if name.startswith("DataLoader") else "C0" for name in found]
    axes.barh(range(len(found)), list(found.values()), color=colours)
    axes.set(yticks=range(len(found)), yticklabels=list(found), xlabel="images per second, resnet9, training")
    axes.invert_yaxis()
    return figure
