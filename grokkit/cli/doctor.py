"""`grokkit doctor`."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from grokkit.cli.parse import parse_arguments

if TYPE_CHECKING:
    from grokkit.device.select import Device

STEPS, BATCH, CHANNELS = 10, 64, (16, 16, 32, 32, 64)
"""Steps, batch size and channels of the speed test; its model is `cnn`."""


def main(argv: list[str]) -> None:
    """Parse arguments and check the machine."""
    parse_arguments("doctor", doctor, argv)


def doctor(runs: Path = Path("runs")) -> None:
    """Check the machine: GPUs, driver, torch, memory, precision, disk, data, versions and the speed of ten steps; exits
    with code 3 if a GPU is present but unusable.

    Try:
        grokkit doctor

    Args:
        runs: folder for the runs; the free space of its disk is shown.
    """
    from grokkit.device.select import select_device
    from grokkit.errors import DeviceRefusedError

    _print_gpus()
    refusal = None
    try:
        device = select_device()
    except DeviceRefusedError as error:
        refusal, device = error, select_device("cpu")
    _print_machine(device, runs)
    print(_format_line("speed", _measure_speed(device)), flush=True)
    if refusal is not None:
        print(_format_line("verdict", "training would be refused on this machine"))
        raise refusal
    print(_format_line("verdict", _conclude(device)))


def _format_line(name: str, value: object) -> str:
    return f"{name:10}{value}"


def _print_gpus() -> None:
    """Print the GPUs that are physically present, and the CUDA version and GPUs that this torch is built for."""
    import torch

    from grokkit.device.preflight import count_physical_gpus, get_driver_version

    count = count_physical_gpus()
    print(_format_line("GPUs", f"{count} physically present" + ("" if count else ": training runs on the CPU")))
    if count:
        print(_format_line("driver", get_driver_version() or "unknown version"))
    cuda = torch.version.cuda
    build = f"with CUDA {cuda} for {' '.join(torch.cuda.get_arch_list()) or 'no GPU'}" if cuda else "for the CPU only"
    print(_format_line("torch", f"{torch.__version__}, built {build}"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        print(_format_line("visible", f"CUDA_VISIBLE_DEVICES={visible!r}"))
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(index)
        print(_format_line(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, capability {major}.{minor}"))


def _print_machine(device: Device, runs: Path) -> None:
    """Print the device that a run would use, its memory and precision; cores, disk, data and versions."""
    from grokkit.data import names
    from grokkit.device.precision import describe_precision
    from grokkit.device.select import count_cores, describe_environment

    print(_format_line("device", device.description))
    print(_format_line("memory", _describe_memory(device)))
    print(_format_line("precision", describe_precision(device.torch_device)))
    print(_format_line("cores", count_cores()))
    free = shutil.disk_usage(next(parent for parent in (runs.absolute(), *runs.absolute().parents) if parent.exists()))
    print(_format_line("disk", f"{free.free / 1e9:.1f} GB free at {runs}"))
    print(_format_line("data", f"{', '.join(names())}; or an .npz file, or a class folder"))
    environment = describe_environment(device)
    print(_format_line("python", f"{environment['python']} on {environment['system']}"))
    print(_format_line("versions", ", ".join(f"{name} {version}" for name, version in environment["versions"].items())))


def _describe_memory(device: Device) -> str:
    """Return free and total memory of the GPU, or of the machine."""
    import torch

    if device.torch_device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device.torch_device)
        return f"{free_bytes / 2**30:.1f} GiB free of {total_bytes / 2**30:.1f} GiB on the GPU"
    file = Path("/proc/meminfo")
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines()) if file.exists() else {}
    if not {"MemAvailable", "MemTotal"} <= fields.keys():
        return "unknown"
    free, total = (int(fields[name].split()[0]) / 2**20 for name in ("MemAvailable", "MemTotal"))
    return f"{free:.1f} GiB free of {total:.1f} GiB"


def _measure_speed(device: Device) -> str:
    """Return the steps/s of a small net over ten steps, after as many warm-up steps."""
    import torch

    from grokkit.data.resident import to_pixels
    from grokkit.device.select import fit_threads
    from grokkit.diagnostics.throughput import make_random_images, make_subject
    from grokkit.seeding import seeded

    data = make_random_images(BATCH)
    subject = make_subject("cnn", {"channels": CHANNELS}, data, device)
    x, y = (tensor.to(device.torch_device) for tensor in (to_pixels(data.x_train), torch.from_numpy(data.y_train)))
    with fit_threads(subject.macs * BATCH), seeded(0, "throughput"):
        step = subject.make_step(BATCH)
        for _ in range(2):  # the first pass is the warm-up
            subject.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                step(x, y)
            subject.synchronize()
            rate = STEPS / max(time.perf_counter() - start, 1e-9)
    return f"{rate:,.0f} steps/s of a small cnn on {BATCH} images of 3x32x32 ({STEPS} steps)"


def _conclude(device: Device) -> str:
    if device.torch_device.type == "cuda":
        return "this machine is ready: training runs on the GPU"
    return "this machine is ready, without a GPU: training runs on the CPU; time it with: grokkit estimate EXPERIMENT"
