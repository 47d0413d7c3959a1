"""The loop, the recorder and resuming: one trajectory whoever writes it and however often it is interrupted."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

import grokkit as gk
from grokkit.config.run_config import spec
from grokkit.errors import DataError, Interrupted, NumericsError, TrajectoryError, UsageError
from grokkit.measures.loss import get_loss
from grokkit.training import loop, trainer
from grokkit.training.build import clip_gradients
from grokkit.training.meter import Meter
from grokkit.training.trainer import build_trainer
from tests.callbacks import PressesCtrlC
from tests.runs import SMALL, contents


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> gk.open_run:
    return gk.train(SMALL, runs=tmp_path_factory.mktemp("runs"), device="cpu")


def test_a_run_holds_what_its_config_asks_for(straight) -> None:
    assert straight.status["state"] == "done" and straight.status["step"] == 24
    assert straight.steps() == list(gk.log_spaced(5, 24))
    assert {name.rpartition("-")[0] for name in straight.measures()} == {each.name for each in SMALL.measures}
    assert all(steps == straight.steps() for steps in straight.measures().values())
    assert {name.rpartition("-")[0] for name in straight.attributions()} == {"saliency", "integrated_gradients"}
    assert straight.verify() == []
    metrics = straight.metrics
    assert set(metrics.split) == {"batch", "test_set", "signal"}
    assert metrics[(metrics.split == "signal") & (metrics.metric == "log_density")].step.tolist() == list(
        range(0, 25, 4)
    )
    assert any(event["kind"] == "policy" for event in straight.events)


def test_a_plain_loop_with_a_recorder_writes_the_same_run(straight, tmp_path: Path) -> None:  # noqa: C901
    trainer = build_trainer(SMALL, torch.device("cpu"))
    model, loss_of = trainer.model, get_loss(SMALL.loss)
    images, labels = torch.from_numpy(trainer.dataset.x_test).float() / 255, torch.from_numpy(trainer.dataset.y_test)

    def whole_test(step: int) -> None:
        model.eval()
        with torch.no_grad():
            logits = model(images)
        right = (logits.argmax(1) == labels).double().mean().item()
        rec.log(step, "test_set", loss=loss_of(logits, labels).double().item(), accuracy=right)
        model.train()

    rec = gk.record(
        tmp_path / "plain",
        model,
        trainer.optimizer,
        probes=gk.probe_sets(trainer.dataset, **SMALL.probes),
        measures=SMALL.measures,
        attributions=SMALL.attributions,
        schedule=gk.log_spaced(SMALL.records, SMALL.steps),
        signal=gk.Signal(**SMALL.signal),
        seed=SMALL.seed,
        loss=SMALL.loss,
        total_steps=SMALL.steps,
        config=SMALL,
    )
    policy = gk.PolicyLR(trainer.optimizer, "lc_wsd", SMALL.steps)
    waiting = None

    def report() -> None:
        """Batch metrics are read one step late."""
        if waiting is not None:
            step, loss, accuracy = waiting
            rec.log(step, "batch", loss=loss, accuracy=accuracy)
            policy.observe({"train_loss": loss})

    whole_test(0)
    for step in range(1, SMALL.steps + 1):
        x, y = trainer.batches.at(step)
        logits = model(x)
        loss = loss_of(logits, y)
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        report()
        waiting = step, loss.item(), (logits.argmax(1) == y).double().mean().item()
        rec.log(step, "batch", learning_rate=trainer.optimizer.param_groups[0]["lr"])
        if step == SMALL.steps:
            report()
        policy.observe(rec.step(step))
        if rec.is_due(step):
            whole_test(step)
        policy.step()
        for decision in policy.decisions:
            if decision["step"] == policy.updates:
                rec.event(decision["step"], "policy", decision["reason"], lr=decision["lr"])
    rec.save(SMALL.steps, policy=policy)
    rec.close()
    mine, theirs = contents(tmp_path / "plain"), contents(straight.path)
    assert mine.keys() == theirs.keys()
    logs = {name for name in mine if name.endswith(".jsonl")}
    for name in mine.keys() - logs:
        assert mine[name] == theirs[name], name
    for name in logs:
        assert len(mine[name]) == len(theirs[name]), name
        for ours, other in zip(mine[name], theirs[name], strict=True):
            assert ours.keys() == other.keys()
            assert ours == {key: pytest.approx(value, abs=1e-6, nan_ok=True) for key, value in other.items()}
    assert (tmp_path / "plain" / "config.toml").read_text() == (straight.path / "config.toml").read_text()


@pytest.mark.parametrize("at", [2, 11, 16, 23])
def test_interrupted_and_resumed_equals_straight_bit_for_bit(straight, tmp_path: Path, at: int) -> None:
    with pytest.raises(Interrupted, match=rf"Interrupted at step {at}/24\. Resume with: grokkit resume"):
        gk.train(SMALL, runs=tmp_path, device="cpu", callback=PressesCtrlC(at))
    path = tmp_path / SMALL.run_name
    assert gk.open_run(path).status["state"] == "interrupted"
    done = gk.resume(path, device="cpu")
    assert done.status["state"] == "done" and done.status["attempt"] == 2
    mine, theirs = contents(path), contents(straight.path)
    mine["events.jsonl"] = [event for event in mine["events.jsonl"] if event["kind"] != "resumed"]
    assert mine == theirs
    assert gk.resume(path).status["attempt"] == 2, "a finished run is left alone"


def test_a_run_without_a_slot_starts_again_and_writes_the_same(straight, tmp_path: Path, monkeypatch) -> None:
    report = loop._log_meter

    def dies(trainer, recorder, callback) -> None:
        if trainer.policy.updates == 12:
            raise MemoryError("killed")
        report(trainer, recorder, callback)

    monkeypatch.setattr(loop, "_log_meter", dies)
    with pytest.raises(MemoryError):
        gk.train(SMALL, runs=tmp_path, device="cpu")
    monkeypatch.undo()
    path = tmp_path / SMALL.run_name
    assert gk.open_run(path).status["state"] == "failed"
    (path / "snapshots" / "000000000000.h5").unlink()  # as if killed within the very first record
    done = gk.resume(path, device="cpu")
    theirs, mine = contents(straight.path), contents(path)
    assert {name: mine[name] for name in mine if name.endswith(".h5")} == {
        name: theirs[name] for name in theirs if name.endswith(".h5")
    }
    assert [e for e in done.events if e["kind"] == "policy"] != []
    assert done.metrics.equals(straight.metrics.assign(run=done.name))
    decisions = [(event["step"], event["text"]) for event in done.events if event["kind"] == "policy"]
    assert decisions == [(event["step"], event["text"]) for event in straight.events if event["kind"] == "policy"]


def test_the_batch_metrics_go_on_in_the_middle_of_their_window(tmp_path: Path, monkeypatch) -> None:
    """Reports every 6 steps, a slot after every step, and the process dies at 15."""
    monkeypatch.setattr(loop, "REPORTS", 4)
    config = SMALL.replace(measures=(), attributions=())
    whole = gk.train(config, runs=tmp_path / "a", device="cpu")
    monkeypatch.setattr(loop, "SAVE_INTERVAL", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 1e9)
    clip = trainer.clip_gradients
    calls: list[int] = []

    def dies(*arguments) -> None:
        calls.append(1)
        if len(calls) == 16:
            raise MemoryError("killed")
        clip(*arguments)

    monkeypatch.setattr(trainer, "clip_gradients", dies)
    with pytest.raises(MemoryError):
        gk.train(config, runs=tmp_path / "b", device="cpu")
    parts = gk.resume(tmp_path / "b" / config.run_name, device="cpu")
    assert len(calls) == 16 + 24 - 15
    assert parts.metrics.equals(whole.metrics.assign(run=parts.name))


@pytest.mark.slow
def test_dropout_is_repeatable_and_the_callers_random_state_untouched(tmp_path: Path) -> None:
    config = SMALL.replace(
        data=spec("digits", size=32, train=60, test=20),
        model=spec("nin"),
        measures=(),
        attributions=(),
        policy=spec("constant"),
        signal={},
        steps=3,
        batch_size=20,
        probes={"train": 8, "test": 8, "random": 0},
    )
    finals = []
    for place in ("a", "b"):
        torch.manual_seed(len(finals))
        before = torch.get_rng_state()
        finals.append(gk.train(config, runs=tmp_path / place, device="cpu").load(3))
        assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(Interrupted):
        gk.train(config, runs=tmp_path / "c", device="cpu", callback=PressesCtrlC(2))
    finals.append(gk.resume(tmp_path / "c" / config.run_name, device="cpu").load(3))
    for other in finals[1:]:
        assert all(torch.equal(finals[0][name], other[name]) for name in other)


SGD = spec("sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
BATCHNORM = spec("cnn", channels=(8, 8, 8, 8, 8), norm="batch")
ARMS = {
    "cosine, SGD, augmented": {"policy": "cosine", "optimizer": SGD, "augment": ("crop2", "flip", "cutout2")},
    "one-cycle, Adam, clipped by value": {
        "policy": "one_cycle",
        "optimizer": spec("adam", lr=0.01, betas=(0.9, 0.99)),
        "clip": spec("value", limit=0.1),
    },
    "plateau, clipped by norm, smoothed": {
        "policy": spec("plateau", patience=1),
        "clip": spec("norm", limit=0.5),
        "label_smoothing": 0.1,
        "loss": "mse",
    },
    "wsd, BatchNorm in channels_last": {"policy": "wsd", "model": BATCHNORM, "data": spec("digits", size=32, train=60)},
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_way_of_training_resumes_to_the_same_bits(arm: str, tmp_path: Path) -> None:
    config = SMALL.replace(
        **{"measures": (), "attributions": (), "signal": {}, "batch_size": 16, "steps": 12, "data": "digits"}
        | ARMS[arm]
    )
    straight = gk.train(config, runs=tmp_path / "straight", device="cpu")
    with pytest.raises(Interrupted):
        gk.train(config, runs=tmp_path / "parts", device="cpu", callback=PressesCtrlC(5))
    parts = gk.resume(tmp_path / "parts" / config.run_name, device="cpu")
    first, last, resumed = straight.load(0), straight.load(12), parts.load(12)
    assert any(not torch.equal(first[name], last[name]) for name in first), "it learned something"
    assert all(torch.equal(last[name], resumed[name]) for name in last)
    assert parts.metrics.equals(straight.metrics.assign(run=parts.name))
    rates = straight.metrics.query("metric == 'learning_rate'").value
    assert rates.nunique() > 1 or arm.startswith("plateau")


def test_a_decision_made_before_the_first_step_is_told(tmp_path: Path) -> None:
    config = SMALL.replace(
        policy=spec("wsd", warmup=0.0, decay_share=1.0), measures=(), attributions=(), signal={}, steps=4
    )
    run = gk.train(config, runs=tmp_path, device="cpu")
    assert [event["step"] for event in run.events if event["kind"] == "policy"] == [0]


def test_gradients_are_clipped_by_value_and_by_norm() -> None:
    model = nn.Linear(2, 1, bias=False)
    for clip, expected in (
        (None, [3.0, -4.0]),
        (spec("value", limit=1), [1.0, -1.0]),
        (spec("norm", limit=1), [0.6, -0.8]),
    ):
        model.weight.grad = torch.tensor([[3.0, -4.0]])
        clip_gradients(clip, model)
        assert model.weight.grad[0].tolist() == pytest.approx(expected, abs=1e-5)


STUDY = '''
from dataclasses import dataclass
import numpy as np
from torch import nn
from grokkit import Reading, RunConfig, measures, models, spec

@models.register("own_net")
def own_net(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))

@measures.register("own_measure")
@dataclass(frozen=True)
class OwnMeasure:
    def __call__(self, context):
        """Unit: ones."""
        return Reading("own_measure", np.array(1.0), (), {}, "ones")

def arm() -> RunConfig:
    return RunConfig(
        experiment="own", model=spec("own_net"), measures=(spec("own_measure"),), steps=8, batch_size=50, records=3,
        probes={"train": 8, "test": 8},
    )
'''


def test_what_the_studys_own_file_registers_is_known_to_resume_and_replay(tmp_path: Path) -> None:
    """In a fresh process, as on the next morning."""
    (tmp_path / "study.py").write_text(STUDY)
    script = (
        "import os, signal, sys\nimport grokkit as gk\nfrom grokkit import recipes\n"
        "from grokkit.callbacks.base import BaseCallback\n"
        "class Stops(BaseCallback):\n"
        "    def report(self, step, values):\n"
        "        if step == 4: os.kill(os.getpid(), signal.SIGINT)\n"
        "found = recipes.find_experiment('study.py')\n"
        "gk.train(found.variants['arm'](), device='cpu', callback=Stops(), experiment=found.source)\n"
    )
    first = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "Interrupted" in first.stderr, first.stderr
    (tmp_path / "study.py").unlink()
    (path,) = (tmp_path / "runs" / "own").iterdir()
    run = gk.resume(path, device="cpu")
    assert run.status["state"] == "done" and len(next(iter(run.measures().values()))) == len(run.steps())
    assert gk.replay_run(run, ["accuracy"], device="cpu") == len(run.steps())


def test_replay_needs_no_data_and_resume_knows_other_data(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (40, 8, 8, 1), np.uint8) for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(40) % 10 for split in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays)
    config = SMALL.replace(data=spec(str(tmp_path / "own.npz")), measures=(), attributions=())
    with pytest.raises(Interrupted):
        gk.train(config, runs=tmp_path, device="cpu", callback=PressesCtrlC(12))
    path = tmp_path / config.run_name
    np.savez(tmp_path / "own.npz", **{**arrays, "x_train": 255 - arrays["x_train"]})
    with pytest.raises(DataError, match="the data differ from those the run began with"):
        gk.resume(path, device="cpu")
    (tmp_path / "own.npz").unlink()
    assert gk.replay_run(path, ["weight_norm"], device="cpu") == len(gk.open_run(path).steps())


def test_readings_say_how_they_were_taken(straight) -> None:
    identity = next(name for name in straight.measures() if name.startswith("local_complexity"))
    settings = straight.reading(identity, 0).settings
    assert settings["parameters"]["radii"] == [0.05, 0.5] and settings["seed"] == 0 and settings["directions"] == 4


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    config = SMALL.replace(optimizer=spec("sgd", lr=1e30), policy=spec("constant"), measures=(), attributions=())
    with pytest.raises(NumericsError, match=r"the training loss is (nan|inf) in the batches up to step \d+. Snapshots"):
        gk.train(config, runs=tmp_path, device="cpu")
    run = gk.open_run(tmp_path / config.run_name)
    assert run.status["state"] == "failed" and "NumericsError" in run.status["reason"]
    assert run.steps()[0] == 0 and run.verify() == []


def test_an_existing_folder_is_never_overwritten(straight) -> None:
    before = contents(straight.path)
    with pytest.raises(TrajectoryError, match="already exists; a run is never overwritten"):
        gk.train(SMALL, runs=straight.path.parents[1], device="cpu")
    assert contents(straight.path) == before


def test_a_wrong_choice_is_found_before_anything_is_written(tmp_path: Path) -> None:
    for change, message in (
        ({"loss": "crossentropy"}, "Did you mean 'cross_entropy'"),
        ({"optimizer": spec("adam_w")}, "Did you mean 'adamw'"),
        ({"optimizer": spec("sgd", lr=0.1, beta=3)}, "beta"),
        ({"model": spec("mpl")}, "Did you mean 'mlp'"),
        ({"policy": spec("cosin")}, "Did you mean 'cosine'"),
        ({"measures": (spec("weight_nrom"),)}, "Did you mean 'weight_norm'"),
        ({"attributions": (spec("salience"),)}, "Did you mean 'saliency'"),
        ({"clip": spec("value")}, "limit > 0"),
        ({"signal": {"every": 0}}, "`every` of a signal must be an int of at least 1"),
        ({"measures": (spec("local_complexity", radii=(-1.0,)),)}, "radi"),
    ):
        with pytest.raises(UsageError, match=message):
            gk.train(SMALL.replace(**change), runs=tmp_path, device="cpu")
    assert not any(tmp_path.rglob("*.h5")), "a run that cannot start leaves nothing behind"


def test_a_measure_that_fails_later_is_noted_and_the_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    from grokkit.measures.weight_norm import WeightNorm

    taken = WeightNorm.__call__
    calls = []

    def fails_later(self, context):
        calls.append(1)
        if len(calls) > 1:
            raise NumericsError("planted")
        return taken(self, context)

    monkeypatch.setattr(WeightNorm, "__call__", fails_later)
    run = gk.train(SMALL.replace(measures=(spec("weight_norm"),), attributions=()), runs=tmp_path, device="cpu")
    failed = [event for event in run.events if event["kind"] == "measure_failed"]
    assert run.status["state"] == "done" and len(failed) == len(run.steps()) - 1
    assert "weight_norm" in failed[0]["text"] and "planted" in failed[0]["text"]


def test_measures_do_not_change_the_run(straight, tmp_path: Path) -> None:
    bare = gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path, device="cpu")
    last, other = straight.load(24), bare.load(24)
    assert all(torch.equal(last[name], other[name]) for name in last)


def test_replayed_readings_equal_live_ones(straight, tmp_path: Path) -> None:
    bare = gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path, device="cpu")
    added = gk.replay_run(bare, SMALL.measures, SMALL.attributions, device="cpu")
    assert added == len(bare.steps()) * (len(SMALL.measures) + len(SMALL.attributions))
    assert gk.replay_run(bare, SMALL.measures, SMALL.attributions, device="cpu") == 0
    live = {name: data for name, data in contents(straight.path).items() if name.startswith(("meas", "attr"))}
    assert {n: d for n, d in contents(bare.path).items() if n.startswith(("meas", "attr"))} == live


def test_replay_refuses_a_snapshot_that_is_damaged(straight, tmp_path: Path) -> None:
    run = gk.train(SMALL.replace(measures=(), attributions=()), runs=tmp_path, device="cpu")
    file = run.path / "snapshots" / "000000000024.h5"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(TrajectoryError, match=r"000000000024.h5 is damaged"):
        gk.replay_run(run, ["weight_norm"], device="cpu")
    assert gk.open_run(run.path).measures()[next(iter(run.measures()))] == run.steps()[:-1]
    assert len(run.verify()) == 1


class Own(nn.Module):
    """A module of a user's own: functional, re-used and in-place activations, no Classifier around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.act(self.conv(x))
        x = torch.relu(x - x.mean(dim=(2, 3), keepdim=True))
        return self.head(self.act(x - 0.1).mean(dim=(2, 3)))


