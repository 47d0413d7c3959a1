"""Stage d: what the instruments cost beside the training, and whether the host ever waits for the device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

import grokkit as gk
from bench.gpu.results import Results, Rows, Setting, settle
from bench.gpu.speed import fitted, run_steps
from grokkit.recipes import cifar10_accuracy
from grokkit.training.loop import build

TITLE = "overhead: snapshots, measures, signal, evaluation and slots beside the training; no wait within an epoch"


def measure(results: Results) -> None:
    setting = results.setting
    executions = ("eager",) if setting.small else ("eager", "graph", "compile")
    for execution in executions[:2]:
        results.part(f"waits, {execution}", partial(waits, setting, execution), needs=15)
    results.part("costs of a recorded run", lambda: recorded(setting), needs=40)
    for execution in executions[2:]:
        results.part(f"waits, {execution}", partial(waits, setting, execution), needs=30)


def headline(parts: dict[str, Rows]) -> Rows:
    """Everything."""
    return [{"part": name, **row} for name, rows in parts.items() for row in rows]


def waits(setting: Setting, execution: str) -> Rows:
    """An epoch's worth of steps, across the border of two epochs, under a device that forbids waiting for it; the step
    that waits is an error."""
    job = build(fitted(setting, cifar10_accuracy.resnet9()).replace(execution=execution), torch.device(setting.device))
    epoch = job.batches.steps_per_epoch
    run_steps(job, 1, 6)
    run_steps(job, epoch, epoch)  # the ragged batch has kernels of its own, chosen or compiled at its first step
    settle(setting.device)
    with forbidden(setting.device):
        for step in range(7, 7 + epoch):
            run_steps(job, step, step)
            if step % 5 == 0:
                job.meter.take(step)
    return [{"execution": job.update.execution, "steps": epoch, "passes": True}]


@contextmanager
def forbidden(device: str) -> Iterator[None]:
    """Any wait for the device within the block is an error; a CPU has nothing to wait for."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def recorded(setting: Setting) -> Rows:
    """Two epochs of resnet9 with the recipe's measures and a signal every 50 steps: seconds by instrument."""
    config = fitted(setting, cifar10_accuracy.resnet9())
    config = config.replace(
        experiment="gpu", variant="recorded", steps=6 if setting.small else 196, records=12,
        probes={"train": 32, "test": 32, "random": 16} if setting.small else config.probes,
        signal={"every": 3, "points": 4, "directions": 2} if setting.small else {"every": 50},
        measures=(gk.part("accuracy"),) if setting.small else config.measures,
    )  # fmt: skip
    shutil.rmtree(setting.work / config.run_name, ignore_errors=True)
    run = gk.train(config, runs=setting.work, device=setting.device)
    costs = run.status["costs"]
    return [
        {"instrument": name, "seconds": seconds, "share_of_training": seconds / costs["training"]}
        for name, seconds in costs.items()
    ]
