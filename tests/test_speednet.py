"""The record-setting net: whitening and identity init against known answers; a run that learns, stops and goes on."""

import numpy as np
import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit import models
from grokkit.config.run_config import spec
from grokkit.data.resident import to_pixels
from grokkit.errors import Interrupted
from grokkit.models.speednet import RIDGE, ShiftNorm, make_identity_conv
from grokkit.recipes import load_shipped
from grokkit.seeding import derive_seed, seeded
from grokkit.training.build import build_data, build_model, dataset_metadata
from grokkit.training.trainer import build_trainer
from tests.callbacks import PressesCtrlC
from tests.runs import contents

RECIPE = load_shipped("cifar10_speed").variants["speednet"]()


def small(batch_size: int = 100, steps: int = 60) -> gk.RunConfig:
    """The recipe at width 8 on digits; a rate for the mean loss goes with the batch, the head's also with the width."""
    return RECIPE.replace(
        data=spec("digits", size=32, train=600, test=400),
        model=spec("speednet", width=8),
        optimizer=spec(
            "muon",
            lr=0.24,
            vector_lr=0.053 * batch_size,
            matrix_lr=0.67 * batch_size / 8,
            weight_decay=2e-6 * batch_size,
        ),
        batch_size=batch_size,
        steps=steps,
        records=3,
        probes={"train": 32, "test": 32, "random": 16},
    )


def correlated(count: int = 64) -> torch.Tensor:
    """Images whose neighbouring pixels and channels go together, with a mean that is not 0."""
    x = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    x = nn.functional.avg_pool2d(x, 3, 1, 1) * 3 + 0.5 * x + 0.3
    return x + 0.5 * x.roll(1, 1)


def patches_by_slicing(x: torch.Tensor) -> torch.Tensor:
    """(patches, 12), each patch cut out by hand."""
    rows = [x[:, :, i : i + 2, j : j + 2].flatten(1) for i in range(11) for j in range(11)]
    return torch.cat(rows).double()


# ---- whitening


def test_whitened_patches_have_the_identity_as_their_second_moments() -> None:
    net, x = models.create("speednet", (3, 12, 12), 10, width=8), correlated()
    net.initialise_from(x)
    with torch.no_grad():
        net.whiten.bias.zero_()
        made = net.whiten(x).movedim(1, -1).flatten(0, 2).double()
    moments = made.mT @ made / len(made)
    variances = torch.linalg.eigvalsh(patches_by_slicing(x).mT @ patches_by_slicing(x) / (64 * 121))
    assert variances.min() > 20 * RIDGE, "the ridge is small against these images"
    shrunk = torch.diag(variances / (variances + RIDGE))
    expected = torch.cat([torch.cat([shrunk, -shrunk]), torch.cat([-shrunk, shrunk])], 1)
    torch.testing.assert_close(moments, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(moments[:12, :12], torch.eye(12, dtype=torch.float64), atol=0.05, rtol=0)


def test_uncorrelated_pixels_are_whitened_by_what_the_layer_starts_with() -> None:
    net = models.create("speednet", (3, 12, 12), 10, width=8)
    eye = net.whiten.weight.clone()
    assert torch.equal(eye[:12].flatten(1), torch.eye(12)) and torch.equal(eye[12:], -eye[:12])
    # All 4,096 sign patterns of one patch: second moments are exactly the identity, so any rotation whitens.
    signs = torch.tensor([[1.0 if k >> bit & 1 else -1.0 for bit in range(12)] for k in range(4096)])
    net.whiten.fit(signs.view(-1, 3, 2, 2))
    made = net.whiten.weight[:12].flatten(1) * (1 + RIDGE) ** 0.5
    torch.testing.assert_close(made @ made.mT, torch.eye(12), atol=1e-5, rtol=0)


def test_the_filters_are_frozen_and_the_bias_is_not() -> None:
    net = models.create("speednet", (3, 12, 12), 10, width=8)
    trained = dict(net.named_parameters())
    assert "whiten.bias" in trained and "whiten.weight" not in trained and "whiten.weight" in net.state_dict()
    assert all(parameter.requires_grad for parameter in trained.values())


# ---- identity init, norms, head


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 9), (6, 6), (8, 3)])
def test_the_first_channels_are_passed_on(inputs: int, outputs: int) -> None:
    x = torch.randn(2, inputs, 5, 6, generator=torch.Generator().manual_seed(1))
    with seeded(0):
        conv = make_identity_conv(inputs, outputs)
        twin = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    kept = min(inputs, outputs)
    with torch.no_grad():
        assert torch.equal(conv(x)[:, :kept], x[:, :kept])
    with seeded(0):
        twin = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    assert torch.equal(conv.weight[kept:], twin.weight[kept:]) and conv.bias is None


def test_the_norm_has_a_shift_a_fixed_scale_and_quick_statistics() -> None:
    norm = ShiftNorm(4)
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    x = torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(2)) * 3 + 1
    twin = nn.BatchNorm2d(4, momentum=0.4)
    torch.testing.assert_close(norm.train()(x), twin.train()(x))
    torch.testing.assert_close(norm.eval()(x), twin.eval()(x))
    assert set(norm.state_dict()) == {"bias", "running_mean", "running_var", "num_batches_tracked"}


