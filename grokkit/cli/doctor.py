"""`grokkit doctor`."""

from __future__ import annotations

import shutil
from pathlib import Path

from grokkit.cli.parse import parse


def main(words: list[str]) -> None:
    """Read the words and check."""
    parse("doctor", doctor, words)


def doctor(runs: Path = Path("runs")) -> None:
    """Check the machine: device, versions, disk and data; exit code 3 where a GPU is present but unusable.

    Try:
        grokkit doctor

    Args:
        runs: folder whose disk is looked at.
    """
    from grokkit.data import names
    from grokkit.training.device import environment, physical_gpus, resolve

    print(f"GPUs      {physical_gpus()} physically present")
    free = shutil.disk_usage(next(parent for parent in (runs.absolute(), *runs.absolute().parents) if parent.exists()))
    print(f"disk      {free.free / 1e9:.1f} GB free at {runs}")
    print(f"data      {', '.join(names())}; or an .npz file, or a class folder")
    device = resolve()
    print(f"device    {device.description}")
    told = environment(device)
    print(f"python    {told['python']} on {told['system']}")
    for name, version in told["versions"].items():
        print(f"{name:12}  {version}")
