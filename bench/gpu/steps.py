"""Every way to compute a training step against the plain one: eager, graphed, compiled; float32 and bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.gpu.common import data_part, seeded_net, test_images
from bench.gpu.results import Row, Setting
from grokkit.config.run_config import RunConfig, Spec, spec
from grokkit.data.resident import Batches
from grokkit.device.preserved_state import strict_precision
from grokkit.models.classifier import Classifier, Normalise
from grokkit.optim.build import build_optimizer
from grokkit.spline import local_complexity
from grokkit.training.build import build_data, clip_gradients, to_device
from grokkit.training.step import TrainStep

UPDATES, LR = 12, 1e-4
"""The rate is small, so that the updates tell the precision of gradients and not how training drives neighbours
apart."""

OPTIMIZERS = {
    "sgd": spec("sgd", lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adam": spec("adam", lr=LR),
    "adamw": spec("adamw", lr=LR, weight_decay=0.0),
    "muon": spec("muon", lr=LR, vector_lr=LR, matrix_lr=LR),
}
"""Those of the recipes; each has a way of its own into a graph."""

TOLERANCE = {"float32": 0.02, "bfloat16": 0.3}
"""How far the weights may end from the eager float32 ones after `UPDATES` updates, over how far those have moved."""

PLAIN = [("eager", "bfloat16", "sgd")]
GRAPHS = [("graph", "float32", name) for name in OPTIMIZERS] + [("graph", "bfloat16", "sgd")]
COMPILED = [("compile", "float32", "sgd"), ("compile", "bfloat16", "sgd")]


def one_way(setting: Setting, execution: str, precision: str, optimizer: str) -> Iterator[Row]:
    """Weights after `UPDATES` updates, full and ragged, against the eager float32 ones; TF32 is off in both, so that
    nothing but the way differs. And whether the local complexity of the net that was trained is that of a fresh one
    with its weights, which was never compiled, recorded or rounded."""
    before, reference, _, _ = updated(setting, "eager", "float32", OPTIMIZERS[optimizer])
    _, after, took, same = updated(setting, execution, precision, OPTIMIZERS[optimizer])
    apart = ((after - reference).norm() / (reference - before).norm()).item()
    passes = apart <= TOLERANCE[precision] and execution in took and same
    yield {
        "asked": execution,
        "execution": took,
        "precision": precision,
        "optimizer": optimizer,
        "apart_over_moved": apart,
        "tolerance": TOLERANCE[precision],
        "lc_is_that_of_a_fresh_copy": same,
        "passes": passes,
    }


def updated(setting: Setting, execution: str, precision: str, chosen: Spec) -> tuple[Tensor, Tensor, str, bool]:
    """All weights before and after, as one vector; how steps were computed; whether the counts are a fresh net's."""
    dataset = build_data(RunConfig(experiment="gpu", data=data_part(setting)))
    net = seeded_net("resnet9", width=8 if setting.small else 16)
    model = to_device(Classifier(Normalise(dataset.mean, dataset.std), net), torch.device(setting.device)).train()
    optimizer = build_optimizer(chosen, model.parameters())
    size = 24 if setting.small else 100
    kept = 2 * size + size // 3
    batches = Batches(
        dataset.x_train[:kept], dataset.y_train[:kept], size, seed=0, device=setting.device, augment=("crop4", "flip")
    )
    before, fresh = weights(model), copy.deepcopy(model)
    with strict_precision():
        update = TrainStep(
            model,
            optimizer,
            F.cross_entropy,
            batch_size=size,
            precision=precision,
            execution=execution,
            clip=partial(clip_gradients, spec("value", limit=0.1), model),
        )
        for number in range(1, UPDATES + 1):
            for group in optimizer.param_groups:  # a rate that moves, as a policy moves it
                group["lr"] = LR * number / UPDATES
            update(*batches.at(number))
    fresh.load_state_dict(model.state_dict())
    images = test_images(setting, 4)
    counts = [local_complexity(each.net, images, 0.05, 5).counts for each in (model, fresh)]
    return before, weights(model), update.execution, torch.equal(*counts)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().double().cpu().flatten() for value in model.parameters()])
