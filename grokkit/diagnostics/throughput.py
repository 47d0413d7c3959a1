"""How fast a model trains against its batch size: the loop, its input and its step, each apart, and the ceiling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grokkit import models
from grokkit.config.run_config import spec
from grokkit.data.base import Dataset
from grokkit.data.resident import Batches
from grokkit.device.precision import resolve_precision
from grokkit.device.select import Device, describe_device, fit_threads
from grokkit.diagnostics.loader import PerSample, crop_and_flip, make_plain_loader
from grokkit.errors import UsageError
from grokkit.measures.loss import get_loss
from grokkit.models.classifier import Classifier, Normalise
from grokkit.optim.build import build_optimizer
from grokkit.seeding import seeded
from grokkit.training.build import count_macs, to_device
from grokkit.training.step import WARM_UP, TrainStep

AUGMENT = ("crop4", "flip")
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
SMALLEST = 2
"""Images of the step that shows what an update costs whatever its batch."""
STRETCHES = 3
"""Timed stretches of each measurement: their median is the speed, the lowest and highest its range."""
MOST_CALLS = 2000
"""Calls in a stretch, however quick they are."""
SLOWEST = 2.0
"""A step that is expected to take this many times `seconds` ends the row of batch sizes."""
IMAGES = 10_000
"""Random images, where no data are given: too many for a processor's cache, few enough to be there at once."""

Clock = Callable[[], float]
StepFunction = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Rate:
    """Units of work per second: the median of `STRETCHES` stretches, the lowest and the highest."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speeds:
    """One point of the figure, in images/s.

    Args:
        source: `resident` or `DataLoader`.
        batch_size: images per update.
        loop: batches made and trained on.
        input: batches made, on the device, nothing trained.
        step: updates on a batch that is there.
    """

    source: str
    batch_size: int
    loop: Rate
    input: Rate
    step: Rate


@dataclass(frozen=True)
class Subject:
    """What is timed: a model on a device with its training step and its data.

    Args:
        name: model, data and device, in words.
        dataset: whose training images make the batches.
        device: resolved.
        precision: of the training step, as `resolve_precision` gives it.
        step_for: a batch size to the training step for full batches of it.
        macs: multiply-adds of one image's forward pass.
        seconds: what a measurement may take, about.
        clock: returns seconds; only differences count.
    """

    name: str
    dataset: Dataset
    device: Device
    precision: str
    step_for: Callable[[int], StepFunction]
    macs: int
    seconds: float
    clock: Clock = time.perf_counter

    @property
    def training_flop(self) -> int:
        """FLOP per image of a forward and a backward pass, which counts twice; two per multiply-add."""
        return 3 * 2 * self.macs

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.torch_device.type == "cuda":
            torch.cuda.synchronize(self.device.torch_device)

    def measure_rate(self, call: Callable[[], object], work: float) -> Rate:
        """How much work per second repeated calls do, after some that are not counted: on a GPU a step is recorded in
        a graph in them.

        Args:
            call: does `work` units.
            work: such as the images of a batch.
        """
        for _ in range(WARM_UP + 2 if self.device.torch_device.type == "cuda" else 2):
            call()
        once = self._seconds(call, 1)
        calls = min(MOST_CALLS, max(1, round(self.seconds / STRETCHES / once)))
        rates = [calls * work / self._seconds(call, calls) for _ in range(STRETCHES)]
        return Rate(statistics.median(rates), min(rates), max(rates))

    def _seconds(self, call: Callable[[], object], calls: int) -> float:
        self.synchronize()
        start = self.clock()
        for _ in range(calls):
            call()
        self.synchronize()
        return max(self.clock() - start, 1e-9)


def make_subject(
    model: str,
    options: Mapping[str, Any],
    dataset: Dataset,
    device: Device,
    seconds: float = 1.0,
    clock: Clock = time.perf_counter,
) -> Subject:
    """A model by name with grokkit's training step on `device`: SGD with Nesterov momentum, at a rate so small that
    random labels do no harm.

    Raises:
        UsageError: no such model or option, images that it does not take, or `seconds` that are not above 0.
    """
    if not seconds > 0:
        raise UsageError(f"`seconds` must be above 0, the time that one measurement may take; got {seconds}")
    with seeded(0, "init"):
        net = models.create(model, dataset.input_shape, len(dataset.classes), **options)
    whole = to_device(Classifier(Normalise(dataset.mean, dataset.std), net), device.torch_device).train()
    settings = spec("sgd", lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    optimizer = build_optimizer(settings, whole.parameters())
    precision = resolve_precision("auto", device.torch_device)

    def step_for(size: int) -> StepFunction:
        return TrainStep(whole, optimizer, get_loss("cross_entropy"), batch_size=size, precision=precision)

    told = " ".join([model, *(f"{name} {value}" for name, value in options.items())])
    words = describe_device(device.torch_device, precision=precision).description
    name = f"{told}, {dataset.name} {'x'.join(map(str, dataset.input_shape))}, {words}"
    return Subject(name, dataset, device, precision, step_for, count_macs(whole, dataset.input_shape), seconds, clock)


def make_random_images(count: int = IMAGES) -> Dataset:
    """Images of CIFAR-10's form that show nothing: a speed does not depend on the pixels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    y = np.arange(count) % 10
    return Dataset("random", x, y, x[:10], y[:10], tuple("0123456789"))


