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
"""Of the speed probe: its net is `cnn`."""


def main(argv: list[str]) -> None:
    """Read the words and check."""
    parse_arguments("doctor", doctor, argv)


def doctor(runs: Path = Path("runs")) -> None:
    """Check the machine: GPUs, driver, torch, memory, precision, disk, data, versions, the speed of ten steps; exit
    code 3 where a GPU is present but unusable.

    Try:
        grokkit doctor

    Args:
        runs: folder whose disk is looked at.
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
    print(_line("speed", _speed(device)), flush=True)
    if refusal is not None:
        print(_line("verdict", "training would be refused here"))
        raise refusal
    print(_line("verdict", _conclude(device)))


def _line(name: str, value: object) -> str:
    return f"{name:10}{value}"


def _print_gpus() -> None:
    """What is there physically, and what this torch is built for."""
    import torch

    from grokkit.device.preflight import count_physical_gpus, get_driver_version

    count = count_physical_gpus()
    print(_line("GPUs", f"{count} physically present" + ("" if count else ": training goes on the CPU")))
    if count:
        print(_line("driver", get_driver_version() or "of unknown version"))
    cuda = torch.version.cuda
    built = f"with CUDA {cuda} for {' '.join(torch.cuda.get_arch_list()) or 'no GPU'}" if cuda else "for the CPU only"
    print(_line("torch", f"{torch.__version__}, built {built}"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        print(_line("visible", f"CUDA_VISIBLE_DEVICES={visible!r}"))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(number)
        print(_line(f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, capability {major}.{minor}"))


def _print_machine(device: Device, runs: Path) -> None:
    """The device that a run would have, its memory and precision; disk, data, versions."""
    from grokkit.data import names
    from grokkit.device.precision import describe_precision
    from grokkit.device.select import count_cores, describe_environment

    print(_line("device", device.description))
    print(_line("memory", _memory(device)))
    print(_line("precision", describe_precision(device.torch_device)))
    print(_line("cores", count_cores()))
    free = shutil.disk_usage(next(parent for parent in (runs.absolute(), *runs.absolute().parents) if parent.exists()))
    print(_line("disk", f"{free.free / 1e9:.1f} GB free at {runs}"))
    print(_line("data", f"{', '.join(names())}; or an .npz file, or a class folder"))
    told = describe_environment(device)
    print(_line("python", f"{told['python']} on {told['system']}"))
    print(_line("versions", ", ".join(f"{name} {version}" for name, version in told["versions"].items())))


def _memory(device: Device) -> str:
    """Free and whole memory of the GPU, or of the machine."""
    import torch

    if device.torch_device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device.torch_device)
        return f"{free / 2**30:.1f} GiB free of {whole / 2**30:.1f} GiB on the GPU"
    note = Path("/proc/meminfo")
    found = dict(line.split(":", 1) for line in note.read_text().splitlines()) if note.exists() else {}
    if not {"MemAvailable", "MemTotal"} <= found.keys():
        return "not known"
    left, total = (int(found[name].split()[0]) / 2**20 for name in ("MemAvailable", "MemTotal"))
    return f"{left:.1f} GiB free of {total:.1f} GiB"


def _speed(device: Device) -> str:
    """Ten steps of a small net, after as many that are not timed."""
    import torch

    from grokkit.data.resident import to_pixels
    from grokkit.device.select import fit_threads
    from grokkit.diagnostics.throughput import make_random_images, make_subject
    from grokkit.seeding import seeded

    data = make_random_images(BATCH)
    of = make_subject("cnn", {"channels": CHANNELS}, data, device)
    x, y = (part.to(device.torch_device) for part in (to_pixels(data.x_train), torch.from_numpy(data.y_train)))
    with fit_threads(of.macs * BATCH), seeded(0, "throughput"):
        step = of.step_for(BATCH)
        for _ in range(2):  # the second time counts
            of.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                step(x, y)
            of.synchronize()
            rate = STEPS / max(time.perf_counter() - start, 1e-9)
    return f"{rate:,.0f} steps/s of a small cnn on {BATCH} images of 3x32x32 ({STEPS} steps)"


def _conclude(device: Device) -> str:
    if device.torch_device.type == "cuda":
        return "this machine is ready: training goes on the GPU"
    return "this machine is ready, without a GPU: training goes on the CPU; `grokkit estimate EXPERIMENT` says how long"
