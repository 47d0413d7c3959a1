"""Delayed robustness at full scale: PreActResNet-18 of width 16 on all of CIFAR-10, far beyond interpolation.

The published setting (Humayun, Balestriero and Baraniuk, arXiv 2402.15555): no augmentation, no schedule, no weight
decay, AdamW at 1e-3, batches of 256, 500,000 updates; local complexity at three radii and robust accuracy at
log-spaced steps. The claim is that accuracy under attack rises long after the training images are fitted. The only
public run of it was attacked with cross-entropy only, whose gradient vanishes if logits are large; here every attack
uses two losses, and the result with the margin loss counts. Epsilons are in pixels; the published run's 50/255 is in
its normalised space, and equals 10/255 in pixels.

Hours on a fast GPU. It can be interrupted and resumed at any time; `python -m bench.gpu --stages e` in the repository
runs it in parts. Weights, activations and gradients are float32; within a convolution torch rounds the factors to TF32
on GPUs that support it, as in the published run. Measures are computed without this rounding.
"""

from __future__ import annotations

from grokkit.config.run_config import RunConfig, spec


def no_batchnorm() -> RunConfig:
    """Train the published net, without any normalisation."""
    return RunConfig(
        experiment="delayed_robustness",
        variant="no_batchnorm",
        data=spec("cifar10"),
        model=spec("preact_resnet18", width=16, norm="none"),
        optimizer=spec("adamw", lr=1e-3, weight_decay=0.0),
        batch_size=256,
        steps=500_000,
        precision="float32",
        records=50,
        probes={"train": 512, "test": 512, "random": 256},
        measures=(
            spec("accuracy"),
            spec("loss"),
            spec("local_complexity", radii=(0.005, 0.05, 0.5), points=256),
            spec("robust_accuracy", epsilons=(4 / 255, 8 / 255, 16 / 255), points=512),
            spec("weight_norm"),
            spec("logit_scale"),
        ),
    )


def batchnorm() -> RunConfig:
    """Train the same with BatchNorm: the control in which local complexity reportedly does not fall."""
    return no_batchnorm().replace(variant="batchnorm", model=spec("preact_resnet18", width=16, norm="batch"))
