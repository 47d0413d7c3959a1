"""The crash suite, a small share of it; in full it is `make torture`."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from bench.torture.__main__ import PARTS

NEEDS = {"every_call": "strace", "lost_machines": "strace", "full_disks": "mount"}
SHARE = {"every_call": 0.02, "killed_runs": 0.05}


def missing(part: str) -> str | None:
    program = NEEDS.get(part)
    if program and not shutil.which(program):
        return f"{program} is not installed"
    if program == "mount" and os.geteuid() != 0:
        return "a small file system is mounted by root alone"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("part", list(PARTS))
def test_nothing_acknowledged_is_lost_and_nothing_is_wrong(part: str, tmp_path: Path) -> None:
    because = missing(part)
    if because:
        assert "CI" not in os.environ, because
        pytest.skip(because)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = PARTS[part](SHARE.get(part, 0.03), tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found.trials > 0 and found.faults == []
    assert found.told.get("measures taken twice", 0) == 0