def own_loop(path: Path, model: nn.Module, steps: int) -> gk.open_run:
    data = gk.load_data("digits", size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.from_numpy(data.x_train).float() / 255, torch.from_numpy(data.y_train)
    with gk.record(
        path,
        model,
        optimizer,
        probes=gk.probe_sets(data, train=20, test=20, random=10),
        schedule=[0, 2, steps],
        attributions=["grad_cam"],
    ) as rec:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            rec.step(step)
    return gk.open_run(path)


def test_a_users_own_module_in_a_users_own_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = own_loop(tmp_path / "mine", Own(), 5)
    assert run.steps() == [0, 2, 5] and run.status["state"] == "done" and run.verify() == []
    reading = run.reading(next(name for name in run.measures() if name.startswith("local_complexity")), 5)
    assert list(reading.coords["layer"]) == ["act", "relu", "act#2", "total"]
    assert reading.unit == "units per point (input space as given)"
    with pytest.raises(UsageError, match="replay_run"):
        gk.replay_run(run, ["weight_norm"], device="cpu")
    assert gk.replay_run(run, ["robust_accuracy"], model=Own()) == 3


def test_checkpoints_come_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = []
    for step in (0, 10, 200):
        model = Own()
        files.append(tmp_path / f"ckpt_{step}.pt")
        torch.save({"state_dict": model.state_dict()} if step else model.state_dict(), files[-1])
    probes = gk.probe_sets("digits", train=10, test=10, random=0)
    run = gk.import_checkpoints(tmp_path / "came", files, Own(), probes=probes)
    assert run.steps() == [0, 10, 200] and run.status["state"] == "done"
    assert torch.equal(run.load(200)["head.weight"], model.head.weight)
    assert gk.replay_run(run, ["accuracy"], model=Own()) == 3
    with pytest.raises(UsageError, match="must end in a step"):
        gk.import_checkpoints(tmp_path / "b", [tmp_path / "last.pt"], Own(), probes=probes)
    with pytest.raises(TrajectoryError, match=r"does not fit the model at '0.bias'"):
        gk.import_checkpoints(tmp_path / "c", files, nn.Sequential(nn.Linear(2, 2)), probes=probes)
    (tmp_path / "bad_3.pt").write_bytes(b"no checkpoint")
    with pytest.raises(TrajectoryError, match="cannot be read as a checkpoint"):
        gk.import_checkpoints(tmp_path / "d", [tmp_path / "bad_3.pt"], Own(), probes=probes)
    assert not (tmp_path / "c").exists() and not (tmp_path / "d").exists()


def test_a_parallel_checkpoint_comes_in_and_what_is_none_is_refused(tmp_path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in Own().state_dict().items()}, tmp_path / "p_1.pt")
    torch.save({"net": Own().state_dict()}, tmp_path / "n_2.pt")
    probes = gk.probe_sets("digits", train=10, test=10, random=0)
    assert gk.import_checkpoints(tmp_path / "a", [tmp_path / "p_1.pt"], Own(), probes=probes).steps() == [1]
    with pytest.raises(TrajectoryError, match=r"must hold a state dict.*got \['net'\]"):
        gk.import_checkpoints(tmp_path / "b", [tmp_path / "n_2.pt"], Own(), probes=probes)
    for files in ({-5: tmp_path / "p_1.pt"}, {}):
        with pytest.raises(UsageError, match="one checkpoint or more, at steps of at least 0"):
            gk.import_checkpoints(tmp_path / "c", files, Own(), probes=probes)


