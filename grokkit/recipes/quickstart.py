"""Delayed robustness on handwritten digits, in about a minute a run on two CPU cores.

An MLP with large initial weights learns 500 digits by mean squared error with strong weight decay. It fits them
within some hundred steps; robust accuracy comes an order of magnitude later, while local complexity at training
points peaks and then falls. `constant` keeps the learning rate; `decay_at_peak` uses a policy that follows local
complexity and lowers the rate after its peak: the two arms are the same run, bit for bit, up to that step.
"""

from __future__ import annotations

from grokkit.config.run_config import RunConfig, spec


def constant() -> RunConfig:
    """Train with a constant learning rate."""
    return RunConfig(
        experiment="quickstart",
        variant="constant",
        data=spec("digits", size=8, train=500),
        model=spec("mlp", widths=(128, 128, 128)),
        init_scale=3.0,
        loss="mse",
        optimizer=spec("adamw", lr=1e-3, weight_decay=0.3),
        batch_size=100,
        steps=12_000,
        precision="float32",
        records=40,
        probes={"train": 500, "test": 1297, "random": 256},
        measures=(
            spec("accuracy"),
            spec("loss"),
            spec("local_complexity", radii=(0.05, 0.5)),
            spec("robust_accuracy", epsilons=(0.1,)),
            spec("weight_norm"),
            spec("logit_scale"),
        ),
        attributions=(spec("saliency"), spec("integrated_gradients")),
        signal={"every": 100},
    )


def decay_at_peak() -> RunConfig:
    """Train with a rate that decays after the local-complexity signal has peaked, or at its deadline."""
    return constant().replace(variant="decay_at_peak", policy=spec("lc_wsd", warmup=0.0))
