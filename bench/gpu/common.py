"""The data, the net and the small runs that several stages share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import grokkit as gk
from bench.gpu.results import Setting
from grokkit.training.build import build_data, build_model
from grokkit.training.config import Part

SHAPE = (3, 32, 32)


def data_part(setting: Setting, **options: Any) -> Part:
    """CIFAR-10, from wherever the stage was told; next to nothing of it in the miniature."""
    if setting.small:
        options = {"train": 96, "test": 40}
    return gk.part("cifar10", **options)


def test_images(setting: Setting, count: int) -> Tensor:
    """The first test images as the nets see them, float32, on the device."""
    dataset = build_data(gk.RunConfig(experiment="gpu", data=data_part(setting)))
    pixels = torch.from_numpy(dataset.x_test[:count]).float() / 255
    return gk.Normalise(dataset.mean, dataset.std)(pixels).to(setting.device)


def study_config(setting: Setting, steps: int) -> gk.RunConfig:
    """PreActResNet-18, k = 16, without BatchNorm, as the published study trains it: AdamW 1e-3, batch 256, float32."""
    return gk.RunConfig(
        experiment="gpu", variant="study", data=data_part(setting),
        model=gk.part("preact_resnet18", width=8 if setting.small else 16, norm="none"),
        optimizer=gk.part("adamw", lr=1e-3, weight_decay=0.0), batch_size=32 if setting.small else 256, steps=steps,
        records=1, probes={"train": 16, "test": 16, "random": 16}, precision="float32",
    )  # fmt: skip


def trained_net(setting: Setting, steps: int) -> nn.Module:
    """The study's net after so many steps, in eval mode on the device, in contiguous memory; trained once."""
    config = study_config(setting, 4 if setting.small else steps)
    path = setting.work / config.run_name
    if path.exists():
        run = gk.resume(path, device=setting.device)
    else:
        run = gk.train(config, runs=setting.work, device=setting.device)
    model = build_model(config, run.environment["data"])
    model.load_state_dict(run.load(config.steps))
    return model.net.to(setting.device).eval()
