"""The data, the net, the ceilings and the small runs that several stages share."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import grokkit as gk
from bench.gpu.results import Row, Setting, timed
from grokkit.config.run_config import Spec
from grokkit.device.preserved_state import strict_precision
from grokkit.training.build import build_data, build_model

SHAPE = (3, 32, 32)


def offer_data(setting: Setting) -> None:
    """Let the dataset `cifar10` be the file that was named, so that the configs of all runs say `cifar10` and go on on
    a machine where the file lies elsewhere."""
    if setting.data == "cifar10":
        return
    file = Path(setting.data).resolve()
    folder = file.parent
    if file.name != "cifar10.npz":
        folder = setting.work / "data"
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "cifar10.npz"
        if not (link.is_symlink() and link.resolve() == file):
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    os.environ["GROKKIT_DATA"] = str(folder)


def data_part(setting: Setting) -> Spec:
    """The stage's data; next to nothing of it in the miniature."""
    return gk.spec("cifar10", **({"train": 96, "test": 40} if setting.small else {}))


def test_images(setting: Setting, count: int) -> Tensor:
    """The first test images as the nets see them, float32, on the device."""
    dataset = build_data(gk.RunConfig(experiment="gpu", data=data_part(setting)))
    pixels = torch.from_numpy(dataset.x_test[:count]).float() / 255
    return gk.Normalise(dataset.mean, dataset.std)(pixels).to(setting.device)


def study_config(setting: Setting, steps: int) -> gk.RunConfig:
    """PreActResNet-18, k = 16, without BatchNorm, as the published study trains it: AdamW 1e-3, batch 256, float32."""
    return gk.RunConfig(
        experiment="gpu",
        variant="study",
        data=data_part(setting),
        model=gk.spec("preact_resnet18", width=8 if setting.small else 16, norm="none"),
        optimizer=gk.spec("adamw", lr=1e-3, weight_decay=0.0),
        batch_size=32 if setting.small else 256,
        steps=4 if setting.small else steps,
        records=1,
        probes={"train": 16, "test": 16, "random": 16},
        precision="float32",
        execution="eager",
    )


def trained_model(setting: Setting, steps: int) -> tuple[gk.Classifier, gk.RunConfig]:
    """The study's model after so many steps, in eval mode on the device, in contiguous memory; trained once."""
    config = study_config(setting, steps)
    path = setting.work / config.run_name
    if path.exists():
        run = gk.resume(path, device=setting.device)
    else:
        run = gk.train(config, runs=setting.work, device=setting.device)
    model = build_model(config, run.environment["data"])
    model.load_state_dict(run.load(config.steps))
    return model.to(setting.device).eval(), config


def seeded_net(name: str, **options: Any) -> nn.Module:
    """A net with the same random weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return gk.models.create(name, SHAPE, 10, **options)


@contextmanager
def tf32() -> Iterator[None]:
    """Convolutions and products in TF32, whatever the defaults are.

    By the older switches, which move the newer ones with them: torch refuses to multiply where the two disagree.
    """
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def ceilings(setting: Setting) -> Iterator[Row]:
    """FLOP/s of a large product of random matrices, in each arithmetic that training or measures run in."""
    side = 256 if setting.small else 8192
    for name, dtype, arithmetic in (
        ("float32", torch.float32, strict_precision),
        ("tf32", torch.float32, tf32),
        ("bfloat16", torch.bfloat16, tf32),
    ):
        a, b = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
        with arithmetic():
            seconds = median(lambda a=a, b=b: a @ b, setting)
        yield {"what": f"product of {side}x{side}", "precision": name, "tflop_per_s": 2 * side**3 / seconds / 1e12}


def ceiling_of(rows: list[Row], precision: str) -> float | None:
    """FLOP/s that `ceilings` found for a training precision; float32 convolutions run in TF32 by torch's default."""
    wanted = "tf32" if precision == "float32" else precision
    found = [row["tflop_per_s"] for row in rows if row["precision"] == wanted]
    return found[0] if found else None


def median(call: Callable[[], object], setting: Setting, repetitions: int = 5) -> float:
    """Median seconds of so many calls after one that is not counted."""
    call()
    return statistics.median(timed(call, setting.device) for _ in range(1 if setting.small else repetitions))
