"""The crash suite, a small share of it; in full it is `make torture`."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.torture.__main__ import PARTS

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {"every_call": "strace", "lost_machines": "strace", "full_disks": "mount"}
SHARE = {"every_call": 0.02, "killed_runs": 0.05}


def missing(part: str) -> str | None:
    if part == "killed_sweeps_on_ray" and importlib.util.find_spec("ray") is None:
        return "Ray is not installed"
    program = NEEDS.get(part)
    if program and not shutil.which(program):
        return f"{program} is not installed"
    if program == "mount" and os.geteuid() != 0:
        return "a small file system is mounted by root alone"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("part", list(PARTS))
def test_nothing_acknowledged_is_lost_and_nothing_is_wrong(part: str, tmp_path: Path) -> None:
    """In a process of its own: the suite forks, and one that has threads cannot be forked safely."""
    because = missing(part)
    if because:
        assert "CI" not in os.environ, because
        pytest.skip(because)
    words = [
        part,
        "--share",
        str(SHARE.get(part, 0.03)),
        "--folder",
        str(tmp_path),
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bench.torture", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["parts"][part]
    assert found["trials"] > 0 and found["faults"] == []
    assert found["told"].get("measures taken twice", 0) == 0
