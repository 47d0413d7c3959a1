"""Training throughput against batch size: full loop, input pipeline alone, step alone, and the device's peak FLOP/s."""

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
from grokkit.literals import Precision
from grokkit.measures.loss import get_loss
from grokkit.models.classifier import Classifier, Normalise
from grokkit.optim.build import build_optimizer
from grokkit.seeding import seeded
from grokkit.training.build import count_macs, to_device
from grokkit.training.step import WARM_UP, TrainStep

AUGMENT = ("crop4", "flip")
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
SMALLEST_BATCH = 2
"""Batch size of the step that shows the fixed cost of an update."""
REPEATS = 3
"""Timed repeats of each measurement: their median is the speed, the lowest and highest its range."""
MAX_CALLS = 2000
"""Maximum number of calls per repeat."""
MAX_STEP_FACTOR = 2.0
"""A step that is expected to take this many times `seconds` ends the series of batch sizes."""
IMAGES = 10_000
"""Random images used without a dataset: too many for a processor's cache, few enough to be generated quickly."""

Clock = Callable[[], float]
StepFunction = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Rate:
    """Units of work per second: the median of `REPEATS` repeats, the lowest and the highest."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speeds:
    """Throughput at one batch size, in images/s.

    Args:
        source: `resident` or `DataLoader`.
        batch_size: images per update.
        loop: loading batches and training on them.
        input: loading batches onto the device, without training.
        step: updates on one batch that is already on the device.
    """

    source: str
    batch_size: int
    loop: Rate
    input: Rate
    step: Rate


@dataclass(frozen=True)
class Subject:
    """What is benchmarked: a model on a device with its training step and its data.

    Args:
        name: description of model, data and device.
        dataset: its training images make the batches.
        device: resolved.
        precision: of the training step, as returned by `resolve_precision`.
        make_step: returns the training step for full batches of a given size.
        macs: multiply-adds of one image's forward pass.
        seconds: approximate duration of one measurement.
        clock: returns seconds; only differences are used.
    """

    name: str
    dataset: Dataset
    device: Device
    precision: Precision
    make_step: Callable[[int], StepFunction]
    macs: int
    seconds: float
    clock: Clock = time.perf_counter

    @property
    def training_flop(self) -> int:
        """FLOP per image of a forward pass and a backward pass, which counts twice; two FLOP per multiply-add."""
        return 3 * 2 * self.macs

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.torch_device.type == "cuda":
            torch.cuda.synchronize(self.device.torch_device)

    def measure_rate(self, call: Callable[[], object], work: float) -> Rate:
        """Measure how much work per second repeated calls do, after warm-up calls in which a GPU step is captured.

        Args:
            call: does `work` units.
            work: such as the images of a batch.
        """
        for _ in range(WARM_UP + 2 if self.device.torch_device.type == "cuda" else 2):
            call()
        once = self._seconds(call, 1)
        calls = min(MAX_CALLS, max(1, round(self.seconds / REPEATS / once)))
        rates = [calls * work / self._seconds(call, calls) for _ in range(REPEATS)]
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
    """Build a model by name with grokkit's training step on `device`.

    The optimizer is SGD with Nesterov momentum, at a rate so small that random labels do not disturb the weights.

    Raises:
        UsageError: an unknown model or option, images that the model does not accept, or `seconds` not above 0.
    """
    if not seconds > 0:
        raise UsageError(f"`seconds` must be above 0 (duration of one measurement); got {seconds}")
    with seeded(0, "init"):
        net = models.create(model, dataset.input_shape, len(dataset.classes), **options)
    classifier = to_device(Classifier(Normalise(dataset.mean, dataset.std), net), device.torch_device).train()
    settings = spec("sgd", lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    optimizer = build_optimizer(settings, classifier.parameters())
    precision = resolve_precision("auto", device.torch_device)

    def make_step(size: int) -> StepFunction:
        return TrainStep(classifier, optimizer, get_loss("cross_entropy"), batch_size=size, precision=precision)

    label = " ".join([model, *(f"{name} {value}" for name, value in options.items())])
    hardware = describe_device(device.torch_device, precision=precision).description
    name = f"{label}, {dataset.name} {'x'.join(map(str, dataset.input_shape))}, {hardware}"
    return Subject(
        name, dataset, device, precision, make_step, count_macs(classifier, dataset.input_shape), seconds, clock
    )


def make_random_images(count: int = IMAGES) -> Dataset:
    """Make `count` random images of CIFAR-10's shape: speed does not depend on the pixels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    y = np.arange(count) % 10
    return Dataset("random", x, y, x[:10], y[:10], tuple("0123456789"), findings=())


def validate_batch_sizes(sizes: Sequence[int], images: int) -> list[int]:
    """Return batch sizes in ascending order; if none are given, the default ones up to `images`.

    Raises:
        UsageError: a size that is not an int above `SMALLEST_BATCH`, or that is above `images`.
    """
    result = sorted(set(sizes)) or [size for size in BATCH_SIZES if size <= images]
    for size in result:
        if not SMALLEST_BATCH < size <= images:
            raise UsageError(
                f"a batch size must be an int in {SMALLEST_BATCH + 1}..{images} (training images); got {size}"
            )
    return result


