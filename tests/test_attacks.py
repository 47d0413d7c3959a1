"""PGD against closed forms, against a plain loop, and against its own promises."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit import measures, seeding
from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.robustness import pgd


def _linear(weights: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weights.shape[1], weights.shape[0])
    layer.weight.data, layer.bias.data = weights.clone(), bias.clone()
    return nn.Sequential(nn.Flatten(), layer)


def _inner_images(count: int, seed: int, *shape: int) -> torch.Tensor:
    """Pixels in [0.4, 0.6], from where a small ball never meets the border of the box."""
    return 0.4 + 0.2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _toy(scale: float = 1.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A random MLP on 50 pixels with logits times `scale`, and images labelled by a slightly different net."""
    first, last = _draw(1, 64, 50), _draw(2, 10, 64)
    net = nn.Sequential(nn.Linear(50, 64), nn.ReLU(), nn.Linear(64, 10))
    net[0].weight.data, net[0].bias.data = first / 2, -first.sum(1) / 4
    net[2].weight.data, net[2].bias.data = last * scale, torch.zeros(10)
    images = torch.rand(200, 50, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[:10] = (labels[:10] + 1) % 10
    return net, images, labels


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_a_binary_linear_classifier_is_turned_exactly_where_its_margin_is_below_epsilon_times_the_dual_norm(
    norm, dual, loss
):
    weights = _draw(0, 12)
    images, epsilon = _inner_images(300, 1, 12), 0.01
    offset = -(images @ weights).mean()
    model = _linear(torch.stack([-weights / 2, weights / 2]), torch.stack([-offset / 2, offset / 2]))
    labels = (images @ weights + offset > 0) ^ (torch.arange(300) % 7 == 0)
    signed = (images @ weights + offset) * torch.where(labels, 1, -1)
    robust = signed > epsilon * weights.norm(dual)
    assert 20 < robust.sum() < 280
    found = pgd(model, images, labels.long(), epsilon, loss=loss, norm=norm, random_start=False)
    torch.testing.assert_close(found.correct, robust)
    assert found.clean_accuracy == pytest.approx((signed > 0).float().mean().item())
    from_random = pgd(model, images, labels.long(), epsilon, loss=loss, norm=norm)
    clear = (signed - epsilon * weights.norm(dual)).abs() > 0.002
    torch.testing.assert_close(from_random.correct[clear], robust[clear])


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_classifier_with_equally_far_classes_is_turned_exactly_in_closed_form(norm, dual):
    weights = 3 * torch.eye(6)
    images, epsilon = _inner_images(300, 2, 6), 0.03
    logits = images @ weights.T
    labels = logits.argmax(1)
    runner_up = logits.topk(2).values
    robust = runner_up[:, 0] - runner_up[:, 1] > epsilon * (weights[0] - weights[1]).norm(dual)
    assert 20 < robust.sum() < 280
    found = pgd(_linear(weights, torch.zeros(6)), images, labels, epsilon, loss="margin", norm=norm, random_start=False)
    torch.testing.assert_close(found.correct, robust)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_no_image_certified_by_the_closed_form_is_ever_turned(norm, dual, loss):
    weights, bias = _draw(5, 4, 9), _draw(6, 4)
    images, epsilon = torch.rand(300, 9, generator=torch.Generator().manual_seed(3)), 0.05
    logits = images @ weights.T + bias
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits
    reach = epsilon * (weights[labels][:, None] - weights[None]).norm(p=dual, dim=2)
    certified = ((gaps > reach) | F.one_hot(labels, 4).bool()).all(1)
    found = pgd(_linear(weights, bias), images, labels, epsilon, loss=loss, norm=norm)
    assert certified.any()
    assert not found.correct.all()
    assert found.correct[certified].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_epsilon_zero_gives_clean_accuracy_and_clean_images(norm):
    net, images, labels = _toy()
    found = pgd(net, images, labels, 0.0, norm=norm)
    assert found.accuracy == found.clean_accuracy == pytest.approx(0.95)
    assert torch.equal(found.adversarial, images)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.12)])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_the_perturbation_stays_in_the_ball_and_in_the_box_and_proves_the_verdict(norm, epsilon, loss):
    net, images, labels = _toy()
    images = images.round(decimals=1)  # many pixels on the border
    found = pgd(net, images, labels, epsilon, norm=norm, loss=loss)
    offset = (found.adversarial - images).double()
    size = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert size.max() <= epsilon + 1e-6
    assert size.max() > 0.9 * epsilon
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    assert torch.equal(net(found.adversarial).argmax(1) == labels, found.correct)
    assert 0 < found.accuracy < found.clean_accuracy


