"""Many seeds at once: what each run's folder holds is what a run of that seed alone holds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import grokkit as gk
from grokkit.callbacks.base import BaseCallback
from grokkit.cli import main
from grokkit.config.overrides import parse_seeds
from grokkit.config.run_config import spec
from grokkit.ensemble import vmapped
from grokkit.ensemble.stack import Stack
from grokkit.errors import GrokkitError, Interrupted, NumericsError, TrajectoryError, UnknownNameError, UsageError
from grokkit.training.trainer import build_trainer
from tests.callbacks import PressesCtrlC, RecordsCalls
from tests.runs import SMALL, contents

SEEDS = [0, 3, 7]
CONV = SMALL.replace(
    data=spec("digits", size=8, train=60, test=30),
    model=spec("cnn", channels=(4, 4, 4, 4, 4)),
    measures=("accuracy",),
    attributions=(),
    policy=spec("constant"),
    signal={},
    steps=6,
    records=3,
    batch_size=25,
)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory) -> list[gk.open_run]:
    return gk.train_seeds(SMALL, SEEDS, runs=tmp_path_factory.mktemp("stack"), device="cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[gk.open_run]:
    runs = tmp_path_factory.mktemp("alone")
    return [gk.train(SMALL.replace(seed=seed), runs=runs, device="cpu") for seed in SEEDS]


def same_to_rounding(ours: gk.open_run, theirs: gk.open_run, tolerance: float = 1e-5) -> None:
    """Weights within `tolerance` at every recorded step, batch and test metrics too; step 0 to the bit."""
    assert ours.steps() == theirs.steps() and ours.status["state"] == theirs.status["state"] == "done"
    for step in theirs.steps():
        mine, other = ours.load(step), theirs.load(step)
        assert mine.keys() == other.keys()
        for name, value in other.items():
            assert torch.allclose(mine[name].double(), value.double(), rtol=0, atol=tolerance), (step, name)
    first = "000000000000.h5"
    assert (ours.path / "snapshots" / first).read_bytes() == (theirs.path / "snapshots" / first).read_bytes()
    mine, other = ours.metrics, theirs.metrics
    assert mine[["step", "split", "metric"]].equals(other[["step", "split", "metric"]])
    smooth = (other.metric != "accuracy").to_numpy() & (other.split != "signal").to_numpy()
    assert np.allclose(mine.value[smooth], other.value[smooth], atol=1e-4)
    assert np.allclose(mine.value, other.value, atol=0.05, equal_nan=True), (
        "an image or a crossing may fall to the other side"
    )


def test_a_stack_writes_the_runs_of_its_seeds(stacked, alone) -> None:
    for ours, theirs, seed in zip(stacked, alone, SEEDS, strict=True):
        assert ours.name == theirs.name and ours.config["seed"] == seed
        mine, other = contents(ours.path), contents(theirs.path)
        assert mine.keys() == other.keys() and ours.verify() == []
        assert all(mine[name] == other[name] for name in other if name.startswith("probes/"))
        assert {path.name for path in ours.path.iterdir()} == {path.name for path in theirs.path.iterdir()}
        same_to_rounding(ours, theirs)
        assert any(event["kind"] == "policy" for event in ours.events)


def test_a_run_says_that_it_was_computed_in_a_stack(stacked, alone) -> None:
    assert stacked[1].environment["stack"] == SEEDS and "stack" not in alone[1].environment
    assert stacked[1].environment["device"].endswith("steps in a stack of 3 nets")
    assert stacked[0].status["costs"].keys() >= {"training", "snapshots", "evaluation", "signal"}


BATCHNORM = """
from torch import nn
from grokkit import RunConfig, models, spec

@models.register("flat_norm")
def flat_norm(input_shape, classes):
    first = nn.Linear(64, 16, bias=False)
    return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))

@models.register("flat_dropout")
def flat_dropout(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, classes))

