"""Diagnose why torch cannot use a GPU that is present: one message per cause, with the command that fixes it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

PROC = Path("/proc/driver/nvidia")
"""Information from the NVIDIA kernel driver."""

DEV = Path("/dev")

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA -> major version of the oldest driver that supports it (NVIDIA's table of minor version
compatibility, docs.nvidia.com/deploy/cuda-compatibility). Later versions of CUDA are not checked."""

V100_INSTALL = "pip install 'torch==2.10.*' 'torchvision==0.25.*'"
"""The last wheels of the default index with sm_70, built with CUDA 12.8; constraints-v100.txt has the same versions."""

SMI_TIMEOUT = 10.0
"""Timeout of nvidia-smi in seconds; it can hang if the driver is broken."""


def count_physical_gpus() -> int:
    """Count the NVIDIA GPUs that the kernel driver lists, whether torch can use them or not."""
    return len(list((PROC / "gpus").glob("*"))) or len(_list_device_files())


def _list_device_files() -> list[Path]:
    return list(DEV.glob("nvidia[0-9]*"))


def explain_unusable(index: int = 0) -> str | None:
    """Return why torch cannot use GPU number `index`, with a remedy; None if it can.

    Cost: if no earlier check fails, CUDA is initialised and one small matrix product computed, which a run on the GPU
    needs anyway.
    """
    if not torch.cuda.is_available():
        return _explain_no_cuda()
    if index >= torch.cuda.device_count():
        return f"torch sees only {torch.cuda.device_count()} of them, so that number {index} does not exist"
    return _explain_capability(index) or _explain_failing_product(index)


def _explain_no_cuda() -> str:
    """Return why CUDA is not available in torch although a GPU is present."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES is empty and hides it; run: unset CUDA_VISIBLE_DEVICES"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU-only build; run: pip install --force-reinstall torch torchvision"
    if (PROC / "gpus").exists() and not _list_device_files():
        return (
            "its device file /dev/nvidia0 is missing. In a container, start it with: docker run --gpus all ...; "
            "elsewhere run once: sudo nvidia-smi"
        )
    return _explain_old_driver() or _quote_torch_error(hidden)


def _explain_old_driver() -> str | None:
    """Return the message about a driver that is too old for torch's CUDA; None if it is recent enough or unknown."""
    driver, cuda = get_driver_version(), str(torch.version.cuda)
    needed = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if driver is None or needed is None or int(driver.partition(".")[0]) >= needed:
        return None
    older = (
        f", or take a torch for CUDA 12: {V100_INSTALL}" if OLDEST_DRIVER[12] <= int(driver.partition(".")[0]) else ""
    )
    return (
        f"its driver {driver} is too old: torch {torch.__version__} is built with CUDA {cuda}, which needs driver "
        f"{needed} or newer. Update the driver (on a rented machine: rent one with a newer driver){older}"
    )


def _quote_torch_error(visible: str | None) -> str:
    """Return the message for an unrecognised cause: the versions of CUDA and driver, and torch's own error."""
    try:
        torch.cuda.init()
        reason = "torch gives no reason"
    except Exception as error:  # RuntimeError, AssertionError, and whatever else a broken installation raises
        reason = str(error).strip().partition("\n")[0]
    shown = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    return (
        f"torch {torch.__version__} cannot start CUDA {torch.version.cuda} on driver "
        f"{get_driver_version() or 'of unknown version'}{shown}: {reason}. Check the output of `nvidia-smi`"
    )


def get_driver_version() -> str | None:
    """Return the version of the NVIDIA driver, such as `570.86.15`, from the kernel or nvidia-smi; None: unknown."""
    path = PROC / "version"
    text = path.read_text() if path.exists() else _run_smi("--query-gpu=driver_version", "--format=csv,noheader")
    match = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", text)
    return match[0] if match else None


def _run_smi(*arguments: str) -> str:
    """Return the output of nvidia-smi; empty if it is missing, fails or hangs."""
    try:
        result = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SMI_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def _explain_capability(index: int) -> str | None:
    """Return the message about a compute capability that this build of torch does not support; None if it does."""
    major, minor = torch.cuda.get_device_capability(index)
    built = [arch for arch in torch.cuda.get_arch_list() if arch.startswith(("sm_", "compute_"))]
    if not built or any(_can_run(arch, major, minor) for arch in built):
        return None
    message = f"it has capability {major}.{minor} and torch {torch.__version__} is built for {', '.join(built)}"
    if (major, minor) == (7, 0):
        return (
            f"{message}. The last default wheels for a V100 are torch 2.10: {V100_INSTALL} (or -c constraints-v100.txt)"
        )
    age = "an older" if (major, minor) < min(map(_parse_arch, built)) else "a newer"
    return f"{message}. Install {age} torch that has sm_{major}{minor}: see https://pytorch.org/get-started"


def _can_run(arch: str, major: int, minor: int) -> bool:
    """Return whether code built for `arch` runs on capability `major.minor`.

    Machine code (`sm_86`) runs on its own major version from its minor version on, PTX (`compute_90`) also on anything
    newer.
    """
    built = _parse_arch(arch)
    return built <= (major, minor) and (arch.startswith("compute") or built[0] == major)


def _parse_arch(arch: str) -> tuple[int, int]:
    return divmod(int("".join(filter(str.isdigit, arch.partition("_")[2]))), 10)


def _explain_failing_product(index: int) -> str | None:
    """Return the message about a GPU on which a small matrix product fails; None if it works."""
    try:
        run_small_product(index)
    except Exception as error:  # RuntimeError or subclasses of it, which differ between versions of torch
        reason = str(error).strip().partition("\n")[0]
        if "out of memory" in reason.lower():
            return _explain_no_memory(index)
        return (
            f"the first product on it failed: {reason}. Check `nvidia-smi`; another process may have exclusive access"
        )
    return None


def run_small_product(index: int) -> None:
    """Multiply two small matrices on GPU number `index` and wait for the result; raises what torch raises."""
    a = torch.ones(256, 256, device=torch.device("cuda", index))
    (a @ a).sum().item()


def _explain_no_memory(index: int) -> str:
    """Return the message about GPU memory that other processes use."""
    gpu = f"--id={_get_smi_name(index)}"
    free = _format_torch_memory(index) or _format_smi_memory(gpu)
    processes = _run_smi(gpu, "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader").strip()
    users = f", used by process {'; '.join(processes.splitlines())}" if processes else ""
    return (
        f"it has no memory left{free}{users}. Wait for that process or stop it (`nvidia-smi` lists them), or choose "
        "another GPU: CUDA_VISIBLE_DEVICES=1 grokkit ..."
    )


def _format_torch_memory(index: int) -> str:
    """Return free and total memory from torch; empty if even that call fails for lack of memory."""
    try:
        free, total = torch.cuda.mem_get_info(index)
    except Exception:  # as in `_explain_failing_product`
        return ""
    return f" ({free / 2**20:.0f} MiB free of {total / 2**20:.0f} MiB)"


def _format_smi_memory(gpu: str) -> str:
    free, _, total = (
        _run_smi(gpu, "--query-gpu=memory.free,memory.total", "--format=csv,noheader").strip().partition(", ")
    )
    return f" ({free} free of {total})" if total else ""


def _get_smi_name(index: int) -> str:
    """Return nvidia-smi's name of torch's GPU number `index`: their numbers differ if CUDA_VISIBLE_DEVICES is set."""
    try:
        return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    except Exception:  # as in `_explain_failing_product`
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        return visible[index] if index < len(visible) else str(index)
