"""Stage a: is what is counted and trained on this device right, and what would rounding have counted?"""

from __future__ import annotations

import copy
import os
import runpy
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import grokkit as gk
from bench.gpu.common import SHAPE, data_part, test_images, trained_net
from bench.gpu.results import ROOT, Results, Rows, Setting
from grokkit import models
from grokkit.borrow import strict_precision
from grokkit.data.resident import Batches
from grokkit.errors import GrokkitError, Interrupted
from grokkit.figures.theme import FULL, save, themed
from grokkit.models.classifier import Classifier, Normalise
from grokkit.spline import complexity_spectrum, local_complexity, orthonormal_frame
from grokkit.training.build import build_data, placed
from grokkit.training.observers import Silent
from grokkit.training.step import TrainStep

TITLE = "correctness: local complexity by precision, every model, every way to compute a step, resume and replay"
# By path: on some machines another package is called `tests`.
published_counts = runpy.run_path(str(ROOT / "tests" / "reference" / "published_lc.py"))["published_counts"]
RADII = (0.005, 0.05, 0.5)
TOLERANCE = {"float32": 0.03, "bfloat16": 0.3}
"""How far the weights may end from the eager float32 ones after `UPDATES` updates, over how far those have moved. The
rate is small, so that the updates tell the precision of gradients and not how training drives neighbours apart."""
UPDATES, LR = 12, 1e-4
TANGENTS = {"vertex": None, "tangent": "exact"}
SHARE = 0.002
"""Of the counted units, how many float32 may see otherwise than float64, beside two."""


def measure(results: Results) -> None:
    setting = results.setting
    results.part("lc_by_precision", lambda: lc_by_precision(setting), needs=60)
    results.part("steps", lambda: steps(setting), needs=90)
    results.part("resume_and_replay", lambda: resume_and_replay(setting), needs=30)
    for name in ["mlp", "resnet9"] if setting.small else models.names():
        results.part(f"model {name}", partial(one_model, setting, name), needs=15)
    if "lc_by_precision" in results.parts:
        save(inflation(results.parts["lc_by_precision"]), setting.out / "lc_by_precision")


def headline(parts: dict[str, Rows]) -> Rows:
    """The ratios to float64, and how far each way to compute a step went astray."""
    ratios = [
        {name: row[name] for name in ("method", "arithmetic", "radius", "mean", "over_float64", "points_that_differ")}
        for row in parts.get("lc_by_precision", ())
    ]
    ways = [
        {"method": "steps", "arithmetic": f"{row['execution']}, {row['precision']}", "apart_over_moved":
         row["apart_over_moved"]} for row in parts.get("steps", ())
    ]  # fmt: skip
    nets = [row for name, rows in parts.items() if name.startswith("model ") for row in rows if "passes" in row]
    moved, counted = (sum(row[name] for row in nets) for name in ("units_that_differ", "units_counted"))
    told = [{"method": "models", "arithmetic": f"{len(nets)} counts: {moved} of {counted} units differ from float64"}]
    said = [{"method": row["told"], "arithmetic": str(row["so"])} for row in parts.get("resume_and_replay", ())]
    return [*ratios, *ways, *told, *said]


# ---- local complexity by precision


def lc_by_precision(setting: Setting) -> Rows:
    """Mean count per point of a trained net, counted as published and by tangents, in every arithmetic; the first row
    of a method and radius is float64."""
    points, directions = (4, 3) if setting.small else (64, 20)
    net, images = trained_net(setting, 500), test_images(setting, points)
    frame = orthonormal_frame(directions, images[0].numel()).to(images)
    ways = {**_vertex_ways(net, images, frame), **_tangent_ways(net, images, frame)}
    rows: Rows = []
    exact: dict[tuple[str, float], Tensor] = {}
    for (method, arithmetic), count in ways.items():
        for radius, counts in zip(RADII, count(), strict=True):
            totals = counts.sum(-1).double().cpu()
            reference = exact.setdefault((method, radius), totals)
            rows.append({
                "method": method, "arithmetic": arithmetic, "radius": radius, "mean": totals.mean().item(),
                "over_float64": (totals.mean() / reference.mean()).item(),
                "points_that_differ": (totals != reference).double().mean().item(),
                "mean_difference": (totals - reference).abs().mean().item(), "points": points, "directions": directions,
            })  # fmt: skip
    return rows


Counts = Callable[[], list[Tensor]]


