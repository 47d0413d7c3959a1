"""Device selection and description of the machine. A GPU that is present but unusable is an error."""

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
from grokkit.literals import Precision

SMALL_MACS = 50_000_000
"""Multiply-adds of one pass over a batch below which a second thread slows the computation down."""


@dataclass(frozen=True)
class Device:
    """A resolved device.

    Args:
        torch_device: the device of all tensors.
        precision: precision of the training arithmetic, with TF32 if torch uses it; measures never do.
        description: one readable line.
    """

    torch_device: torch.device
    precision: str
    description: str


def select_device(requested: str | None = None) -> Device:
    """Return the device for a name (`cpu`, `cuda`, `cuda:1`), or for None the best usable one.

    Raises:
        DeviceRefusedError: a GPU is requested or physically present, and torch cannot use it. `cpu` must then be
            requested explicitly, so that no run on a paid GPU silently trains on the CPU.
        UsageError: an unknown name.
    """
    if requested == "cpu" or (requested is None and count_physical_gpus() == 0 and not torch.cuda.is_available()):
        return describe_device(torch.device("cpu"), "as requested" if requested else "no GPU found")
    if requested is not None and not re.fullmatch(r"cuda(:\d+)?", requested):
        raise UsageError(f"`device` must be cpu, cuda or cuda:N; got {requested!r}")
    device = torch.device(requested or "cuda")
    cause = explain_unusable(device.index or 0)
    if cause is not None:
        if count_physical_gpus() == 0 and not torch.cuda.is_available():
            raise DeviceRefusedError("no GPU is present; pass --device cpu, or omit --device")
        raise DeviceRefusedError(f"a GPU is present, but {cause}. To train on the CPU anyway, pass --device cpu")
    return describe_device(device)


def describe_device(device: torch.device, reason: str = "", precision: Precision = "float32") -> Device:
    """Return `device` with a description and its training precision."""
    arithmetic: str = precision
    if precision != "float32":
        arithmetic = f"{precision} autocast"
    elif device.type == "cuda":
        arithmetic = _describe_tf32()
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({threads} threads)"
    return Device(device, arithmetic, f"{name}, {arithmetic}{reason and ': '}{reason}")


def _describe_tf32() -> str:
    backends: Any = torch.backends
    lowered = [
        name
        for name, setting in (("convolutions", backends.cudnn.conv), ("products", backends.cuda.matmul))
        if setting.fp32_precision == "tf32"
    ]
    return f"float32 with {' and '.join(lowered)} in tf32" if lowered else "float32"


def count_cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def fit_threads(macs: int) -> Iterator[None]:
    """Use one CPU thread for work below `SMALL_MACS` per pass; restore the number of threads at exit.

    Threads of a tiny net wait for each other longer than they compute: the quickstart's MLP did 530 steps/s with one
    thread and 50 with two while another process used a core. The rule depends on the work alone, so that a resumed or
    replayed run uses as many threads as the first one and gives the same bits.
    """
    before = torch.get_num_threads()
    if macs < SMALL_MACS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_environment(device: Device) -> dict[str, Any]:
    """Return versions, device and precision, the content of environment.json."""
    return {
        "device": device.description,
        "precision": device.precision,
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": _get_versions(),
    }


@cache
def _get_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on; cached, because reading them takes 25 ms."""
    versions = {}
    for name in ("grokkit", "torch", "torchvision", "captum", "numpy", "h5py"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