def test_logits_are_the_heads_divided_by_its_inputs() -> None:
    net = models.create("speednet", (3, 32, 32), 10, width=8)
    assert net.head.weight.std().item() == pytest.approx(1, rel=1e-5) and net.head.bias is None
    x = torch.rand(2, 3, 32, 32)
    net.eval()
    with torch.no_grad():
        features = net.layers(net.whiten(x))
        torch.testing.assert_close(net(x), features @ net.head.weight.T / 32)
    assert features.shape == (2, 32)


def test_the_net_has_the_sources_size() -> None:
    cost = gk.profile(models.create("speednet", (3, 32, 32), 10), (3, 32, 32))
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    assert cost.parameters == 24 + convolutions + 2 * (64 + 256 + 256) + 2560


# ---- a run


def test_the_net_is_fitted_once_to_normalised_training_images_of_a_stream_of_its_own() -> None:
    config = small().replace(seed=3)
    dataset = build_data(config)
    model = build_model(config, dataset_metadata(dataset), dataset)
    rng = np.random.default_rng(derive_seed(3, "init", "images"))
    shown = to_pixels(dataset.x_train[rng.permutation(600)])
    twin = build_model(config, dataset_metadata(dataset))
    assert not torch.equal(twin.net.whiten.weight, model.net.whiten.weight)
    twin.net.initialise_from((shown - model.normalise.mean) / model.normalise.std)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name])
    again = build_trainer(config, torch.device("cpu")).model
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_only_so_many_images_are_shown(monkeypatch) -> None:
    monkeypatch.setattr("grokkit.training.build.INITIAL_IMAGES", 7)
    seen = []
    monkeypatch.setattr("grokkit.models.speednet.SpeedNet.initialise_from", lambda self, images: seen.append(images))
    config = small()
    dataset = build_data(config)
    build_model(config, dataset_metadata(dataset), dataset)
    assert [tuple(images.shape) for images in seen] == [(7, 3, 32, 32)] and seen[0].dtype == torch.float32


@pytest.mark.slow
def test_it_learns_digits_in_sixty_steps(tmp_path) -> None:
    run = gk.train(small(), runs=tmp_path, device="cpu")
    metrics = run.metrics.query("split == 'test_set' and metric == 'accuracy'").set_index("step").value
    assert metrics[0] < 0.3 and metrics[60] > 0.9
    assert not [event for event in run.events if event["kind"] == "measure_failed"]
    table = gk.table([run]).query("measure == 'local_complexity' and layer == 'total' and step == 60")
    assert len(table) == 3 and (table.value > 0).all()
    first, last = run.load(0), run.load(60)
    assert torch.equal(first["net.whiten.weight"], last["net.whiten.weight"])
    assert not torch.equal(first["net.whiten.bias"], last["net.whiten.bias"])


def test_stopped_and_resumed_it_is_the_straight_run_bit_for_bit_and_replay_reads_the_whitening(tmp_path) -> None:
    config = small(batch_size=50, steps=10).replace(
        data=spec("digits", size=32, train=120, test=60),
        probes={"train": 8, "test": 8},
        measures=(spec("accuracy"), spec("local_complexity", radii=(0.05,), directions=4, points=4)),
    )
    straight = gk.train(config, runs=tmp_path / "a", device="cpu")
    with pytest.raises(Interrupted):
        gk.train(config, runs=tmp_path / "b", device="cpu", callback=PressesCtrlC(4))
    parts = gk.resume(tmp_path / "b" / config.run_name, device="cpu")
    mine, theirs = contents(parts.path), contents(straight.path)
    mine["events.jsonl"] = [event for event in mine["events.jsonl"] if event["kind"] != "resumed"]
    assert mine == theirs
    bare = gk.train(config.replace(measures=()), runs=tmp_path / "c", device="cpu")
    gk.replay_run(bare, config.measures, device="cpu")
    live = {name: data for name, data in theirs.items() if name.startswith("measures")}
    assert live and {n: d for n, d in contents(bare.path).items() if n.startswith("measures")} == live


def test_other_nets_use_nothing_of_it() -> None:
    for name in ("resnet9", "resnet18", "vgg16_bn"):
        net = models.create(name, (3, 32, 32), 10, width=8)
        assert not hasattr(net, "initialise_from") and not any(isinstance(m, nn.GELU) for m in net.modules())
        assert not [m for m in net.modules() if type(m).__module__ == "grokkit.models.speednet"]


@pytest.mark.slow
def test_real_images_are_told_apart_after_forty_steps(real_cifar, tmp_path) -> None:
    np.savez(tmp_path / "six.npz", **real_cifar)
    config = small(batch_size=500, steps=40).replace(data=spec(str(tmp_path / "six.npz")), measures=(), records=1)
    run = gk.train(config, runs=tmp_path, device="cpu")
    accuracy = run.metrics.query("split == 'test_set' and metric == 'accuracy' and step == 40").value.item()
    assert accuracy > 0.4, "chance is 0.1"
