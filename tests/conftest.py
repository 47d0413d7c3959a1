"""Fixtures shared by all tests: one torch thread, real images where they are to be had, a machine that has no GPU."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from grokkit.device import preflight

torch.set_num_threads(1)
# What a shell starts in the background is born deaf to Ctrl-C, and so are its children; many tests are about Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
SHARED_DATA = Path(os.environ.get("GROKKIT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def _real(file: str) -> dict[str, np.ndarray]:
    path = SHARED_DATA / file
    if not path.exists():
        pytest.skip(f"needs {file} in ../shared/data or in the folder that GROKKIT_DATA names")
    with np.load(path) as archive:
        return {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory) -> Iterator[None]:
    """What a test or its subprocesses train goes on a list of trusted code of the tests, not on the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        patched.delenv("GROKKIT_TRUSTED", raising=False)
        yield


@pytest.fixture(scope="session")
def real_cifar() -> dict[str, np.ndarray]:
    """Official CIFAR-10 pixels: uint8, NHWC; skips where the file is absent."""
    return _real("cifar10_official_6k.npz")


@pytest.fixture(scope="session")
def real_mnist() -> dict[str, np.ndarray]:
    """Official MNIST pixels: uint8, (N, 28, 28); skips where the file is absent."""
    return _real("mnist_10k.npz")


KERNEL = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc 11.4.0\n"
ARCHS = ("sm_75", "sm_80", "sm_90", "sm_120")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch):
    """A machine with one GPU whose driver, files and torch are as told; nvidia-smi is a script."""

    def make(
        driver="580.95.05",
        files=True,
        available=True,
        cuda="13.0",
        capability=(8, 0),
        archs=ARCHS,
        product=None,
        smi="",
    ) -> None:
        proc, dev, programs = tmp_path / "proc", tmp_path / "dev", tmp_path / "bin"
        for folder in (proc / "gpus" / "0000:01:00.0", dev, programs):
            folder.mkdir(parents=True)
        if driver:
            (proc / "version").write_text(KERNEL.format(driver))
        if files:
            (dev / "nvidia0").touch()
        if smi:
            (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (programs / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setattr(preflight, "PROC", proc)
        monkeypatch.setattr(preflight, "DEV", dev)
        monkeypatch.setattr(preflight, "run_small_product", product or (lambda index: None))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        for name, value in {
            "is_available": available,
            "device_count": int(available),
            "get_device_capability": capability,
            "get_arch_list": list(archs),
            "get_device_name": "Test GPU",
            "mem_get_info": (2**20, 2**34),
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make