def _vertex_ways(net: nn.Module, images: Tensor, frame: Tensor) -> dict[tuple[str, str], Counts]:
    """Counts at the vertices: grokkit's, and the published code in the arithmetic that surrounds it."""

    def ours(model: nn.Module, x: Tensor) -> list[Tensor]:
        return [local_complexity(model, x, r, method="vertex", frame=frame.to(x)).counts for r in RADII]

    def published() -> list[Tensor]:
        return [published_counts(net, images, frame, radius) for radius in RADII]

    def in_tf32() -> list[Tensor]:
        with tf32():
            return published()

    def in_bfloat16() -> list[Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16):
            return published()

    def strictly() -> list[Tensor]:
        with strict_precision():
            return published()

    return {
        ("vertex", "float64"): lambda: ours(copy.deepcopy(net).double(), images.double()),
        ("vertex", "float32, grokkit"): lambda: ours(net, images),
        ("vertex", "float32, published code"): strictly,
        ("vertex", "TF32, published code"): in_tf32,
        ("vertex", "bfloat16, published code"): in_bfloat16,
        ("vertex", "torch's defaults, published code"): published,
    }


def _tangent_ways(net: nn.Module, images: Tensor, frame: Tensor) -> dict[tuple[str, str], Counts]:
    def spectrum(model: nn.Module, x: Tensor, tangents: str) -> list[Tensor]:
        found = complexity_spectrum(model, x, list(RADII), frame=frame.to(x), tangents=tangents, quantiles=())  # type: ignore[arg-type]
        return list(found.counts)

    return {
        ("tangent", "float64"): lambda: spectrum(copy.deepcopy(net).double(), images.double(), "exact"),
        ("tangent", "float32"): lambda: spectrum(net, images, "exact"),
        ("tangent", "bfloat16 tangents"): lambda: spectrum(net, images, "bfloat16"),
    }


@contextmanager
def tf32() -> Iterator[None]:
    """Convolutions and products in TF32, whatever the defaults are. Older and newer switches are set alike, because
    torch refuses to read a mix of the two."""
    backends: Any = torch.backends
    knobs = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.matmul)
    before = [knob.fp32_precision for knob in knobs]
    convolutions, products = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    for knob in knobs[:2]:
        knob.fp32_precision = "tf32"
    try:
        yield
    finally:
        backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
        for knob, precision in zip(knobs, before, strict=True):
            knob.fp32_precision = precision


