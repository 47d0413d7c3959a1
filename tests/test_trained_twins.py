"""The slow twin against both methods on snapshots of nets trained on real images, in float64."""

import copy

import torch
import torch.nn.functional as F

from grokkit.spline import draw_orthonormal_frame, local_complexity
from tests.reference.lc_nets import MLP, ResidualNet, randomised
from tests.reference.slow_lc import preactivations_of, tangent_count, vertex_count


def _pixels(images, side):
    """Real images as float64, averaged down to `side` pixels, scaled as for training."""
    x = torch.from_numpy(images).double().div(255)
    x = x.permute(0, 3, 1, 2) if x.dim() == 4 else x.unsqueeze(1)
    return (F.adaptive_avg_pool2d(x, side) - 0.5) / 0.25


def _snapshots(net, x, y, steps=(0, 5, 60)):
    """Copies of the net in eval mode at these steps of AdamW on batches of 64, and the last training loss."""
    optimizer, saved = torch.optim.AdamW(net.parameters(), lr=1e-2), {}
    for step in range(max(steps) + 1):
        if step in steps:
            saved[step] = copy.deepcopy(net).eval()
        rows = torch.arange(64 * step, 64 * (step + 1)) % len(x)
        loss = F.cross_entropy(net.train()(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return saved, loss.item()


def _assert_twins_agree(net, images, radius):
    frame = draw_orthonormal_frame(3, images[0].numel(), 5)
    for method, slow in (("vertex", vertex_count), ("tangent", tangent_count)):
        counts = local_complexity(net, images, radius, 3, method, seed=5).counts
        assert counts.sum() > 0
        with torch.no_grad():
            assert counts.tolist() == [slow(preactivations_of(net), x, frame, radius) for x in images]


def _few_classes(archive, classes=3, count=1280):
    kept = archive["y_train"] < classes
    return archive["x_train"][kept][:count], torch.from_numpy(archive["y_train"][kept][:count]).long()


def test_an_mlp_trained_on_mnist_counts_as_its_slow_twin(real_mnist):
    pixels, y = _few_classes(real_mnist)
    x = _pixels(pixels, 7).flatten(1)
    snapshots, loss = _snapshots(randomised(MLP((49, 30, 20, 10, 3))), x, y)
    assert loss < 0.3
    for net in snapshots.values():
        for radius in (0.3, 3.0):
            _assert_twins_agree(net, x[:4], radius)


def test_a_residual_net_trained_on_cifar_counts_as_its_slow_twin(real_cifar):
    pixels, y = _few_classes(real_cifar)
    x = _pixels(pixels, 8)
    snapshots, loss = _snapshots(randomised(ResidualNet(channels=3)), x, y)
    assert loss < 1.0
    assert not torch.equal(snapshots[60].bn1.running_mean, snapshots[0].bn1.running_mean)
    for net in snapshots.values():
        for radius in (0.3, 3.0):
            _assert_twins_agree(net, x[:2], radius)