@models.register("weak")
def weak(input_shape, classes):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, classes))
    if net[0].bias[0] > 0:
        raise MemoryError("planted")
    return net

def arm() -> RunConfig:
    return RunConfig(experiment="own", model=spec("flat_norm"))
"""
BARE = {"measures": (), "attributions": (), "signal": {}, "policy": spec("constant"), "steps": 12}
ARMS = {
    "sgd, cosine, augmented, crossed entropy smoothed": {
        "optimizer": spec("sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        "policy": spec("cosine"),
        "augment": ("crop1", "altflip", "cutout2"),
        "label_smoothing": 0.1,
    },
    "large weights, squared error, norm clipped": {"init_scale": 3.0, "loss": "mse", "clip": spec("norm", limit=0.5)},
    "shuffled labels, Adam, clipped by value": {
        "data": spec("digits", size=8, train=90, test=30, shuffle_labels=True),
        "clip": spec("value", limit=0.01),
        "optimizer": spec("adam", lr=0.01),
    },
    "batch norm, a validation split": {
        "model": spec("flat_norm"),
        "data": spec("digits", size=8, train=110, test=30, validation=30),
        # Adam would enlarge the gradients that are 0 but for rounding
        "optimizer": spec("sgd", lr=0.05),
    },
    "rates that come to differ": {
        "policy": spec("plateau", patience=0, threshold=0.01, factor=0.5),
        "steps": 16,
        "optimizer": spec("sgd", lr=0.1, momentum=0.9),
    },
}


@pytest.fixture(scope="module", autouse=True)
def own_models(tmp_path_factory) -> None:
    from grokkit.registry import import_study

    file = tmp_path_factory.mktemp("study") / "study.py"
    file.write_text(BATCHNORM)
    import_study(file)


@pytest.mark.parametrize("arm", ARMS)
def test_every_way_of_training_is_the_same_in_a_stack(arm: str, tmp_path: Path) -> None:
    config = SMALL.replace(**BARE | ARMS[arm])
    ours = gk.train_seeds(config, SEEDS, runs=tmp_path / "stack", device="cpu")
    rates = []
    for run, seed in zip(ours, SEEDS, strict=True):
        same_to_rounding(run, gk.train(config.replace(seed=seed), runs=tmp_path / "alone", device="cpu"), 1e-4)
        rates.append(run.metrics.query("metric == 'learning_rate'").value.tolist())
        assert "stack" in run.environment
    assert (len({tuple(each) for each in rates}) > 1) == arm.startswith("rates"), "whether this tests what it says"


@pytest.mark.parametrize(
    "optimizer", [spec("adamw", lr=0.01), spec("sgd", lr=0.1, momentum=0.9), spec("muon", lr=0.01)]
)
def test_one_folder_of_an_interrupted_stack_is_resumed_alone(optimizer, tmp_path: Path, capsys) -> None:
    config = SMALL.replace(**BARE | {"optimizer": optimizer, "policy": spec("cosine")})
    with pytest.raises(Interrupted, match=r"Interrupted at step \d+/12\. Resume with: grokkit resume \S+ \S+ \S+$"):
        gk.train_seeds(config, SEEDS, runs=tmp_path / "parts", device="cpu", callback=PressesCtrlC(6))
    paths = [tmp_path / "parts" / config.replace(seed=seed).run_name for seed in SEEDS]
    assert [gk.open_run(path).status["state"] for path in paths] == ["interrupted"] * 3
    assert main(["resume", *map(str, paths[1:]), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("done at step 12") == 2
    assert [gk.open_run(path).status["state"] for path in paths] == ["interrupted", "done", "done"]
    for path, seed in zip(paths[1:], SEEDS[1:], strict=True):
        straight = gk.train(config.replace(seed=seed), runs=tmp_path / "alone", device="cpu")
        same_to_rounding(gk.open_run(path), straight, 1e-4)


def test_a_slot_of_a_stack_has_the_form_of_a_slot_alone(stacked, alone) -> None:
    from grokkit.trajectory import resume

    (_, mine), (_, other) = (resume.ResumeStore(runs[1].path / "resume").load() for runs in (stacked, alone))
    assert mine["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    for number, state in other["optimizer"]["state"].items():
        for key, value in state.items():
            assert mine["optimizer"]["state"][number][key].shape == value.shape
            assert torch.allclose(mine["optimizer"]["state"][number][key], value, atol=1e-5), key
    assert mine["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    assert torch.equal(mine["rng"]["cpu"], other["rng"]["cpu"])
    assert {key: value for key, value in mine["parts"]["policy"].items() if key != "decisions"}.keys() == {
        key for key in other["parts"]["policy"] if key != "decisions"
    }


def poison_the_second(monkeypatch) -> None:
    """The second of three nets in a stack learns nothing but NaN from its sixth update on."""
    backward, calls = Stack.backward, []

    def poisons(self, x, y):
        calls.append(1)
        if len(self) == 3 and len(calls) == 7:  # the first call is the trial's
            self.models[1].net.head.weight.data.fill_(float("nan"))
        return backward(self, x, y)

    monkeypatch.setattr(Stack, "backward", poisons)


def test_a_seed_whose_loss_is_lost_does_not_take_the_others_with_it(tmp_path: Path, monkeypatch) -> None:
    config = SMALL.replace(**BARE)
    whole = gk.train_seeds(config, SEEDS, runs=tmp_path / "whole", device="cpu")
    poison_the_second(monkeypatch)
    with pytest.raises(
        NumericsError, match=r"1 of 3 seeds failed, the others are done. seed 3: the training loss is nan"
    ):
        gk.train_seeds(config, SEEDS, runs=tmp_path / "hurt", device="cpu")
    runs = [gk.open_run(tmp_path / "hurt" / config.replace(seed=seed).run_name) for seed in SEEDS]
    assert [run.status["state"] for run in runs] == ["done", "failed", "done"]
    assert "NumericsError: the training loss is nan in the batches up to step 6" in runs[1].status["reason"]
    assert max(runs[1].steps()) < 12 and runs[1].verify() == []
    for place in (0, 2):
        last, other = runs[place].load(12), whole[place].load(12)
        assert all(torch.equal(last[name], other[name]) for name in other)


def test_a_stack_that_is_stopped_tells_of_the_seeds_it_had_lost(tmp_path: Path, monkeypatch) -> None:
    poison_the_second(monkeypatch)
    with pytest.raises(Interrupted, match=r"grokkit resume \S+ \S+; seed 3 had failed: the training loss is nan"):
        gk.train_seeds(SMALL.replace(**BARE), SEEDS, runs=tmp_path, device="cpu", callback=PressesCtrlC(10))


def test_a_stack_whose_every_seed_is_lost_ends_early(tmp_path: Path) -> None:
    config = SMALL.replace(**BARE | {"optimizer": spec("sgd", lr=1e30), "steps": 400})
    with pytest.raises(NumericsError, match="3 of 3 seeds failed"):
        gk.train_seeds(config, SEEDS, runs=tmp_path, device="cpu")
    assert all(gk.open_run(tmp_path / config.replace(seed=seed).run_name).status["step"] < 100 for seed in SEEDS)


def test_the_company_of_a_stack_hears_means_and_costs(tmp_path: Path) -> None:
    callbacks = RecordsCalls()
    runs = gk.train_seeds(SMALL.replace(**BARE), SEEDS, runs=tmp_path, device="cpu", callback=callbacks)
    losses = [run.metrics.query("split == 'batch' and metric == 'loss' and step == 8").value.item() for run in runs]
    assert callbacks.reports[8]["loss"] == pytest.approx(sum(losses) / 3)
    assert sorted(callbacks.reports) == list(range(1, 13))
    assert callbacks.title.startswith("3 seeds in a stack, below ") and callbacks.summary.startswith(
        "per run: training "
    )


def test_which_nets_are_stacked_and_why_the_others_are_not() -> None:
    def because(**changes) -> str | None:
        return vmapped.find_stack_obstacle(build_trainer(SMALL.replace(**changes), torch.device("cpu")))

    assert because() is None and because(model=spec("flat_norm")) is None
    assert "convolutions become grouped" in because(model=CONV.model)
    assert "torch.func does not support this model" in because(model=spec("flat_dropout"))
    trainer = build_trainer(SMALL.replace(model=spec("flat_norm")), torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    vmapped.find_stack_obstacle(trainer)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_seeds_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path, capsys) -> None:
    for seeds, came in (
        ([0, 0, 2, 2], "0, 2 more than once"),
        ([], "none"),
        ([-1], "-1"),
        ([1.5], "1.5"),
        ([True], "True"),
    ):
        with pytest.raises(UsageError, match=f"at least one and no two the same; got {came}"):
            gk.train_seeds(SMALL, seeds, runs=tmp_path, device="cpu")
    with pytest.raises(UnknownNameError, match="Did you mean 'weight_norm'"):
        gk.train_seeds(SMALL.replace(measures=(spec("weight_nrom"),)), SEEDS, runs=tmp_path, device="cpu")
    with pytest.raises(UsageError, match="radi"):  # found at step 0 only
        gk.train_seeds(
            SMALL.replace(measures=(spec("local_complexity", radii=(-1.0,)),)), SEEDS, runs=tmp_path, device="cpu"
        )
    assert not any(tmp_path.rglob("*.h5"))
    there = tmp_path / SMALL.replace(seed=3).run_name
    there.mkdir(parents=True)
    with pytest.raises(TrajectoryError, match=rf"{there} already exists, and a run is never overwritten"):
        gk.train_seeds(SMALL, SEEDS, runs=tmp_path, device="cpu")
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_a_measure_that_fails_at_the_first_step_of_a_later_seed_leaves_no_folder(tmp_path: Path, monkeypatch) -> None:
    from grokkit.measures.weight_norm import WeightNorm

    taken, calls = WeightNorm.__call__, []

    def fails_at_the_second(self, context):
        calls.append(1)
        if len(calls) == 2:
            raise NumericsError("planted")
        return taken(self, context)

    monkeypatch.setattr(WeightNorm, "__call__", fails_at_the_second)
    config = SMALL.replace(**BARE | {"measures": (spec("weight_norm"),)})
    with pytest.raises(NumericsError, match="planted"):
        gk.train_seeds(config, SEEDS, runs=tmp_path, device="cpu")
    assert not any(tmp_path.rglob("config.toml"))


def test_seeds_on_the_command_line() -> None:
    assert (
        parse_seeds("0-3") == [0, 1, 2, 3] and parse_seeds("0,3, 7") == [0, 3, 7] and parse_seeds("0-1,9") == [0, 1, 9]
    )
    for wrong in ("3-1", "", "a", "0,,1", "-1", "1-", "1-2-3", "0.5"):
        with pytest.raises(UsageError, match="takes numbers and increasing ranges, such as 0-31"):
            parse_seeds(wrong)
    with pytest.raises(UsageError, match="contains a seed more than once: 0-3,2"):
        parse_seeds("0-3,2")


def test_the_command_trains_the_seeds_it_is_given(tmp_path: Path, capsys) -> None:
    words = ["train", "quickstart:constant", "--steps", "3", "--runs", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--seeds", "3-1"]) == 2 and main([*words, "--seeds", "0", "--seed", "1"]) == 2
    assert not any(tmp_path.iterdir())
    assert main([*words, "--seeds", "0,2"]) == 0
    assert capsys.readouterr().out.count("done at step 3") == 2
    assert main([*words, "--seeds", "1-2"]) == 4
    assert len(list((tmp_path / "quickstart").iterdir())) == 2


@pytest.mark.slow
def test_convolutional_seeds_get_processes_and_equal_runs_alone_bit_for_bit(tmp_path: Path) -> None:
    callbacks = RecordsCalls()
    runs = gk.train_seeds(CONV, [0, 5], runs=tmp_path / "apart", device="cpu", callback=callbacks)
    assert "processes at a time: stacked convolutions become grouped ones" in callbacks.title
    for run, seed in zip(runs, [0, 5], strict=True):
        other = gk.train(CONV.replace(seed=seed), runs=tmp_path / "alone", device="cpu")
        assert contents(run.path) == contents(other.path)
        assert (run.path / "config.toml").read_text() == (other.path / "config.toml").read_text()
    assert max(callbacks.reports) == 12 and callbacks.reports[12]["loss"] > 0


@pytest.mark.slow
def test_a_process_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """`weak` fails for the seeds whose first bias is positive; it is known to the processes by the study's text."""
    config = CONV.replace(model=spec("weak"))
    good, bad = [], []
    for seed in range(8):
        try:
            build_trainer(config.replace(seed=seed), torch.device("cpu"))
            good.append(seed)
        except Exception:
            bad.append(seed)
    seeds = [good[0], bad[0], good[1]]
    with pytest.raises(GrokkitError, match=rf"1 of 3 .* seed {bad[0]}: ") as raised:
        gk.train_seeds(config, seeds, runs=tmp_path, device="cpu", experiment=BATCHNORM)
    assert "planted" in str(raised.value) or "exit code 1" in str(raised.value)
    for seed in (good[0], good[1]):
        assert gk.open_run(tmp_path / config.replace(seed=seed).run_name).status["state"] == "done"


