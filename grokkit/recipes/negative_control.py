"""Does local complexity distinguish learning from memorising? The same net on true and on shuffled labels.

Both arms share images, initial weights and batch order; in `shuffled_labels` the training labels are permuted among
the 1,000 training images (probe set `train` holds the labels trained on, test labels stay true), so that they can
only be memorised. Five seeds; a pair is two runs of one seed. Two minutes a run on one CPU core.

Specified before the runs were analysed (the setting was chosen by the training accuracy of another seed only):

- Statistic: d(t) = log LC(true) - log LC(shuffled) at recorded step t, per seed; LC is the layer `total` at radius
  0.05, the mean over 1,000 points. d(0) must be exactly 0: same weights, same images.
- Primary: probe set `train`, last step. The arms differ if the 95 % t interval of the mean of d over seeds
  excludes 0 (a paired t test, two-sided, at 5 %). "From step t" is the first recorded step from which on all such
  intervals exclude 0.
- Secondary, with Holm's correction over the three sets: the same at `test` and `random` points.
- Secondary: LC at equal fit, that is, at the first recorded step at which 99 % of the labels trained on are fitted; a
  difference at equal steps alone may only mean that the arms fit at different speeds.

The results are in artifacts/negative_control of the repository.
"""

from __future__ import annotations

from grokkit.config.run_config import RunConfig, spec


def true_labels() -> RunConfig:
    """Train an MLP whose large initial weights delay generalisation, on 1,000 digits with true labels."""
    return RunConfig(
        experiment="negative_control",
        variant="true_labels",
        data=spec("mnist", train=1000),
        model=spec("mlp", widths=(200, 200, 200)),
        init_scale=4.0,
        loss="mse",
        optimizer=spec("adamw", lr=1e-3, weight_decay=0.3),
        batch_size=200,
        steps=12_000,
        precision="float32",
        records=25,
        # All training images: a smaller set is drawn by label, and the arms would be measured on different ones.
        probes={"train": 1000, "test": 1000, "random": 1000},
        measures=(
            spec("accuracy"),
            spec("loss"),
            spec("local_complexity", radii=(0.05, 0.5), points=1000),
            spec("weight_norm"),
            spec("logit_scale"),
        ),
    )


def shuffled_labels() -> RunConfig:
    """Train the same with the training labels permuted."""
    return true_labels().replace(variant="shuffled_labels", data=spec("mnist", train=1000, shuffle_labels=True))
