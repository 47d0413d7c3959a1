"""Why a GPU that is there cannot be used: each cause with its own sentence and the command that helps."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

PROC = Path("/proc/driver/nvidia")
"""What the kernel driver tells."""

DEV = Path("/dev")

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA -> major version of the oldest driver that starts it (NVIDIA's table of minor version
compatibility, docs.nvidia.com/deploy/cuda-compatibility). Of a later CUDA nothing is claimed."""

V100_LINE = "pip install 'torch==2.10.*' 'torchvision==0.25.*'"
"""The last wheels of the default index with sm_70, built with CUDA 12.8; constraints-v100.txt says the same."""

SMI_SECONDS = 10.0
"""That nvidia-smi may take; with a driver in trouble it can hang."""


def count_physical_gpus() -> int:
    """NVIDIA GPUs that the kernel driver shows, whether torch can use them or not."""
    return len(list((PROC / "gpus").glob("*"))) or len(_device_files())


def _device_files() -> list[Path]:
    return list(DEV.glob("nvidia[0-9]*"))


def explain_unusable(index: int = 0) -> str | None:
    """Why torch cannot use GPU number `index` here, and what helps; None where it can.

    Cost: where nothing else is wrong, CUDA is started and one small product computed, which a run on the GPU needs
    anyway.
    """
    if not torch.cuda.is_available():
        return _explain_no_cuda()
    if index >= torch.cuda.device_count():
        return f"torch sees {torch.cuda.device_count()} of them and none has number {index}"
    return _explain_capability(index) or _explain_failing_product(index)


def _explain_no_cuda() -> str:
    """Why torch has no CUDA though a GPU is there."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES is empty and hides it; run: unset CUDA_VISIBLE_DEVICES"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU-only build; run: pip install --force-reinstall torch torchvision"
    if (PROC / "gpus").exists() and not _device_files():
        return (
            "its device file /dev/nvidia0 is missing. In a container, start it with: docker run --gpus all ...; "
            "elsewhere run once: sudo nvidia-smi"
        )
    return _explain_old_driver() or _quote_torch(hidden)


def _explain_old_driver() -> str | None:
    """The sentence about a driver that is older than this torch's CUDA needs; None where it is not, or not known."""
    driver, cuda = get_driver_version(), str(torch.version.cuda)
    needed = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if driver is None or needed is None or int(driver.partition(".")[0]) >= needed:
        return None
    older = f", or take a torch for CUDA 12: {V100_LINE}" if OLDEST_DRIVER[12] <= int(driver.partition(".")[0]) else ""
    return (
        f"its driver {driver} is too old: torch {torch.__version__} is built with CUDA {cuda}, which needs driver "
        f"{needed} or newer. Update the driver (on a rented machine: rent one with a newer driver){older}"
    )


def _quote_torch(visible: str | None) -> str:
    """What is known where no cause was recognised: both versions, and torch's own words."""
    try:
        torch.cuda.init()
        words = "it gives no reason"
    except Exception as error:  # RuntimeError, AssertionError, and what else a broken installation raises
        words = str(error).strip().partition("\n")[0]
    shown = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    return (
        f"torch {torch.__version__} cannot start CUDA {torch.version.cuda} on driver "
        f"{get_driver_version() or 'of unknown version'}{shown}: {words}. See what `nvidia-smi` says of it"
    )


def get_driver_version() -> str | None:
    """Version of the NVIDIA driver, such as `570.86.15`, as the kernel or nvidia-smi tells it; None: unknown."""
    note = PROC / "version"
    text = note.read_text() if note.exists() else _run_smi("--query-gpu=driver_version", "--format=csv,noheader")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", text)
    return found[0] if found else None


def _run_smi(*words: str) -> str:
    """What nvidia-smi prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _explain_capability(index: int) -> str | None:
    """The sentence about a capability that this torch holds no code for."""
    major, minor = torch.cuda.get_device_capability(index)
    built = [arch for arch in torch.cuda.get_arch_list() if arch.startswith(("sm_", "compute_"))]
    if not built or any(_runs_on(arch, major, minor) for arch in built):
        return None
    told = f"it has capability {major}.{minor} and torch {torch.__version__} is built for {', '.join(built)}"
    if (major, minor) == (7, 0):
        return f"{told}. The last default wheels for a V100 are torch 2.10: {V100_LINE} (or -c constraints-v100.txt)"
    way = "an older" if (major, minor) < min(map(_number, built)) else "a newer"
    return f"{told}. Install {way} torch that has sm_{major}{minor}: see https://pytorch.org/get-started"


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Machine code (`sm_86`) runs on its own major version from its minor on, PTX (`compute_90`) on anything newer."""
    built = _number(arch)
    return built <= (major, minor) and (arch.startswith("compute") or built[0] == major)


def _number(arch: str) -> tuple[int, int]:
    return divmod(int("".join(filter(str.isdigit, arch.partition("_")[2]))), 10)


def _explain_failing_product(index: int) -> str | None:
    """The sentence about a GPU on which not even a small product can be computed."""
    try:
        run_small_product(index)
    except Exception as error:  # torch raises RuntimeError and children of it, which differ from version to version
        words = str(error).strip().partition("\n")[0]
        if "out of memory" in words.lower():
            return _explain_no_memory(index)
        return f"the first product on it failed: {words}. See what `nvidia-smi` says; another process may own it alone"
    return None


def run_small_product(index: int) -> None:
    """Multiply two small matrices on GPU number `index` and wait for the result; raises what torch raises."""
    a = torch.ones(256, 256, device=torch.device("cuda", index))
    (a @ a).sum().item()


def _explain_no_memory(index: int) -> str:
    """The sentence about memory that others hold."""
    gpu = f"--id={_name_for_smi(index)}"
    left = _free_memory_torch(index) or _free_memory_smi(gpu)
    holders = _run_smi(gpu, "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader").strip()
    named = f", held by process {'; '.join(holders.splitlines())}" if holders else ""
    return (
        f"it has no memory left{left}{named}. Wait for that process or end it (`nvidia-smi` lists them), or choose "
        "another GPU: CUDA_VISIBLE_DEVICES=1 grokkit ..."
    )


def _free_memory_torch(index: int) -> str:
    """Free and total memory by torch's account; nothing where even that fails for want of memory."""
    try:
        free, total = torch.cuda.mem_get_info(index)
    except Exception:  # as in `_explain_failing_product`
        return ""
    return f" ({free / 2**20:.0f} MiB free of {total / 2**20:.0f} MiB)"


def _free_memory_smi(gpu: str) -> str:
    free, _, total = (
        _run_smi(gpu, "--query-gpu=memory.free,memory.total", "--format=csv,noheader").strip().partition(", ")
    )
    return f" ({free} free of {total})" if total else ""


def _name_for_smi(index: int) -> str:
    """How nvidia-smi calls torch's GPU number `index`: the two count differently where CUDA_VISIBLE_DEVICES is set."""
    try:
        return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    except Exception:  # as in `_explain_failing_product`
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        return visible[index] if index < len(visible) else str(index)
