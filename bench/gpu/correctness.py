"""Stage a: is what is counted and trained on this device right, and what would rounding have counted?"""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import grokkit as gk
from bench.gpu import lc_precision, steps
from bench.gpu.common import data_part, seeded_net, test_images, trained_model
from bench.gpu.results import Results, Row, Rows, Setting
from grokkit import measures, models
from grokkit.callbacks.base import BaseCallback
from grokkit.errors import GrokkitError, Interrupted
from grokkit.figures.theme import save_figure
from grokkit.spline import complexity_spectrum, local_complexity
from grokkit.training.build import build_data

TITLE = "correctness: local complexity by precision, every model and measure, every way to compute a step, resume"
ROUNDED = 0.03
"""Share of the units counted by which tangents rounded to bfloat16 may differ."""

SMALL: dict[str, dict[str, Any]] = {
    "calibration": {"radii": (0.05, 0.1, 0.5), "directions": (2, 4), "points": 4},
    "robust_accuracy": {"epsilons": (0.05,), "steps": 2, "points": 8},
}
"""Options that make a measure quick."""

APART = {"accuracy": 0.0, "loss": 1e-3, "weight_norm": 1e-5, "logit_scale": 1e-3, "local_complexity": 0.03}
"""How far a measure may be apart on two devices, over its largest reading; others are told and not judged."""


def measure(results: Results) -> None:
    setting = results.setting
    results.part("lc_by_precision", partial(lc_precision.lc_by_precision, setting), needs=60)
    results.part("resume_and_replay", partial(resume_and_replay, setting), needs=30)
    results.part("measures", partial(measures_on_both, setting), needs=30)
    graphs = steps.GRAPHS if setting.device == "cuda" else []
    for way in [*steps.PLAIN, *graphs]:
        results.part(f"step {', '.join(way)}", partial(steps.one_way, setting, *way), needs=20)
    for name in ["mlp", "resnet9"] if setting.small else models.names():
        results.part(f"model {name}", partial(one_model, setting, name), needs=15)
    for way in [] if setting.small else steps.COMPILED:  # minutes of compiling, so they come last
        results.part(f"step {', '.join(way)}", partial(steps.one_way, setting, *way), needs=60)
    results.measured_last()
    rows = results.parts.get("lc_by_precision", [])
    if rows:
        save_figure(lc_precision.inflation(rows), setting.out / "lc_by_precision")


def lines(parts: dict[str, Rows]) -> list[str]:
    """For the summary."""
    told = lc_precision.lines(parts.get("lc_by_precision", []))
    judged = [row for rows in parts.values() for row in rows if "passes" in row]
    told.append(f"checks: {sum(row['passes'] for row in judged)} of {len(judged)} passed")
    refused = [row["model"] for rows in parts.values() for row in rows if "refused" in row]
    return told + [f"models refused in words: {', '.join(dict.fromkeys(refused))}"] * bool(refused)


# ---- every model


def one_model(setting: Setting, name: str) -> Iterator[Row]:
    """Counts of a net on this device in float32 against the CPU's in float64, random weights; and what was lent."""
    net = seeded_net(name)
    images = test_images(setting, 2 if setting.small else 4)
    exact, here = copy.deepcopy(net).double().cpu(), net.to(setting.device)
    here.train()
    before = state_of(here, setting)
    # on a CPU bfloat16 is many times slower than float32
    for method in ("vertex", "exact", "bfloat16") if setting.device == "cuda" else ("vertex", "exact"):
        try:
            ours = counts_of(here, images, method).cpu()
            theirs = counts_of(exact, images.double().cpu(), "exact" if method == "bfloat16" else method)
        except GrokkitError as error:
            yield {"model": name, "method": method, "refused": str(error)}
            continue
        same = state_of(here, setting) == before
        apart, counted = int((ours - theirs).abs().sum()), int(theirs.sum())
        fits = apart <= ROUNDED * counted if method == "bfloat16" else lc_precision.agrees(ours, theirs)
        yield {
            "model": name,
            "method": method,
            "units_counted": counted,
            "units_that_differ": apart,
            "left_as_it_was": same,
            "passes": fits and same,
        }


def counts_of(net: nn.Module, images: torch.Tensor, method: str) -> torch.Tensor:
    """Counts (point, layer) at radius 0.5 in five directions: at the vertices, or by such tangents."""
    if method == "vertex":
        return local_complexity(net, images, 0.5, 5).counts
    return complexity_spectrum(net, images, [0.5], 5, tangents=method, quantiles=()).counts[0]


