"""A last batch of one image, and a net that cannot train on one: said before anything is written."""

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.config.run_config import RunConfig, spec
from grokkit.data.resident import Batches
from grokkit.errors import UsageError
from grokkit.training.smallest_batch import check_smallest_batch

DEEP = spec("cnn", norm="batch", hidden=0)
"""BatchNorm on 1x1 maps of 8x8 digits."""

WIDE = spec("cnn", norm="batch", hidden=0, channels=(4, 4), strides=(2, 2))
"""BatchNorm on 4x4 and 2x2 maps."""


def make(model=DEEP, train=65, size=32, steps=3, test=40) -> RunConfig:
    return RunConfig(
        experiment="small",
        data=spec("digits", train=train, test=test),
        model=model,
        batch_size=size,
        steps=steps,
        records=2,
        measures=(spec("accuracy"),),
        probes={"train": 8, "test": 8, "random": 0},
    )


def test_a_single_last_image_under_batchnorm_on_single_pixels_is_refused_before_anything_is_written(tmp_path):
    expected = (
        r"the last batch of an epoch \(65 training images, `batch_size` = 32\) holds a single image, on which the "
        r"model cannot train: Expected more than 1 value per channel.*Choose `batch_size` = 33, or another number"
    )
    with pytest.raises(UsageError, match=expected):
        gk.train(make(), runs=tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config",
    [make(size=33), make(train=66), make(model=WIDE), make(model=spec("mlp")), make(steps=2)],
    ids=["other size", "other count", "larger maps", "no batchnorm", "ends before the last batch"],
)
def test_what_can_train_does(config, tmp_path):
    assert gk.train(config, runs=tmp_path, device="cpu").status["state"] == "done"


def test_the_proposed_batch_size_trains(tmp_path):
    for train, size in ((61, 4), (60, 1)):
        with pytest.raises(UsageError, match="`batch_size` = ") as caught:
            gk.train(make(train=train, size=size, steps=16), runs=tmp_path, device="cpu")
        proposed = int(str(caught.value).rpartition("`batch_size` = ")[2].partition(",")[0])
        gk.train(make(train=train, size=proposed, steps=16), runs=tmp_path, device="cpu")


def test_a_single_test_image_is_evaluated(tmp_path):
    """Evaluation is in eval mode, in which BatchNorm needs no second value."""
    config = make(train=64, test=1).replace(probes={"train": 1, "test": 1, "random": 0})
    assert gk.train(config, runs=tmp_path, device="cpu").status["state"] == "done"


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(1), nn.Dropout(), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)).flatten(1))


def test_the_model_and_the_random_state_are_left_alone():
    images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    batches = Batches(images, torch.zeros(5, dtype=torch.int64), 4, seed=0)
    model = Noisy().eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    check_smallest_batch(model, batches, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not model.training and not model.norm.training


def test_a_share_of_one_image_in_one_of_several_processes_counts():
    images = torch.randint(256, (15, 1, 8, 8), dtype=torch.uint8)
    batches = Batches(images, torch.zeros(15, dtype=torch.int64), 4, seed=0)
    model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    check_smallest_batch(model, batches, 10)
    with pytest.raises(UsageError, match=r"gives one of 2 processes a single image.*`batch_size` = 5,"):
        check_smallest_batch(model, batches, 10, processes=2)


def test_another_failure_is_left_to_the_first_step():
    batches = Batches(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), 4, seed=0)
    check_smallest_batch(nn.Linear(3, 3), batches, 10)
