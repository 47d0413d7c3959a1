"""Every cause of a GPU that cannot be used is found, named, and answered with a command; nothing here needs a GPU."""

from pathlib import Path

import pytest
import torch

from grokkit.cli import main
from grokkit.device import preflight, select
from grokkit.device.precision import resolve_precision
from grokkit.errors import DeviceRefusedError

OPEN_KERNEL = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@builder)\n"


def raises(error: BaseException):
    def product(index: int) -> None:
        raise error

    return product


FULL = raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has ..."))
HELD = "case $* in *compute-apps*) echo '4711, python3, 15000 MiB';; *) echo '3 MiB, 16384 MiB';; esac"

CAUSES = {
    "CPU-only wheel": (
        {"available": False, "cuda": None},
        ["is a CPU-only build", "pip install --force-reinstall torch torchvision"],
    ),
    "driver too old": (
        {"available": False, "driver": "470.82.01"},
        ["its driver 470.82.01 is too old", "built with CUDA 13.0, which needs driver 580 or newer"],
    ),
    "driver of CUDA 12": (
        {"available": False, "driver": "535.104.05"},
        ["its driver 535.104.05 is too old", "torch==2.10.*"],
    ),
    "driver of unknown need": (
        {"available": False, "driver": "600.10", "cuda": "15.0"},
        ["cannot start CUDA 15.0 on driver 600.10", "nvidia-smi"],
    ),
    "no device file": ({"available": False, "files": False}, ["/dev/nvidia0 is missing", "docker run --gpus all"]),
    "V100": (
        {"capability": (7, 0)},
        [
            "capability 7.0",
            "is built for sm_75, sm_80",
            "pip install 'torch==2.10.*' 'torchvision==0.25.*'",
            "-c constraints-v100.txt",
        ],
    ),
    "older than the wheel": ({"capability": (6, 1)}, ["capability 6.1", "an older torch that has sm_61"]),
    "newer than the wheel": ({"capability": (13, 0)}, ["capability 13.0", "a newer torch that has sm_130"]),
    "memory held": (
        {"product": FULL, "smi": HELD},
        ["no memory left (1 MiB free of 16384 MiB)", "used by process 4711, python3, 15000 MiB", "nvidia-smi"],
    ),
    "memory held, CUDA does not start": (
        {"product": raises(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."))},
        ["no memory left (1 MiB free of 16384 MiB). Wait for that process or stop it"],
    ),
    "first kernel fails": (
        {"product": raises(RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore"))},
        ["the first product on it failed: CUDA error: uncorrectable ECC error encountered. Check"],
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_gpu_that_cannot_be_used_is_refused_with_cause_and_command(machine, name: str) -> None:
    state, sentences = CAUSES[name]
    machine(**state)
    with pytest.raises(DeviceRefusedError) as refusal:
        select.select_device()
    told = str(refusal.value)
    assert all(sentence in told for sentence in sentences), told
    assert told.startswith("a GPU is present, but ") and told.endswith("pass --device cpu") and "\n" not in told
    assert refusal.value.exit_code == 3
    assert select.select_device("cpu").torch_device.type == "cpu"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_named(machine, monkeypatch, visible: str) -> None:
    machine(available=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(DeviceRefusedError, match="CUDA_VISIBLE_DEVICES is empty and hides it; run: unset CUDA_VIS"):
        select.select_device()


def test_a_number_that_no_gpu_has_is_named(machine, monkeypatch) -> None:
    machine(available=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceRefusedError, match="with CUDA_VISIBLE_DEVICES=7"):
        select.select_device()
    machine_has_one = preflight.explain_unusable
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine_has_one(1) == "torch sees only 1 of them, so that number 1 does not exist"


def test_memory_is_told_by_nvidia_smi_where_torch_cannot(machine, monkeypatch) -> None:
    machine(product=FULL, smi='echo "$*" >> "$0.asked"; ' + HELD)
    monkeypatch.setattr(torch.cuda, "mem_get_info", raises(RuntimeError("out of memory")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert "no memory left (3 MiB free of 16384 MiB)" in str(preflight.explain_unusable(0))
    asked = (preflight.PROC.parent / "bin" / "nvidia-smi.asked").read_text()
    assert "--id=3 " in asked and "--id=0 " not in asked, "nvidia-smi counts all GPUs, torch the visible ones"


def test_a_gpu_that_computes_is_taken(machine) -> None:
    machine()
    assert select.select_device().torch_device.type == "cuda" and preflight.count_physical_gpus() == 1


def test_the_driver_is_read_from_the_kernel_or_from_nvidia_smi(machine, monkeypatch) -> None:
    machine(driver=None, smi="echo 550.54.14")
    assert preflight.get_driver_version() == "550.54.14"
    (preflight.PROC / "version").write_text(OPEN_KERNEL)
    assert preflight.get_driver_version() == "570.86.15"
    (preflight.PROC / "version").unlink()
    (preflight.PROC.parent / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert preflight.get_driver_version() is None


def test_machine_code_runs_on_its_major_version_and_ptx_on_anything_newer() -> None:
    def runs(arch: str, *capability: int) -> bool:
        return preflight._can_run(arch, *capability)

    assert runs("sm_80", 8, 6) and runs("sm_90a", 9, 0) and runs("compute_90", 12, 0) and runs("sm_100", 10, 0)
    assert not runs("sm_86", 8, 0) and not runs("sm_80", 9, 0) and not runs("compute_90", 8, 9)


def test_the_first_product_is_computed_where_it_is_told(monkeypatch) -> None:
    asked = []
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: asked.append(device) or ones(*shape))
    preflight.run_small_product(2)
    assert asked == [torch.device("cuda", 2)]


@pytest.mark.parametrize(("capability", "precision"), [((7, 0), "float16"), ((8, 0), "bfloat16"), ((6, 1), "float32")])
def test_bfloat16_only_where_the_hardware_has_it(machine, monkeypatch, capability, precision: str) -> None:
    machine(capability=capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # what torch says of a V100: it emulates
    assert resolve_precision("auto", torch.device("cuda")) == precision


def test_a_refusal_of_the_command_line_ends_with_three_and_writes_nothing(
    machine, monkeypatch, tmp_path, capsys
) -> None:
    machine(available=False, cuda=None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart"]) == 3
    said = capsys.readouterr().err
    assert "CPU-only build" in said and "Traceback" not in said and not Path("runs").exists()