def validate_batch_sizes(sizes: Sequence[int], images: int) -> list[int]:
    """Batch sizes in ascending order; of the usual ones, where none are given, those that `images` are enough for.

    Raises:
        UsageError: one that is not an int above `SMALLEST`, or that is above `images`.
    """
    chosen = sorted(set(sizes)) or [size for size in BATCH_SIZES if size <= images]
    for size in chosen:
        if not SMALLEST < size <= images:
            raise UsageError(
                f"a batch size must be an int in {SMALLEST + 1}..{images}, the training images; got {size}"
            )
    return chosen


def measure_speeds(of: Subject, sizes: Sequence[int]) -> Iterator[Speeds]:
    """The speeds at each batch size in ascending order, resident batches first; sizes whose step would take more than
    `SLOWEST` times the seconds of a measurement are left out, but never the first.

    Cost: per size five measurements of `of.seconds` each, or of five calls where these take longer.
    """
    images = torch.from_numpy(of.dataset.x_train).to(of.device.torch_device)
    labels = torch.from_numpy(of.dataset.y_train).to(of.device.torch_device)
    expected = 0.0
    for size in sizes:
        if expected * size > SLOWEST * of.seconds:
            return
        with fit_threads(of.macs * size), seeded(0, "throughput"):
            batches = Batches(images, labels, size, seed=0, device=of.device.torch_device, augment=AUGMENT)
            use = of.step_for(size)
            step = measure_step_rate(of, use, *batches.at(1))
            expected = 1 / step.value
            yield Speeds("resident", size, *_measure_resident(of, use, batches), step)
            yield Speeds("DataLoader", size, *_measure_loader(of, use, size), step)


def measure_smallest_step(of: Subject) -> Rate:
    """The speed of updates on `SMALLEST` images, in images/s."""
    x = torch.from_numpy(of.dataset.x_train[:SMALLEST]).to(of.device.torch_device).float() / 255
    y = torch.from_numpy(of.dataset.y_train[:SMALLEST]).to(of.device.torch_device)
    with fit_threads(of.macs * SMALLEST), seeded(0, "throughput"):
        return measure_step_rate(of, of.step_for(SMALLEST), x, y)


def measure_step_rate(of: Subject, use: StepFunction, x: Tensor, y: Tensor) -> Rate:
    """The speed of updates on one batch again and again."""
    return of.measure_rate(partial(use, x, y), len(y))


def _measure_resident(of: Subject, use: StepFunction, batches: Batches) -> tuple[Rate, Rate]:
    """The loop and its input alone."""
    steps = iter(range(1, 1 << 62))
    size = batches.batch_size
    loop = of.measure_rate(lambda: use(*batches.at(_full_batch(batches, next(steps)))), size)
    return loop, of.measure_rate(lambda: batches.at(_full_batch(batches, next(steps))), size)


def _full_batch(batches: Batches, step: int) -> int:
    """The number of a batch that is not ragged: epochs without their last one, if that is shorter."""
    per_epoch = len(batches.images) // batches.batch_size
    epoch, place = divmod(step - 1, per_epoch)
    return epoch * batches.steps_per_epoch + place + 1


def _measure_loader(of: Subject, step: StepFunction, size: int) -> tuple[Rate, Rate]:
    """The loop and its input alone, from worker processes that go on as long as they are asked."""
    data, device = of.dataset, of.device.torch_device
    samples = PerSample(data.x_train, data.y_train, crop_and_flip(data.input_shape[1:]))

    def rate(use: StepFunction) -> Rate:
        batches = iter(make_plain_loader(samples, size, endless=True))

        def call() -> None:
            x, y = next(batches)
            use(x.to(device, non_blocking=True), y.to(device, non_blocking=True))

        return of.measure_rate(call, size)

    return rate(step), rate(lambda x, y: None)


def measure_peak_flops(of: Subject) -> Rate:
    """FLOP/s that the device reaches in a large matrix product or a large convolution, whichever is faster, in the
    precision of the training step and on all threads."""
    device = of.device.torch_device
    side, channels, count = (8192, 256, 256) if device.type == "cuda" else (1536, 64, 64)
    dtype = getattr(torch, of.precision)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    x = torch.randn(count, channels, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        product = of.measure_rate(lambda: a @ b, 2 * side**3)
        convolution = of.measure_rate(
            lambda: functional.conv2d(x, kernel, padding=1), 2 * 9 * channels**2 * count * 32 * 32
        )
    return max(product, convolution, key=lambda rate: rate.value)


def to_rows(of: Subject, smallest: Rate, top: Rate, speeds: Sequence[Speeds]) -> list[dict[str, Any]]:
    """Everything measured as rows of a table: `loop_images_per_s` and `input_images_per_s` per source and batch size
    (`n`), `step_images_per_s` per batch size, the ceiling and the FLOP of an image's training."""

    def row(measure: str, rate: Rate, unit: str, size: int = 0, source: str = "") -> dict[str, Any]:
        return {
            "run": of.name,
            "seed": 0,
            "step": 0,
            "measure": measure,
            "probe_set": source,
            "n": size,
            "value": rate.value,
            "low": rate.low,
            "high": rate.high,
            "unit": unit,
        }

    flop = float(of.training_flop)
    found = [
        row("ceiling_flop_per_s", top, "FLOP/s"),
        row("training_flop_per_image", Rate(flop, flop, flop), "FLOP"),
        row("step_images_per_s", smallest, "images/s", SMALLEST),
    ]
    for each in speeds:
        size, source = each.batch_size, each.source
        if source == "resident":
            found.append(row("step_images_per_s", each.step, "images/s", size))
        found.append(row("loop_images_per_s", each.loop, "images/s", size, source))
        found.append(row("input_images_per_s", each.input, "images/s", size, source))
    return found