def state_of(net: nn.Module, setting: Setting) -> list[Any]:
    """What a measurement must hand back: flags, gradients, hooks, buffers, random state."""
    told: list[Any] = [(module.training, len(module._forward_hooks)) for module in net.modules()]
    told += [(p.requires_grad, p.grad is None) for p in net.parameters()]
    told += [buffer.double().sum().item() for buffer in net.buffers()]
    told.append(torch.get_rng_state().tolist())
    if setting.device == "cuda":
        told.append(torch.cuda.get_rng_state().tolist())
    return told


# ---- every measure


def measures_on_both(setting: Setting) -> Iterator[Row]:
    """A trained model recorded once on the CPU and once here, with every measure that there is: the same files, and how
    far the readings are apart."""
    model, config = trained_model(setting, lc_precision.STEPS)
    probes = gk.probe_sets(build_data(config), train=16, test=16, random=16)
    wanted = [gk.spec(name, **SMALL.get(name, {})) for name in measures.names() if name != "local_complexity"]
    wanted += [gk.spec("local_complexity", method=method, points=4) for method in ("vertex", "tangent")]
    tables, files = [], []
    for number, device in enumerate(("cpu", setting.device)):
        path = setting.work / f"measures-{number}"
        shutil.rmtree(path, ignore_errors=True)
        gk.record(path, copy.deepcopy(model).to(device), probes=probes, measures=wanted, schedule=[0]).close()
        tables.append(gk.table([gk.open_run(path)]))
        files.append({file.relative_to(path) for file in path.rglob("*.h5")})
    yield {"check": "the same files", "files": len(files[0]), "passes": files[0] == files[1]}
    keys = [name for name in tables[0].columns if name not in ("run", "group", "value", "low", "high", "n")]
    both = tables[0].merge(tables[1], on=keys, how="outer", suffixes=("", "_here"))
    same = len(both) == len(tables[0]) == len(tables[1])
    yield {"check": "the same rows of the table", "rows": len(both), "passes": same}
    for (name, identity), rows in both.groupby(["measure", "measure_id"], dropna=False):
        size, apart = rows["value"].abs().max(), (rows["value"] - rows["value_here"]).abs().max()
        row = {"measure": name, "measure_id": identity, "largest": float(size), "largest_difference": float(apart)}
        yield row | ({"passes": bool(apart <= APART[name] * size)} if name in APART else {})


# ---- resume and replay


class StopsAt(BaseCallback):
    """Asks the run to stop, as Ctrl-C does, when a step is reported."""

    def __init__(self, step: int) -> None:
        self._step = step

    def report(self, step: int, values: object) -> None:
        if step == self._step:
            os.kill(os.getpid(), signal.SIGINT)


def resume_and_replay(setting: Setting) -> Iterator[Row]:
    """A small run straight, one interrupted and resumed, and the straight one replayed; how much of it is bit-equal."""
    config = gk.RunConfig(
        experiment="gpu",
        variant="resumed",
        data=data_part(setting),
        model=gk.spec("resnet9", width=8),
        steps=30,
        optimizer=gk.spec("sgd", lr=0.02, momentum=0.9),
        augment=("crop4", "flip"),
        batch_size=32,
        records=4,
        probes={"train": 16, "test": 16, "random": 16},
        measures=(gk.spec("accuracy"), gk.spec("local_complexity", radii=(0.05,), directions=4, points=8)),
    )
    folders = {name: setting.work / name for name in ("straight", "parts")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    straight = gk.train(config, runs=folders["straight"], device=setting.device)
    with suppress(Interrupted):
        gk.train(config, runs=folders["parts"], device=setting.device, callback=StopsAt(14))
    resumed = gk.resume(folders["parts"] / config.run_name, device=setting.device)
    one, other = straight.load(config.steps), resumed.load(config.steps)
    apart = max((value.double() - other[name].double()).abs().max().item() for name, value in one.items())
    yield {
        "check": "resumed weights are bit-equal to straight ones",
        "passes": apart == 0,
        "largest_difference": apart,
        "device": straight.environment["device"],
    }
    live = measured(straight.path)
    for path in (straight.path / "measures").rglob("*.h5"):
        path.unlink()
    gk.replay_run(straight.path, measures=config.measures, device=setting.device)
    again = measured(straight.path)
    yield {
        "check": "replayed readings are byte-equal to live ones",
        "passes": live == again,
        "files": len(live),
        "files_that_differ": sum(live[name] != again.get(name) for name in live),
    }


def measured(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "measures").rglob("*.h5"))}
