"""Make the golden set: `python -m tests.golden.make FOLDER` (one thread, CPU, under a minute).

Runs of every kind go to FOLDER/runs, what is computed of nets to FOLDER/numbers.npz, tables to FOLDER/tables. Two
folders that were made by two versions of the code on one machine are held against each other by
`python -m tests.golden.compare`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

import grokkit as gk
from grokkit import policies
from grokkit.attributions import names as attribution_names
from grokkit.config.run_config import RunConfig, spec
from grokkit.errors import Interrupted, ModelContractError
from grokkit.measures import names as measure_names
from grokkit.old_names import translate
from grokkit.registry import import_source
from tests.callbacks import PressesCtrlC

OWN_MODEL = Path(__file__).with_name("own_model.txt")
"""A study in the words of an earlier version, as the golden run keeps it."""

TINY = RunConfig(
    experiment="golden",
    data=spec("digits", size=8, train=120, test=60),
    model=spec("mlp", widths=(8, 8)),
    batch_size=50,
    steps=24,
    records=2,
    probes={"train": 16, "test": 16, "random": 8},
    precision="float32",
    measures=(spec("accuracy"), spec("local_complexity", radii=(0.05, 0.5), directions=4, points=8)),
    signal={"every": 4, "points": 8, "directions": 4},
)


def configs() -> Iterator[RunConfig]:
    """The runs that are trained alone."""
    from grokkit.recipes.quickstart import decay_at_peak

    start = decay_at_peak()
    probes = {"train": 40, "test": 40, "random": 20}
    yield start.replace(
        steps=150, records=4, probes=probes, model=spec("mlp", widths=(16, 16)), signal={"every": 10, "points": 20}
    )
    yield TINY.replace(
        variant="every_measure",
        measures=tuple(spec(name) for name in measure_names()),
        attributions=tuple(spec(name, images=2) for name in attribution_names() if name != "grad_cam"),
        steps=8,
    )
    yield TINY.replace(
        variant="resnet9",
        model=spec("resnet9", width=4),
        augment=("crop2", "flip"),
        steps=6,
        signal={},
        optimizer=spec("sgd", lr=0.05, momentum=0.9),
        attributions=(spec("grad_cam", images=2),),
        data=spec("digits", size=32, train=120, test=60),
    )
    heard = [(step, {"log_density": 5 - abs(step - 12) / 10}) for step in range(0, 24, 4)]
    options = {"yoked": {"news": heard}, "shuffled": {"news": heard, "seed": 3}}
    for name in policies.names():
        yield TINY.replace(variant=f"policy_{name}", policy=spec(name), measures=())
    for name in policies.wrapper_names():
        told = spec(name, policy="lc_wsd", **options.get(name, {}))
        yield TINY.replace(variant=f"around_{name}", policy=told, measures=())


def train_all(runs: Path) -> None:
    """All runs: alone, stacked, from a study with a model of its own (one of them stopped half way), and a replay."""
    for config in configs():
        gk.train(config, runs=runs, device="cpu")
    gk.train_seeds(TINY.replace(variant="stack", measures=()), range(4), runs=runs, device="cpu")
    source = OWN_MODEL.read_bytes()
    arm = import_source(source, OWN_MODEL, translate).arm()  # only now: it registers names
    gk.train(arm, runs=runs, device="cpu", experiment=source.decode())
    with suppress(Interrupted):
        gk.train(arm, runs=runs / "stopped", device="cpu", experiment=source.decode(), callback=PressesCtrlC(14))
    gk.replay_run(named(runs, "policy_lc_wsd"), ["logit_scale", "weight_norm"], ["saliency"], device="cpu")


def named(runs: Path, variant: str) -> Path:
    """The one run of a variant."""
    (path,) = runs.glob(f"*/{variant}-s0-*")
    return path


def nets() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """A name, a net, and images for it."""
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    for name, options in (
        ("mlp", {"widths": (16, 12)}),
        ("vgg11_bn", {"width": 4}),
        ("cnn", {"channels": (4, 6), "strides": (2, 1), "hidden": 8}),
    ):
        torch.manual_seed(0)
        yield name, gk.models.create(name, (1, 16, 16), 10, **options).eval(), images


def numbers() -> dict[str, np.ndarray]:
    """Local complexity by all methods, the spectrum, segments, exact integrals, attacks and attributions."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, value: object) -> None:
        found[name] = value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)
        assert found[name].dtype != object, name

    for net_name, net, images in nets():
        for method in ("vertex", "tangent", "ray", "bound"):
            for frames in ("shared", "per_point"):
                lc = gk.local_complexity(net, images, 0.05, 5, method, frames, seed=3)
                for field in ("counts", "zones", "switches", "pool_signs", "density", "total"):
                    keep(f"{net_name}/lc/{method}/{frames}/{field}", getattr(lc, field))
                keep(f"{net_name}/lc/{method}/{frames}/live", list(lc.live_units.values()))
                keep(f"{net_name}/lc/{method}/{frames}/layers", list(lc.units))
        spectrum = gk.complexity_spectrum(net, images, [0.01, 0.1, 1.0], 5, seed=3)
        for field in ("counts", "critical_radius", "jacobian_norm", "boundary_density", "line_density"):
            keep(f"{net_name}/spectrum/{field}", getattr(spectrum, field))
        interval = gk.complexity_interval(net, images, 0.05, 5, seed=3)
        keep(f"{net_name}/interval", [interval.mean, interval.low, interval.high])
        segments = gk.partition_segment(net, images[0], images[1])
        keep(f"{net_name}/segment/knots", segments.knots[0])
        keep(f"{net_name}/segment/outputs", segments.outputs[0])
        keep(f"{net_name}/segment/by_layer", list(segments.by_layer.values()))
        exact = gk.exact_integrated_gradients(net, images[:2], 3)
        keep(f"{net_name}/exact/values", exact.values)
        keep(f"{net_name}/pgd", gk.pgd(net, images, torch.arange(6), 0.1, seed=1).adversarial)
        for method in attribution_names():
            with suppress(ModelContractError):  # deep_lift refuses max-pools, grad_cam nets without convolutions
                keep(f"{net_name}/attribution/{method}", gk.attribute(net, images[:2], 1, method, seed=2).values)
    return found


def main(folder: Path) -> None:
    """Make everything below a folder that does not exist yet."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    train_all(folder / "runs")
    np.savez(folder / "numbers.npz", **numbers())
    (folder / "tables").mkdir()
    for path in sorted(each.parent for each in (folder / "runs").rglob("status.json")):
        gk.table(path).to_csv(folder / "tables" / f"{path.parent.name}-{path.name}.csv", index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