@themed
def inflation(rows: Rows) -> Figure:
    """Count over the float64 count, by arithmetic and radius."""
    shown = [row for row in rows if row["arithmetic"] != "float64"]
    names = list(dict.fromkeys(f"{row['method']}: {row['arithmetic']}" for row in shown))
    figure = Figure(figsize=(0.8 * FULL, 0.28 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, radius in enumerate(RADII):
        values = [row["over_float64"] for row in shown if row["radius"] == radius]
        axes.plot(values, range(len(names)), "osD"[place], ms=4, label=f"r = {radius:g}")
    axes.axvline(1.0, color="0.5", lw=0.6)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="local complexity / that in float64", xscale="log")
    axes.invert_yaxis()
    axes.legend()
    return figure


# ---- every model


def one_model(setting: Setting, name: str) -> Rows:
    """Counts of a net on this device in float32 against the CPU's in float64, random weights; and what was lent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.create(name, SHAPE, 10)
    images = test_images(setting, 2 if setting.small else 4)
    exact, here = copy.deepcopy(net).double().cpu(), net.to(setting.device)
    here.train()
    before = _state(here, setting)
    rows: Rows = []
    for method in ("vertex", "tangent"):
        try:
            ours = local_complexity(here, images, 0.5, 5, method, tangents=TANGENTS[method]).counts.cpu()
        except GrokkitError as error:
            rows.append({"model": name, "method": method, "refused": str(error)})
            continue
        theirs = local_complexity(exact, images.double().cpu(), 0.5, 5, method).counts
        counted, moved = int(theirs.sum()), int((ours - theirs).abs().sum())
        rows.append({"model": name, "method": method, "units_counted": counted, "units_that_differ": moved,
                     "passes": counted > 0 and moved <= 2 + counted * SHARE,
                     "left_as_it_was": _state(here, setting) == before})  # fmt: skip
    return rows


def _state(net: nn.Module, setting: Setting) -> list[Any]:
    """What a measurement must hand back: flags, gradients, hooks, buffers, random state."""
    told: list[Any] = [(module.training, len(module._forward_hooks)) for module in net.modules()]
    told += [(p.requires_grad, p.grad is None) for p in net.parameters()]
    told += [buffer.double().sum().item() for buffer in net.buffers()]
    told.append(torch.get_rng_state().tolist())
    if setting.device == "cuda":
        told.append(torch.cuda.get_rng_state().tolist())
    return told


# ---- every way to compute a step


def steps(setting: Setting) -> Rows:
    """Weights after `UPDATES` updates, full and ragged, by execution and precision, against the eager float32 ones;
    TF32 is off, so that nothing but the way differs."""
    ways = [("eager", "float32"), ("eager", "bfloat16"), ("compile", "float32")]
    if setting.device == "cuda":
        ways += [("graph", "float32"), ("graph", "bfloat16"), ("compile", "bfloat16")]
    if setting.small:
        ways = ways[:2]
    rows: Rows = []
    reference = None
    for execution, precision in ways:
        before, after, took, same = _updated(setting, execution, precision)
        reference = after if reference is None else reference
        apart = ((after - reference).norm() / (reference - before).norm()).item()
        rows.append({"asked": execution, "execution": took, "precision": precision, "apart_over_moved": apart,
                     "within": TOLERANCE[precision], "lc_is_that_of_a_fresh_copy": same,
                     "passes": apart <= TOLERANCE[precision] and same})  # fmt: skip
    return rows


def _updated(setting: Setting, execution: str, precision: str) -> tuple[Tensor, Tensor, str, bool]:
    """All weights before and after, as one vector; how the steps were computed; and whether the local complexity of the
    net that was trained is that of a fresh one with its weights, which was never compiled, recorded or rounded."""
    dataset = build_data(gk.RunConfig(experiment="gpu", data=data_part(setting)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.create("resnet9", SHAPE, 10, width=8 if setting.small else 16)
    model = placed(Classifier(Normalise(dataset.mean, dataset.std), net), torch.device(setting.device)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, fused=True)
    size = 24 if setting.small else 100
    batches = Batches(dataset.x_train[: 2 * size + size // 3], dataset.y_train[: 2 * size + size // 3], size, seed=0,
                      device=setting.device, augment=("crop4", "flip"))  # fmt: skip
    before, fresh = _weights(model), copy.deepcopy(model)
    with strict_precision():
        update = TrainStep(model, optimizer, F.cross_entropy, batch_size=size, precision=precision, execution=execution)
        for number in range(1, UPDATES + 1):
            optimizer.param_groups[0]["lr"] = LR * number / UPDATES
            update(*batches.at(number))
    fresh.load_state_dict(model.state_dict())
    images = test_images(setting, 4)
    counts = [local_complexity(each.net, images, 0.05, 5).counts for each in (model, fresh)]
    return before, _weights(model), update.execution, torch.equal(*counts)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().double().cpu().flatten() for value in model.parameters()])


# ---- resume and replay


class StopsAt(Silent):
    """Asks the run to stop, as Ctrl-C does, when a step is reported."""

    def __init__(self, step: int) -> None:
        self._step = step

    def report(self, step: int, values: object) -> None:
        if step == self._step:
            os.kill(os.getpid(), signal.SIGINT)


def resume_and_replay(setting: Setting) -> Rows:
    """A small run straight, one interrupted and resumed, and the straight one replayed; how much of it is bit-equal
    (a GPU's libraries do not promise that it is)."""
    config = gk.RunConfig(
        experiment="gpu", variant="resumed", data=data_part(setting), model=gk.part("resnet9", width=8), steps=30,
        optimizer=gk.part("sgd", lr=0.02, momentum=0.9), augment=("crop4", "flip"), batch_size=32, records=4,
        probes={"train": 16, "test": 16, "random": 16},
        measures=(gk.part("accuracy"), gk.part("local_complexity", radii=(0.05,), directions=4, points=8)),
    )  # fmt: skip
    folders = {name: setting.work / name for name in ("straight", "parts")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    straight = gk.train(config, runs=folders["straight"], device=setting.device)
    with suppress(Interrupted):
        gk.train(config, runs=folders["parts"], device=setting.device, observer=StopsAt(14))
    resumed = gk.resume(folders["parts"] / config.run_name, device=setting.device)
    one, other = straight.load(config.steps), resumed.load(config.steps)
    apart = max((value.double() - other[name].double()).abs().max().item() for name, value in one.items())
    live = _measured(straight.path)
    for path in (straight.path / "measures").rglob("*.h5"):
        path.unlink()
    gk.replay_run(straight.path, measures=config.measures, device=setting.device)
    again = _measured(straight.path)
    return [
        {"told": "resumed weights are bit-equal to straight ones", "so": apart == 0, "largest_difference": apart},
        {"told": "replayed readings are byte-equal to live ones", "so": live == again, "files": len(live),
         "files_that_differ": sum(live[name] != again.get(name) for name in live)},
    ]  # fmt: skip


def _measured(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "measures").rglob("*.h5"))}
