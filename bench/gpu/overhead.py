"""Stage d: what the instruments cost beside the training, and whether the host ever waits for the device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

import grokkit as gk
from bench.gpu.results import Results, Row, Rows, Setting, told
from bench.gpu.speed import fitted, run_steps
from grokkit.recipes import cifar10_accuracy
from grokkit.training.trainer import build_trainer

TITLE = "overhead: snapshots, measures, signal, evaluation and slots beside the training; no wait within an epoch"


def measure(results: Results) -> None:
    setting = results.setting
    results.part("the check sees a wait", partial(seen, setting), needs=10)
    for execution in ("eager",) if setting.small else ("eager", "graph"):
        results.part(f"waits, {execution}", partial(waits, setting, execution), needs=15)
    results.part("costs of a recorded run", partial(recorded, setting), needs=30)
    if not setting.small:
        results.part("waits, compile", partial(waits, setting, "compile"), needs=40)
    results.measured_last()


def seen(setting: Setting) -> Iterator[Row]:
    """The control: a loss that is read must be found."""
    value = torch.ones(2, device=setting.device).sum()
    caught = ""
    try:
        with forbidden(setting.device):
            value.item()
    except RuntimeError as error:
        caught = told(error)
    yield {
        "check": "reading a number from the device is an error",
        "caught": caught,
        "passes": bool(caught) == (setting.device == "cuda"),
    }


def waits(setting: Setting, execution: str) -> Iterator[Row]:
    """An epoch of steps, and the beginning of the next, under a device that forbids waiting for it; where a step waits
    all the same, the line that did."""
    trainer = build_trainer(
        fitted(setting, cifar10_accuracy.resnet9()).replace(execution=execution), torch.device(setting.device)
    )
    epoch, line = trainer.batches.steps_per_epoch, ""
    run_steps(trainer, 1, 6)
    run_steps(trainer, epoch, epoch)  # the ragged batch has kernels of its own, chosen or compiled at its first step
    last = epoch + 10
    step = 6
    try:
        with forbidden(setting.device):
            while step < last:
                step += 1
                run_steps(trainer, step, step)
                if step % 5 == 0:
                    trainer.meter.enqueue(step)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        line = told(error)
    yield {"execution": trainer.update.execution, "steps": step - 6, "waits": line, "passes": not line}


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


def recorded(setting: Setting) -> Iterator[Row]:
    """Four epochs of resnet9 with the recipe's measures and a signal every 50 steps: seconds by instrument."""
    config = fitted(setting, cifar10_accuracy.resnet9())
    config = config.replace(
        experiment="gpu",
        variant="recorded",
        steps=6 if setting.small else 392,
        records=12,
        probes={"train": 32, "test": 32, "random": 16} if setting.small else config.probes,
        signal={"every": 3, "points": 4, "directions": 2} if setting.small else {"every": 50},
        measures=(gk.spec("accuracy"),) if setting.small else config.measures,
    )
    shutil.rmtree(setting.work / config.run_name, ignore_errors=True)
    run = gk.train(config, runs=setting.work, device=setting.device)
    costs, times = run.status["costs"], len(run.steps())
    for name, seconds in costs.items():
        yield {
            "instrument": name,
            "seconds": seconds,
            "share_of_training": seconds / costs["training"],
            "steps": config.steps,
            "records": times,
        }


def lines(parts: dict[str, Rows]) -> list[str]:
    """For the summary."""
    found = [
        f"{rows[0]['execution']} steps: {rows[0]['waits'] or 'no wait'} in {rows[0]['steps']} steps"
        for name, rows in parts.items()
        if name.startswith("waits") and rows
    ]
    costs = parts.get("costs of a recorded run", [])
    shares = [f"{row['instrument']} {row['seconds']:.2f} s ({100 * row['share_of_training']:.1f} %)" for row in costs]
    if costs:
        found.append(f"resnet9, {costs[0]['steps']} steps, {costs[0]['records']} records: {', '.join(shares)}")
    return found
