"""What is asked of the test set and when: plain and TTA accuracy at the last step, a validation split in its place."""

from pathlib import Path

import numpy as np
import pytest
import torch

import grokkit as gk
from grokkit.cli import main
from grokkit.config.run_config import RunConfig, spec
from grokkit.errors import DataError, Interrupted
from grokkit.training import evaluation, loop
from grokkit.training.build import build_model
from tests.callbacks import PressesCtrlC
from tests.runs import SMALL, contents

FLIPPED = SMALL.replace(
    measures=(),
    attributions=(),
    signal={},
    policy=spec("constant"),
    augment=("crop1", "flip"),
    optimizer=spec("sgd", lr=1.5),
)


def rows(run, split: str, metric: str) -> dict[int, float]:
    found = run.metrics.query("split == @split and metric == @metric")
    return dict(zip(found.step, found.value, strict=True))


def logits(run, config: RunConfig, step: int, images: np.ndarray) -> torch.Tensor:
    model = build_model(config, run.environment["data"])
    model.load_state_dict(run.load(step))
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images).float() / 255)


def right(logits: torch.Tensor, labels: np.ndarray) -> float:
    return (logits.argmax(1).numpy() == labels).mean()


# ---- plain and TTA


@pytest.mark.parametrize("word", ["flip", "altflip"])
def test_tta_is_the_mean_of_image_and_mirror_at_the_last_step_alone(word: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "EVAL_BATCH", 7)  # six hundred images, the last batch is ragged
    digits = {"size": 8, "train": 120, "test": 600}
    config = FLIPPED.replace(augment=(word,), optimizer=spec("adamw", lr=0.01), data=spec("digits", **digits))
    run = gk.train(config, runs=tmp_path, device="cpu")
    data = gk.load_data("digits", **digits)
    plain, tta = rows(run, "test_set", "accuracy"), rows(run, "test_set", "accuracy_tta")
    assert list(plain) == run.steps() and list(tta) == [24]
    straight, mirrored = (logits(run, config, 24, x) for x in (data.x_test, data.x_test[..., ::-1].copy()))
    assert plain[24] == pytest.approx(right(straight, data.y_test))
    assert tta[24] == pytest.approx(right((straight + mirrored) / 2, data.y_test))
    assert tta[24] != plain[24], "digits are not symmetric"
    for step, value in plain.items():
        assert value == pytest.approx(right(logits(run, config, step, data.x_test), data.y_test))


def test_without_mirroring_there_is_no_tta(tmp_path: Path) -> None:
    run = gk.train(FLIPPED.replace(augment=("crop1",)), runs=tmp_path, device="cpu")
    assert rows(run, "test_set", "accuracy_tta") == {}


STUDY = """
from grokkit import RunConfig
from tests.test_evaluation import FLIPPED

def arm() -> RunConfig:
    return FLIPPED
"""


def test_what_a_run_says_at_its_end_is_its_last_step_and_not_its_best(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.py").write_text(STUDY)
    assert main(["train", "study.py", "--device", "cpu"]) == 0
    run = gk.open_run(Path("runs") / FLIPPED.run_name)
    plain, tta = rows(run, "test_set", "accuracy"), rows(run, "test_set", "accuracy_tta")
    assert max(plain.values()) > plain[24], "this run was better before: the rate is far too high"
    said = f"done at step 24, test accuracy {plain[24]:.4f} plain, {tta[24]:.4f} with TTA (mean over image and mirror)"
    assert said in capsys.readouterr().out
    assert main(["resume", str(run.path)]) == 0
    assert said in capsys.readouterr().out


# ---- validation

HELD = SMALL.replace(
    data=spec("digits", size=8, train=120, test=60, validation=30),
    measures=(),
    attributions=(),
    signal={},
    policy=spec("plateau", reading="validation_loss", patience=0, factor=0.5),
    optimizer=spec("sgd", lr=1.0),
    steps=40,
    records=20,
)


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> gk.open_run:
    return gk.train(HELD, runs=tmp_path_factory.mktemp("held"), device="cpu")


def test_the_validation_split_is_asked_at_every_recorded_step_and_the_test_set_at_the_ends(held) -> None:
    assert list(rows(held, "validation", "accuracy")) == list(rows(held, "validation", "loss")) == held.steps()
    assert list(rows(held, "test_set", "accuracy")) == [0, 40]
    data = gk.load_data("digits", size=8, train=120, test=60, validation=30)
    assert held.environment["data"]["hash"] == data.hash
    assert held.environment["data"]["validation"] == 30 and held.environment["data"]["train"] == 90
    for step, value in rows(held, "validation", "accuracy").items():
        of_step = logits(held, HELD, step, data.x_val)
        assert value == pytest.approx(right(of_step, data.y_val))
        loss = torch.nn.functional.cross_entropy(of_step, torch.from_numpy(data.y_val)).item()
        assert rows(held, "validation", "loss")[step] == pytest.approx(loss, rel=1e-5)


def test_no_batch_holds_an_image_of_the_validation_split() -> None:
    trainer = loop.build_trainer(HELD, torch.device("cpu"))
    data = gk.load_data("digits", size=8, train=120, test=60, validation=30)
    trained = {x.numpy().tobytes() for x in trainer.batches.images}
    assert len(trainer.batches.images) == 90 and not trained & {x.tobytes() for x in data.x_val}


def test_a_plateau_listens_to_the_validation_loss(held) -> None:
    """The decisions are those of a plateau written by hand, fed with the logged losses. That of step 0 is superseded:
    the first question is asked after step 1."""
    rate, best, expected = 1.0, np.inf, {}
    for step, loss in list(rows(held, "validation", "loss").items())[1:]:
        if loss < best * (1 - 1e-4):
            best = loss
        else:
            rate /= 2
            expected[step] = rate
    told = [event for event in held.events if event["kind"] == "policy"]
    assert len(told) >= 2 and all("validation_loss" in event["text"] for event in told)
    assert {event["step"]: event["lr"] for event in told} == pytest.approx(expected)


def test_a_run_with_validation_resumes_to_the_same_bits(held, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        gk.train(HELD, runs=tmp_path, device="cpu", callback=PressesCtrlC(17))
    parts = gk.resume(tmp_path / HELD.run_name, device="cpu")
    mine, theirs = contents(parts.path), contents(held.path)
    mine["events.jsonl"] = [event for event in mine["events.jsonl"] if event["kind"] != "resumed"]
    assert mine == theirs


def test_the_command_line_keeps_validation_on_other_data(tmp_path: Path, monkeypatch) -> None:
    from grokkit.config.overrides import apply_cli_overrides

    config = apply_cli_overrides(HELD, "own.npz", None, None)
    assert config.data == spec("own.npz", train=120, validation=30)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (150, 8, 8, 1), np.uint8) for split in ("train", "test")}
    np.savez("own.npz", **arrays, y_train=np.arange(150) % 10, y_test=np.arange(150) % 10)
    run = gk.train(config.replace(steps=2), runs=tmp_path, device="cpu")
    assert run.environment["data"]["validation"] == 30 and run.environment["data"]["train"] == 90


def test_a_resume_knows_another_validation_split(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        gk.train(HELD, runs=tmp_path, device="cpu", callback=PressesCtrlC(10))
    path = tmp_path / HELD.run_name
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace("validation = 30", "validation = 20"))
    with pytest.raises(DataError, match="the data differ from those the run began with"):
        gk.resume(path, device="cpu")
