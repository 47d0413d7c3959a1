"""One run in two processes: the weights of a run alone, one folder, stopped and gone on with together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.config.run_config import RunConfig, spec
from grokkit.training.ranks import Ranks
from tests.runs import SMALL, contents

CONFIG = SMALL.replace(
    data=spec("digits", size=8, train=110, test=40),
    batch_size=50,
    steps=40,
    records=4,
    augment=("crop1", "flip"),
    optimizer=spec("sgd", lr=0.05, momentum=0.9),
    measures=(spec("accuracy"), spec("local_complexity", radii=(0.05,))),
    attributions=(spec("saliency", images=2),),
    policy=spec("lc_wsd"),
)
"""The last batch of an epoch has 10 images."""

TRAINS = """
import sys
import grokkit as gk
from pathlib import Path
from grokkit.errors import GrokkitError
from grokkit.config.run_config import RunConfig
from grokkit.callbacks.base import BaseCallback
from grokkit.training.ranks import is_rank_zero

class Slow(BaseCallback):
    def report(self, step, values):
        if is_rank_zero():
            print("step", step, flush=True)
        import time; time.sleep(float(sys.argv[3]))

try:
    config = RunConfig.from_toml(Path(sys.argv[1]).read_text())
    path = Path(sys.argv[2]) / config.run_name
    if path.exists() and len(sys.argv) > 4:
        gk.resume(path, device="cpu", callback=Slow())
    else:
        gk.train(config, runs=sys.argv[2], device="cpu", callback=Slow())
except GrokkitError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def torchrun(folder: Path, config: RunConfig, *words: str, processes: int = 2) -> subprocess.Popen:
    """Start `config` in two processes, whose runs go to `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "trains.py").write_text(TRAINS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(folder / "trains.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(folder / "config.toml"), str(folder), *(words or ("0",))],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return out


def near(mine: Path, other: Path, tolerance: float) -> None:
    left, right = gk.open_run(mine), gk.open_run(other)
    assert left.steps() == right.steps()
    for step in left.steps():
        for (name, tensor), expected in zip(left.load(step).items(), right.load(step).values(), strict=True):
            assert torch.allclose(tensor, expected, atol=tolerance), (step, name)


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(tmp_path: Path) -> None:
    ended(torchrun(tmp_path / "two", CONFIG))
    alone = gk.train(CONFIG, runs=tmp_path, device="cpu")
    two = gk.open_run(tmp_path / "two" / CONFIG.run_name)
    near(two.path, alone.path, 1e-5)
    assert two.status["state"] == "done" and "2 processes" in two.environment["device"]
    assert contents(two.path).keys() == contents(alone.path).keys()
    mine, theirs = (run.metrics.set_index(["step", "split", "metric"]).value for run in (two, alone))
    assert mine.index.equals(theirs.index)
    batch = mine.index.get_level_values("split") == "batch"
    assert (mine - theirs)[batch].abs().max() < 1e-5, "loss and accuracy are those of the whole batches"
    assert [e["text"] for e in two.events if e["kind"] == "policy"] == [
        e["text"] for e in alone.events if e["kind"] == "policy"
    ]


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    config = CONFIG.replace(steps=200, model=spec("mlp", widths=(12, 12)))
    ended(torchrun(tmp_path / "straight", config))
    process = torchrun(tmp_path / "parts", config, "0.02")
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1]) > 30:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    run = gk.open_run(tmp_path / "parts" / config.run_name)
    for _ in range(100):
        if run.status["state"] == "interrupted":
            break
        time.sleep(0.1)
    assert run.status["state"] == "interrupted" and 30 < run.status["step"] < 200
    assert re.search(r"Interrupted at step \d+/200\. Resume with: grokkit resume", run.status["reason"])
    ended(torchrun(tmp_path / "parts", config, "0", "resume"))
    straight = gk.open_run(tmp_path / "straight" / config.run_name)
    assert run.status["state"] == "done" and run.status["attempt"] == 2
    mine, theirs = contents(run.path), contents(straight.path)
    assert {k: mine[k] for k in mine if k.endswith(".h5")} == {k: theirs[k] for k in theirs if k.endswith(".h5")}
    assert run.metrics.equals(straight.metrics.assign(run=run.name))


@pytest.mark.slow
def test_a_batch_with_fewer_images_than_processes_is_refused(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "small", CONFIG.replace(data=spec("digits", size=8, train=101, test=40)))
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "the last batch of an epoch has 1 images, fewer than the 2 processes" in errors
    assert not list((tmp_path / "small").glob("small/*"))


def test_a_process_alone_is_its_own_team() -> None:
    team, model = Ranks(), nn.Linear(2, 2)
    x, y = torch.rand(5, 2), torch.arange(5)
    assert team.shard(x, y) == (x, y) and team.wrap(model) is model
    assert (
        team.on_rank_zero(lambda: 3, broadcast=False) == 3
        and team.any_rank(7, True, False) == (True, False)
        and team.resume_parts() == {}
    )