def test_large_logits_blind_cross_entropy_and_leave_the_margin_alone():
    plain = {loss: pgd(*_toy(), 0.02, loss=loss) for loss in ("cross_entropy", "margin")}
    large = {loss: pgd(*_toy(scale=100), 0.02, loss=loss) for loss in ("cross_entropy", "margin")}
    assert abs(large["margin"].accuracy - plain["margin"].accuracy) < 0.005
    assert large["cross_entropy"].accuracy > plain["cross_entropy"].accuracy + 0.1
    assert plain["cross_entropy"].zero_gradient_share == 0
    assert large["cross_entropy"].zero_gradient_share > 0.5
    assert large["margin"].zero_gradient_share == 0
    assert plain["margin"].saturated_share < 0.1 < 0.8 < large["margin"].saturated_share


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_accuracy_does_not_rise_with_epsilon_or_with_steps(loss):
    net, images, labels = _toy()
    by_epsilon = [pgd(net, images, labels, epsilon, loss=loss).accuracy for epsilon in (0.0, 0.005, 0.01, 0.02, 0.05)]
    by_steps = [pgd(net, images, labels, 0.02, loss=loss, steps=steps).accuracy for steps in (1, 5, 20)]
    for series in (by_epsilon, by_steps):
        assert all(later <= earlier + 0.005 for earlier, later in pairwise(series))
    assert by_epsilon[-1] < by_epsilon[0]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.12)])
def test_the_result_does_not_depend_on_the_batch_size(norm, epsilon):
    net, images, labels = _toy()
    net, images = net.double(), images.double()
    one, ragged = (pgd(net, images, labels, epsilon, norm=norm, batch_size=size) for size in (200, 7))
    assert torch.equal(one.correct, ragged.correct)
    torch.testing.assert_close(one.adversarial, ragged.adversarial, atol=1e-9, rtol=0)
    assert (one.accuracy, one.zero_gradient_share) == (ragged.accuracy, ragged.zero_gradient_share)


def _slow_twin(net, image, label, epsilon, loss, steps, source):
    """One image, the textbook way: whether no visited point is misclassified, and the point of the largest margin."""

    def margin(z):
        return max(z[j] for j in range(10) if j != label) - z[label]

    start = image + epsilon * (torch.rand(image.shape, generator=source) * 2 - 1).double()
    visited = [image, start.clamp(0, 1)]
    for _ in range(steps):
        point = visited[-1].detach().requires_grad_()
        z = net(point[None])[0]
        (margin(z) if loss == "margin" else torch.logsumexp(z, 0) - z[label]).backward()
        point = point.detach() + 2.5 * epsilon / steps * point.grad.sign()
        visited.append(torch.minimum(torch.maximum(point, image - epsilon), image + epsilon).clamp(0, 1))
    logits = [net(point[None])[0].detach() for point in visited]
    worst = max(range(len(visited)), key=lambda k: float(margin(logits[k])))
    return all(int(z.argmax()) == label for z in logits), visited[worst]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_verdicts_and_points_are_those_of_a_plain_loop_over_single_images(loss):
    net, images, labels = _toy()
    net, images, labels = net.double(), images[:60].double(), labels[:60]
    source = seeding.make_generator(4, "attack", loss, "linf")
    slow = [_slow_twin(net, x, int(y), 0.02, loss, 6, source) for x, y in zip(images, labels, strict=True)]
    found = pgd(net, images, labels, 0.02, loss=loss, steps=6, seed=4)
    assert found.correct.tolist() == [right for right, _ in slow]
    assert 5 < found.correct.sum() < 55
    torch.testing.assert_close(found.adversarial, torch.stack([point for _, point in slow]), atol=1e-12, rtol=0)


def test_the_last_point_counts_too():
    model = _linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1.1, 0.0]))
    start, label = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    assert pgd(model, start, label, 0.06, steps=1, random_start=False).accuracy == 0
    assert pgd(model, start, label, 0.04, steps=1, random_start=False).accuracy == 1


def test_an_image_turned_only_on_the_way_is_not_robust():
    class Ridge(nn.Module):
        """Wrong between 0.5 and 0.6 only; its gradient always leads upwards."""

        def forward(self, x):
            wrong = ((x > 0.5) & (x < 0.6)).float()
            return torch.cat([1 - 2 * wrong - 0 * x, 1e-3 * x], dim=1)

    found = pgd(
        Ridge(),
        torch.tensor([[0.42]]),
        torch.tensor([0]),
        0.4,
        loss="margin",
        step_size=0.12,
        random_start=False,
        steps=3,
    )
    assert found.clean_accuracy == 1
    assert found.accuracy == 0
    assert 0.5 < found.adversarial.item() < 0.6


class _AwayFromGrey(nn.Module):
    """Its margin grows with the distance from grey, so the worst point of a single step is the random start."""

    def forward(self, x):
        return torch.stack([torch.ones(len(x)), 1e-6 * (x - 0.5).abs().sum(1)], dim=1)


