"""Augmentation against torchvision and slicing, and batches that depend on nothing but the seed and the step."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms

from grokkit import seeding
from grokkit.data import augment
from grokkit.data.resident import Batches, to_pixels
from grokkit.errors import DataError, UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def coordinates(count, height, width):
    """Images whose pixels say where they are: channel 0 the row, channel 1 the column, from 1 on."""
    rows = torch.arange(1, height + 1, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(1, width + 1, dtype=torch.uint8)[None].expand(height, width)
    return torch.stack([rows, columns]).repeat(count, 1, 1, 1)


def ours(specs, x, seed=0):
    drawn = generator(seed)
    for change in augment.parse_augment(specs):
        x = change(x, generator=drawn)
    return x


# ---- crop


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("shape", [(64, 3, 8, 8), (64, 1, 5, 9)])
def test_crop_equals_slicing_bit_for_bit(mode, shape):
    x, pad = images(*shape), 3
    before = x.clone()
    made = augment.crop(x, pad, generator(7), mode)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode=mode)
    top, left = torch.randint(2 * pad + 1, (2, len(x)), generator=generator(7))
    height, width = shape[2:]
    for i, (t, s) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        np.testing.assert_array_equal(made[i].numpy(), padded[i, :, t : t + height, s : s + width])
    assert made.dtype == torch.uint8 and torch.equal(x, before)


@pytest.mark.parametrize("word", ["crop3", "crop3:constant", "flip", "cutout3"])
def test_the_memory_format_of_the_images_does_not_matter(word):
    x = images(16, 3, 8, 9)
    made = ours((word,), x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(made, ours((word,), x)) and torch.equal(ours((word,), x.float()), made.float())


def offsets(made):
    """Where the window began, from the first pixel of the original that it shows."""
    centre = made[:, :, 6, 6].long()
    return centre[:, 0] - 7, centre[:, 1] - 7


def test_crop_offsets_are_uniform_and_independent():
    count, pad = 20_000, 2
    dy, dx = offsets(augment.crop(coordinates(count, 13, 13), pad, generator(1), "constant"))
    cells = torch.bincount((dy + pad) * (2 * pad + 1) + dx + pad, minlength=25)
    assert len(cells) == 25 and stats.chisquare(cells.numpy()).pvalue > 1e-3


def test_crop_offsets_are_distributed_as_torchvisions():
    count, pad = 2000, 2
    theirs_of = transforms.RandomCrop(13, padding=pad)
    one = coordinates(1, 13, 13)[0]
    with seeding.seeded(0, "test"):
        theirs = torch.stack([theirs_of(one) for _ in range(count)])
    made = augment.crop(coordinates(count, 13, 13), pad, generator(2), "constant")
    tables = [
        torch.bincount((dy + pad) * 5 + dx + pad, minlength=25).numpy() for dy, dx in map(offsets, (made, theirs))
    ]
    assert stats.chi2_contingency(np.stack(tables)).pvalue > 1e-3
    assert {x.numpy().tobytes() for x in made} == {x.numpy().tobytes() for x in theirs}


def test_reflected_borders_are_torchvisions():
    one = coordinates(1, 6, 7)[0]
    theirs_of = transforms.RandomCrop((6, 7), padding=3, padding_mode="reflect")
    with seeding.seeded(0, "test"):
        theirs = {theirs_of(one).numpy().tobytes() for _ in range(1500)}
    made = {x.numpy().tobytes() for x in augment.crop(coordinates(1500, 6, 7), 3, generator(3))}
    assert made == theirs and len(made) == 49


def test_a_border_that_cannot_be_reflected_is_refused():
    with pytest.raises(UsageError, match=r"smaller than the image, 1\.\.4 pixels; got 5"):
        augment.crop(images(2, 1, 5, 8), 5, generator())
    assert augment.crop(images(2, 1, 5, 8), 5, generator(), "constant").shape == (2, 1, 5, 8)
    with pytest.raises(UsageError, match="'reflect' or 'constant'; got 'edge'"):
        augment.crop(images(2, 1, 5, 8), 1, generator(), "edge")


# ---- flip and cutout


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    x = coordinates(20_000, 2, 5)
    made = augment.flip(x, generator(4))
    mirrored = (made == x.flip(3)).flatten(1).all(1)
    kept = (made == x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert stats.binomtest(int(mirrored.sum()), len(x), 0.5).pvalue > 1e-3


def test_flips_of_neighbours_are_independent_and_keep_rows():
    made = augment.flip(coordinates(20_000, 2, 3), generator(5))
    mirrored = made[:, 1, 0, 0] == 3
    pairs = torch.bincount(mirrored[0::2].long() * 2 + mirrored[1::2].long(), minlength=4)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3
    assert torch.equal(made[:, 0], coordinates(20_000, 2, 3)[:, 0])


def test_altflip_mirrors_the_images_it_is_told_to():
    x = images(64, 3, 4, 5)
    mirrored = torch.rand(64, generator=generator(1)) < 0.5
    made = augment.altflip(x, mirrored)
    for image, original, turned in zip(made, x, mirrored.tolist(), strict=True):
        assert torch.equal(image, original.flip(2) if turned else original)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_is_a_clipped_square_with_its_centre_uniform_over_the_image(size):
    height, width, count = 6, 9, 20_000
    made = augment.cutout(torch.ones(count, 2, height, width, dtype=torch.uint8), size, generator(6))
    assert torch.equal(made[:, 0], made[:, 1])
    expected = {}
    for row in range(height):
        for column in range(width):
            twin = np.ones((height, width), np.uint8)
            top, left = row - size // 2, column - size // 2
            twin[max(top, 0) : top + size, max(left, 0) : left + size] = 0
            expected[twin.tobytes()] = expected.get(twin.tobytes(), 0) + 1
    keys, found = np.unique(made[:, 0].flatten(1).numpy(), axis=0, return_counts=True)
    assert {key.tobytes() for key in keys} == set(expected)
    shares = np.array([expected[key.tobytes()] for key in keys]) / (height * width)
    assert stats.chisquare(found, shares * count).pvalue > 1e-3


def test_mean_area_of_cutout_is_that_of_the_clipped_square():
    made = augment.cutout(torch.ones(20_000, 1, 32, 32, dtype=torch.uint8), 8, generator(8))
    side = np.mean([min(c + 4, 32) - max(c - 4, 0) for c in range(32)])
    removed = 1024 - made.flatten(1).sum(1).double()
    assert removed.mean().item() == pytest.approx(side**2, rel=0.01) and removed.max() == 64


@pytest.mark.parametrize("word", ["crop2", "crop2:constant", "flip", "cutout3"])
def test_augmentation_writes_to_memory_of_its_own(word):
    x = images(32, 3, 8, 8) | 1
    before = x.clone()
    ours((word,), x).zero_()
    assert torch.equal(x, before)


# ---- words


def test_words_say_the_order_and_the_sizes():
    x = images(16, 3, 8, 8)
    drawn = generator(9)
    twin = augment.cutout(augment.flip(augment.crop(x, 2, drawn, "constant"), drawn), 4, drawn)
    assert torch.equal(ours(("crop2:constant", "flip", "cutout4"), x, seed=9), twin)
    assert torch.equal(ours(("crop2",), x), ours(("crop2:reflect",), x))
    assert torch.equal(ours((), x), x)


@pytest.mark.parametrize("word", ["crop", "crop0", "crop-1", "crop4:edge", "cutout", "cutout0", "Flip", "flip2", ""])
def test_other_words_are_answered_with_those_allowed(word):
    with pytest.raises(UsageError, match=r"'flip', 'altflip', 'crop<pad>'.*'cutout<size>'; got"):
        augment.parse_augment([word])


def test_a_near_miss_is_named_and_a_bare_text_is_refused():
    with pytest.raises(UsageError, match="Did you mean 'cutout8'"):
        augment.parse_augment(("cutuot8",))
    with pytest.raises(UsageError, match="must be a tuple of strings"):
        augment.parse_augment("flip")


# ---- batches


def batches(count=23, batch_size=5, seed=0, augment=(), size=4):
    x = images(count, 1, size, size)
    x[:, 0, 0, 0] = torch.arange(count, dtype=torch.uint8)
    return Batches(x.numpy(), np.arange(count), batch_size, seed=seed, augment=augment)


def test_every_epoch_visits_every_sample_once_and_its_last_batch_is_ragged():
    made = batches()
    assert made.steps_per_epoch == 5
    orders = []
    for epoch in range(3):
        steps = range(5 * epoch + 1, 5 * epoch + 6)
        assert [made.epoch(step) for step in steps] == [epoch] * 5
        labels = [made.at(step)[1] for step in steps]
        assert [len(y) for y in labels] == [5, 5, 5, 5, 3]
        orders.append(torch.cat(labels).tolist())
        assert sorted(orders[-1]) == list(range(23))
    assert len({tuple(order) for order in orders}) == 3


def test_a_batch_is_a_pure_function_of_seed_and_step():
    words = ("crop1", "flip", "cutout2")
    forward = [batches(augment=words).at(step) for step in range(1, 13)]
    shared = batches(augment=words)
    for step in (12, 3, 3, 7, 1, 11, 6):
        for got, expected in zip(shared.at(step), forward[step - 1], strict=True):
            assert torch.equal(got, expected)
    assert not torch.equal(batches(seed=1, augment=words).at(1)[1], forward[0][1])


def test_batches_leave_the_global_generators_and_the_data_alone():
    made = batches(augment=("crop1", "flip", "cutout2"))
    state, before = torch.get_rng_state(), made.images.clone()
    made.at(1)[0].zero_()
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(made.images, before)
    unchanged = batches()
    unchanged.at(1)[0].zero_()
    assert torch.equal(unchanged.images, before)


def test_images_come_with_their_own_labels_as_pixels_between_zero_and_one():
    made = batches()
    for step in (1, 5, 6):
        x, y = made.at(step)
        assert x.dtype == torch.float32 and y.dtype == torch.int64 and x.shape[1:] == (1, 4, 4)
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y)
        assert torch.equal(made.indices(step), y)
        assert torch.equal(x, made.images[y].float() / 255)


def test_augmentation_differs_between_steps_and_does_not_move_the_order():
    plain, changed = batches(batch_size=23, size=8), batches(batch_size=23, size=8, augment=("crop2",))
    assert torch.equal(plain.at(1)[1], changed.at(1)[1])
    shifts = []
    for step in (1, 2):
        x, y = changed.at(step)
        shifts.append([bool(torch.equal(a, b)) for a, b in zip(x, plain.images[y].float() / 255, strict=True)])
        assert sum(shifts[-1]) < 10
    twin = augment.crop(plain.images[changed.indices(2)], 2, seeding.make_generator(0, "augment", 2))
    assert torch.equal(changed.at(2)[0], twin.float() / 255)


def test_the_order_of_an_epoch_is_the_named_stream():
    order = torch.randperm(23, generator=seeding.make_generator(4, "order", 1))
    made = batches(seed=4)
    assert torch.equal(torch.cat([made.indices(step) for step in range(6, 11)]), order)


def test_positions_are_uniform_over_seeds():
    first = torch.cat([batches(count=10, batch_size=1, seed=seed).indices(1) for seed in range(1000)])
    assert stats.chisquare(torch.bincount(first, minlength=10).numpy()).pvalue > 1e-3


def test_a_batch_larger_than_the_set_is_the_whole_set():
    made = batches(count=7, batch_size=100)
    assert made.steps_per_epoch == 1 and made.batch_size == 7 and made.epoch(3) == 2
    assert sorted(made.at(3)[1].tolist()) == list(range(7))
    assert batches(count=10, batch_size=5).steps_per_epoch == 2


@pytest.mark.parametrize("size", [0, -3, 2.0, True])
def test_a_batch_size_must_be_a_positive_int(size):
    with pytest.raises(UsageError, match="`batch_size` must be an int of 1 or more"):
        batches(batch_size=size)


def test_bad_data_steps_and_augmentations_fail_early():
    x, y = images(4, 1, 4, 4), torch.arange(4)
    for wrong in (x.float(), x[0], x[:0]):
        with pytest.raises(DataError, match="images must be uint8"):
            Batches(wrong, y, 2, seed=0)
    for wrong in (y[:3], y.int()):
        with pytest.raises(DataError, match=r"labels must be int64 \(4,\)"):
            Batches(x, wrong, 2, seed=0)
    with pytest.raises(UsageError, match="smaller than the image"):
        Batches(x, y, 2, seed=0, augment=("crop4",))
    with pytest.raises(UsageError, match="`step` must be 1 or more"):
        Batches(x, y, 2, seed=0).at(0)


# ---- the alternating flip


def turned(made, epoch):
    """(N,) bool in the order of the images: who is mirrored in this epoch."""
    found = torch.zeros(len(made.images), dtype=torch.bool)
    for step in range(epoch * made.steps_per_epoch + 1, (epoch + 1) * made.steps_per_epoch + 1):
        x, y = made.at(step)
        original = made.images[y].float() / 255
        mirrored, kept = ((x == other).flatten(1).all(1) for other in (original.flip(3), original))
        assert bool((mirrored ^ kept).all())
        found[y] = mirrored
    return found


def test_altflip_tosses_a_coin_per_image_and_turns_every_image_over_at_every_epoch():
    made = batches(augment=("altflip",))
    coins = turned(made, 0)
    assert coins.any() and not coins.all()
    for epoch in range(1, 4):
        assert torch.equal(turned(made, epoch), coins ^ (epoch % 2 == 1))
    assert not torch.equal(turned(batches(seed=1, augment=("altflip",)), 0), coins)


def test_coins_of_altflip_are_fair_and_independent_of_their_neighbours_and_of_the_order():
    count = 20_000
    made = Batches(images(count, 1, 4, 4), torch.arange(count), count, seed=0, augment=("altflip",))
    x, y = made.at(1)
    mirrored = (x == (made.images[y].float() / 255).flip(3)).flatten(1).all(1)
    by_image = torch.empty(count, dtype=torch.bool)
    by_image[y] = mirrored
    for coins in (by_image, mirrored):
        pairs = torch.bincount(coins[0::2].long() * 2 + coins[1::2].long(), minlength=4)
        assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_altflip_is_a_pure_function_of_seed_and_step_wherever_it_stands():
    words = ("crop1", "altflip", "cutout2")
    forward = [batches(augment=words).at(step) for step in range(1, 13)]
    shared = batches(augment=words)
    for step in (12, 3, 7, 1, 11, 6):
        assert torch.equal(shared.at(step)[0], forward[step - 1][0])
    plain = batches(augment=("crop1", "cutout2"), size=8)
    drawn = seeding.make_generator(0, "augment", 6)
    made = batches(augment=("crop1", "altflip", "cutout2"), size=8)
    chosen = made.indices(6)
    coins = torch.rand(23, generator=seeding.make_generator(0, "altflip")) < 0.5
    x = augment.altflip(augment.crop(plain.images[chosen], 1, drawn), ~coins[chosen])
    assert torch.equal(made.at(6)[0], augment.cutout(x, 2, drawn).float() / 255), "epoch 1: the opposite of the coins"


# ---- pixels


def test_bytes_become_pixels_and_floats_are_left():
    x = images(3, 1, 2, 2)
    assert torch.equal(to_pixels(x.numpy()), x.float() / 255) and torch.equal(to_pixels(x), x.float() / 255)
    held = torch.randn(3, 2)
    assert to_pixels(held) is held
    assert to_pixels(np.array([255, 0], np.uint8)).tolist() == [1.0, 0.0]
    for wrong in (held.double(), torch.arange(3)):
        with pytest.raises(DataError, match=r"uint8 in 0\.\.255 or float32; got torch"):
            to_pixels(wrong)
