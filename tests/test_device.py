"""A GPU that is there but unusable stops the run with its cause; the CPU must be asked for by name then."""

import pytest
import torch

from grokkit.errors import DeviceRefusedError, UsageError
from grokkit.training import device


def pretend(monkeypatch, *, gpus: int, available: bool, cuda: str | None = "13.0", capability=(8, 0), archs=()) -> None:
    monkeypatch.setattr(device, "physical_gpus", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(archs))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Test GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_no_gpu_means_cpu_and_says_so(monkeypatch) -> None:
    pretend(monkeypatch, gpus=0, available=False)
    found = device.resolve()
    assert found.torch_device.type == "cpu" and "no GPU here" in found.description and "float32" in found.description


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"gpus": 1, "available": False, "cuda": None}, "CPU-only build"),
        ({"gpus": 1, "available": False}, "driver may be too old"),
        ({"gpus": 1, "available": True, "capability": (7, 0), "archs": ("sm_75", "sm_90")}, "capability 7.0"),
    ],
)
def test_an_unusable_gpu_is_refused_with_its_cause(monkeypatch, state, cause: str) -> None:
    pretend(monkeypatch, **state)
    with pytest.raises(DeviceRefusedError, match=cause) as refusal:
        device.resolve()
    assert "say --device cpu" in str(refusal.value) and refusal.value.exit_code == 3
    assert device.resolve("cpu").torch_device.type == "cpu"


def test_a_hidden_gpu_is_named(monkeypatch) -> None:
    pretend(monkeypatch, gpus=1, available=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceRefusedError, match="CUDA_VISIBLE_DEVICES is empty"):
        device.resolve()


def test_a_usable_gpu_is_taken(monkeypatch) -> None:
    pretend(monkeypatch, gpus=1, available=True, capability=(8, 6), archs=("sm_80", "compute_80"))
    assert device.resolve().torch_device.type == "cuda"
    assert "Test GPU" in device.resolve("cuda").description


def test_cuda_without_a_gpu_and_unknown_names_are_refused(monkeypatch) -> None:
    pretend(monkeypatch, gpus=0, available=False)
    with pytest.raises(DeviceRefusedError, match="no GPU is present"):
        device.resolve("cuda")
    with pytest.raises(UsageError, match="must be cpu, cuda or cuda:N; got 'tpu'"):
        device.resolve("tpu")


def test_tiny_work_takes_one_thread_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError), device.fitting_threads(device.SMALL_MACS - 1):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        with device.fitting_threads(device.SMALL_MACS):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_precision_that_torch_uses_on_a_gpu_is_named(monkeypatch) -> None:
    pretend(monkeypatch, gpus=1, available=True)
    assert device.described(torch.device("cuda")).precision == "float32 with convolutions in tf32"
    assert device.described(torch.device("cpu")).precision == "float32"
