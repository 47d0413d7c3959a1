"""Every built-in policy, optimizer and augmentation: killed by SIGKILL in the middle of an epoch, its newest slot
damaged, and gone on with, a run ends with the bits of a straight one."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import grokkit as gk
from grokkit import policies
from grokkit.config.run_config import RunConfig, spec
from grokkit.optim.build import OPTIMIZERS
from tests.runs import SMALL, contents

BASE = SMALL.replace(
    data=spec("digits", size=8, train=60, test=20),
    model=spec("cnn", channels=(8, 8, 8, 8, 8), norm="batch"),
    optimizer=spec("sgd", lr=0.05, momentum=0.9),
    batch_size=16,
    steps=12,
    records=3,
    probes={"train": 8, "test": 8, "random": 0},
    measures=(spec("accuracy"),),
    attributions=(),
    signal={"every": 2, "points": 4, "directions": 2},
)
"""Four steps are an epoch."""
KILLED_AT = 7
PARAMETERS = {"plateau": {"patience": 1}}
AUGMENTATIONS = ("flip", "altflip", "crop2", "crop2:constant", "cutout2")

CONFIGS = (
    {f"policy {name}": BASE.replace(policy=spec(name, **PARAMETERS.get(name, {}))) for name in policies.names()}
    | {f"optimizer {name}": BASE.replace(optimizer=spec(name, lr=0.01)) for name in OPTIMIZERS}
    | {f"augmentation {name}": BASE.replace(augment=(name,)) for name in AUGMENTATIONS}
    | {"all augmentations": BASE.replace(augment=("crop2", "altflip", "cutout2"))}
)

KILLED = f"""
import json, os, signal, sys
import torch
import grokkit as gk
from grokkit.training import loop
from grokkit.config.run_config import RunConfig
from grokkit.callbacks.base import BaseCallback

torch.set_num_threads(1)
loop.SAVE_INTERVAL, loop.SAVE_SHARE = 0.0, 1e9  # a slot after every step

class Kills(BaseCallback):
    def report(self, step, values):
        if step == {KILLED_AT}:
            os.kill(os.getpid(), signal.SIGKILL)

for text in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        gk.train(RunConfig.from_toml(text), runs=sys.argv[1], device="cpu", callback=Kills())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def each_its_own(config: RunConfig, name: str) -> RunConfig:
    return config.replace(variant="".join(letter if letter.isalnum() else "_" for letter in name))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Runs of all configs, each killed."""
    runs = tmp_path_factory.mktemp("killed")
    configs = [each_its_own(config, name).to_toml() for name, config in CONFIGS.items()]
    told = subprocess.run(
        [sys.executable, "-c", KILLED, str(runs)], input=json.dumps(configs), text=True, capture_output=True
    )
    assert told.returncode == 0, told.stderr
    return runs


def damage_newest(slots: Path) -> None:
    newest = max(slots.glob("?.h5"), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 8
    newest.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_killed_run_ends_with_the_bits_of_a_straight_one(name: str, killed: Path, tmp_path: Path) -> None:
    config = each_its_own(CONFIGS[name], name)
    path = killed / config.run_name
    assert gk.open_run(path).state == "killed"
    damage_newest(path / "resume")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is damaged and was moved to")
        done = gk.resume(path, device="cpu")
    assert [e["step"] for e in done.events if e["kind"] == "resumed"] in (
        [KILLED_AT - 1],
        [KILLED_AT - 2],
        [KILLED_AT - 3],
    )
    straight = gk.train(config, runs=tmp_path, device="cpu")
    mine, theirs = contents(path), contents(straight.path)
    assert {key: mine.get(key) for key in theirs if key.endswith(".h5")} == {
        key: content for key, content in theirs.items() if key.endswith(".h5")
    }
    assert done.metrics.equals(straight.metrics.assign(run=done.name))
    decisions = [(e["step"], e["text"]) for e in done.events if e["kind"] == "policy"]
    assert decisions == [(e["step"], e["text"]) for e in straight.events if e["kind"] == "policy"]