def test_a_net_trained_on_normalised_images_is_recorded_behind_its_normalisation(tmp_path: Path) -> None:
    """The probe images are pixels; `Classifier` shares the net's weights and takes them there."""
    data = gk.load_data("digits", size=8)
    net = Own()
    model = gk.Classifier(gk.Normalise((0.3,), (0.35,)), net)
    x = (torch.from_numpy(data.x_test).float() / 255 - 0.3) / 0.35
    with gk.record(
        tmp_path / "r", model, probes=gk.probe_sets(data, train=9, test=1297, random=0), measures="accuracy"
    ):
        pass
    run = gk.open_run(tmp_path / "r")
    (identity,) = run.measures()
    expected = (net.eval()(x).argmax(1) == torch.from_numpy(data.y_test)).double().mean().item()
    assert run.reading(identity, 0).values[1] == pytest.approx(expected, abs=1e-12)


def test_whole_numbers_of_any_kind_are_steps(tmp_path: Path) -> None:
    probes = gk.probe_sets("digits", train=5, test=5, random=0)
    with gk.record(tmp_path / "r", Own(), probes=probes, measures=[], schedule=np.array([1, 2])) as rec:
        rec.step(np.int64(1))
        rec.step(torch.tensor(2))
        with pytest.raises(UsageError, match=r"whole number of optimizer updates; got 3\.5"):
            rec.step(3.5)
    assert gk.open_run(tmp_path / "r").steps() == [0, 1, 2]
    with pytest.raises(UsageError, match="the recorder is closed"):
        rec.step(9)
    with pytest.raises(UsageError, match="whole number"):
        gk.record(tmp_path / "s", Own(), probes=probes, measures=[], schedule=[1.5])


