"""The last step of a loop is recorded: by the schedule where the length is known, else by a clean `close`."""

from pathlib import Path

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.errors import UsageError
from grokkit.recording.weight_versions import WeightVersions


def loop(path: Path, steps: int, **options: object) -> tuple[gk.Run, nn.Module]:
    """Train on random images, recorded as the README does."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.rand(20, 1, 4, 4), torch.arange(20) % 2
    images = (255 * x).byte().numpy()
    probe = gk.ProbeSet("train", images, y.numpy(), "made/up", y.numpy())
    with gk.record(path, net, optimizer, probes={"train": probe}, measures=["accuracy"], **options) as recorder:
        for step in range(1, steps + 1):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            recorder.step(step)
        net.eval()(x)  # a final evaluation changes no weight
    return gk.open_run(path), net


def assert_recorded(run: gk.Run, step: int, net: nn.Module) -> None:
    assert run.steps()[-1] == step == run.reading("accuracy", step).settings.get("step", step)
    assert run.status["state"] == "done" and run.status["step"] == step and not run.verify()
    assert all(torch.equal(run.load(step)[name], value) for name, value in net.state_dict().items())


def test_a_loop_of_unknown_length_ends_with_a_snapshot(tmp_path: Path) -> None:
    assert 300 not in gk.log_spaced() and 281 in gk.log_spaced()
    run, net = loop(tmp_path / "run", 300)
    assert_recorded(run, 300, net)
    assert run.steps() == [*(step for step in gk.log_spaced() if step <= 300), 300]


def test_a_known_length_is_on_the_schedule(tmp_path: Path) -> None:
    run, net = loop(tmp_path / "run", 100, total_steps=100)
    assert_recorded(run, 100, net)
    assert run.steps() == list(gk.log_spaced(last=100))


def test_a_schedule_of_ones_own_also_gets_the_last_step(tmp_path: Path) -> None:
    run, net = loop(tmp_path / "known", 9, schedule=(2, 4), total_steps=9)
    assert_recorded(run, 9, net)
    run, net = loop(tmp_path / "unknown", 9, schedule=(2, 4))
    assert_recorded(run, 9, net)
    assert run.steps() == [0, 2, 4, 9]
    run, net = loop(tmp_path / "shorter", 7, schedule=(2, 4), total_steps=9)  # a loop that breaks
    assert_recorded(run, 7, net)


def test_a_step_on_the_schedule_is_not_recorded_twice(tmp_path: Path) -> None:
    run, net = loop(tmp_path / "run", 4, schedule=(2, 4))
    assert_recorded(run, 4, net)
    assert run.steps() == [0, 2, 4]


@pytest.mark.parametrize("how", ["in place", "loaded", "replaced", "train mode", "data", "in place of data", "numpy"])
def test_weights_that_changed_after_the_last_step_are_not_recorded_as_its_own(tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.BatchNorm1d(2))
    probe = gk.ProbeSet("train", *_images(), "made/up", _images()[1])
    recorder = gk.record(tmp_path / "run", net, probes={"train": probe}, measures=[], schedule=(1,))
    recorder.step(1), recorder.step(2)
    with torch.no_grad():
        match how:
            case "in place":
                net[1].bias.add_(1)
            case "loaded":
                net.load_state_dict(net.state_dict())
            case "replaced":
                net[1].bias = nn.Parameter(torch.ones(2))
            case "train mode":
                net.train()(torch.rand(3, 1, 4, 4))
            case "data":
                net[1].weight.data = net[1].weight.data.clone()
            case "in place of data":  # as moving averages are often exchanged; not counted as a version
                net[1].weight.data.mul_(0.5)
            case "numpy":
                net[1].weight.detach().numpy()[:] = 0
    with pytest.warns(UserWarning, match=r"step 2, the last one, is not recorded: the weights were changed after it"):
        recorder.close()
    run = gk.open_run(tmp_path / "run")
    assert run.steps() == [0, 1] and run.status["state"] == "done"
    assert [event["kind"] for event in run.events] == ["not_recorded"]


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_run_that_is_not_done_records_nothing_more(tmp_path: Path, state: str) -> None:
    probe = gk.ProbeSet("train", *_images(), "made/up", _images()[1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    recorder = gk.record(tmp_path / "run", net, probes={"train": probe}, measures=[], schedule=(1,))
    recorder.step(1), recorder.step(2)
    recorder.close(state, "stopped")
    assert gk.open_run(tmp_path / "run").steps() == [0, 1]


def test_a_resumed_loop_that_ends_records_its_last_step(tmp_path: Path) -> None:
    run, net = loop(tmp_path / "run", 3, schedule=(2,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gk.record(run.path, net, optimizer, probes={}, measures=["accuracy"], schedule=(2,), resume=True) as recorder:
        pass  # looked at, no step taken
    assert run.steps() == [0, 2, 3]
    with gk.record(run.path, net, optimizer, probes={}, measures=["accuracy"], schedule=(2,), resume=True) as recorder:
        recorder.step(5)
    assert run.steps() == [0, 2, 3, 5] and run.measures().popitem()[1] == [0, 2, 3, 5]


def test_a_run_that_is_resumed_after_its_last_step_records_it(tmp_path: Path) -> None:
    probe = {"train": gk.ProbeSet("train", *_images(), "made/up", _images()[1])}
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    options = {"probes": probe, "measures": ["accuracy"], "schedule": (1,)}
    recorder = gk.record(tmp_path / "run", net, **options)
    recorder.step(1), recorder.step(2), recorder.save(2)
    recorder.close("interrupted")
    with gk.record(tmp_path / "run", net, resume=True, **options) as recorder:
        assert recorder.restore() == 2  # the loop has no step left
    assert_recorded(gk.open_run(tmp_path / "run"), 2, net)


def test_an_interrupt_while_the_last_step_is_recorded_leaves_a_resumable_run(tmp_path: Path, monkeypatch) -> None:
    probe = gk.ProbeSet("train", *_images(), "made/up", _images()[1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    recorder = gk.record(tmp_path / "run", net, probes={"train": probe}, measures=["accuracy"], schedule=(1,))
    recorder.step(1), recorder.step(2)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grokkit.recording.recorder.run_instrument", stop)
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    run = gk.open_run(tmp_path / "run")
    assert run.status["state"] == "interrupted" and run.steps() == [0, 1, 2] and not run.verify()


def test_total_steps_is_a_whole_number(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="whole number of optimizer updates"):
        loop(tmp_path / "run", 2, total_steps=2.5)


def test_weights_that_did_not_change_are_known_as_such() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    versions = WeightVersions(net)
    assert versions.is_new
    for change in (
        lambda: nn.init.constant_(net[0].weight, torch.nan),  # NaN is not equal to itself
        lambda: setattr(net[1], "bias", nn.Parameter(torch.ones(2))),
        lambda: setattr(net[1], "bias", None),
        lambda: setattr(net[0].weight, "data", torch.ones(2, 1, 3, 3)),
        lambda: net.to(torch.bfloat16),
    ):
        versions.remember()
        assert not versions.have_changed()
        change()
        assert versions.have_changed()
        versions.remember()
        assert not versions.have_changed()


def test_tensors_made_in_inference_mode_which_have_no_version_are_compared_too() -> None:
    with torch.inference_mode():
        net = nn.Linear(2, 2)
        versions = WeightVersions(net)
        versions.remember()
        assert not versions.have_changed()
        net.weight.mul_(2)
        assert versions.have_changed()


def _images() -> tuple:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(6) % 2).numpy()
    return (255 * torch.rand(6, 1, 4, 4, generator=generator)).byte().numpy(), labels
