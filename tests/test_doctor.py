"""What the doctor says of a machine, and its exit code."""

import pytest
import torch

from grokkit.cli import doctor, main
from grokkit.device.precision import describe_precision


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "STEPS", 1)
    monkeypatch.setattr(doctor, "BATCH", 4)


def test_a_machine_without_a_gpu_is_ready_for_the_cpu(monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for module in ("select", "preflight"):
        monkeypatch.setattr(f"grokkit.device.{module}.count_physical_gpus", lambda: 0)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    names = ("torch ", "device    cpu", "memory ", "precision float32", "disk ", "data ", "python ", "speed ")
    for name in (
        "GPUs      0 physically",
        "versions  grokkit",
        "verdict   this machine is ready, without a GPU",
        *names,
    ):
        assert name in said, name


def test_an_unusable_gpu_is_told_in_full_and_ends_with_three(machine, capsys) -> None:
    machine(capability=(7, 0))
    assert main(["doctor"]) == 3
    told = capsys.readouterr()
    assert "GPUs      1 physically present" in told.out and "driver    580.95.05" in told.out
    assert "for sm_75 sm_80 sm_90 sm_120" in told.out and "cuda:0    Test GPU, capability 7.0" in told.out
    assert "speed " in told.out, "the CPU is measured then"
    assert told.out.splitlines()[-1] == "verdict   training would be refused on this machine"
    assert "grokkit doctor: a GPU is present, but it has capability 7.0" in told.err and "constraints-v100" in told.err


def test_a_hidden_gpu_and_a_wheel_for_the_cpu_are_told(machine, monkeypatch, capsys) -> None:
    machine(available=False, cuda=None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["doctor"]) == 3
    told = capsys.readouterr()
    assert "built for the CPU only" in told.out and "visible   CUDA_VISIBLE_DEVICES=''" in told.out
    assert "unset CUDA_VISIBLE_DEVICES" in told.err


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ((9, 0), "bfloat16: supported by capability 9.0"),
        ((7, 0), "float16: with a loss scaler: bfloat16 needs capability 8.0"),
        ((6, 1), "float32: lower precisions are not faster on capability 6.1"),
    ],
)
def test_the_advice_names_precision_and_capability(machine, capability, words: str) -> None:
    machine(capability=capability)
    assert describe_precision(torch.device("cuda")).startswith(words)
