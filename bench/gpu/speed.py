"""Stage c: how long training takes, to 90 and 94 %, and how many images a second, against a plain DataLoader loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import grokkit as gk
from bench.gpu.common import ceiling_of, ceilings, data_part
from bench.gpu.results import Results, Row, Rows, Setting, settle
from grokkit.diagnostics.loader import PerSample, crop_and_flip, make_plain_loader
from grokkit.figures.theme import FULL, PALETTE, save_figure, themed
from grokkit.measures.profile import profile
from grokkit.optim.build import build_optimizer
from grokkit.recipes import cifar10_accuracy, cifar10_in_minutes, cifar10_speed
from grokkit.seeding import seeded
from grokkit.training.build import build_data, build_model, clip_gradients, dataset_metadata
from grokkit.training.evaluation import evaluate_split
from grokkit.training.loop import MIRROR_AUGMENTATIONS
from grokkit.training.trainer import Trainer, build_trainer

TITLE = (
    "seconds to 90 % and 94 % for resnet9, resnet18, speednet; images/s by execution, precision, input; a plain loop"
)
RECIPES = {
    "resnet9, 8 epochs": (cifar10_in_minutes.resnet9, 45),
    "resnet18, 26 epochs": (cifar10_accuracy.resnet18, 100),
    "resnet9, 24 epochs": (cifar10_accuracy.resnet9, 60),
    "speednet, 8 epochs": (cifar10_speed.speednet, 40),
}
"""Recipe and seconds that a run of it may need."""
TARGETS = (0.90, 0.94)
WARM_UP = 12
"""Steps of a job that is thrown away: libraries load, algorithms are chosen, kernels are compiled."""
PLAIN_STEPS = 150
"""Steps of a plain loop."""


def measure(results: Results) -> None:
    setting = results.setting
    nine, eighteen, longer, speednet = RECIPES

    def run(name: str, seed: int) -> None:
        make, needs = RECIPES[name]
        results.part(f"{name}, seed {seed}", partial(timed_run, setting, make(), seed), needs=needs)

    def speeds(name: str, executions: tuple[str, ...], sizes: tuple[int, ...], needs: float) -> None:
        title = f"images per second, {name.partition(',')[0]}, {', '.join(executions)}"
        results.part(title, partial(throughput, setting, RECIPES[name][0](), executions, sizes), needs=needs)

    results.part("ceiling", partial(ceilings, setting))
    run(nine, 0)
    results.part("plain loop, resnet9", partial(plain_loop, setting, RECIPES[nine][0]()), needs=60)
    run(eighteen, 0)
    run(longer, 0)
    speeds(nine, ("eager",) if setting.small else ("graph", "eager"), (512, 128, 2048), 60)
    run(speednet, 0)
    if not setting.small:
        speeds(eighteen, ("graph", "eager"), (512,), 40)
        results.part("plain loop, resnet18", partial(plain_loop, setting, RECIPES[eighteen][0]()), needs=60)
        for seed in (1, 2):
            run(nine, seed)
            run(longer, seed)
        for name in (nine, eighteen):
            speeds(name, ("compile",), (512,), 90)
        for seed in (1, 2):
            run(speednet, seed)
            run(eighteen, seed)
    results.measured_last()
    draw(results.parts, setting)


def draw(parts: dict[str, Rows], setting: Setting) -> None:
    if any(name.rpartition(", seed")[0] in RECIPES for name in parts):
        save_figure(curves(parts), setting.out / "accuracy_over_time")
    if speeds_in(parts):
        save_figure(speeds_figure(parts), setting.out / "images_per_second")


# ---- a recipe against the clock


def timed_run(setting: Setting, config: gk.RunConfig, seed: int) -> Iterator[Row]:
    """A row per epoch: training seconds so far (evaluation not counted), plain test accuracy; TTA at the end. The
    warm-up is a row of its own, epoch 0, and the last row says when the targets were first met at an epoch's end."""
    config = fitted(setting, config.replace(seed=seed))
    with seeded(seed, "training"):
        start = time.perf_counter()
        run_steps(build_trainer(config, torch.device(setting.device)), 1, WARM_UP)
        settle(setting.device)
        warm_up = time.perf_counter() - start
        yield {"epoch": 0, "seconds": 0.0, "warm_up_seconds": warm_up}
        trainer = build_trainer(config, torch.device(setting.device))
        spent, done, epoch = 0.0, 0, 0
        met: dict[str, float | None] = {f"seconds_to_{100 * target:.0f}": None for target in TARGETS}
        while done < config.steps:
            first, done, epoch = done + 1, min(done + trainer.batches.steps_per_epoch, config.steps), epoch + 1
            settle(setting.device)
            start = time.perf_counter()
            run_steps(trainer, first, done)
            settle(setting.device)
            spent += time.perf_counter() - start
            mirrored = done == config.steps and not MIRROR_AUGMENTATIONS.isdisjoint(config.augment)
            told = evaluate_split(trainer.model, trainer.test_set, config.loss, mirrored=mirrored)
            for target, name in zip(TARGETS, met, strict=True):
                if met[name] is None and told["accuracy"] >= target:
                    met[name] = spent
            row = {"epoch": epoch, "step": done, "seconds": spent, **told}
            yield row | (met | ends(trainer, spent, warm_up) if done == config.steps else {})


