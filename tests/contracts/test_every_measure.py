"""What every measure keeps: named dims and units, finite values, no trace on the model, the same answer twice."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from grokkit import measures
from grokkit.data import load_data
from grokkit.data.probes import probe_sets
from grokkit.measures import Context, Measure
from grokkit.measures.base import get_settings
from grokkit.measures.runner import make_measure_id
from grokkit.models.classifier import Classifier, Normalise
from grokkit.names import TABLE_COLUMNS

SMALL = {
    "local_complexity": {"radii": (0.05, 0.5), "directions": 4, "points": 6},
    "calibration": {"radii": (0.05, 0.1, 0.5), "directions": (2, 4), "points": 6},
    "robust_accuracy": {"epsilons": (0.05, 0.1), "steps": 2, "points": 6},
}
"""Options that make a measure quick; a measure that is quick by itself needs no entry."""


def made(name: str) -> Measure:
    return measures.create(name, **SMALL.get(name, {}))


@pytest.fixture(scope="module")
def context() -> Context:
    torch.manual_seed(0)
    data = load_data("digits", size=8)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10)
    )
    model = Classifier(Normalise(data.mean, data.std), net).train()
    model.net[1].eval()
    return Context(model, probe_sets(data, train=9, test=8, random=7))


@pytest.mark.parametrize("name", measures.names())
def test_the_reading_is_labelled_finite_and_repeatable(name: str, context: Context) -> None:
    first, second = made(name)(context), made(name)(context)
    assert first.measure == name and first.unit and np.isfinite(first.values).all()
    assert np.array_equal(first.values, second.values)
    rows = list(first.rows())
    assert len(rows) == first.values.size and set(rows[0]) <= set(TABLE_COLUMNS)
    for bound, side in ((first.low, -1), (first.high, 1)):
        assert bound is None or (side * (bound - first.values) >= -1e-12).all()


@pytest.mark.parametrize("name", measures.names())
def test_it_leaves_no_trace(name: str, context: Context) -> None:
    model = context.model
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def state() -> tuple:
        rng = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        flags = [module.training for module in model.modules()]
        hooks = [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
        gradients = [parameter.grad.sum().item() for parameter in model.parameters()]
        tensors = [tensor.clone() for tensor in model.state_dict().values()]
        return rng, flags, hooks, gradients, [tensor.tolist() for tensor in tensors]

    before = state()
    made(name)(context)
    assert state() == before


@pytest.mark.parametrize("name", measures.names())
def test_it_is_named_by_its_parameters(name: str, context: Context) -> None:
    measure = made(name)
    assert isinstance(get_settings(measure), dict)
    identity = make_measure_id(measure, context.probes, 0)
    assert identity.startswith(name + "-") and identity == make_measure_id(made(name), context.probes, 0)
    assert identity != make_measure_id(measure, context.probes, 1)
    assert identity != make_measure_id(measure, dict(list(context.probes.items())[:1]), 0)


@pytest.mark.parametrize("name", measures.names())
def test_its_docstring_says_what_it_is(name: str) -> None:
    member = measures.registry.get(name)
    assert member.__doc__ and "nit:" in (member.__call__.__doc__ or "")