def test_the_meter_counts_every_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    meter, accuracy, loss = Meter(torch.device("cpu")), torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
    for size in (64, 64, 7):
        logits = torch.randn(size, 10, generator=generator)
        labels = torch.randint(10, (size,), generator=generator)
        value = nn.functional.cross_entropy(logits, labels)
        meter.add(value, logits, labels)
        accuracy.update((logits.argmax(1) == labels).float())
        loss.update(value, weight=size)
    means = pytest.approx((loss.compute().item(), accuracy.compute().item()), abs=1e-6)
    assert meter.mean() == means
    assert meter.pop_pending() is None
    meter.enqueue(3)
    meter.add(torch.tensor(2.0), torch.eye(2), torch.tensor([0, 0]))  # later samples do not count
    again = Meter(torch.device("cpu"))
    again.load_state_dict(copy.deepcopy(meter.state_dict()))
    for each in (meter, again):
        assert each.mean() == (2.0, 0.5)
        step, *values = each.pop_pending()
        assert step == 3 and tuple(values) == means
        assert each.pop_pending() is None


def test_a_recorder_wants_growing_steps(tmp_path: Path) -> None:
    data = gk.load_data("digits", size=8)
    with gk.record(tmp_path / "r", Own(), probes=gk.probe_sets(data, train=5, test=5, random=0), measures=[]) as rec:
        rec.step(3)
        with pytest.raises(UsageError, match="must increase from call to call; got 3 after 3"):
            rec.step(3)
        with pytest.raises(TrajectoryError, match="is being written by"):
            gk.record(tmp_path / "r", Own(), probes={}, measures=[], resume=True)