def ends(trainer: Trainer, spent: float, warm_up: float) -> Row:
    """What the last row of a run says beside its accuracy."""
    images = len(trainer.dataset.y_train) * trainer.config.steps / trainer.batches.steps_per_epoch
    return {
        "images_per_s": images / spent,
        "execution": trainer.update.execution,
        "precision": trainer.precision,
        "seconds_with_warm_up": spent + warm_up,
        "tflop_per_s": 6 * macs(trainer) * images / spent / 1e12,
        "data_hash": trainer.dataset.hash,
    }


def run_steps(trainer: Trainer, first: int, last: int) -> None:
    """Updates number `first` to `last` as the training loop makes them, with nothing recorded."""
    trainer.model.train()
    for step in range(first, last + 1):
        advance(trainer, *trainer.batches.at(step))


def advance(trainer: Trainer, x: Tensor, y: Tensor) -> None:
    """One update as the training loop makes it."""
    loss, logits = trainer.update(x, y)
    trainer.meter.add(loss, logits, y)
    trainer.policy.step()


def macs(trainer: Trainer) -> int:
    return profile(trainer.model.net, trainer.dataset.input_shape).macs


def fitted(setting: Setting, config: gk.RunConfig) -> gk.RunConfig:
    """The recipe on the stage's data; the miniature has a narrow net and a handful of steps."""
    config = config.replace(data=data_part(setting))
    if not setting.small:
        return config
    options = {**config.model.options, "width": 8}
    return config.replace(model=gk.spec(config.model.name, **options), batch_size=32, steps=6)


# ---- images per second


def plain_loop(setting: Setting, config: gk.RunConfig) -> Iterator[Row]:
    """The same net, optimizer and batch in the loop of a tutorial: PIL images one by one, 2 and 8 workers, no autocast,
    a loss read at every step; then the house's step on batches from the same loader. The seconds of the whole recipe
    are extrapolated from a hundred-odd steps."""
    config = fitted(setting, config)
    for workers in (0,) if setting.small else (2, 8):
        for step in (tutorial_step, house_step):
            count = 3 if setting.small else PLAIN_STEPS
            seconds = loaded_steps(setting, config, workers, step, count)
            yield {
                "loop": step.__name__.replace("_", " "),
                "workers": workers,
                "batch_size": config.batch_size,
                "images_per_s": config.batch_size / seconds,
                "measured_steps": count,
                "extrapolated_seconds": seconds * config.steps,
            }


def loaded_steps(setting: Setting, config: gk.RunConfig, workers: int, make, count: int) -> float:  # type: ignore[no-untyped-def]
    """Seconds of one step on batches from a plain DataLoader, the mean of `count` after a warm-up."""
    dataset = build_data(config)
    samples = PerSample(dataset.x_train, dataset.y_train, crop_and_flip(dataset.input_shape[1:]))
    update = make(setting, config)
    loader = iter(make_plain_loader(samples, config.batch_size, workers=workers, endless=True))
    for number in range(WARM_UP + count):
        if number == WARM_UP:
            settle(setting.device)
            start = time.perf_counter()
        x, y = next(loader)
        update(x.to(setting.device, non_blocking=True), y.to(setting.device, non_blocking=True))
    settle(setting.device)
    return (time.perf_counter() - start) / count