@pytest.mark.slow
def test_ctrl_c_reaches_the_processes(tmp_path: Path) -> None:
    config = CONV.replace(steps=100_000, records=2)
    with pytest.raises(Interrupted, match=r"Interrupted\. Resume with: grokkit resume \S+") as raised:
        gk.train_seeds(config, range(6), runs=tmp_path, device="cpu", callback=PressesCtrlC(501))
    assert "seeds not started" in str(raised.value)
    saved = [Path(word) for word in str(raised.value).split("grokkit resume ")[1].split(";")[0].split()]
    assert saved and all(gk.open_run(path).status["state"] == "interrupted" for path in saved)


class SavesThenStops(BaseCallback):
    """Sends SIGUSR1 at the first report, and Ctrl-C when a slot is there or 15 s have brought none."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.saving, self.stopped, self.slots = runs, 0.0, False, 0

    def report(self, step, values):
        if not self.saving:
            os.kill(os.getpid(), signal.SIGUSR1)
            self.saving = time.monotonic()
        elif not self.stopped:
            self.slots = len(list(self.runs.rglob("resume/*.h5")))
            self.stopped = self.slots > 0 or time.monotonic() - self.saving > 15
            if self.stopped:
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_wish_to_save_reaches_the_processes(tmp_path: Path) -> None:
    callbacks = SavesThenStops(tmp_path)
    with pytest.raises(Interrupted):
        gk.train_seeds(
            CONV.replace(steps=100_000, records=2), range(2), runs=tmp_path, device="cpu", callback=callbacks
        )
    assert callbacks.slots >= 1


@pytest.mark.slow
def test_processes_save_and_stop_where_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import grokkit as gk\nfrom grokkit.config.run_config import RunConfig\n"
        f"config = RunConfig.from_toml({CONV.replace(steps=100_000, records=2).to_toml()!r})\n"
        f"gk.train_seeds(config, [0, 1], runs={str(tmp_path)!r}, device='cpu')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("status.json"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline:
        states = [json.loads(path.read_text())["state"] for path in tmp_path.rglob("status.json")]
        if states and set(states) == {"interrupted"}:
            break
        time.sleep(0.2)
    assert states and set(states) == {"interrupted"}