def measure_speeds(subject: Subject, sizes: Sequence[int]) -> Iterator[Speeds]:
    """Yield the speeds at each batch size in ascending order, those of resident batches first.

    Sizes whose step would take more than `MAX_STEP_FACTOR` times the seconds of a measurement are left out, except the
    first.

    Cost: per size five measurements of `subject.seconds` each, or of five calls if these take longer.
    """
    images = torch.from_numpy(subject.dataset.x_train).to(subject.device.torch_device)
    labels = torch.from_numpy(subject.dataset.y_train).to(subject.device.torch_device)
    expected = 0.0
    for size in sizes:
        if expected * size > MAX_STEP_FACTOR * subject.seconds:
            return
        with fit_threads(subject.macs * size), seeded(0, "throughput"):
            batches = Batches(images, labels, size, seed=0, device=subject.device.torch_device, augment=AUGMENT)
            train_step = subject.make_step(size)
            step = measure_step_rate(subject, train_step, *batches.at(1))
            expected = 1 / step.value
            yield Speeds("resident", size, *_measure_resident(subject, train_step, batches), step)
            yield Speeds("DataLoader", size, *_measure_loader(subject, train_step, size), step)


def measure_smallest_step(subject: Subject) -> Rate:
    """Measure updates on `SMALLEST_BATCH` images, in images/s."""
    x = torch.from_numpy(subject.dataset.x_train[:SMALLEST_BATCH]).to(subject.device.torch_device).float() / 255
    y = torch.from_numpy(subject.dataset.y_train[:SMALLEST_BATCH]).to(subject.device.torch_device)
    with fit_threads(subject.macs * SMALLEST_BATCH), seeded(0, "throughput"):
        return measure_step_rate(subject, subject.make_step(SMALLEST_BATCH), x, y)


def measure_step_rate(subject: Subject, train_step: StepFunction, x: Tensor, y: Tensor) -> Rate:
    """Measure repeated updates on one batch, in images/s."""
    return subject.measure_rate(partial(train_step, x, y), len(y))


def _measure_resident(subject: Subject, train_step: StepFunction, batches: Batches) -> tuple[Rate, Rate]:
    """Measure the loop and its input pipeline alone, with resident batches."""
    steps = iter(range(1, 1 << 62))
    size = batches.batch_size
    loop = subject.measure_rate(lambda: train_step(*batches.at(_find_full_batch(batches, next(steps)))), size)
    return loop, subject.measure_rate(lambda: batches.at(_find_full_batch(batches, next(steps))), size)


def _find_full_batch(batches: Batches, step: int) -> int:
    """Return the step number of the `step`-th full batch: a smaller last batch of an epoch is skipped."""
    per_epoch = len(batches.images) // batches.batch_size
    epoch, index = divmod(step - 1, per_epoch)
    return epoch * batches.steps_per_epoch + index + 1


def _measure_loader(subject: Subject, step: StepFunction, size: int) -> tuple[Rate, Rate]:
    """Measure the loop and its input pipeline alone, with the worker processes of an endless DataLoader."""
    data, device = subject.dataset, subject.device.torch_device
    samples = PerSample(data.x_train, data.y_train, crop_and_flip(data.input_shape[1:]))

    def rate(train_step: StepFunction) -> Rate:
        batches = iter(make_plain_loader(samples, size, endless=True))

        def call() -> None:
            x, y = next(batches)
            train_step(x.to(device, non_blocking=True), y.to(device, non_blocking=True))

        return subject.measure_rate(call, size)

    return rate(step), rate(lambda x, y: None)


def measure_peak_flops(subject: Subject) -> Rate:
    """Measure the device's peak FLOP/s: a large matrix product or a large convolution, whichever is faster.

    Both run in the precision of the training step and on all threads.
    """
    device = subject.device.torch_device
    side, channels, count = (8192, 256, 256) if device.type == "cuda" else (1536, 64, 64)
    dtype = getattr(torch, subject.precision)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    x = torch.randn(count, channels, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        product = subject.measure_rate(lambda: a @ b, 2 * side**3)
        convolution = subject.measure_rate(
            lambda: functional.conv2d(x, kernel, padding=1), 2 * 9 * channels**2 * count * 32 * 32
        )
    return max(product, convolution, key=lambda rate: rate.value)


def to_rows(subject: Subject, smallest: Rate, peak: Rate, speeds: Sequence[Speeds]) -> list[dict[str, Any]]:
    """Return all measurements as rows of a table.

    `loop_images_per_s` and `input_images_per_s` per source and batch size (`n`), `step_images_per_s` per batch size,
    the peak FLOP/s and the FLOP per training image.
    """

    def row(measure: str, rate: Rate, unit: str, size: int = 0, source: str = "") -> dict[str, Any]:
        return {
            "run": subject.name,
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

    flop = float(subject.training_flop)
    rows = [
        row("ceiling_flop_per_s", peak, "FLOP/s"),
        row("training_flop_per_image", Rate(flop, flop, flop), "FLOP"),
        row("step_images_per_s", smallest, "images/s", SMALLEST_BATCH),
    ]
    for each in speeds:
        size, source = each.batch_size, each.source
        if source == "resident":
            rows.append(row("step_images_per_s", each.step, "images/s", size))
        rows.append(row("loop_images_per_s", each.loop, "images/s", size, source))
        rows.append(row("input_images_per_s", each.input, "images/s", size, source))
    return rows
