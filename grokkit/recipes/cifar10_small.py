"""How a small convolutional net partitions its input space, with and without BatchNorm, on 1,024 CIFAR-10 images.

Observed with three seeds: without BatchNorm local complexity falls within some tens of steps and stays low (a rise
while the net fits is within the spread of the seeds); with BatchNorm it nearly doubles. Both nets lose robustness as
they fit: at this size there is no delayed robustness. Sized for a CPU: about three minutes a run.
Run it on your own images: `grokkit train cifar10_small --data cifar10.npz`.
"""

from __future__ import annotations

from grokkit.config.run_config import RunConfig, spec


def no_batchnorm() -> RunConfig:
    """Train five convolutions with biases, and only ReLU between them."""
    return RunConfig(
        experiment="cifar10_small",
        variant="no_batchnorm",
        data=spec("cifar10", train=1024),
        model=spec("cnn"),
        optimizer=spec("adamw", lr=1e-3, weight_decay=0.0),
        batch_size=128,
        steps=8_000,
        precision="float32",
        records=30,
        probes={"train": 1024, "test": 1000, "random": 256},
        measures=(
            spec("accuracy"),
            spec("loss"),
            spec("local_complexity", radii=(0.05, 0.5)),
            spec("robust_accuracy", epsilons=(4 / 255,), points=512),
            spec("weight_norm"),
            spec("logit_scale"),
        ),
        attributions=(spec("saliency"), spec("integrated_gradients"), spec("grad_cam")),
    )


def batchnorm() -> RunConfig:
    """Train the same net with BatchNorm before every convolutional ReLU."""
    return no_batchnorm().replace(variant="batchnorm", model=spec("cnn", norm="batch"))