def _random_offsets(norm: str, seed: int = 0) -> torch.Tensor:
    images, labels = torch.full((400, 8), 0.5), torch.zeros(400, dtype=torch.long)
    found = pgd(_AwayFromGrey(), images, labels, 0.1, norm=norm, steps=1, step_size=0.0, loss="margin", seed=seed)
    return (found.adversarial - images) / 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_are_uniform_in_the_ball_and_follow_the_seed(norm):
    offsets = _random_offsets(norm)
    assert torch.equal(offsets, _random_offsets(norm))
    assert not torch.equal(offsets, _random_offsets(norm, seed=1))
    # Of a uniform point of a d-ball, radius to the power d is uniform in [0, 1]: mean 1/2, standard error 0.014.
    radius = offsets.abs().amax(1) if norm == "linf" else offsets.norm(dim=1)
    assert radius.max() <= 1 + 1e-5
    assert (radius**8).mean() == pytest.approx(0.5, abs=0.05)
    assert offsets.mean(0).abs().max() < 0.15
    spread = 1 / 3 if norm == "linf" else 1 / (8 + 2)
    torch.testing.assert_close(offsets.T.cov(), spread * torch.eye(8), atol=0.3 * spread, rtol=0)


def test_a_flat_model_has_no_gradient_anywhere():
    flat = _linear(torch.zeros(2, 30), torch.tensor([1.0, 0.0]))
    found = pgd(flat, _inner_images(50, 0, 30), torch.zeros(50, dtype=torch.long), 0.1)
    assert (found.zero_gradient_share, found.accuracy) == (1, 1)


def test_an_attack_works_in_inference_mode():
    net, images, labels = _toy()
    expected = pgd(net, images, labels, 0.02)
    with torch.inference_mode():
        found = pgd(net, images.clone(), labels.clone(), 0.02)
    assert torch.equal(found.adversarial, expected.adversarial)


def test_a_tiny_gradient_still_gives_a_full_l2_step():
    weights = 1e-30 * torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    start = torch.tensor([[0.5, 0.5]])
    model = _linear(weights, torch.tensor([1e-28, 0.0]))
    found = pgd(model, start, torch.tensor([0]), 0.1, norm="l2", loss="margin", random_start=False)
    torch.testing.assert_close(found.adversarial - start, torch.tensor([[0.06, 0.08]]))


