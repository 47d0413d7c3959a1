"""Which device a run uses, why, and what the machine is. A GPU that is there but unusable stops the run."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from grokkit.device.preflight import count_physical_gpus, explain_unusable
from grokkit.errors import DeviceRefusedError, UsageError

SMALL_MACS = 50_000_000
"""Multiply-adds of one pass over a batch below which a second thread costs more than it brings."""


@dataclass(frozen=True)
class Device:
    """A resolved device.

    Args:
        torch_device: where tensors live.
        precision: of the training arithmetic, with TF32 named where torch uses it; measures never do.
        description: one line for people.
    """

    torch_device: torch.device
    precision: str
    description: str


def select_device(wanted: str | None = None) -> Device:
    """The device for `wanted` (`cpu`, `cuda`, `cuda:1`, or None for the best usable one).

    Raises:
        DeviceRefusedError: a GPU is asked for or physically present, and torch cannot use it; `cpu` must be asked
            for by name then, so that nobody pays for a GPU and trains on the CPU.
        UsageError: an unknown name.
    """
    if wanted == "cpu" or (wanted is None and count_physical_gpus() == 0 and not torch.cuda.is_available()):
        return describe_device(torch.device("cpu"), "as asked" if wanted else "no GPU here")
    if wanted is not None and not re.fullmatch(r"cuda(:\d+)?", wanted):
        raise UsageError(f"`device` must be cpu, cuda or cuda:N; got {wanted!r}")
    device = torch.device(wanted or "cuda")
    cause = explain_unusable(device.index or 0)
    if cause is not None:
        if count_physical_gpus() == 0 and not torch.cuda.is_available():
            raise DeviceRefusedError("no GPU is present here; say --device cpu, or leave --device out")
        raise DeviceRefusedError(f"a GPU is present, but {cause}. To train on the CPU all the same, say --device cpu")
    return describe_device(device)


def describe_device(device: torch.device, why: str = "", precision: str = "float32") -> Device:
    """`device` in words, with the precision that training has on it."""
    if precision != "float32":
        precision = f"{precision} autocast"
    elif device.type == "cuda":
        precision = _describe_tf32()
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({threads} threads)"
    return Device(device, precision, f"{name}, {precision}{why and ': '}{why}")


def _describe_tf32() -> str:
    backends: Any = torch.backends
    lowered = [
        name
        for name, knob in (("convolutions", backends.cudnn.conv), ("products", backends.cuda.matmul))
        if knob.fp32_precision == "tf32"
    ]
    return f"float32 with {' and '.join(lowered)} in tf32" if lowered else "float32"


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def fit_threads(macs: int) -> Iterator[None]:
    """One CPU thread for work below `SMALL_MACS` per pass, all of them otherwise; the caller's number comes back.

    Threads of a tiny net wait for each other longer than they compute: the quickstart's MLP did 530 steps/s with one
    thread and 50 with two while another process used a core. The rule looks at the work alone, so that a resumed or
    replayed run computes with as many threads, and so to the same bits, as the first one.
    """
    before = torch.get_num_threads()
    if macs < SMALL_MACS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_environment(device: Device) -> dict[str, Any]:
    """Versions, device and precision: what environment.json holds."""
    return {
        "device": device.description,
        "precision": device.precision,
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str]:
    """Of the packages that numbers depend on; reading them takes 25 ms, which 32 seeds need once."""
    versions = {}
    for name in ("grokkit", "torch", "torchvision", "captum", "numpy", "h5py"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
