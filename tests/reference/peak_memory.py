"""Peak memory of one measurement of local complexity, in a process of its own; Linux only (reads /proc)."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def peak_above_model(contender: str, *, width: int, side: int, points: int, directions: int, threads: int = 1) -> float:
    """MB by which the peak of one call exceeds what imports, weights and images already take.

    Args:
        contender: "vertex", "tangent", "published", or "segment": the exact partition of the first `directions`
            thousandths of the line between two images.
        width, side: of PreActResNet-18 without BatchNorm and of its random square images.
        points, directions: N and P.
        threads: of torch.
    """
    settings = json.dumps([contender, width, side, points, directions, threads])
    command = [sys.executable, "-m", "tests.reference.peak_memory", settings]
    # large blocks go back to the system when freed: the peak is what the call held, not what the allocator kept
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return float(done.stdout)


def _memory(field: str) -> float:
    """MB: `VmRSS` now, `VmHWM` at its largest."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def _measure(contender: str, width: int, side: int, points: int, directions: int, threads: int) -> float:
    import torch

    from grokkit import models
    from grokkit.spline import draw_orthonormal_frame, local_complexity, partition_segment
    from tests.reference.published_lc import published_counts

    torch.set_num_threads(threads)
    net = models.create("preact_resnet18", (3, side, side), 10, width=width, norm="none").eval()
    images = torch.randn(points, 3, side, side)
    frame = draw_orthonormal_frame(directions, images[0].numel())

    def count(rows: int, lines: int) -> None:
        if contender == "segment":
            partition_segment(net, images[0], torch.lerp(images[0], images[1], lines / 1000))
        elif contender == "published":
            published_counts(net, images[:rows], frame[:lines], 0.005)
        else:
            local_complexity(net, images[:rows], method=contender, frame=frame[:lines])

    count(1, 1)  # what torch loads at the first call is not the measurement's
    before = _memory("VmRSS")
    count(points, directions)
    return _memory("VmHWM") - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=json.loads)
    print(_measure(*parser.parse_args().settings))