class _Awkward(nn.Module):
    """Works in place on its input, keeps batch statistics, has dropout, and may fail."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 36, 5)
        self.fail = fail

    def forward(self, x):
        torch.rand(1)
        x.sub_(0.5)
        out = self.head(self.net(x))
        if self.fail and out.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("deliberate")
        return out


@pytest.mark.parametrize("fail", [False, True])
def test_the_attack_leaves_no_trace_also_after_an_exception(fail):
    model = _Awkward(fail).train()
    model.net[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(5)
    images, labels = torch.rand(9, 3, 8, 8, requires_grad=True), torch.arange(9) % 5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags, kept, state = [m.training for m in model.modules()], images.detach().clone(), torch.get_rng_state()
    if fail:
        with pytest.raises(ModelContractError, match="RuntimeError: deliberate"):
            pgd(model, images, labels, 0.1)
    else:
        with torch.no_grad():
            pgd(model, images, labels, 0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert not model.head.weight.requires_grad
    assert model.net[0].weight.grad is None
    assert torch.equal(model.head.bias.grad, torch.ones(5))
    assert torch.equal(images.detach(), kept)
    assert images.requires_grad
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_training_mode_is_attacked_in_eval_mode():
    model = _Awkward()
    images, labels = torch.rand(9, 3, 8, 8), torch.arange(9) % 5
    training, evaluating = (pgd(model.train(mode), images, labels, 0.1).adversarial for mode in (True, False))
    assert torch.equal(training, evaluating)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.full((4, 6), 1.5)}, r"pixels in \[0, 1\]; got torch.float32 in \[1.5, 1.5\]"),
        ({"images": torch.full((4, 6), math.nan)}, r"in \[nan, nan\]"),
        ({"images": torch.ones(4, 6, dtype=torch.uint8)}, r"Divide bytes by 255"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"images \(4, 6\) and labels \(3,\)"),
        ({"labels": torch.tensor([0, 1, 2, 7])}, r"`labels` must be in 0..2 \(the model's classes\); got 0..7"),
        (
            {"labels": [0, 1, 2, 0]},
            r"`labels` must be a torch tensor; got list\. Convert it: torch\.as_tensor\(labels\)",
        ),
        ({"labels": np.array([0, 1, 2, 0])}, r"`labels` must be a torch tensor; got ndarray"),
        ({"labels": torch.tensor([0.0, 1.9, 2.0, 0.0])}, r"integer dtype; got torch\.float32\. .*labels\.long\(\)"),
        ({"labels": torch.tensor([False, True, True, False])}, r"integer dtype; got torch\.bool\. .*labels\.long\(\)"),
        ({"images": np.full((4, 6), 0.5)}, r"`images` must be a torch tensor; got ndarray"),
        ({"images": torch.tensor(0.5)}, r"images \(\) and labels \(4,\)"),
        ({"epsilon": -0.1}, r"`epsilon` must be a number in 0..1, an linf distance between .*; got -0.1"),
        ({"epsilon": 8}, r"in 0..1, .*; got 8\. Divide levels of 0..255 by 255: 8/255 is 0.031"),
        ({"epsilon": 2.5, "norm": "l2"}, r"in 0..2.449, an l2 distance between .*; got 2.5"),
        ({"epsilon": None}, r"`epsilon` must be a number in 0..1, .*; got None"),
        ({"epsilon": "0.1"}, r"`epsilon` must be a number in 0..1, .*; got '0.1'"),
        ({"epsilon": math.nan}, r"`epsilon` must be a number in 0..1, .*; got nan"),
        ({"steps": 0}, r"`steps` must be an int of at least 1; got 0"),
        ({"steps": 2.5}, r"`steps` must be an int of at least 1; got 2.5"),
        ({"batch_size": 0}, r"`batch_size` must be an int of at least 1; got 0"),
        ({"batch_size": None}, r"`batch_size` must be an int of at least 1; got None"),
        ({"step_size": -1.0}, r"`step_size`.*got -1.0"),
        ({"step_size": 2}, r"`step_size` must be a number in 0..1.*got 2"),
        ({"norm": "l1"}, r"`norm` must be one of linf, l2; got 'l1'"),
        ({"loss": "margins"}, r"Did you mean 'margin'\?"),
    ],
)
def test_arguments_out_of_range_are_refused_with_what_came(change, message):
    arguments = {"images": torch.full((4, 6), 0.5), "labels": torch.tensor([0, 1, 2, 0]), "epsilon": 0.1} | change
    with pytest.raises(UsageError, match=message):
        pgd(_linear(_draw(0, 3, 6), torch.zeros(3)), **arguments)


def test_numpy_numbers_are_numbers():
    model, images, labels = _linear(_draw(0, 3, 6), torch.zeros(3)), torch.full((4, 6), 0.5), torch.tensor([0, 1, 2, 0])
    expected = pgd(model, images, labels, 0.5, steps=2, batch_size=3).adversarial
    found = pgd(model, images, labels, np.float32(0.5), steps=np.int64(2), batch_size=np.int32(3)).adversarial
    assert torch.equal(found, expected)


def test_measure_and_attack_refuse_the_same_epsilons():
    for wrong in (8, -0.1, None, math.inf, True):
        messages = []
        for call in (
            lambda epsilon: measures.create("robust_accuracy", epsilons=(epsilon,)),
            lambda epsilon: pgd(nn.Identity(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), epsilon),
        ):
            with pytest.raises(UsageError) as caught:
                call(wrong)
            messages.append(str(caught.value).replace("`epsilons`", "`epsilon`"))
        assert messages[0] == messages[1], wrong
    with pytest.raises(UsageError, match="`epsilons` must be a tuple of one or more numbers"):
        measures.create("robust_accuracy", epsilons=0.1)
    assert pgd(_linear(_draw(0, 3, 6), torch.zeros(3)), torch.rand(4, 6), torch.arange(4) % 3, 2, norm="l2")


class _Odd(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer = what, nn.Linear(6, 3)

    def forward(self, x):
        out = self.layer(x)
        return {"tuple": (out,), "one": out[:, :1], "detached": out.detach(), "nan": out * math.nan}[self.what]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("tuple", ModelContractError, "it returned a tuple"),
        ("one", ModelContractError, "two classes or more; the model returns one logit"),
        ("detached", ModelContractError, "no gradient with respect to its input"),
        ("nan", NumericsError, "not finite"),
    ],
)
def test_a_model_that_cannot_be_attacked_is_refused_with_the_reason(what, error, message):
    with pytest.raises(error, match=message):
        pgd(_Odd(what), torch.full((4, 6), 0.5), torch.zeros(4, dtype=torch.long), 0.1)


def test_a_half_precision_model_is_refused():
    with pytest.raises(ModelContractError, match=r"got torch.bfloat16. Pass a `.float\(\)` copy"):
        pgd(nn.Linear(6, 3).bfloat16(), torch.full((4, 6), 0.5), torch.zeros(4, dtype=torch.long), 0.1)
