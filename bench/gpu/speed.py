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
from grokkit.training.build import build_data, build_model, build_optimizer, clip_gradients, facts_of
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
WARM_UP = 12
"""Steps of a job that is thrown away: libraries load, algorithms are chosen, kernels are compiled."""


def measure(results: Results) -> None:
    setting = results.setting
    for name, (make, needs) in RECIPES.items():
        results.part(f"{name}, seed 0", partial(timed_run, setting, make(), 0), needs=needs)
        if name == "resnet9, 8 epochs":
            results.part("plain DataLoader loop", partial(plain_loop, setting, make()), needs=60)
            results.part("images per second", partial(throughput, setting, make()), needs=90)
    for seed in (1, 2):
        for name, (make, needs) in RECIPES.items():
            if setting.small or name == "resnet18, 26 epochs":
                continue
            results.part(f"{name}, seed {seed}", partial(timed_run, setting, make(), seed), needs=needs)
    save(curves(results.parts), setting.out / "accuracy_over_time")


def timed_run(setting: Setting, config: gk.RunConfig, seed: int) -> Rows:
    """A row per epoch: training seconds so far (evaluation not counted), plain test accuracy; TTA at the end. The
    warm-up is a row of its own, epoch 0."""
    config = fitted(setting, config.replace(seed=seed))
    with seeded(seed, "training"):
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
    images = config.steps * job.batches.batch_size
    rows[-1] |= {"images_per_s": images / spent, "execution": job.update.execution, "precision": job.precision,
                 "tflop_per_s": 6 * macs(job) * images / spent / 1e12}  # fmt: skip
    return rows


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


def plain_loop(setting: Setting, config: gk.RunConfig) -> Rows:
    """The same net, optimizer and batch in the loop of a tutorial: PIL images one by one, 2 and 8 workers, float32, a
    loss read at every step. A few hundred steps; the seconds of the whole recipe are extrapolated from them."""
    config = fitted(setting, config)
    dataset = build_data(config)
    count = 4 if setting.small else 200
    rows = []
    for workers in (0,) if setting.small else (2, 8):
        model = build_model(config, facts_of(dataset)).to(setting.device).train()
        optimizer = build_optimizer(gk.part(config.optimizer.name, **{**config.optimizer.options, "fused": False}),
                                    model.parameters())  # fmt: skip
        samples = PerSample(dataset.x_train, dataset.y_train, crop_and_flip(dataset.input_shape[1:]))
        batches = iter(plain_loader(samples, config.batch_size, workers=workers, endless=True))
        for number in range(count + WARM_UP):
            if number == WARM_UP:
                settle(setting.device)
                start = time.perf_counter()
            x, y = (part.to(setting.device) for part in next(batches))
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(config.clip, model)
            optimizer.step()
            loss.item()
        settle(setting.device)
        seconds = (time.perf_counter() - start) / count
        rows.append({"workers": workers, "images_per_s": config.batch_size / seconds, "measured_steps": count,
                     "extrapolated_seconds": seconds * config.steps})  # fmt: skip
        del batches
    return rows


def throughput(setting: Setting, config: gk.RunConfig) -> Rows:
    """Images/s of resident batches by execution, precision and batch size, and of the batches alone."""
    config = fitted(setting, config)
    executions = ("eager",) if setting.small else ("eager", "graph", "compile")
    rows = []
    for size in (32,) if setting.small else (128, 512, 2048):
        for precision in ("float32",) if setting.small else ("float32", "bfloat16"):
            for execution in executions:
                changed = config.replace(batch_size=size, precision=precision, execution=execution)
                rows.append(speed_of(setting, changed))
    return rows


def speed_of(setting: Setting, config: gk.RunConfig) -> dict[str, object]:
    """Images/s of one way to train, batches included, and of the batches alone."""
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
    return {
        "batch_size": config.batch_size, "precision": job.precision, "execution": job.update.execution,
        "images_per_s": images / (end - warm), "tflop_per_s": 6 * macs(job) * images / (end - warm) / 1e12,
        "batches_alone_images_per_s": images / made, "warm_up_seconds": warm - start,
    }  # fmt: skip


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
    axes.legend()
    return figure
