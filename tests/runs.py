"""Small runs that several tests share, and how two run folders are compared."""

import json
from pathlib import Path

from grokkit.config.run_config import RunConfig, spec

SMALL = RunConfig(
    experiment="small",
    data=spec("digits", size=8, train=120, test=60),
    model=spec("mlp", widths=(12, 12)),
    batch_size=50,
    steps=24,
    records=5,
    probes={"train": 20, "test": 20, "random": 10},
    measures=(
        spec("accuracy"),
        spec("loss"),
        spec("local_complexity", radii=(0.05, 0.5), directions=4, points=8),
        spec("robust_accuracy", epsilons=(0.1,), steps=2, points=8),
        spec("weight_norm"),
        spec("logit_scale"),
    ),
    attributions=(spec("saliency", images=2), spec("integrated_gradients", images=2, n_steps=4)),
    policy=spec("lc_wsd"),
    signal={"every": 4, "points": 8, "directions": 4},
)
"""Everything at once, in about a second."""


def contents(run: Path) -> dict[str, object]:
    """What a run says, file by file: bytes of the immutable files, logs without time and attempt."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".h5" and not name.startswith("resume"):
            found[name] = path.read_bytes()
        elif path.suffix == ".jsonl":
            found[name] = [stripped(json.loads(line)) for line in path.read_text().splitlines()]
    return found


def stripped(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("crc", "attempt", "time")}
