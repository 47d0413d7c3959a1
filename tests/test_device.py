"""Which device a run takes, and what it is called; why a GPU is refused is in test_preflight.py."""

import pytest
import torch

from grokkit.device import preflight, select
from grokkit.errors import DeviceRefusedError, UsageError


def pretend(monkeypatch, *, gpus: int, available: bool, cuda: str | None = "13.0", capability=(8, 0), archs=()) -> None:
    monkeypatch.setattr(select, "count_physical_gpus", lambda: gpus)
    monkeypatch.setattr(preflight, "run_small_product", lambda index: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(archs))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Test GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_no_gpu_means_cpu_and_says_so(monkeypatch) -> None:
    pretend(monkeypatch, gpus=0, available=False)
    found = select.select_device()
    assert found.torch_device.type == "cpu" and "no GPU found" in found.description and "float32" in found.description


def test_a_usable_gpu_is_taken(monkeypatch) -> None:
    pretend(monkeypatch, gpus=1, available=True, capability=(8, 6), archs=("sm_80", "compute_80"))
    assert select.select_device().torch_device.type == "cuda"
    assert "Test GPU" in select.select_device("cuda").description


def test_cuda_without_a_gpu_and_unknown_names_are_refused(monkeypatch) -> None:
    pretend(monkeypatch, gpus=0, available=False)
    with pytest.raises(DeviceRefusedError, match="no GPU is present"):
        select.select_device("cuda")
    with pytest.raises(UsageError, match="must be cpu, cuda or cuda:N; got 'tpu'"):
        select.select_device("tpu")


def test_tiny_work_takes_one_thread_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError), select.fit_threads(select.SMALL_MACS - 1):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        with select.fit_threads(select.SMALL_MACS):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_precision_that_torch_uses_on_a_gpu_is_named(monkeypatch) -> None:
    pretend(monkeypatch, gpus=1, available=True)
    assert select.describe_device(torch.device("cuda")).precision == "float32 with convolutions in tf32"
    assert select.describe_device(torch.device("cpu")).precision == "float32"