def tutorial_step(setting: Setting, config: gk.RunConfig):  # type: ignore[no-untyped-def]
    """Forward, backward, update, and the loss read, as tutorials write it."""
    model = build_model(config, dataset_metadata(build_data(config))).to(setting.device).train()
    chosen = gk.spec(config.optimizer.name, **{**config.optimizer.options, "fused": False})
    optimizer = build_optimizer(chosen, model.parameters())

    def update(x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(config.clip, model)
        optimizer.step()
        loss.item()

    return update


def house_step(setting: Setting, config: gk.RunConfig):  # type: ignore[no-untyped-def]
    """grokkit's own step."""
    trainer = build_trainer(config, torch.device(setting.device))
    trainer.model.train()
    return partial(advance, trainer)


def throughput(
    setting: Setting, config: gk.RunConfig, executions: tuple[str, ...], sizes: tuple[int, ...]
) -> Iterator[Row]:
    """Images/s of resident batches by execution, precision and batch size, and of the batches alone."""
    config = fitted(setting, config)
    for size in (32,) if setting.small else sizes:
        for precision in ("float32",) if setting.small else ("bfloat16", "float32"):
            for execution in executions:
                yield speed_of(setting, config.replace(batch_size=size, precision=precision, execution=execution))


def speed_of(setting: Setting, config: gk.RunConfig) -> Row:
    """Images/s of one way to train, batches included, and of the batches alone; full batches only."""
    trainer = build_trainer(config, torch.device(setting.device))
    count = 4 if setting.small else max(20, min(100, 30_000 // config.batch_size))
    start = time.perf_counter()
    run_steps(trainer, 1, WARM_UP)
    settle(setting.device)
    warm = time.perf_counter()
    images = 0
    for step in range(WARM_UP + 1, WARM_UP + count + 1):
        x, y = trainer.batches.at(step)
        if len(x) == config.batch_size:  # a ragged batch would have to be compiled for itself
            advance(trainer, x, y)
            images += len(x)
    settle(setting.device)
    end = time.perf_counter()
    for step in range(1, count + 1):
        trainer.batches.at(step)
    settle(setting.device)
    made = time.perf_counter() - end
    return {
        "model": config.model.name,
        "batch_size": config.batch_size,
        "precision": trainer.precision,
        "execution": trainer.update.execution,
        "images_per_s": images / (end - warm),
        "tflop_per_s": 6 * macs(trainer) * images / (end - warm) / 1e12,
        "batches_alone_images_per_s": count * config.batch_size / made,
        "warm_up_seconds": warm - start,
    }


# ---- what is told and drawn


def speeds_in(parts: dict[str, Rows]) -> Rows:
    return [row for name, rows in parts.items() if name.startswith("images per second") for row in rows]


def plain_in(parts: dict[str, Rows]) -> Rows:
    return [
        {**row, "model": name.rpartition(", ")[2]}
        for name, rows in parts.items()
        if name.startswith("plain loop")
        for row in rows
    ]


def lines(parts: dict[str, Rows]) -> list[str]:
    """For the summary."""
    found = parts.get("ceiling", [])
    told = []
    for name, rows in parts.items():
        last = rows[-1] if rows else {}
        if "seconds_to_90" not in last:
            continue
        limit = ceiling_of(found, last["precision"])
        share = f", {100 * last['tflop_per_s'] / limit:.0f} % of the ceiling" if limit else ""
        when = ", ".join(
            f"{mark[11:]} % " + (f"in {last[mark]:.1f} s" if last[mark] else "not met")
            for mark in ("seconds_to_90", "seconds_to_94")
        )
        tta = f" (TTA {100 * last['accuracy_tta']:.2f})" if "accuracy_tta" in last else ""
        told.append(
            f"{name}: {100 * last['accuracy']:.2f} %{tta} in {last['seconds']:.1f} s "
            f"({last['seconds_with_warm_up']:.1f} with warm-up); {when}; {last['images_per_s']:,.0f} images/s"
            f"{share}; {last['precision']}, {last['execution']}"
        )
    for row in plain_in(parts):
        told.append(
            f"{row['model']}, DataLoader of {row['workers']}, {row['loop']}: {row['images_per_s']:,.0f} "
            f"images/s, whole recipe about {row['extrapolated_seconds']:.0f} s (extrapolated)"
        )
    for row in speeds_in(parts):
        limit = ceiling_of(found, row["precision"])
        share = f", {100 * row['tflop_per_s'] / limit:.0f} % of the ceiling" if limit else ""
        told.append(
            f"{row['model']}, batch {row['batch_size']}, {row['precision']}, {row['execution']}: "
            f"{row['images_per_s']:,.0f} images/s{share}"
        )
    return told


@themed
def curves(parts: dict[str, Rows]) -> Figure:
    """Test accuracy over training seconds, a line per run."""
    figure = Figure(figsize=(0.7 * FULL, 2.6), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(RECIPES, PALETTE, strict=False))
    for name, rows in parts.items():
        recipe = name.rpartition(", seed")[0]
        if recipe in colours:
            shown = [row for row in rows if "accuracy" in row]
            label = recipe if name.endswith("seed 0") else None
            axes.plot([r["seconds"] for r in shown], [r["accuracy"] for r in shown], color=colours[recipe], label=label)
    for target in TARGETS:
        axes.axhline(target, color="0.5", lw=0.6)
    axes.set(xlabel="training seconds, evaluation not counted", ylabel="test accuracy, plain", ylim=(0, 1))
    axes.legend()
    return figure


@themed
def speeds_figure(parts: dict[str, Rows]) -> Figure:
    """Images per second, a bar for every way to train, the plain loops below."""
    bars = [
        (f"{r['model']}, batch {r['batch_size']}, {r['precision']}, {r['execution']}", r, 0) for r in speeds_in(parts)
    ]
    bars += [
        (f"{r['model']}, batch {r['batch_size']}, {r['loop']}, DataLoader of {r['workers']}", r, 1)
        for r in plain_in(parts)
    ]
    figure = Figure(figsize=(FULL, 0.17 * len(bars) + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        range(len(bars)),
        [row["images_per_s"] for _, row, _ in bars],
        height=0.7,
        color=[PALETTE[kind] for _, _, kind in bars],
    )
    axes.set(yticks=range(len(bars)), yticklabels=[name for name, _, _ in bars], xlabel="images per second")
    axes.invert_yaxis()
    return figure
